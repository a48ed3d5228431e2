package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"strings"
	"testing"

	"postroad/delivery/mx"
	"postroad/delivery/smtpc"
)

func discard() *log.Logger { return log.New(io.Discard, "", 0) }

// theZone has one host for the domain; TLSA records come behind it.
const theZone = `
example.test.    MX 10 mx.example.test.
mx.example.test. A 192.0.2.1
`

// Row E5-69, RFC 7672: what becomes of mail to a host with TLSA records, over real handshakes.
func TestE5_69_DANE(t *testing.T) {
	ca := authority(t)
	leaf := issue(t, ca, nil, "mx.example.test")
	odd := issue(t, ca, expired, "elsewhere.test") // for another name, and over
	late := issue(t, ca, expired, "mx.example.test")
	domain := issue(t, ca, nil, "example.test")
	byCN := issue(t, ca, func(c *x509.Certificate) { c.Subject.CommonName = "mx.example.test" })
	other := authority(t)
	roots := x509.NewCertPool() // empty: nothing here is trusted by the web's authorities

	tests := []struct {
		name     string
		records  []string // at _25._tcp.mx.example.test
		cert     tls.Certificate
		noTLS    bool
		insecure []string
		fail     []string
		zone     string
		mail     Mail
		want     string
		report   string
	}{
		{name: "3 1 1 match", records: []string{tlsa(3, 1, 1, leaf)}, cert: chain(leaf), want: "delivered dane 3 1 1", report: "tlsa ok"},
		{name: "3 1 1 ignores name and expiry", records: []string{tlsa(3, 1, 1, odd)}, cert: chain(odd), want: "delivered dane 3 1 1", report: "tlsa ok"},
		{name: "3 0 1 match", records: []string{tlsa(3, 0, 1, leaf)}, cert: chain(leaf), want: "delivered dane 3 0 1", report: "tlsa ok"},
		{name: "3 0 2 match", records: []string{tlsa(3, 0, 2, leaf)}, cert: chain(leaf), want: "delivered dane 3 0 2", report: "tlsa ok"},
		{name: "3 1 2 match", records: []string{tlsa(3, 1, 2, leaf)}, cert: chain(leaf), want: "delivered dane 3 1 2", report: "tlsa ok"},
		{name: "3 0 0 match", records: []string{tlsa(3, 0, 0, leaf)}, cert: chain(leaf), want: "delivered dane 3 0 0", report: "tlsa ok"},
		{name: "3 1 0 match", records: []string{tlsa(3, 1, 0, leaf)}, cert: chain(leaf), want: "delivered dane 3 1 0", report: "tlsa ok"},
		{name: "3 1 1 mismatch", records: []string{tlsa(3, 1, 1, other)}, cert: chain(leaf), want: "451 4.7.5", report: "tlsa validation-failure"},
		{name: "3 0 1 of the authority is no match", records: []string{tlsa(3, 0, 1, ca)}, cert: chain(leaf, ca), want: "451 4.7.5", report: "tlsa validation-failure"},
		{name: "one of two matches", records: []string{tlsa(3, 1, 1, other), tlsa(3, 1, 1, leaf)}, cert: chain(leaf), want: "delivered dane 3 1 1", report: "tlsa ok"},
		{name: "strongest digest counts", records: []string{tlsa(3, 1, 2, other), tlsa(3, 1, 1, leaf)}, cert: chain(leaf), want: "451 4.7.5", report: "tlsa validation-failure"},

		{name: "2 0 1 chain and name", records: []string{tlsa(2, 0, 1, ca)}, cert: chain(leaf, ca), want: "delivered dane 2 0 1", report: "tlsa ok"},
		{name: "2 1 1 chain and name", records: []string{tlsa(2, 1, 1, ca)}, cert: chain(leaf, ca), want: "delivered dane 2 1 1", report: "tlsa ok"},
		{name: "2 0 0 authority not sent", records: []string{tlsa(2, 0, 0, ca)}, cert: chain(leaf), want: "delivered dane 2 0 0", report: "tlsa ok"},
		{name: "2 0 1 authority not sent", records: []string{tlsa(2, 0, 1, ca)}, cert: chain(leaf), want: "451 4.7.5", report: "tlsa validation-failure"},
		{name: "2 0 1 name of the next-hop domain", records: []string{tlsa(2, 0, 1, ca)}, cert: chain(domain, ca), want: "delivered dane 2 0 1", report: "tlsa ok"},
		{name: "2 0 1 name only as CN", records: []string{tlsa(2, 0, 1, ca)}, cert: chain(byCN, ca), want: "delivered dane 2 0 1", report: "tlsa ok"},
		{name: "2 0 1 another name", records: []string{tlsa(2, 0, 1, ca)}, cert: chain(issue(t, ca, nil, "elsewhere.test"), ca), want: "451 4.7.5", report: "tlsa certificate-host-mismatch"},
		{name: "2 0 1 expired", records: []string{tlsa(2, 0, 1, ca)}, cert: chain(late, ca), want: "451 4.7.5", report: "tlsa certificate-expired"},
		{name: "2 0 1 another authority's leaf", records: []string{tlsa(2, 0, 1, ca)}, cert: chain(issue(t, other, nil, "mx.example.test"), ca), want: "451 4.7.5", report: "tlsa certificate-not-trusted"},

		{name: "none", cert: chain(leaf), want: "delivered may", report: "no-policy-found ok"},
		{name: "not proven", records: []string{tlsa(3, 1, 1, other)}, insecure: []string{"_25._tcp.mx.example.test"}, cert: chain(leaf), want: "delivered may", report: "no-policy-found ok"},
		{name: "address not proven", records: []string{tlsa(3, 1, 1, other)}, insecure: []string{"mx.example.test"}, cert: chain(leaf), want: "delivered may", report: "no-policy-found ok"},
		{name: "MX not proven", records: []string{tlsa(3, 1, 1, other)}, insecure: []string{theDomain}, cert: chain(leaf), want: "delivered may", report: "no-policy-found ok"},
		{name: "no STARTTLS", records: []string{tlsa(3, 1, 1, leaf)}, noTLS: true, want: "451 4.7.4", report: "tlsa starttls-not-supported"},
		{name: "no STARTTLS and no policy", noTLS: true, want: "delivered may in clear", report: "no-policy-found starttls-not-supported"},

		{name: "usages 0 and 1 unusable", records: []string{tlsa(0, 0, 1, leaf), tlsa(1, 1, 1, leaf)}, cert: chain(odd), want: "delivered dane-encrypt 0 0 1, 1 1 1", report: "no-policy-found ok, tlsa tlsa-invalid"},
		{name: "malformed unusable", records: []string{"3 1 1 00ff", "3 1 9 00", "3 0 0 00"}, cert: chain(odd), want: "delivered dane-encrypt 3 1 1, 3 1 9, 3 0 0", report: "no-policy-found ok, tlsa tlsa-invalid"},
		{name: "all unusable and no STARTTLS", records: []string{tlsa(1, 1, 1, leaf)}, noTLS: true, want: "451 4.7.4", report: "no-policy-found starttls-not-supported, tlsa tlsa-invalid"},
		{name: "one usable among unusable", records: []string{tlsa(1, 1, 1, leaf), tlsa(3, 1, 1, other)}, cert: chain(leaf), want: "451 4.7.5", report: "tlsa validation-failure"},

		{name: "look-up failure", fail: []string{"_25._tcp.mx.example.test"}, cert: chain(leaf), want: "451 4.4.3", report: "tlsa dnssec-invalid"},
		{name: "look-up failure, MX not proven", fail: []string{"_25._tcp.mx.example.test"}, insecure: []string{theDomain}, cert: chain(leaf), want: "delivered may", report: "no-policy-found ok"},
		{name: "look-up failure defers its host only", fail: []string{"_25._tcp.mx.example.test"}, cert: chain(leaf), want: "delivered dane 3 1 1", report: "tlsa dnssec-invalid, tlsa ok",
			zone: theZone + "example.test. MX 20 mx2.example.test.\nmx2.example.test. A 192.0.2.2\n_25._tcp.mx2.example.test. TLSA " + tlsa(3, 1, 1, leaf) + "\n"},

		{name: "floor none does not open the door", records: []string{tlsa(3, 1, 1, other)}, mail: Mail{Floor: smtpc.TLSNone}, cert: chain(leaf), want: "451 4.7.5", report: "tlsa validation-failure"},
		{name: "floor verify is met by DANE", records: []string{tlsa(3, 1, 1, odd)}, mail: Mail{Floor: smtpc.TLSVerify}, cert: chain(odd), want: "delivered dane 3 1 1", report: "tlsa ok"},
		{name: "floor verify without DANE", mail: Mail{Floor: smtpc.TLSVerify}, cert: chain(leaf), want: "451 4.7.5", report: "no-policy-found certificate-not-trusted"},
		{name: "TLS-Required: No", records: []string{tlsa(3, 1, 1, other)}, mail: Mail{Floor: smtpc.TLSMay, Optional: true}, cert: chain(leaf), want: "delivered may"},
	}
	for _, tt := range tests {
		t.Run("E5-69 "+tt.name, func(t *testing.T) {
			t.Parallel()
			s := &stage{zone: tt.zone, roots: roots, insecure: map[string]bool{}, fail: map[string]bool{}}
			if s.zone == "" {
				s.zone = theZone
			}
			for _, r := range tt.records {
				s.zone += "_25._tcp.mx.example.test. TLSA " + r + "\n"
			}
			for _, n := range tt.insecure {
				s.insecure[n] = true
			}
			for _, n := range tt.fail {
				s.fail[n] = true
			}
			if !tt.noTLS {
				s.host.cert = &tt.cert
			}
			if tt.mail == (Mail{}) {
				tt.mail.Floor = smtpc.TLSMay
			}
			if tt.name == "floor none does not open the door" {
				tt.mail.Floor = smtpc.TLSNone
			}
			got, report := s.play(t, tt.mail)
			if got != tt.want || report != tt.report {
				t.Errorf("got %q, reported %q; want %q, %q", got, report, tt.want, tt.report)
			}
		})
	}
}

