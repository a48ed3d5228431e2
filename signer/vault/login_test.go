package vault

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAppRole(t *testing.T) {
	f := newFake(t)
	o := f.options(t)
	file := o.Login.(*AppRole).SecretIDFile
	rewrite(t, file, "wrong")
	c, err := start(t, o)
	if !errors.Is(err, ErrDenied) || c.Ready() == nil {
		t.Errorf("wrong secret id: got %v, want %v", err, ErrDenied)
	}
	if _, err := c.List(t.Context(), ""); !errors.Is(err, ErrDenied) {
		t.Errorf("request without a login: got %v, want %v", err, ErrDenied)
	}
	rewrite(t, file, fakeSecret1) // it is read again
	eventually(t, "logged in", func() bool { return c.Ready() == nil })
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	f.revoke()
	if _, err := c.List(t.Context(), ""); !errors.Is(err, ErrDenied) {
		t.Errorf("secret id that anybody can read: got %v, want %v", err, ErrDenied)
	}
}

func TestWrappedSecretID(t *testing.T) {
	f := newFake(t)
	f.wrapped["wrap-1"] = fakeSecret1
	file := secretFile(t, "wrap-1")
	o := f.options(t)
	o.Login = &AppRole{RoleID: fakeRole, SecretIDFile: file, Wrapped: true}
	c, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	f.revoke()
	if _, err := c.List(t.Context(), ""); err != nil {
		t.Errorf("second login: %v", err)
	}
	o.Login = &AppRole{RoleID: fakeRole, SecretIDFile: file, Wrapped: true}
	if _, err := start(t, o); err == nil || !strings.Contains(err.Error(), "somebody else has used it") {
		t.Errorf("used twice: got %v, want a warning", err)
	}
}

func TestKubernetes(t *testing.T) {
	f := newFake(t)
	o := f.options(t)
	o.Login = &Kubernetes{Role: "signer", TokenFile: secretFile(t, "service-account")}
	if _, err := start(t, o); err != nil {
		t.Error(err)
	}
	o.Login = &Kubernetes{Role: "other", TokenFile: secretFile(t, "service-account")}
	if _, err := start(t, o); !errors.Is(err, ErrDenied) {
		t.Errorf("got %v, want %v", err, ErrDenied)
	}
}

func TestTokenFile(t *testing.T) {
	f := newFake(t)
	file := secretFile(t, "static")
	o := f.options(t)
	o.Login = &TokenFile{Path: file}
	c, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(t.Context(), ""); err != nil {
		t.Error(err)
	}
	f.with(func() { f.tokens["second"] = true })
	rewrite(t, file, "second") // as Vault Agent does
	eventually(t, "the new token in use", func() bool { return c.api.Token() == "second" })
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !f.tokens["second"] {
		t.Error("the token of somebody else was revoked")
	}
}

func TestCertificate(t *testing.T) {
	f := newFake(t)
	var seen string
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/auth/cert/login" && len(r.TLS.PeerCertificates) == 1 {
			seen = r.TLS.PeerCertificates[0].Subject.CommonName
			f.mu.Lock()
			defer f.mu.Unlock()
			f.grant(w, "static", 60)
			return
		}
		f.ServeHTTP(w, r)
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	defer server.Close()
	ca := secretFile(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	cert, key := makeCertificate(t, "signer1")
	o := Options{Address: server.URL, CAFile: ca, ServerName: "example.com", Login: &Certificate{CertFile: cert, KeyFile: key, Role: "signer"}}
	c, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(t.Context(), ""); err != nil || seen != "signer1" {
		t.Errorf("got %v, and certificate %q", err, seen)
	}
	o.CAFile = ""
	if c, err := start(t, o); err != nil || !errors.Is(c.Ready(), ErrUnavailable) {
		t.Errorf("a server that nobody vouches for: got %v", err)
	}
}

func makeCertificate(t *testing.T, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	rewrite(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	rewrite(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	return cert, key
}

const renewal = "PUT auth/token/renew-self"

func TestRenewal(t *testing.T) {
	for name, c := range map[string]struct {
		set    func(*fake)
		is     func(*fake) bool
		logins int // at most; 0: any number
	}{
		// A third of its life is left for a renewal: more than a busy machine needs.
		"renewed":                {func(f *fake) { f.ttl = 18 }, func(f *fake) bool { return f.count(renewal) >= 2 }, 1},
		"not renewable":          {func(f *fake) { f.ttl, f.fixed = 2, true }, func(f *fake) bool { return f.loginCount() >= 2 && f.count(renewal) == 0 }, 0},
		"near its longest life":  {func(f *fake) { f.ttl, f.maxTTL = 3, 1 }, func(f *fake) bool { n := f.count(renewal); return n > 0 && f.loginCount() > n }, 0},
		"revoked before renewal": {func(f *fake) { f.ttl = 2 }, func(f *fake) bool { return f.loginCount() >= 2 }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			c.set(f)
			client := f.client(t)
			if strings.HasPrefix(name, "revoked") {
				f.revoke()
			}
			eventually(t, name, func() bool { return c.is(f) })
			if err := client.Ready(); err != nil {
				t.Error(err)
			}
			if got := f.loginCount(); c.logins > 0 && got > c.logins {
				t.Errorf("got %d logins, want %d", got, c.logins)
			}
		})
	}
}

func TestTokenThatNeverEnds(t *testing.T) {
	f := newFake(t)
	f.ttl = 0
	c := f.client(t)
	time.Sleep(300 * time.Millisecond)
	if logins, renewals := f.loginCount(), f.count(renewal); logins != 1 || renewals != 0 {
		t.Errorf("got %d logins and %d renewals, want 1 and none", logins, renewals)
	}
	if err := c.Ready(); err != nil {
		t.Error(err)
	}
}

func TestStartWhileSealed(t *testing.T) {
	f := newFake(t)
	f.sealed = true
	c := f.client(t) // no error
	if _, err := c.List(t.Context(), ""); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "unseal it") {
		t.Errorf("got %v, want %v", err, ErrUnavailable)
	}
	f.with(func() { f.sealed = false })
	eventually(t, "logged in", func() bool { return c.Ready() == nil })
	time.Sleep(50 * time.Millisecond)
	if got := f.loginCount(); got != 1 {
		t.Errorf("got %d logins, want 1", got)
	}
}

func TestTokenEndsWhileSealed(t *testing.T) {
	f := newFake(t)
	f.ttl = 1
	c := f.client(t)
	f.with(func() { f.sealed = true })
	eventually(t, "token at its end", func() bool { return errors.Is(c.Ready(), ErrUnavailable) })
	f.with(func() { f.sealed, f.ttl = false, 3600 })
	eventually(t, "logged in", func() bool { return c.Ready() == nil })
}
