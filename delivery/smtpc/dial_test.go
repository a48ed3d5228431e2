package smtpc

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestDialRefused(t *testing.T) {
	tests := []struct {
		name, script string
		tls          TLSMode
		phase        Phase
		permanent    bool
		fate         string
		is           error
	}{
		{name: "554 greeting is for this host and hour", script: "> 554 no SMTP service here\n< QUIT",
			phase: PhaseGreeting, fate: "greeting 554 no SMTP service here"},
		{name: "521 greeting is for good", script: "> 521 5.3.2 takes no mail\n< QUIT",
			phase: PhaseGreeting, permanent: true, fate: "greeting 521 5.3.2 takes no mail"},
		{name: "421 greeting", script: "> 421 4.7.0 too many\ngone",
			phase: PhaseGreeting, fate: "greeting 421 4.7.0 too many"},
		{name: "closed before the greeting", script: "",
			phase: PhaseGreeting, fate: "local greeting 451 4.4.2 connection lost (greeting)"},
		{name: "half a greeting", script: ">> 220 mx",
			phase: PhaseGreeting, fate: "local greeting 451 4.4.2 connection lost (greeting)"},
		{name: "garbage greeting", script: "> HTTP/1.1 400 Bad Request\nsilent",
			phase: PhaseGreeting, is: ErrProtocol, fate: "local greeting 451 4.5.0 reply not understood (greeting)"},
		{name: "late greeting", script: "wait 5m1s\n> 220 mx.test",
			phase: PhaseGreeting, is: os.ErrDeadlineExceeded, fate: "local greeting 451 4.4.2 timed out (greeting)"},
		{name: "dripping greeting", script: "> 220-a\nwait 2m\n> 220-b\nwait 2m\n> 220-c\nwait 2m\n> 220 d",
			phase: PhaseGreeting, is: os.ErrDeadlineExceeded, fate: "local greeting 451 4.4.2 timed out (greeting)"},
		{name: "EHLO deferred", script: "> 220 mx\n< EHLO relay.test\n> 451 4.7.1 who are you\n< QUIT",
			phase: PhaseEhlo, fate: "ehlo 451 4.7.1 who are you"},
		{name: "EHLO and HELO refused", script: "> 220 mx\n< EHLO relay.test\n> 502 no\n< HELO relay.test\n> 550 5.7.1 go away\n< QUIT",
			phase: PhaseEhlo, permanent: true, fate: "ehlo 550 5.7.1 go away"},
		{name: "no HELO where TLS is a must", script: "> 220 mx\n< EHLO relay.test\n> 502 no\n< QUIT", tls: TLSEncrypt,
			phase: PhaseEhlo, permanent: true, fate: "ehlo 502 no"},
		{name: "421 at EHLO", script: "> 220 mx\n< EHLO relay.test\n> 421 4.3.2 shutting down\ngone",
			phase: PhaseEhlo, fate: "ehlo 421 4.3.2 shutting down"},
		{name: "closed at EHLO", script: "> 220 mx\n< EHLO relay.test",
			phase: PhaseEhlo, fate: "local ehlo 451 4.4.2 connection lost (ehlo)"},
		{name: "late at EHLO", script: "> 220 mx\n< EHLO relay.test\nwait 5m1s",
			phase: PhaseEhlo, is: os.ErrDeadlineExceeded, fate: "local ehlo 451 4.4.2 timed out (ehlo)"},
		{name: "STARTTLS not offered", script: opening + "gone", tls: TLSEncrypt,
			phase: PhaseStartTLS, is: ErrTLSRequired, fate: "local starttls 451 4.7.4 " + ErrTLSRequired.Error() + " (starttls)"},
		{name: "STARTTLS refused", script: tlsOpening + "> 554 5.7.0 no certificate\n< QUIT", tls: TLSVerify,
			phase: PhaseStartTLS, is: ErrTLSRequired, fate: "starttls 554 5.7.0 no certificate"},
		{name: "421 at STARTTLS", script: tlsOpening + "> 421 bye\ngone", tls: TLSMay,
			phase: PhaseStartTLS, fate: "starttls 421 bye"},
		{name: "421 at STARTTLS, TLS a must", script: tlsOpening + "> 421 bye\ngone", tls: TLSVerify,
			phase: PhaseStartTLS, fate: "starttls 421 bye"},
		{name: "closed at STARTTLS", script: tlsOpening, tls: TLSMay,
			phase: PhaseStartTLS, fate: "local starttls 451 4.4.2 connection lost (starttls)"},
		{name: "closed in the handshake", script: tlsOpening + "> 220 go", tls: TLSMay,
			phase: PhaseStartTLS, is: ErrTLSHandshake, fate: "local starttls 451 4.7.5 TLS handshake failed (starttls)"},
		{name: "late in the handshake", script: tlsOpening + "> 220 go\nwait 3m", tls: TLSMay,
			phase: PhaseStartTLS, is: ErrTLSHandshake, fate: "local starttls 451 4.7.5 TLS handshake failed (starttls)"},
		{name: "clear text behind STARTTLS", script: tlsOpening + ">> 220 go\\r\\n250 injected\\r\\n\ngone", tls: TLSMay,
			phase: PhaseStartTLS, is: ErrProtocol, fate: "local starttls 451 4.5.0 reply not understood (starttls)"},
		{name: "closed inside TLS", script: tlsOpening + "> 220 go\nstarttls\n< EHLO relay.test", tls: TLSMay,
			phase: PhaseEhlo, fate: "local ehlo 451 4.4.2 connection lost (ehlo)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, o := play(t, tt.script)
				o.TLS = tt.tls
				_, err := Dial(t.Context(), "mx.test", mxAddr, o)
				p.done.Wait()
				failure, ok := errors.AsType[*Error](err)
				if !ok {
					t.Fatalf("got error %v, want *Error", err)
				}
				if failure.Phase != tt.phase || failure.Permanent() != tt.permanent || failure.InDoubt {
					t.Errorf("got phase %s, permanent %v, in doubt %v", failure.Phase, failure.Permanent(), failure.InDoubt)
				}
				if tt.is != nil && !errors.Is(err, tt.is) || errors.Is(err, ErrTLSRequired) != (tt.is == ErrTLSRequired) {
					t.Errorf("got error %v, want %v", err, tt.is)
				}
				if got := fates(Result{Recipients: []Reply{failure.Fate()}})[0]; got != tt.fate {
					t.Errorf("got fate %q, want %q", got, tt.fate)
				}
			})
		})
	}
}