// RFC 7672 §2.2.2 and §2.2.3, §8.1: where TLSA records of an alias are, and what SNI says.
func TestE5_69_DANEOfAliases(t *testing.T) {
	leaf, other := issue(t, nil, nil, "a.test"), issue(t, nil, nil, "b.test")
	const zone = "example.test. MX 10 mx.example.test.\nmx.example.test. CNAME host.other.test.\nhost.other.test. A 192.0.2.1\n"
	at := func(name string, c *pair) string { return "_25._tcp." + name + ". TLSA " + tlsa(3, 1, 1, c) + "\n" }
	for _, tt := range []struct {
		name, zone, want, sni string
		insecure              map[string]bool
		fail                  map[string]bool
	}{
		{name: "at the end of the alias", zone: zone + at("host.other.test", leaf) + at("mx.example.test", other), want: "delivered dane 3 1 1", sni: "host.other.test"},
		{name: "at its beginning", zone: zone + at("mx.example.test", leaf), want: "delivered dane 3 1 1", sni: "mx.example.test"},
		{name: "mismatch at the end is no reason to look elsewhere", zone: zone + at("host.other.test", other) + at("mx.example.test", leaf), want: "451 4.7.5", sni: "host.other.test"},
		{name: "target not proven, alias is", zone: zone + at("mx.example.test", leaf), insecure: map[string]bool{"host.other.test": true}, want: "delivered dane 3 1 1", sni: "mx.example.test"},
		{name: "target not proven, its records do not count", zone: zone + at("host.other.test", other), insecure: map[string]bool{"host.other.test": true}, want: "delivered may", sni: "mx.example.test"},
		{name: "alias proven, MX not", zone: zone + at("mx.example.test", other), insecure: map[string]bool{theDomain: true}, want: "delivered may", sni: "mx.example.test"},
		{name: "alias proven, MX and target not", zone: zone + at("mx.example.test", other), insecure: map[string]bool{theDomain: true, "host.other.test": true}, want: "delivered may", sni: "mx.example.test"},
		{name: "alias not proven", zone: zone + at("mx.example.test", other), insecure: map[string]bool{"mx.example.test": true}, want: "delivered may", sni: "mx.example.test"},
	} {
		t.Run("E5-69 "+tt.name, func(t *testing.T) {
			t.Parallel()
			cert := chain(leaf)
			s := &stage{zone: tt.zone, insecure: tt.insecure, fail: tt.fail, host: mailHost{cert: &cert}}
			got, _ := s.play(t, Mail{Floor: smtpc.TLSMay})
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if sni := <-s.host.sni; sni != tt.sni {
				t.Errorf("got SNI %q, want %q", sni, tt.sni)
			}
		})
	}
}

