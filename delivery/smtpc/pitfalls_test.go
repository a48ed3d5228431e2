package smtpc

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/google/go-cmp/cmp"
)

// The tests TestC1 to TestC13 go with the pitfalls of the client in
// emersion/go-smtp v0.25.1, one each. "Library" pins what it does, which is
// why the dialogue here is our own: when one of these fails after an upgrade,
// the reason may be gone. "Ours" is what we do instead.

// library makes a go-smtp client that meets a peer.
func library(t *testing.T, script string) (*peer, net.Conn) {
	t.Helper()
	p, o := play(t, script)
	conn, err := o.Dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	return p, conn
}

// both runs the two halves of a pitfall, each in a bubble of its own.
func both(t *testing.T, pin, ours func(t *testing.T)) {
	t.Run("library", func(t *testing.T) { synctest.Test(t, pin) })
	t.Run("ours", func(t *testing.T) { synctest.Test(t, ours) })
}

// C1: before STARTTLS the library calls itself localhost.
func TestC1OwnNameBeforeTLS(t *testing.T) {
	both(t, func(t *testing.T) {
		p, conn := library(t, "> 220 mx\n< EHLO localhost\n> 250 STARTTLS\ngone")
		if _, err := smtp.NewClientStartTLS(conn, nil); err == nil {
			t.Error("STARTTLS on the first line counts as offered")
		}
		p.done.Wait()
	}, func(t *testing.T) {
		p, o := play(t, tlsOpening+"> 220 go\nstarttls\n< EHLO relay.test\n> 250 mx\n< QUIT\n> 221 bye")
		o.TLS = TLSMay
		dial(t, o).Close(t.Context())
		p.done.Wait()
	})
}