const tlsOpening = `
	> 220 mx.test
	< EHLO relay.test
	> 250-mx.test
	> 250 STARTTLS
	< STARTTLS
`

// A peer that only speaks HELO gets its mail step by step and without parameters.
func TestHelo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := play(t, `
			> 220 mx
			< EHLO relay.test
			> 500 what
			< HELO relay.test
			> 250 mx
			< MAIL FROM:<sender@example.org>
			> 250 ok
			< RCPT TO:<a@example.net>
			> 250 ok
			< DATA
			> 354 go
			body
			> 250 taken
			< QUIT
			> 221 bye
		`)
		o.TLS = TLSMay
		c := dial(t, o)
		res, err := c.Send(t.Context(), message(t, "a@example.net"))
		c.Close(t.Context())
		p.done.Wait()
		if err != nil || !res.Recipients[0].OK() || c.TLSState() != nil {
			t.Errorf("got %v, %v", fates(res), err)
		}
	})
}

// With TLSMay a host that offers STARTTLS and refuses it is spoken to in
// clear text on the same connection, and the caller can see that.
func TestStartTLSRefusedThenClear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := play(t, tlsOpening+"> 454 4.7.0 not now\n< QUIT\n> 221 bye")
		o.TLS = TLSMay
		c := dial(t, o)
		if r := c.TLSRefused(); r == nil || r.Code != 454 || c.TLSState() != nil {
			t.Errorf("got refused %v, state %v", r, c.TLSState())
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}

