package check

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"postroad/ingress"
)

// secure is an ingress with a good certificate: by STARTTLS and logins, from the first octet, and in clear.
func secure(t *testing.T, s *store) (ca *authority, start, implicit, open string) {
	t.Helper()
	ca = newAuthority(t)
	config := &tls.Config{Certificates: []tls.Certificate{ca.pair("relay.test", time.Hour)}, MinVersion: tls.VersionTLS12}
	addrs := relay(t, s,
		ingress.Listener{TLS: config, Auth: ingress.AuthRequired},
		ingress.Listener{TLS: config, Implicit: true, Auth: ingress.AuthOptional},
		ingress.Listener{Auth: ingress.AuthOptional, AuthInClear: true})
	return ca, addrs[0], addrs[1], addrs[2]
}

// TestWholeMail is what a runbook does: TLS, a login, a mail.
func TestWholeMail(t *testing.T) {
	s := &store{}
	ca, start, implicit, _ := secure(t, s)
	for server, mode := range map[string]TLSMode{start: StartTLS, implicit: ImplicitTLS} {
		var said []Line
		r := SMTP(t.Context(), Options{Server: server, TLS: mode, CAs: ca.pool, Name: "relay.test", User: "web1", Password: goodPassword,
			Sender: "a@from.test", Recipients: []string{"b@to.test", "c@to.test"}, Say: func(l Line) { said = append(said, l) }})
		is(t, r, true)
		has(t, r, Good, "tls", "TLS 1.3")
		has(t, r, Good, "certificate", "for relay.test, by CN=Test Authority, until")
		has(t, r, Good, "ehlo", "AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN")
		has(t, r, Good, "auth", "SCRAM-SHA-256-PLUS as web1: 235")
		has(t, r, Good, "data", "queued as id1")
		if len(said) != len(r.Transcript) || len(said) < 20 || strings.Contains(told(r), goodPassword) {
			t.Errorf("got %d lines said, %d kept:\n%s", len(said), len(r.Transcript), told(r))
		}
		if r.TLS.Certificates[0].Key != "ECDSA P-256" || !r.TLS.Trusted || !strings.HasPrefix(r.TLS.Certificates[0].Fingerprint, "sha256:") {
			t.Errorf("got %+v", r.TLS)
		}
		if last := said[len(said)-1].String(); !strings.HasPrefix(last, "<~  221") {
			t.Errorf("got %q at the end, want the goodbye under TLS", last)
		}
	}
	if len(s.mails) != 2 || !strings.Contains(s.mails[0], "Subject: postroad check ") || !strings.HasPrefix(s.mails[0], "a@from.test\n") {
		t.Errorf("got %q", s.mails)
	}
}

