package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"postroad/delivery/smtpc"
)

const (
	stsZone    = theZone + `_mta-sts.example.test. TXT "v=STSv1; id=1;"` + "\n"
	enforceMX  = "version: STSv1\r\nmode: enforce\r\nmx: mx.example.test\r\nmax_age: 86400\r\n"
	enforceAll = "version: STSv1\nmode: enforce\nmx: *.example.test\nmax_age: 86400\n"
	enforceNot = "version: STSv1\nmode: enforce\nmx: elsewhere.test\nmax_age: 86400\n"
)

// served answers with a policy as it should be.
func served(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/.well-known/mta-sts.txt" || r.Host != "mta-sts.example.test" {
			http.Error(w, "no", http.StatusTeapot)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, text)
	}
}

// Row E5-70, RFC 8461: what becomes of mail to a domain with a policy, over real handshakes and a real HTTPS server.
func TestE5_70_STS(t *testing.T) {
	ca := authority(t)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	good := chain(issue(t, ca, nil, "mx.example.test"))
	wrongName := chain(issue(t, ca, nil, "example.test"))
	late := chain(issue(t, ca, expired, "mx.example.test"))
	self := chain(issue(t, nil, nil, "mx.example.test"))
	web := issue(t, ca, nil, "mta-sts.example.test")
	testing_ := func(text string) string { return strings.Replace(text, "enforce", "testing", 1) }

	tests := []struct {
		name    string
		policy  http.HandlerFunc
		zone    string
		web     *pair
		cert    *tls.Certificate
		mail    Mail
		want    string
		report  string
		options Options
	}{
		{name: "enforce ok", policy: served(enforceMX), cert: &good, want: "delivered sts", report: "sts ok"},
		{name: "enforce ok by wildcard", policy: served(enforceAll), cert: &good, want: "delivered sts", report: "sts ok"},
		{name: "enforce, host not named", policy: served(enforceNot), cert: &good, want: "451 4.7.0", report: "sts validation-failure"},
		{name: "enforce, certificate for another name", policy: served(enforceMX), cert: &wrongName, want: "451 4.7.5", report: "sts certificate-host-mismatch"},
		{name: "enforce, certificate expired", policy: served(enforceMX), cert: &late, want: "451 4.7.5", report: "sts certificate-expired"},
		{name: "enforce, certificate not trusted", policy: served(enforceMX), cert: &self, want: "451 4.7.5", report: "sts certificate-not-trusted"},
		{name: "enforce, no STARTTLS", policy: served(enforceMX), want: "451 4.7.4", report: "sts starttls-not-supported"},

		{name: "testing ok", policy: served(testing_(enforceMX)), cert: &good, want: "delivered sts-testing", report: "sts ok"},
		{name: "testing, host not named", policy: served(testing_(enforceNot)), cert: &good, want: "delivered sts-testing", report: "sts validation-failure"},
		{name: "testing, certificate for another name", policy: served(testing_(enforceMX)), cert: &wrongName, want: "delivered sts-testing", report: "sts certificate-host-mismatch"},
		{name: "testing, certificate not trusted", policy: served(testing_(enforceMX)), cert: &self, want: "delivered sts-testing", report: "sts certificate-not-trusted"},
		{name: "testing, no STARTTLS", policy: served(testing_(enforceMX)), want: "delivered sts-testing in clear", report: "sts starttls-not-supported"},
		{name: "testing below a floor of verify", policy: served(testing_(enforceNot)), cert: &good, mail: Mail{Floor: smtpc.TLSVerify}, want: "delivered sts-testing", report: "sts validation-failure"},

		{name: "mode none", policy: served("version: STSv1\nmode: none\nmax_age: 86400\n"), cert: &self, want: "delivered may", report: "no-policy-found ok"},
		{name: "no record", policy: served(enforceNot), zone: theZone, cert: &self, want: "delivered may", report: "no-policy-found ok"},
		{name: "two records", policy: served(enforceNot), zone: stsZone + `_mta-sts.example.test. TXT "v=STSv1; id=2;"` + "\n", cert: &self, want: "delivered may", report: "no-policy-found ok"},
		{name: "missing", policy: http.NotFound, cert: &self, want: "delivered may", report: "no-policy-found ok, sts sts-policy-fetch-error"},
		{name: "no server", cert: &self, want: "delivered may", report: "no-policy-found ok, sts sts-policy-fetch-error"},
		{name: "redirect", policy: func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/policy" {
				served(enforceNot)(w, r)
				return
			}
			http.Redirect(w, r, "/policy", http.StatusFound)
		}, cert: &self, want: "delivered may", report: "no-policy-found ok, sts sts-policy-fetch-error"},
		{name: "not text/plain", policy: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, enforceNot)
		}, cert: &self, want: "delivered may", report: "no-policy-found ok, sts sts-policy-fetch-error"},
		{name: "too long", policy: served(enforceNot + strings.Repeat("x: y\n", 20000)), cert: &self, want: "delivered may", report: "no-policy-found ok, sts sts-policy-fetch-error"},
		{name: "unreadable", policy: served("mode: enforce\n"), cert: &self, want: "delivered may", report: "no-policy-found ok, sts sts-policy-invalid"},
		{name: "server's certificate for another name", policy: served(enforceNot), web: issue(t, ca, nil, "example.test"), cert: &self, want: "delivered may", report: "no-policy-found ok, sts sts-webpki-invalid"},
		{name: "server's certificate expired", policy: served(enforceNot), web: issue(t, ca, expired, "mta-sts.example.test"), cert: &self, want: "delivered may", report: "no-policy-found ok, sts sts-webpki-invalid"},
		{name: "server's certificate not trusted", policy: served(enforceNot), web: issue(t, nil, nil, "mta-sts.example.test"), cert: &self, want: "delivered may", report: "no-policy-found ok, sts sts-webpki-invalid"},

		{name: "TLS-Required: No", policy: served(enforceNot), cert: &self, mail: Mail{Floor: smtpc.TLSMay, Optional: true}, want: "delivered may"},
		{name: "ignored by the operator", policy: served(enforceNot), cert: &self, options: Options{Ignore: []string{theDomain}}, want: "delivered may", report: "no-policy-found ok"},
		{name: "floor none does not open the door", policy: served(enforceNot), cert: &good, mail: Mail{Floor: smtpc.TLSNone, IsMX: true}, want: "451 4.7.0"},
		{name: "floor encrypt without policy", zone: theZone, mail: Mail{Floor: smtpc.TLSEncrypt}, want: "451 4.7.4", report: "no-policy-found starttls-not-supported"},
	}
	for _, tt := range tests {
		t.Run("E5-70 "+tt.name, func(t *testing.T) {
			t.Parallel()
			s := &stage{zone: tt.zone, policy: tt.policy, webCert: tt.web, roots: roots, host: mailHost{cert: tt.cert}, options: tt.options}
			if s.zone == "" {
				s.zone = stsZone
			}
			if s.webCert == nil {
				s.webCert = web
			}
			if tt.mail == (Mail{}) {
				tt.mail.Floor = smtpc.TLSMay
			}
			got, report := s.play(t, tt.mail)
			if strings.HasPrefix(tt.name, "floor none") {
				report = "" // it has no session
			}
			if got != tt.want || report != tt.report {
				t.Errorf("got %q, reported %q; want %q, %q", got, report, tt.want, tt.report)
			}
		})
	}
}

