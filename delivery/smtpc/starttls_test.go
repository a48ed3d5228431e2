package smtpc

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// A session is resumed, with the check of the peer, where a handshake would have proven the same: to the same host, with
// the same certificate of ours and in the same mode.
func TestS1_21_Sessions(t *testing.T) {
	conf := serverTLS().Clone()
	conf.ClientAuth = tls.RequestClientCert
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own := serverTLS().Certificates[0]
	checks := 0
	base := Options{
		Hostname: "relay.test", TLS: TLSVerify, TLSConfig: &tls.Config{RootCAs: roots()},
		Sessions: tls.NewLRUClientSessionCache(10),
	}
	check := func(o *Options) {
		o.TLSConfig = &tls.Config{VerifyConnection: func(tls.ConnectionState) error { checks++; return nil }}
	}
	tests := []struct {
		name    string
		change  func(*Options)
		resumed bool
	}{
		{"first", func(*Options) {}, false},
		{"again", func(*Options) {}, true},
		{"with a certificate", func(o *Options) { o.ClientCertificate = &own }, false},
		{"with a certificate again", func(o *Options) { o.ClientCertificate = &own }, true},
		{"other check", check, false},
		{"other check again", check, true},
		{"other mode", func(o *Options) { o.TLS = TLSMay }, false},
		{"other name", func(o *Options) { o.TLS, o.ServerName = TLSEncrypt, "other.test" }, false},
	}
	served := make(chan struct{})
	shown := make([]bool, 0, len(tests))
	go func() {
		defer close(served)
		for range tests {
			shown = append(shown, serveTLS(l, conf))
		}
	}()
	for _, tt := range tests {
		o := base
		tt.change(&o)
		c, err := Dial(t.Context(), "mx.test", l.Addr().(*net.TCPAddr).AddrPort(), o)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if got := c.TLSState().DidResume; got != tt.resumed {
			t.Errorf("%s: got resumed %v, want %v", tt.name, got, tt.resumed)
		}
		c.Close(t.Context())
	}
	<-served
	l.Close()
	if want := []bool{false, false, true, true, false, false, false, false}; !cmp.Equal(shown, want) {
		t.Errorf("got certificates of the client %v, want %v", shown, want)
	}
	if checks != 2 {
		t.Errorf("VerifyConnection was called %d times, want once for each of its connections", checks)
	}
}

// serveTLS opens one dialogue and reports whether the client showed a certificate.
func serveTLS(l net.Listener, conf *tls.Config) bool {
	conn, err := l.Accept()
	if err != nil {
		return false
	}
	h := host{conn: conn, r: nil}
	defer func() { h.hangUp() }()
	buf := make([]byte, 1000)
	for _, line := range []string{"220 mx.test\r\n", "250-mx.test\r\n250 STARTTLS\r\n", "220 go\r\n"} {
		if _, err := conn.Write([]byte(line)); err != nil {
			return false
		}
		if line != "220 go\r\n" {
			if _, err := conn.Read(buf); err != nil {
				return false
			}
		}
	}
	secure := tls.Server(conn, conf)
	h.conn = secure
	for _, line := range []string{"250 mx.test\r\n", "221 bye\r\n"} {
		if _, err := secure.Read(buf); err != nil {
			return false
		}
		if _, err := secure.Write([]byte(line)); err != nil {
			return false
		}
	}
	return len(secure.ConnectionState().PeerCertificates) > 0
}

func TestCertificateRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Options)
	}{
		{"unknown authority", func(o *Options) { o.TLS = TLSVerify }},
		{"other name", func(o *Options) {
			o.TLS, o.TLSConfig, o.ServerName = TLSVerify, &tls.Config{RootCAs: roots()}, "other.test"
		}},
		{"own check", func(o *Options) {
			o.TLS, o.TLSConfig = TLSMay, &tls.Config{VerifyConnection: func(tls.ConnectionState) error { return errors.New("no match") }}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, o := play(t, tlsOpening+"> 220 go\nstarttls")
				tt.change(&o)
				_, err := Dial(t.Context(), "mx.test", mxAddr, o)
				if !errors.Is(err, ErrCertificate) || !errors.Is(err, ErrTLSHandshake) {
					t.Errorf("got %v", err)
				}
				p.done.Wait()
			})
		})
	}
}