// TestLogins: every mechanism, and what the server says to those that fail.
func TestLogins(t *testing.T) {
	ca, start, _, open := secure(t, &store{})
	under := Options{Server: start, TLS: StartTLS, CAs: ca.pool, Name: "relay.test", User: "web1", Password: goodPassword}
	clear := Options{Server: open, User: "web1", Password: goodPassword}
	for name, tt := range map[string]struct {
		from   Options
		change func(*Options)
		good   bool
		state  State
		step   string
		text   string
	}{
		"scram":                  {under, func(o *Options) { o.Mechanism = "scram-sha-256" }, true, Good, "auth", "SCRAM-SHA-256 as web1"},
		"plain":                  {under, func(o *Options) { o.Mechanism = "PLAIN" }, true, Good, "auth", "PLAIN as web1"},
		"login":                  {under, func(o *Options) { o.Mechanism = "LOGIN" }, true, Good, "auth", "LOGIN as web1"},
		"person":                 {under, func(o *Options) { o.User = "person" }, true, Good, "auth", "PLAIN as person"},
		"person, noted":          {under, func(o *Options) { o.User = "person" }, true, Note, "auth", "SCRAM-SHA-256-PLUS: 535"},
		"wrong":                  {under, func(o *Options) { o.Password = "wrong horse battery" }, false, Bad, "auth", "PLAIN: 535 5.7.8 wrong name or password"},
		"disabled":               {under, func(o *Options) { o.User = "locked"; o.Mechanism = "PLAIN" }, false, Bad, "auth", "535"},
		"unknown":                {under, func(o *Options) { o.User = "nobody"; o.Mechanism = "SCRAM-SHA-256" }, false, Bad, "auth", "535"},
		"wrong, as expected":     {under, func(o *Options) { o.Password = "wrong horse"; o.Mechanism = "PLAIN"; o.Expect = Codes{"535"} }, true, Good, "auth", "as expected"},
		"good, not expected":     {under, func(o *Options) { o.Expect = Codes{"535"} }, false, Bad, "expect", "got 235"},
		"not offered":            {under, func(o *Options) { o.Mechanism = "GSSAPI" }, false, Bad, "auth", "no way to log in"},
		"another sender":         {under, func(o *Options) { o.Sender = "a@elsewhere.test"; o.Expect = Codes{"550"} }, true, Good, "mail", "you may not send as this sender"},
		"scram in clear":         {clear, func(*Options) {}, true, Good, "auth", "SCRAM-SHA-256 as web1"},
		"clear is noted":         {clear, func(*Options) {}, true, Note, "ehlo", "passwords are taken in clear"},
		"no plain in clear":      {clear, func(o *Options) { o.Mechanism = "PLAIN" }, false, Bad, "auth", "no way to log in"},
		"plain in clear":         {clear, func(o *Options) { o.Mechanism = "PLAIN"; o.AuthInClear = true }, true, Good, "auth", "PLAIN as web1"},
		"no plain to a stranger": {under, func(o *Options) { o.CAs = x509.NewCertPool(); o.Mechanism = "PLAIN" }, false, Bad, "auth", "no way to log in"},
		"person in clear":        {clear, func(o *Options) { o.User = "person" }, false, Bad, "auth", "SCRAM-SHA-256: 535"},
		"tls needed":             {under, func(o *Options) { o.TLS = NoTLS }, false, Bad, "auth", "no logins here"},
		"tls not offered":        {clear, func(o *Options) { o.TLS = StartTLS }, false, Bad, "tls", "does not offer STARTTLS"},
		"login needed":           {under, func(o *Options) { o.User = ""; o.Sender = "<>" }, false, Bad, "mail", "530 5.7.0 log in first"},
	} {
		t.Run(name, func(t *testing.T) {
			o := tt.from
			tt.change(&o)
			r := SMTP(t.Context(), o)
			is(t, r, tt.good)
			has(t, r, tt.state, tt.step, tt.text)
			coded := encode("\x00" + o.User + "\x00" + o.Password)
			for _, secret := range []string{o.Password, encode(o.Password), coded, ",p="} {
				if strings.Contains(told(r), secret) {
					t.Errorf("%q is shown:\n%s", secret, told(r))
				}
			}
		})
	}
}

func TestStages(t *testing.T) {
	ca, start, _, _ := secure(t, &store{})
	for stage, last := range map[string]string{
		"connect": "220 ", "first-helo": "250 LIMITS", "tls": "220 2.0.0 ready", "HELO": "250 ", "auth": "235 ", "mail": "250 2.1.0", "rcpt": "250 2.1.5", "data": "250 2.0.0 queued",
	} {
		stop, err := ParseStage(stage)
		if err != nil {
			t.Fatal(err)
		}
		r := SMTP(t.Context(), Options{Server: start, TLS: StartTLS, CAs: ca.pool, Name: "relay.test", User: "web1", Password: goodPassword,
			Sender: "a@from.test", Recipients: []string{"b@to.test"}, Stop: stop})
		is(t, r, true)
		i := len(r.Transcript) - 3 // before QUIT and its answer
		for r.Transcript[i].From != fromServer {
			i--
		}
		got := r.Transcript[i].Text
		if prefix, _, _ := strings.Cut(last, " "); !strings.HasPrefix(got, prefix+" ") {
			t.Errorf("%s: got %q before the end, want %q", stage, got, last)
		}
	}
	if _, err := ParseStage("lunch"); err == nil {
		t.Error("got no error")
	}
}

func TestRelay(t *testing.T) {
	addrs := relay(t, &store{}, ingress.Listener{TrustedNetworks: everybody()}, ingress.Listener{})
	ca, start, _, _ := secure(t, &store{})
	o := Options{Server: addrs[1], Sender: "a@from.test", Recipients: []string{"b@to.test"}}
	r := Relay(t.Context(), o)
	is(t, r, true)
	has(t, r, Good, "rcpt", "550 5.7.1 unauthenticated relay not permitted, as expected")

	o.Expect = Codes{"550"}
	is(t, Relay(t.Context(), o), true)
	o.Expect = Codes{"530"}
	r = Relay(t.Context(), o)
	is(t, r, false)
	has(t, r, Bad, "rcpt", "expected was 530")

	o.Server, o.Expect = addrs[0], nil
	r = Relay(t.Context(), o)
	is(t, r, false)
	has(t, r, Bad, "rcpt", "got <b@to.test>: 250")
	if v := r.Verdicts[len(r.Verdicts)-1]; !strings.Contains(v.Hint, "open relay") {
		t.Errorf("got %+v, want the name of the trouble", v)
	}

	o.Server, o.TLS, o.CAs, o.Name, o.Expect = start, StartTLS, ca.pool, "relay.test", Codes{"550", "530"}
	r = Relay(t.Context(), o)
	is(t, r, true)
	has(t, r, Good, "mail", "530")

	is(t, Relay(t.Context(), Options{Server: addrs[1]}), false) // nobody to send to
}