// RFC 8461 §2: DANE goes before MTA-STS, in both directions.
func TestE5_69_DANEBeforeSTS(t *testing.T) {
	ca := authority(t)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	leaf, web := issue(t, ca, nil, "mx.example.test"), issue(t, ca, nil, "mta-sts.example.test")
	cert := chain(leaf)
	for _, tt := range []struct{ name, record, policy, want string }{
		{"DANE well, MTA-STS would refuse", tlsa(3, 1, 1, leaf), enforceNot, "delivered dane 3 1 1"},
		{"MTA-STS well, DANE refuses", tlsa(3, 1, 1, ca), enforceMX, "451 4.7.5"},
		{"no record is usable, MTA-STS speaks", tlsa(1, 1, 1, leaf), enforceNot, "451 4.7.0"},
	} {
		t.Run("E5-69 "+tt.name, func(t *testing.T) {
			s := &stage{zone: stsZone + "_25._tcp.mx.example.test. TLSA " + tt.record + "\n", policy: served(tt.policy), webCert: web, roots: roots, host: mailHost{cert: &cert}}
			if got, _ := s.play(t, Mail{Floor: smtpc.TLSMay}); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// Row E5-71, RFC 8689 §4.2.1: what a hop must have.
func TestE5_71_RequireTLS(t *testing.T) {
	ca := authority(t)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	leaf, web := issue(t, ca, nil, "mx.example.test"), issue(t, ca, nil, "mta-sts.example.test")
	good, self := chain(leaf), chain(issue(t, nil, nil, "mx.example.test"))
	insecure := map[string]bool{theDomain: true}
	for _, tt := range []struct {
		name, zone, policy string
		cert               *tls.Certificate
		insecure           map[string]bool
		lacks              bool
		fail               map[string]bool
		want               string
	}{
		{name: "proven MX, DANE", zone: theZone + "_25._tcp.mx.example.test. TLSA " + tlsa(3, 1, 1, leaf) + "\n", cert: &good, want: "delivered dane 3 1 1"},
		{name: "proven MX, valid certificate", zone: theZone, cert: &good, want: "delivered verify"},
		{name: "proven MX, certificate not trusted", zone: theZone, cert: &self, want: "550 5.7.30"},
		{name: "proven MX, DANE mismatch", zone: theZone + "_25._tcp.mx.example.test. TLSA " + tlsa(3, 1, 1, ca) + "\n", cert: &good, want: "550 5.7.30"},
		{name: "MX named by MTA-STS", zone: stsZone, insecure: insecure, policy: enforceMX, cert: &good, want: "delivered sts"},
		{name: "MX proven by nobody", zone: theZone, insecure: insecure, cert: &good, want: "550 5.7.30"},
		{name: "MX proven by nobody, name service fails", zone: theZone, insecure: insecure, fail: map[string]bool{"_mta-sts." + theDomain: true}, cert: &good, want: "451 4.7.0"},
		{name: "MX proven by nobody, policy cannot be fetched", zone: stsZone, insecure: insecure, cert: &good, want: "451 4.7.0"},
		{name: "REQUIRETLS not offered", zone: theZone, lacks: true, cert: &good, want: "550 5.7.30"},
		{name: "no STARTTLS", zone: theZone, want: "550 5.7.30"},
	} {
		t.Run("E5-71 "+tt.name, func(t *testing.T) {
			s := &stage{zone: tt.zone, insecure: tt.insecure, fail: tt.fail, webCert: web, roots: roots, host: mailHost{cert: tt.cert, requireTLS: !tt.lacks}}
			if tt.policy != "" {
				s.policy = served(tt.policy)
			}
			if got, _ := s.play(t, Mail{Floor: smtpc.TLSMay, RequireTLS: true}); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	plan := Plan{Need: true, mx: "mx.example.test"}
	for _, err := range []error{
		&smtpc.Error{Phase: smtpc.PhaseConnect, Err: errors.New("connection refused")},
		&smtpc.Error{Phase: smtpc.PhaseStartTLS, Err: fmt.Errorf("%w: %w", smtpc.ErrTLSHandshake, io.EOF)},
		&smtpc.Error{Phase: smtpc.PhaseStartTLS, Reply: &smtpc.Reply{Code: 454, Lines: []string{"TLS not available"}}, Err: smtpc.ErrTLSRequired},
		&smtpc.Error{Phase: smtpc.PhaseStartTLS, Reply: &smtpc.Reply{Code: 421, Lines: []string{"too busy"}}},
	} {
		if f, is := errors.AsType[*Failure](plan.Refuse(err)); is && f.Permanent {
			t.Errorf("%v: got it permanent", err)
		}
	}
}

func TestParseSTS(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		ok         bool
		maxAge     time.Duration
		mx         string
	}{
		{"LF and CRLF, unknown field", "version: STSv1\nmode:enforce\r\nmx: A.Example.TEST.\nmx:*.example.test\nmax_age: 604800\nfuture: x\n", true, 168 * time.Hour, "a.example.test *.example.test"},
		{"first counts", "version: STSv1\nmode: testing\nmode: enforce\nmx: a.test\nmax_age: 1\nmax_age: 2\n", true, time.Second, "a.test"},
		{"max_age of more than a year", "version: STSv1\nmode: enforce\nmx: a.test\nmax_age: 9999999999\n", true, maxPolicyAge, "a.test"},
		{"none needs no mx", "version: STSv1\nmode: none\nmax_age: 0\n", true, 0, ""},
		{"no mx", "version: STSv1\nmode: enforce\nmax_age: 1\n", false, 0, ""},
		{"no version", "mode: enforce\nmx: a.test\nmax_age: 1\n", false, 0, ""},
		{"other version", "version: STSv2\nmode: enforce\nmx: a.test\nmax_age: 1\n", false, 0, ""},
		{"other mode", "version: STSv1\nmode: strict\nmx: a.test\nmax_age: 1\n", false, 0, ""},
		{"bad max_age", "version: STSv1\nmode: enforce\nmx: a.test\nmax_age: -1\n", false, 0, ""},
		{"wildcard inside", "version: STSv1\nmode: enforce\nmx: a.*.test\nmax_age: 1\n", false, 0, ""},
		{"address", "version: STSv1\nmode: enforce\nmx: [192.0.2.1]\nmax_age: 1\n", false, 0, ""},
		{"html", "<html>\n", false, 0, ""},
		{"empty", "", false, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := ParseSTS(tt.text)
			if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrPolicy) {
				t.Fatalf("got %+v, %v", s, err)
			}
			if tt.ok && (s.MaxAge != tt.maxAge || strings.Join(s.MX, " ") != tt.mx) {
				t.Errorf("got %v, %q", s.MaxAge, s.MX)
			}
		})
	}
}

func TestSTSMatches(t *testing.T) {
	s := STS{MX: []string{"mx.example.test", "*.wild.test"}}
	for host, want := range map[string]bool{
		"mx.example.test": true, "MX.example.test.": true, "a.mx.example.test": false, "example.test": false,
		"a.wild.test": true, "a.b.wild.test": false, "wild.test": false, "awild.test": false, "": false,
	} {
		if got := s.Matches(host); got != want {
			t.Errorf("%q: got %t, want %t", host, got, want)
		}
	}
}

func TestParseRecord(t *testing.T) {
	for _, tt := range []struct {
		records []string
		want    string
	}{
		{[]string{"v=STSv1; id=20260101T00;"}, "20260101T00"},
		{[]string{"v=STSv1 ;id=a"}, "a"},
		{[]string{"v=spf1 -all", "v=STSv1; x=y; id=1"}, "1"},
		{[]string{"v=STSv1; id=1", "v=STSv1; id=2"}, ""},
		{[]string{"v=STSv1; id=a_b"}, ""},
		{[]string{"v=STSv1; id="}, ""},
		{[]string{"v=STSv1;"}, ""},
		{[]string{"v=STSv1"}, ""},
		{[]string{"id=1; v=STSv1"}, ""},
		{[]string{"v=STSv1; id=" + strings.Repeat("1", 33)}, ""},
		{nil, ""},
	} {
		got, err := parseRecord(tt.records)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%q: got %q, %v, want %q", tt.records, got, err, tt.want)
		}
	}
}

func FuzzParseSTS(f *testing.F) {
	for _, s := range []string{enforceMX, enforceAll, "version: STSv1\nmode: none\nmax_age: 1", "mx: *.\n", ":", "version:STSv1\r\r\nmode:\xff\n", "max_age: 00000000001\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSTS(text)
		if err != nil {
			return
		}
		if s.MaxAge < 0 || s.MaxAge > maxPolicyAge || s.Mode != NoMode && len(s.MX) == 0 || len(s.MX) > maxPatterns {
			t.Errorf("got %+v", s)
		}
		for _, pattern := range s.MX {
			if host := strings.Replace(pattern, "*", "x", 1); !s.Matches(host) {
				t.Errorf("pattern %q does not match %q", pattern, host)
			}
		}
		again, err := ParseSTS(strings.Join(s.Lines(), "\n"))
		if err != nil || again.Mode != s.Mode || again.MaxAge != s.MaxAge || strings.Join(again.MX, " ") != strings.Join(s.MX, " ") {
			t.Errorf("printed and read again: got %+v, %v, want %+v", again, err, s)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	for _, s := range []string{"v=STSv1; id=1;", "v=STSv1;", "v=STSv1; id==;", ";;;", "v=STSv1;id=\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, record string) {
		id, err := parseRecord([]string{record, "v=spf1 -all"})
		if err == nil && (id == "" || len(id) > maxIDBytes || strings.ContainsAny(id, "; \r\n\x00")) {
			t.Errorf("got id %q", id)
		}
		if _, err := parseRecord([]string{record, "v=STSv1; id=1"}); err == nil && strings.HasPrefix(record, "v=STSv1;") {
			t.Error("two records of the version were read as one")
		}
	})
}

// A session is resumed under the plan that it was made under, and under no other.
func TestS1_21_SessionsByPlan(t *testing.T) {
	p := New(Options{})
	defer p.Close()
	var o [3]smtpc.Options
	for i, m := range []Mail{{Domain: "a.test", Floor: smtpc.TLSMay}, {Domain: "b.test", Floor: smtpc.TLSMay}, {Domain: "a.test", Floor: smtpc.TLSVerify}} {
		plan, err := p.Host(t.Context(), p.Domain(t.Context(), m), Host{Name: "mx.test"})
		if err != nil {
			t.Fatal(err)
		}
		plan.Apply(&o[i])
	}
	state := &tls.ClientSessionState{}
	o[0].Sessions.Put("key", state)
	if got, ok := o[1].Sessions.Get("key"); !ok || got != state {
		t.Error("same host, same plan: got no session")
	}
	if _, ok := o[2].Sessions.Get("key"); ok {
		t.Error("another plan: got the session")
	}
}