// C2: STARTTLS not offered costs the library its connection.
func TestC2NoStartTLS(t *testing.T) {
	both(t, func(t *testing.T) {
		p, conn := library(t, "> 220 mx\n< EHLO localhost\n> 250 mx\ngone")
		if _, err := smtp.NewClientStartTLS(conn, nil); err == nil {
			t.Error("no error")
		}
		p.done.Wait()
	}, func(t *testing.T) {
		p, o := play(t, plainOpening+"< MAIL FROM:<sender@example.org>\n> 250 ok\n< RCPT TO:<a@example.net>\n> 250 ok\n< DATA\n> 354 go\nbody\n> 250 kept"+quit)
		o.TLS = TLSMay
		c := dial(t, o)
		if res, err := c.Send(t.Context(), message(t, "a@example.net")); err != nil || !res.Recipients[0].OK() {
			t.Errorf("got %v, %v", fates(res), err)
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}

// C3: the library waits for each reply; we say the envelope in one write and the content with its dot in another.
func TestC3Pipelining(t *testing.T) {
	both(t, func(t *testing.T) {
		p, conn := library(t, "> 220 mx\n< EHLO relay.test\n> 250-mx\n> 250 PIPELINING\n< MAIL FROM:<a@b>\n> 250 ok\n< RCPT TO:<c@d>\n> 250 ok\n< DATA\n> 354 go\nbody\n> 250 ok")
		c := smtp.NewClient(conn)
		defer c.Close()
		if err := errors.Join(c.Hello("relay.test"), c.Mail("a@b", nil), c.Rcpt("c@d", nil)); err != nil {
			t.Fatal(err)
		}
		w, err := c.Data()
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(w, "x\r\n")
		if err := errors.Join(err, w.Close()); err != nil || p.writes < 5 {
			t.Errorf("got %v, %d writes", err, p.writes)
		}
		p.done.Wait()
	}, func(t *testing.T) {
		p, o := play(t, opening+flightABC+"> 250 ok\n> 250 ok\n> 250 ok\n> 250 ok\n> 354 go\nbody\n> 250 kept"+quit)
		c := dial(t, o)
		before := p.writes
		if _, err := c.Send(t.Context(), message(t, "a@example.net", "b@example.net", "c@example.net")); err != nil || p.writes-before != 2 {
			t.Errorf("got %v, %d writes", err, p.writes-before)
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}

// C4: nothing ends a write of the library that the host does not read.
func TestC4StalledBody(t *testing.T) {
	const script = plainOpening + "< MAIL FROM:<a@b>\n> 250 ok\n< RCPT TO:<c@d>\n> 250 ok\n< DATA\n> 354 go\n"
	large := strings.Repeat("12345678\r\n", 20_000)
	both(t, func(t *testing.T) {
		p, conn := library(t, script+"wait 2h")
		c := smtp.NewClient(conn)
		defer c.Close()
		c.CommandTimeout, c.SubmissionTimeout = time.Second, time.Second
		if err := errors.Join(c.Hello("relay.test"), c.Mail("a@b", nil), c.Rcpt("c@d", nil)); err != nil {
			t.Fatal(err)
		}
		w, err := c.Data()
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := io.WriteString(w, large); err == nil || time.Since(start) != 2*time.Hour {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		p.done.Wait()
	}, func(t *testing.T) {
		p, o := play(t, script+"wait 2h")
		c := dial(t, o)
		m := message(t, "c@d")
		m.From, m.Body, m.Size = path(t, "a@b"), strings.NewReader(large), 0
		start := time.Now()
		if _, err := c.Send(t.Context(), m); err == nil || time.Since(start) != 3*time.Minute {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		p.done.Wait()
	})
}

// C5: the library reads a reply of any size.
func TestC5EndlessReply(t *testing.T) {
	many := strings.Repeat(`250-X-KEYWORD\r\n`, 100_000)
	both(t, func(t *testing.T) {
		p, conn := library(t, "> 220 mx\n< EHLO relay.test\n>> "+many+"\n> 250 ok")
		c := smtp.NewClient(conn)
		defer c.Close()
		if err := c.Hello("relay.test"); err != nil {
			t.Errorf("got %v", err)
		}
		p.done.Wait()
	}, func(t *testing.T) {
		p, o := play(t, "> 220 mx\n< EHLO relay.test\n>> "+many+"\n> 250 ok")
		if _, err := Dial(t.Context(), "mx.test", mxAddr, o); !errors.Is(err, ErrProtocol) {
			t.Errorf("got %v", err)
		}
		p.done.Wait()
	})
}

// C6: closing the library's writer says the dot, also behind half a message.
func TestC6HalfABody(t *testing.T) {
	const script = plainOpening + "< MAIL FROM:<a@b>\n> 250 ok\n< RCPT TO:<c@d>\n> 250 ok\n< DATA\n> 354 go\n"
	both(t, func(t *testing.T) {
		p, conn := library(t, script+"body\n> 250 kept")
		c := smtp.NewClient(conn)
		defer c.Close()
		if err := errors.Join(c.Hello("relay.test"), c.Mail("a@b", nil), c.Rcpt("c@d", nil)); err != nil {
			t.Fatal(err)
		}
		w, err := c.Data()
		if err != nil {
			t.Fatal(err)
		}
		_, copied := io.Copy(w, io.MultiReader(strings.NewReader("half"), iotest.ErrReader(io.ErrUnexpectedEOF)))
		if err := w.Close(); copied == nil || err != nil {
			t.Errorf("got %v and %v", copied, err)
		}
		p.done.Wait()
		if len(p.bodies) != 1 {
			t.Error("the half message was not taken")
		}
	}, func(t *testing.T) {
		p, o := play(t, script+"take 32768\ngone")
		c := dial(t, o)
		m := message(t, "c@d")
		m.From, m.Size = path(t, "a@b"), 0
		m.Body = io.MultiReader(strings.NewReader(strings.Repeat("12345678\r\n", 4000)), iotest.ErrReader(io.ErrUnexpectedEOF))
		res, err := c.Send(t.Context(), m)
		if !errors.Is(err, ErrBody) || !errors.Is(err, io.ErrUnexpectedEOF) || res.InDoubt || c.Reusable() || !res.Recipients[0].Temporary() {
			t.Errorf("got %v, %v", fates(res), err)
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}

// C7: the library knows EHLO keywords in upper case only.
func TestC7KeywordCase(t *testing.T) {
	const script = "> 220 mx\n< EHLO relay.test\n> 250-mx\n> 250-starttls\n> 250 Size 24\n"
	both(t, func(t *testing.T) {
		p, conn := library(t, script)
		c := smtp.NewClient(conn)
		defer c.Close()
		if err := c.Hello("relay.test"); err != nil {
			t.Fatal(err)
		}
		if ok, _ := c.Extension("STARTTLS"); ok {
			t.Error("starttls was seen")
		}
		p.done.Wait()
	}, func(t *testing.T) {
		p, o := play(t, script+"< QUIT\n> 221 bye")
		c := dial(t, o)
		if !c.Extensions().Has("STARTTLS") || c.Extensions().MaxSize() != 24 {
			t.Errorf("got %v", c.Extensions())
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}

// C8: after RSET the library says EHLO again; we say RSET only when the last message was refused (TestReuse).
func TestC8Reset(t *testing.T) {
	both(t, func(t *testing.T) {
		p, conn := library(t, plainOpening+"< RSET\n> 250 ok\n< EHLO relay.test\n> 250 mx\n< MAIL FROM:<a@b>\n> 250 ok")
		c := smtp.NewClient(conn)
		defer c.Close()
		if err := errors.Join(c.Hello("relay.test"), c.Reset(), c.Mail("a@b", nil)); err != nil {
			t.Error(err)
		}
		p.done.Wait()
	}, func(t *testing.T) {
		one := flightA + "> 250 ok\n> 250 ok\n> 354 go\nbody\n> 250 kept\n"
		p, o := play(t, opening+one+one+one+quit)
		c := dial(t, o)
		for range 3 {
			if _, err := c.Send(t.Context(), message(t, "a@example.net")); err != nil {
				t.Error(err)
			}
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}

// C9: what the host does not offer is an error without a type.
func TestC9MissingExtension(t *testing.T) {
	both(t, func(t *testing.T) {
		p, conn := library(t, plainOpening)
		c := smtp.NewClient(conn)
		defer c.Close()
		err := errors.Join(c.Hello("relay.test"), c.Mail("a@b", &smtp.MailOptions{UTF8: true}))
		if _, typed := errors.AsType[*smtp.SMTPError](err); err == nil || typed {
			t.Errorf("got %v", err)
		}
		p.done.Wait()
	}, func(t *testing.T) {
		p, o := play(t, plainOpening+quit)
		c := dial(t, o)
		m := message(t, "a@example.net")
		m.From.Local = "jürgen"
		if _, err := c.Send(t.Context(), m); !errors.Is(err, ErrNeedSMTPUTF8) {
			t.Errorf("got %v", err)
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}

// C10: the library knows no context. Ours ends whatever hangs, at every step.
func TestC10Context(t *testing.T) {
	mail := "< MAIL FROM:<sender@example.org>\n"
	steps := []struct {
		phase  Phase
		script string
	}{
		{PhaseGreeting, ""},
		{PhaseEhlo, "> 220 mx\n< EHLO relay.test\n"},
		{PhaseStartTLS, tlsOpening},
		{PhaseStartTLS, tlsOpening + "> 220 go\n"},
		{PhaseMail, plainOpening + mail},
		{PhaseRcpt, plainOpening + mail + "> 250 ok\n< RCPT TO:<a@example.net>\n"},
		{PhaseData, plainOpening + mail + "> 250 ok\n< RCPT TO:<a@example.net>\n> 250 ok\n< DATA\n"},
		{PhaseBody, plainOpening + mail + "> 250 ok\n< RCPT TO:<a@example.net>\n> 250 ok\n< DATA\n> 354 go\n"},
		{PhaseDot, plainOpening + mail + "> 250 ok\n< RCPT TO:<a@example.net>\n> 250 ok\n< DATA\n> 354 go\nbody\n"},
	}
	for _, step := range steps {
		t.Run(string(step.phase), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, o := play(t, step.script+"silent")
				o.TLS = TLSMay
				stopped := errors.New("stopped by the operator")
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, stopped)
				defer cancel()
				start := time.Now()
				c, err := Dial(ctx, "mx.test", mxAddr, o)
				if err == nil {
					m := message(t, "a@example.net")
					m.Size = 0
					_, err = c.Send(ctx, m)
				}
				failure, ok := errors.AsType[*Error](err)
				if !ok || failure.Phase != step.phase || !errors.Is(err, stopped) || failure.InDoubt != (step.phase == PhaseDot || step.phase == PhaseBody) {
					t.Errorf("got %v", err)
				}
				if got := time.Since(start); got != time.Second {
					t.Errorf("ended after %v", got)
				}
				p.done.Wait()
			})
		})
	}
}

// C11: 552 at RCPT is no permanent failure; the library says it is.
func TestC11TooManyRecipients(t *testing.T) {
	const script = plainOpening + "< MAIL FROM:<a@b>\n> 250 ok\n< RCPT TO:<c@d>\n> 552 5.5.3 too many recipients\n"
	both(t, func(t *testing.T) {
		p, conn := library(t, script)
		c := smtp.NewClient(conn)
		defer c.Close()
		err := errors.Join(c.Hello("relay.test"), c.Mail("a@b", nil), c.Rcpt("c@d", nil))
		if refused, ok := errors.AsType[*smtp.SMTPError](err); !ok || refused.Temporary() {
			t.Errorf("got %v", err)
		}
		p.done.Wait()
	}, func(t *testing.T) {
		p, o := play(t, script+quit)
		c := dial(t, o)
		m := message(t, "c@d")
		m.From, m.Size = path(t, "a@b"), 0
		res, err := c.Send(t.Context(), m)
		if diff := cmp.Diff([]string{"rcpt 452 4.5.3 too many recipients"}, fates(res)); diff != "" || err != nil {
			t.Errorf("error %v, fates (-want +got):\n%s", err, diff)
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}

// C12: the library's handshake is put off until the next command, so a bad
// certificate looks like a failed EHLO. Ours fails where it happens.
func TestC12Certificate(t *testing.T) {
	both(t, func(t *testing.T) {
		p, conn := library(t, "> 220 mx\n< EHLO localhost\n> 250-mx\n> 250 STARTTLS\n< STARTTLS\n> 220 go\nstarttls")
		c, err := smtp.NewClientStartTLS(conn, &tls.Config{ServerName: "mx.test"})
		if err != nil {
			t.Fatalf("got %v", err)
		}
		if err := c.Hello("relay.test"); err == nil {
			t.Error("a bad certificate was taken")
		}
		conn.Close()
		p.done.Wait()
	}, func(t *testing.T) {
		p, o := play(t, tlsOpening+"> 220 go\nstarttls")
		o.TLS = TLSVerify
		_, err := Dial(t.Context(), "mx.test", mxAddr, o)
		failure, ok := errors.AsType[*Error](err)
		_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
		if !ok || failure.Phase != PhaseStartTLS || !errors.Is(err, ErrTLSHandshake) || !unknown || failure.Permanent() {
			t.Errorf("got %v", err)
		}
		p.done.Wait()
	})
	t.Run("other name", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, o := play(t, tlsOpening+"> 220 go\nstarttls")
			o.TLS, o.TLSConfig = TLSVerify, &tls.Config{RootCAs: roots()}
			_, err := Dial(t.Context(), "other.test", mxAddr, o)
			if _, ok := errors.AsType[x509.HostnameError](err); !ok || !errors.Is(err, ErrTLSHandshake) {
				t.Errorf("got %v", err)
			}
			p.done.Wait()
		})
	})
}

// C13: the library turns a bare LF into CRLF and lets a bare CR through; ours sends neither.
func TestC13BareLineEnds(t *testing.T) {
	const script = plainOpening + "< MAIL FROM:<a@b>\n> 250 ok\n< RCPT TO:<c@d>\n> 250 ok\n< DATA\n> 354 go\n"
	both(t, func(t *testing.T) {
		p, conn := library(t, script+"body\n> 250 kept")
		c := smtp.NewClient(conn)
		defer c.Close()
		if err := errors.Join(c.Hello("relay.test"), c.Mail("a@b", nil), c.Rcpt("c@d", nil)); err != nil {
			t.Fatal(err)
		}
		w, err := c.Data()
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(w, "a\nb\rc\r\n")
		if err := errors.Join(err, w.Close()); err != nil {
			t.Error(err)
		}
		p.done.Wait()
		if diff := cmp.Diff([]string{"a\r\nb\rc\r\n"}, p.bodies); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}, func(t *testing.T) {
		p, o := play(t, script+"gone")
		c := dial(t, o)
		m := message(t, "c@d")
		m.From, m.Size, m.Body = path(t, "a@b"), 0, strings.NewReader("a\nb\rc\r\n")
		res, err := c.Send(t.Context(), m)
		if !errors.Is(err, ErrBareLineEnd) || res.Recipients[0].Enhanced != "5.6.0" || !res.Recipients[0].Permanent() || c.Reusable() {
			t.Errorf("got %v, %v", fates(res), err)
		}
		p.done.Wait()
	})
}

// The whole of it against the library's server, over TCP, in clear text and with TLS.
func TestAgainstLibraryServer(t *testing.T) {
	backend := &keeper{}
	s := smtp.NewServer(backend)
	s.TLSConfig, s.Domain = serverTLS(), "mx.test"
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		<-served
	})
	const text = "Subject: dots\r\n\r\n.\r\n..\r\nend"
	for _, chunking := range []bool{false, true} {
		c, err := Dial(t.Context(), "mx.test", l.Addr().(*net.TCPAddr).AddrPort(),
			Options{Hostname: "relay.test", TLS: TLSVerify, TLSConfig: &tls.Config{RootCAs: roots()}, Chunking: chunking})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			m := message(t, "a@example.net", "refused@example.net")
			m.Body, m.Size = strings.NewReader(text), int64(len(text))
			sent := 0
			m.Sent = func() { sent++ }
			res, err := c.Send(t.Context(), m)
			if err != nil || !res.Recipients[0].OK() || !res.Recipients[1].Permanent() || sent != 1 {
				t.Fatalf("got %v, %v, sent %d times", fates(res), err, sent)
			}
		}
		m := message(t, "refused@example.net") // nobody is taken: its "502 Missing RCPT" is no reason to think that BDAT is not known
		if res, err := c.Send(t.Context(), m); errors.Is(err, ErrChunking) || !res.Recipients[0].Permanent() || c.Reusable() == chunking {
			t.Errorf("nobody taken: got %v, %v, reusable %v", fates(res), err, c.Reusable())
		}
		c.Close(t.Context())
	}
	want := text + "\r\n"
	if diff := cmp.Diff([]string{want, want, want, want}, backend.bodies); diff != "" {
		t.Errorf("bodies (-want +got):\n%s", diff)
	}
}

// keeper is a backend of the library's server that keeps bodies. Its sessions come one after the other.
type keeper struct{ bodies []string }

func (k *keeper) NewSession(*smtp.Conn) (smtp.Session, error) { return k, nil }
func (k *keeper) Reset()                                      {}
func (k *keeper) Logout() error                               { return nil }
func (k *keeper) Mail(string, *smtp.MailOptions) error        { return nil }

func (k *keeper) Rcpt(to string, _ *smtp.RcptOptions) error {
	if strings.HasPrefix(to, "refused") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "unknown"}
	}
	return nil
}

func (k *keeper) Data(r io.Reader) error {
	body, err := io.ReadAll(bufio.NewReader(r))
	k.bodies = append(k.bodies, string(body))
	return err
}