func TestCertificates(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	alone := ca.pair("relay.test", time.Hour)
	key := newKey(t)
	self := &authority{t: t, key: key}
	cert := self.sign(&x509.Certificate{DNSNames: []string{"relay.test"}, NotAfter: time.Now().Add(time.Hour)}, key)
	middle := newAuthority(t)
	middle.cert = ca.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}, middle.key)
	long := middle.pair("relay.test", time.Hour)
	whole := tls.Certificate{Certificate: append([][]byte{}, long.Certificate[0], middle.cert.Raw), PrivateKey: long.PrivateKey}
	for name, tt := range map[string]struct {
		pair   tls.Certificate
		change func(*Options)
		want   string // in a bad verdict; empty: all is good
		most   uint16
	}{
		"good":        {pair: alone},
		"chain":       {pair: whole},
		"chain short": {pair: long, want: "whom this machine does not trust"},
		"name":        {pair: alone, change: func(o *Options) { o.Name = "mail.test" }, want: "not for mail.test, but for relay.test"},
		"address":     {pair: alone, change: func(o *Options) { o.Name = "" }, want: "not for 127.0.0.1"},
		"stranger":    {pair: other.pair("relay.test", time.Hour), want: "whom this machine does not trust"},
		"ended":       {pair: ca.pair("relay.test", -time.Hour), want: "ended on"},
		"ends":        {pair: alone, change: func(o *Options) { o.MinLeft = 48 * time.Hour }, want: "ends on"},
		"self":        {pair: tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}, want: "signed by itself"},
		"old version": {pair: alone, most: tls.VersionTLS11, want: "TLS 1.1 is outdated"},
	} {
		t.Run(name, func(t *testing.T) {
			config := &tls.Config{Certificates: []tls.Certificate{tt.pair}, MinVersion: tls.VersionTLS12, MaxVersion: tt.most}
			if tt.most != 0 {
				config.MinVersion = tls.VersionTLS10
			}
			addrs := relay(t, &store{}, ingress.Listener{TLS: config}, ingress.Listener{TLS: config, Implicit: true})
			for i, mode := range []TLSMode{StartTLS, ImplicitTLS} {
				o := Options{Server: addrs[i], TLS: mode, CAs: ca.pool, Name: "relay.test"}
				if tt.change != nil {
					tt.change(&o)
				}
				r := TLS(t.Context(), o)
				is(t, r, tt.want == "")
				if tt.most == 0 {
					has(t, r, Good, "old versions", "refused")
				} else {
					has(t, r, Bad, "old versions", "TLS 1.1 is accepted")
				}
				if tt.want != "" && !strings.Contains(told(r), tt.want) {
					t.Errorf("%s: %q is missing:\n%s", mode, tt.want, told(r))
				}
			}
		})
	}
}

// TestWrongPort: one speaks TLS and the other does not.
func TestWrongPort(t *testing.T) {
	_, start, implicit, _ := secure(t, &store{})
	r := TLS(t.Context(), Options{Server: start, TLS: ImplicitTLS})
	is(t, r, false)
	has(t, r, Bad, "tls", "does not speak TLS here")
	r = TLS(t.Context(), Options{Server: implicit, TLS: StartTLS, Timeout: 3 * time.Second})
	is(t, r, false)
	has(t, r, Bad, "greeting", "no answer within 3s")
	if v := r.Verdicts[len(r.Verdicts)-1]; !strings.Contains(v.Hint, "--tls implicit") {
		t.Errorf("got %+v", v)
	}
}

// TestByCertificate logs in without a password.
func TestByCertificate(t *testing.T) {
	ca := newAuthority(t)
	config := &tls.Config{Certificates: []tls.Certificate{ca.pair("relay.test", time.Hour)}, ClientAuth: tls.RequestClientCert}
	addr := relay(t, &store{}, ingress.Listener{TLS: config, Auth: ingress.AuthRequired})[0]
	own := ca.pair("web9.test", time.Hour)
	r := SMTP(t.Context(), Options{Server: addr, TLS: StartTLS, CAs: ca.pool, Name: "relay.test", Certificate: &own, User: "web9"})
	is(t, r, false)
	has(t, r, Bad, "auth", "EXTERNAL: 535")
}

func TestCodes(t *testing.T) {
	for text, want := range map[string]bool{"550": true, "530, 550": true, "5xx": true, "5XX": true, "": false, "5x": false, "55x": false, "5x0": false, "999": false, "xxx": false, "+55": false, "550,": false} {
		if _, err := ParseCodes(text); (err == nil) != want {
			t.Errorf("%q: got %v", text, err)
		}
	}
}