// The route names the host: no MX record has to be proven, and the port is that of the route.
func TestE5_69_DANEOfFixedHost(t *testing.T) {
	leaf := issue(t, nil, nil, "x.test")
	s := &stage{zone: "_2525._tcp.relay.test. TLSA " + tlsa(3, 1, 1, leaf) + "\n"}
	p := New(Options{Names: s.resolver(t)})
	defer p.Close()
	d := p.Domain(t.Context(), Mail{Domain: theDomain, Floor: smtpc.TLSMay})
	plan, err := p.Host(t.Context(), d, Host{Name: "relay.test", Port: 2525, SecureMX: true, Secure: true})
	if err != nil || plan.String() != "dane 3 1 1" {
		t.Errorf("got %s, %v", plan.String(), err)
	}
}

// A fixed host of a route with tls: verify has to have both: a certificate of the route's authorities, and one that its records prove.
func TestE5_69_DANEOfPinnedHost(t *testing.T) {
	ca, other := authority(t), authority(t)
	leaf, foreign := issue(t, ca, nil, "relay.test"), issue(t, other, nil, "relay.test")
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	for _, tt := range []struct {
		name         string
		record, cert *pair
		floor        smtpc.TLSMode
		want         bool
	}{
		{"both", leaf, leaf, smtpc.TLSVerify, true},
		{"of another authority", foreign, foreign, smtpc.TLSVerify, false},
		{"of the authority, not of the records", foreign, leaf, smtpc.TLSVerify, false},
		{"the route wants no authority", foreign, foreign, smtpc.TLSEncrypt, true},
	} {
		s := &stage{zone: "_25._tcp.relay.test. TLSA " + tlsa(3, 1, 1, tt.record) + "\n"}
		p := New(Options{Names: s.resolver(t)})
		d := p.Domain(t.Context(), Mail{Domain: theDomain, Floor: tt.floor, Roots: roots})
		plan, err := p.Host(t.Context(), d, Host{Name: "relay.test", Port: 25, SecureMX: true, Secure: true})
		p.Close()
		if err != nil || plan.Kind != DANE {
			t.Fatalf("%s: got %s, %v", tt.name, plan.String(), err)
		}
		if err := plan.verify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{tt.cert.cert}}); (err == nil) != tt.want {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
}

func TestUsableRecords(t *testing.T) {
	leaf := issue(t, nil, nil, "x.test")
	spki := leaf.cert.RawSubjectPublicKeyInfo
	for _, r := range []mx.TLSA{
		{Usage: 3, Selector: 2, Matching: 1, Data: make([]byte, 32)},
		{Usage: 4, Selector: 1, Matching: 1, Data: make([]byte, 32)},
		{Usage: 2, Selector: 0, Matching: 2, Data: make([]byte, 32)},
		{Usage: 3, Selector: 0, Matching: 0, Data: spki},
		{Usage: 3, Selector: 1, Matching: 0, Data: leaf.cert.Raw},
		{Usage: 3, Selector: 1, Matching: 1},
		{Usage: 255, Selector: 255, Matching: 255},
	} {
		if isUsable(r) {
			t.Errorf("got %s usable", recordText(r))
		}
	}
	if got := strings.Join(strings.Fields(recordKinds([]mx.TLSA{{Usage: 3, Selector: 1, Matching: 1}, {Usage: 3, Selector: 1, Matching: 1}})), " "); got != "3 1 1" {
		t.Errorf("got %q", got)
	}
}