// TestImplicitTLS: the handshake comes before the greeting, clear text is never spoken, and STARTTLS is not asked for inside.
func TestImplicitTLS(t *testing.T) {
	const inside = "starttls\n> 220 mx.test\n< EHLO relay.test\n> 250-mx.test\n> 250 STARTTLS\n"
	tests := []struct {
		name, script string
		mode         TLSMode
		conf         *tls.Config
		phase        Phase // of the failure; empty: the connection opens
		is           error
	}{
		{name: "no mode is encrypt", script: inside + "< QUIT\n> 221 bye", mode: TLSNone},
		{name: "verify", script: inside + "< QUIT\n> 221 bye", mode: TLSVerify, conf: &tls.Config{RootCAs: roots()}},
		{name: "unknown authority", script: "starttls", mode: TLSVerify, phase: PhaseStartTLS, is: ErrCertificate},
		{name: "clear text", script: "take 5\n> 220 mx.test", mode: TLSMay, phase: PhaseStartTLS, is: ErrTLSHandshake},
		{name: "refused inside", script: "starttls\n> 554 5.7.1 not you\n< QUIT", mode: TLSEncrypt, phase: PhaseGreeting},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, o := play(t, tt.script)
				o.ImplicitTLS, o.TLS, o.TLSConfig = true, tt.mode, tt.conf
				c, err := Dial(t.Context(), "mx.test", mxAddr, o)
				if failure, is := errors.AsType[*Error](err); is != (tt.phase != "") || is && (failure.Phase != tt.phase || tt.is != nil && !errors.Is(err, tt.is)) {
					t.Errorf("got %v, want a failure at %q with %v", err, tt.phase, tt.is)
				}
				if err == nil {
					if c.TLSState() == nil {
						t.Error("no TLS")
					}
					c.Close(t.Context())
				}
				p.done.Wait()
			})
		})
	}
}

func TestBadAuth(t *testing.T) {
	for _, a := range []Auth{{}, {Username: "tim"}, {Username: "tim", Password: "a\x00b"}, {Username: "tim", Password: "x", Mechanisms: []string{"CRAM-MD5"}}} {
		_, err := Dial(t.Context(), "mx.test", mxAddr, Options{Hostname: "relay.test", Auth: &a})
		if err == nil || a.Password != "" && strings.Contains(err.Error(), a.Password+"\x00") {
			t.Errorf("credentials %+v: got %v", a, err)
		}
	}
}

// A tap hears everything but credentials and content.
func TestTap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := play(t, "> 220 mx.test\n< EHLO relay.test\n> 250-mx.test\n> 250-PIPELINING\n> 250 AUTH PLAIN LOGIN\n"+
			"< AUTH PLAIN AHRpbQBzZWNyZXQ=\n> 535 5.7.8 no\n< QUIT")
		var heard []string
		tap := func(l Line) {
			if !l.At.IsZero() {
				heard = append(heard, string(l.From)+" "+l.Text)
			}
		}
		o.Tap, o.Auth = tap, &Auth{Username: "tim", Password: "secret", AllowInsecure: true, Mechanisms: []string{Plain}}
		if _, err := Dial(t.Context(), "mx.test", mxAddr, o); err == nil {
			t.Error("login succeeded")
		}
		p.done.Wait()
		p, o = play(t, "> 220 mx.test\n< EHLO relay.test\n> 250-mx.test\n> 250-PIPELINING\n> 250 AUTH LOGIN\n"+
			"< AUTH LOGIN\n> 334 VXNlcm5hbWU6\n< dGlt\n> 334 UGFzc3dvcmQ6\n< c2VjcmV0\n> 235 in\n"+
			"< MAIL FROM:<sender@example.org>\n< RCPT TO:<a@example.net>\n< DATA\n>> 250 2.1.0 o\x07k\\r\\n250 ok\\r\\n354 go\\r\\n\nbody\n> 250-kept\n> 250 as 7"+quit)
		o.Auth = &Auth{Username: "tim", Password: "secret", AllowInsecure: true}
		c := dial(t, o)
		m := message(t, "a@example.net")
		m.Tap = tap
		if _, err := c.Send(t.Context(), m); err != nil {
			t.Error(err)
		}
		c.Close(t.Context())
		p.done.Wait()
		want := []string{
			"* connected to mx.test 192.0.2.25:25",
			"S 220 mx.test", "C EHLO relay.test", "S 250-mx.test", "S 250-PIPELINING", "S 250 AUTH PLAIN LOGIN",
			"C AUTH PLAIN [hidden]", "S 535 5.7.8 no",
			"* closed: auth: 535 5.7.8 no: the host did not let us log in",
			"C MAIL FROM:<sender@example.org>", "C RCPT TO:<a@example.net>", "C DATA",
			"S 250 2.1.0 o?k", "S 250 ok", "S 354 go",
			"C [25 octets of content]", "C .", "S 250-kept", "S 250 as 7",
			"C QUIT", "S 221 bye",
		}
		if diff := cmp.Diff(want, heard); diff != "" {
			t.Errorf("heard (-want +got):\n%s", diff)
		}
	})
}
