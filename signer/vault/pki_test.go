package vault

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"
)

// authority is a root and an intermediate below it.
type authority struct {
	root, middle *x509.Certificate
	key, rootKey *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newECKey(t), rootKey: newECKey(t)}
	make := func(name string, key *ecdsa.PrivateKey, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) *x509.Certificate {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
		if parent == nil {
			parent = template
		}
		return sign(t, template, parent, key, parentKey)
	}
	a.root = make("root", a.rootKey, nil, a.rootKey)
	a.middle = make("middle", a.key, a.root, a.rootKey)
	return a
}

func newECKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func textOf(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// pki lets the fake answer for a PKI engine at pki/, and returns what it was
// asked last.
func (f *fake) pki(answer func(w http.ResponseWriter)) *map[string]any {
	asked := &map[string]any{}
	rest := f.Config.Handler
	f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/v1/pki/") {
			rest.ServeHTTP(w, r)
			return
		}
		content, _ := io.ReadAll(r.Body)
		got := map[string]any{"path": r.Method + " " + r.URL.Path}
		_ = json.Unmarshal(content, &got)
		f.with(func() { *asked = got })
		answer(w)
	})
	return asked
}

func TestSignCertificate(t *testing.T) {
	a, key := newAuthority(t), newECKey(t)
	leaf := sign(t, &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{"relay.example.com"}}, a.middle, key, a.key)
	direct := sign(t, &x509.Certificate{SerialNumber: big.NewInt(3), DNSNames: []string{"relay.example.com"}}, a.root, key, a.rootKey)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "relay.example.com"}, DNSNames: []string{"relay.example.com", "mx.example.com"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	says := func(data map[string]any) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { reply(w, data) }
	}
	refuses := func(status int, text string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { refuse(w, status, text) }
	}
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter)
		want   []*x509.Certificate
		is     error
		text   string
	}{
		"an intermediate": {says(map[string]any{"certificate": textOf(leaf), "issuing_ca": textOf(a.middle), "ca_chain": []string{textOf(a.middle), textOf(a.root)}}),
			[]*x509.Certificate{leaf, a.middle}, nil, ""},
		"in any order": {says(map[string]any{"certificate": textOf(leaf), "ca_chain": []string{textOf(a.root), textOf(direct), textOf(a.middle)}}),
			[]*x509.Certificate{leaf, a.middle}, nil, ""},
		"no chain": {says(map[string]any{"certificate": textOf(leaf), "issuing_ca": textOf(a.middle)}), []*x509.Certificate{leaf, a.middle}, nil, ""},
		"by the root": {says(map[string]any{"certificate": textOf(direct), "issuing_ca": textOf(a.root), "ca_chain": []string{textOf(a.root)}}),
			[]*x509.Certificate{direct}, nil, ""},
		"nothing":       {says(map[string]any{}), nil, ErrUnavailable, "not what Vault says"},
		"no PEM":        {says(map[string]any{"certificate": "MIIC"}), nil, ErrUnavailable, "certificate is none"},
		"a key":         {says(map[string]any{"certificate": strings.ReplaceAll(textOf(leaf), "CERTIFICATE", "PRIVATE KEY")}), nil, ErrUnavailable, "is none"},
		"two":           {says(map[string]any{"certificate": textOf(leaf) + textOf(leaf)}), nil, ErrUnavailable, "is none"},
		"a bad issuer":  {says(map[string]any{"certificate": textOf(leaf), "ca_chain": []string{"x"}}), nil, ErrUnavailable, "is none"},
		"no such role":  {refuses(http.StatusBadRequest, "unknown role: relay"), nil, nil, "vault refuses it (400 unknown role: relay)"},
		"not allowed":   {refuses(http.StatusForbidden, "permission denied"), nil, ErrDenied, "look at the policy"},
		"sealed":        {refuses(http.StatusServiceUnavailable, "Vault is sealed"), nil, ErrUnavailable, "unseal it"},
		"no such mount": {refuses(http.StatusNotFound, "no handler for route"), nil, ErrUnavailable, "no such engine"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			asked := f.pki(c.answer)
			got, err := f.client(t).SignCertificate(t.Context(), CertificateRequest{Mount: "pki/", Role: "relay", CSR: csr, TTL: 90 * time.Minute})
			if (err == nil) != (c.want != nil) || c.is != nil && !errors.Is(err, c.is) || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Fatalf("got %v, want %v with %q", err, c.is, c.text)
			}
			var want bytes.Buffer
			for _, cert := range c.want {
				want.WriteString(textOf(cert))
			}
			if string(got) != want.String() {
				t.Errorf("got\n%swant\n%s", got, want.String())
			}
			q := *asked
			if q["path"] != "PUT /v1/pki/sign/relay" || q["ttl"] != "5400s" || q["common_name"] != "relay.example.com" ||
				q["alt_names"] != "relay.example.com,mx.example.com" || !strings.HasPrefix(q["csr"].(string), "-----BEGIN CERTIFICATE REQUEST-----\n") {
				t.Errorf("it was asked %v", q)
			}
		})
	}
	f := newFake(t)
	for _, r := range []CertificateRequest{{Mount: "pki", Role: "../sys", CSR: csr}, {Mount: "pki", CSR: csr}, {Mount: "pki", Role: "a/b", CSR: csr}, {Mount: "pki", Role: "a", CSR: []byte("x")}} {
		if _, err := f.client(t).SignCertificate(t.Context(), r); err == nil || errors.Is(err, ErrUnavailable) {
			t.Errorf("%s %s: got %v, want a refusal", r.Mount, r.Role, err)
		}
	}
}