func TestTLS(t *testing.T) {
	const inside = `
		> 220 go
		starttls
		< EHLO relay.test
		> 250-mx.test
		> 250 PIPELINING
		< MAIL FROM:<sender@example.org>
		< RCPT TO:<a@example.net>
		< DATA
		> 250 ok
		> 250 ok
		> 354 go
		body
		> 250 taken
		< QUIT
		> 221 bye
	`
	for _, tt := range []struct {
		name, host string
		mode       TLSMode
		conf       *tls.Config
	}{
		{"any certificate may do", "other.test", TLSMay, nil},
		{"any certificate, encrypted", "other.test", TLSEncrypt, &tls.Config{MinVersion: tls.VersionTLS10}},
		{"valid certificate", "mx.test.", TLSVerify, &tls.Config{RootCAs: roots()}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, o := play(t, tlsOpening+inside)
				o.TLS, o.TLSConfig = tt.mode, tt.conf
				c, err := Dial(t.Context(), tt.host, mxAddr, o)
				if err != nil {
					t.Fatal(err)
				}
				if s := c.TLSState(); s == nil || s.Version < tls.VersionTLS12 || c.Extensions().Has("STARTTLS") {
					t.Errorf("got state %v", s)
				}
				if _, err := c.Send(t.Context(), message(t, "a@example.net")); err != nil {
					t.Error(err)
				}
				c.Close(t.Context())
				p.done.Wait()
			})
		})
	}
}

// Row E5-68: TLS below 1.2 is no TLS (RFC 8996).
func TestE5_68_TLSTooOld(t *testing.T) {
	client, server := net.Pipe()
	defer server.Close()
	conf := serverTLS().Clone()
	conf.MinVersion, conf.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	failed := make(chan error, 1)
	go func() { failed <- tls.Server(server, conf).Handshake() }()
	c := &Conn{wire: newWire(client, 1000, nil), host: "mx.test", o: Options{TLS: TLSMay, TLSConfig: &tls.Config{MinVersion: tls.VersionTLS10}, Timeouts: DefaultTimeouts()}}
	if err := c.handshake(t.Context()); err == nil {
		t.Error("handshake with TLS 1.1 succeeded")
	}
	client.Close()
	if err := <-failed; err == nil {
		t.Error("server's handshake with TLS 1.1 succeeded")
	}
}

func TestDialOnTheNetwork(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr).AddrPort()
	o := Options{Hostname: "relay.test", LocalAddr: addr.Addr(), Timeouts: Timeouts{Greeting: 50 * time.Millisecond}}
	_, err = Dial(t.Context(), "mx.test", addr, o) // accepted by the kernel, no greeting
	if failure, ok := errors.AsType[*Error](err); !ok || failure.Phase != PhaseGreeting || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("silent host: got %v", err)
	}
	l.Close()
	_, err = Dial(t.Context(), "mx.test", addr, o)
	failure, ok := errors.AsType[*Error](err)
	if !ok || failure.Phase != PhaseConnect || failure.Permanent() || failure.Fate().Enhanced != "4.4.1" {
		t.Errorf("refused: got %v", err)
	}
}

func TestConnectTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{Hostname: "relay.test", Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		start := time.Now()
		_, err := Dial(t.Context(), "mx.test", mxAddr, o)
		if got := time.Since(start); got != 30*time.Second || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v after %v", err, got)
		}
	})
}

func TestBadHostname(t *testing.T) {
	for _, name := range []string{"", "a b", "a\r\nMAIL FROM:<x@y>", "bücher.example"} {
		if _, err := Dial(t.Context(), "mx.test", mxAddr, Options{Hostname: name}); err == nil {
			t.Errorf("EHLO name %q was taken", name)
		}
	}
}

// Close waits for the answer to QUIT, but not long.
func TestQuitIsShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := play(t, opening+"< QUIT\nsilent")
		c := dial(t, o)
		start := time.Now()
		c.Close(t.Context())
		c.Close(t.Context())
		if got := time.Since(start); got != 5*time.Second {
			t.Errorf("closed after %v", got)
		}
		p.done.Wait()
	})
}
