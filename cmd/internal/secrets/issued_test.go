package secrets

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postroad/cmd/internal/config"
	"postroad/ingress/certs"
	"postroad/signer/vault"
)

// engine issues certificates as a PKI engine does.
type engine struct {
	mu      sync.Mutex
	root    *x509.Certificate
	key     *ecdsa.PrivateKey
	ttl     time.Duration // when none is asked for
	err     error
	spoil   func(*x509.Certificate) // changes what is issued
	foreign crypto.Signer           // whose certificate is issued instead
	asked   []time.Time
	roles   []string
	serial  int64
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	e := &engine{ttl: time.Hour}
	var err error
	if e.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now(), NotAfter: time.Now().Add(10000 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, e.key.Public(), e.key)
	if err != nil {
		t.Fatal(err)
	}
	if e.root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *engine) with(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

func (e *engine) tries() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.asked)
}

// SignCertificate implements authorityOfIssued.
func (e *engine) SignCertificate(_ context.Context, r vault.CertificateRequest) ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked, e.roles = append(e.asked, time.Now()), append(e.roles, r.Mount+" "+r.Role)
	if e.err != nil {
		return nil, e.err
	}
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return nil, err
	}
	ttl := e.ttl
	if r.TTL > 0 {
		ttl = r.TTL
	}
	e.serial++
	template := &x509.Certificate{SerialNumber: big.NewInt(e.serial), Subject: csr.Subject, DNSNames: csr.DNSNames,
		NotBefore: time.Now().Add(-30 * time.Second), NotAfter: time.Now().Add(ttl)}
	if e.spoil != nil {
		e.spoil(template)
	}
	public := csr.PublicKey
	if e.foreign != nil {
		public = e.foreign.Public()
	}
	der, err := x509.CreateCertificate(rand.Reader, template, e.root, public, e.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// lines is a log that goroutines write to.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// issuing are secrets whose certificates come from an engine.
func issuing(t *testing.T, e *engine) (*Secrets, *lines) {
	t.Helper()
	c := config.Default()
	c.Secrets.Vault.Address, c.Secrets.Vault.Login, c.Secrets.Vault.SecretFile = "https://127.0.0.1:1", config.VaultToken, "/nowhere"
	log := &lines{}
	s, err := Open(Options{Config: &c, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.authority = e
	return s, log
}

func (s *Secrets) mustIssue(t *testing.T, c config.Certificate) certs.Pair {
	t.Helper()
	p, err := s.Issued(c, "relay.example.com")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// leafOf reads a pair and makes sure that its halves belong together.
func leafOf(t *testing.T, p certs.Pair) *x509.Certificate {
	t.Helper()
	chain, key, err := p.Source.Pair(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	clear(key) // as certs does
	return pair.Leaf
}

func stop(t *testing.T, s *Secrets) {
	t.Helper()
	if err := s.stopIssued(t.Context()); err != nil {
		t.Error(err)
	}
}

var (
	errAway   = fmt.Errorf("get certificate: %w (sealed)", vault.ErrUnavailable)
	errNoRole = errors.New("get certificate: vault refuses it (400 unknown role: relay)")
)

func TestIssuedIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t)
		s, log := issuing(t, e)
		defer stop(t, s)
		told := 0
		s.OnIssued(func() { told++ })
		p := s.mustIssue(t, config.Certificate{PKI: "relay", Names: []string{"MX.example.com", "*.in.example.com"}})
		first := leafOf(t, p)
		if p.Cert != "pki/relay" || !p.Renews || fmt.Sprint(first.DNSNames) != "[mx.example.com *.in.example.com]" || first.Subject.CommonName != "mx.example.com" ||
			first.PublicKeyAlgorithm != x509.ECDSA || e.roles[0] != "pki relay" {
			t.Errorf("got %+v with %v", p, first.DNSNames)
		}
		last := first
		for round := range 5 {
			began := time.Now()
			for leafOf(t, p).SerialNumber.Cmp(last.SerialNumber) == 0 {
				time.Sleep(time.Second)
			}
			if waited := time.Since(began); waited < 36*time.Minute || waited > 41*time.Minute {
				t.Errorf("round %d: renewed after %s of an hour", round, waited)
			}
			next := leafOf(t, p)
			if bytes.Equal(next.RawSubjectPublicKeyInfo, last.RawSubjectPublicKeyInfo) {
				t.Error("the key is the same as before")
			}
			last = next
		}
		synctest.Wait()
		if n := e.tries(); n != 6 || told != 6 {
			t.Errorf("it was asked %d times and told %d times, want 6", n, told)
		}
		if log.count("level=WARN")+log.count("level=ERROR") > 0 {
			t.Errorf("got log %s", log.b.String())
		}
	})
}

func TestIssuedWhileVaultIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t)
		e.err = errAway
		s, log := issuing(t, e)
		defer stop(t, s)
		p := s.mustIssue(t, config.Certificate{PKI: "relay"})
		if _, _, err := p.Source.Pair(t.Context()); !errors.Is(err, certs.ErrAway) {
			t.Errorf("got %v, want %v", err, certs.ErrAway)
		}
		time.Sleep(10 * time.Minute)
		if n := e.tries(); n < 10 || n > 30 || log.count("there is no certificate yet") != 1 {
			t.Errorf("got %d tries in 10 minutes and log %s", n, log.b.String())
		}
		e.with(func() { e.err = nil })
		time.Sleep(longestRest + time.Second)
		first := leafOf(t, p)
		if log.count("issued again") != 1 {
			t.Errorf("got log %s", log.b.String())
		}

		// It goes away when the certificate has half of its life left, and stays away beyond its end.
		time.Sleep(30 * time.Minute)
		e.with(func() { e.err, e.asked = errAway, nil })
		time.Sleep(time.Until(first.NotAfter) - time.Second)
		if leafOf(t, p).SerialNumber.Cmp(first.SerialNumber) != 0 || log.count("is not renewed") != 1 || log.count("has ended") > 0 {
			t.Errorf("before its end: got log %s", log.b.String())
		}
		list := s.Conditions()
		if len(list) != 1 || list[0].Part != "certificates" || !strings.Contains(list[0].Text, "pki/relay is not renewed, it ends at "+first.NotAfter.UTC().Format(time.RFC3339)) ||
			!strings.Contains(list[0].Do, "role relay of its engine pki allows relay.example.com") {
			t.Errorf("got conditions %+v", list)
		}
		time.Sleep(30 * time.Minute)
		if leafOf(t, p).SerialNumber.Cmp(first.SerialNumber) != 0 || log.count("level=ERROR msg=\"certificate has ended") < 2 || log.count("certificate has ended") > 4 {
			t.Errorf("after its end: got log %s", log.b.String())
		}
		e.with(func() { e.err = nil })
		time.Sleep(longestRest + time.Second)
		if leafOf(t, p).SerialNumber.Cmp(first.SerialNumber) == 0 || len(s.Conditions()) > 0 {
			t.Errorf("it is back: got conditions %+v", s.Conditions())
		}
	})
}

// TestShortLives: an outage of a few seconds is no matter for a certificate that lives a minute.
func TestShortLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t)
		s, _ := issuing(t, e)
		defer stop(t, s)
		p := s.mustIssue(t, config.Certificate{PKI: "relay", TTL: time.Minute})
		for i := range 300 {
			e.with(func() {
				if e.err = nil; i%30 > 20 {
					e.err = errAway
				}
			})
			time.Sleep(time.Second)
			if left := time.Until(leafOf(t, p).NotAfter); left <= 0 {
				t.Fatalf("after %d s the certificate had ended %s ago", i, -left)
			}
		}
	})
}

func TestIssuedRefusals(t *testing.T) {
	other := newEngine(t)
	for name, c := range map[string]struct {
		change func(*engine)
		want   string
	}{
		"no role":       {func(e *engine) { e.err = errNoRole }, "unknown role"},
		"another name":  {func(e *engine) { e.spoil = func(c *x509.Certificate) { c.DNSNames = []string{"other.example.com"} } }, "it is not for relay.example.com"},
		"ended already": {func(e *engine) { e.spoil = func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) } }, "has ended"},
		"another key":   {func(e *engine) { e.foreign = other.key }, "private key does not match"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t)
			c.change(e)
			s, _ := issuing(t, e)
			defer stop(t, s)
			_, _, err := s.mustIssue(t, config.Certificate{PKI: "relay"}).Source.Pair(t.Context())
			if err == nil || errors.Is(err, certs.ErrAway) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestIssuedByNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEngine(t)
		s, _ := issuing(t, e)
		defer stop(t, s)
		p := s.mustIssue(t, config.Certificate{PKI: "relay"})
		leafOf(t, p)
		s.Renew("pki/other")
		s.Renew("relay")
		time.Sleep(time.Minute)
		if n := e.tries(); n != 1 {
			t.Errorf("notices of others: got %d requests, want 1", n)
		}
		s.Renew("pki/relay")
		time.Sleep(3 * time.Second)
		if n := e.tries(); n != 2 {
			t.Errorf("after a notice: got %d requests, want 2", n)
		}
		for range 600 {
			s.Renew("pki/relay")
			time.Sleep(100 * time.Millisecond)
		}
		if n := e.tries(); n < 5 || n > 8 {
			t.Errorf("after a minute of notices: got %d requests", n)
		}
	})
}

func TestIssuedAreShared(t *testing.T) {
	e := newEngine(t)
	s, _ := issuing(t, e)
	defer stop(t, s)
	a := s.mustIssue(t, config.Certificate{PKI: "relay"})
	b := s.mustIssue(t, config.Certificate{PKI: "relay", Names: []string{"relay.example.com"}})
	c := s.mustIssue(t, config.Certificate{PKI: "relay", TTL: time.Hour})
	if a != b || a.Source == c.Source || a.Cert == c.Cert || c.Cert != "pki/relay for relay.example.com, 1h0m0s" {
		t.Errorf("got %+v, %+v and %+v", a, b, c)
	}
	leafOf(t, a)
	leafOf(t, c)
	if n := e.tries(); n != 2 {
		t.Errorf("got %d requests, want 2", n)
	}
	if _, err := s.Issued(config.Certificate{PKI: "relay", Names: []string{"a b"}}, "x.example"); err == nil {
		t.Error("a name that is none: got no error")
	}
	dir := config.Default()
	files, err := Open(Options{Config: &dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := files.Issued(config.Certificate{PKI: "relay"}, "x.example"); err == nil {
		t.Error("without Vault: got no error")
	}
}

func TestStopWhileNothingWasIssued(t *testing.T) {
	e := newEngine(t)
	s, _ := issuing(t, e)
	stop(t, s)
	s, _ = issuing(t, e)
	held := &holding{}
	s.authority = held
	p := s.mustIssue(t, config.Certificate{PKI: "relay"})
	stop(t, s)
	if _, _, err := p.Source.Pair(t.Context()); !errors.Is(err, certs.ErrAway) {
		t.Errorf("got %v, want %v", err, certs.ErrAway)
	}
	if _, err := s.Issued(config.Certificate{PKI: "other"}, "x.example"); err == nil {
		t.Error("after Stop: got no error")
	}
}

// holding is an engine that never answers.
type holding struct{}

func (*holding) SignCertificate(ctx context.Context, _ vault.CertificateRequest) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}
