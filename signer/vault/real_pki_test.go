//go:build realvault

package vault

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net/http"
	"testing"
	"time"
)

// testCertificates proves that the ingress alone gets certificates, of its role and for the names that this allows.
func (v *realServer) testCertificates(t *testing.T, role string, c *Client) {
	key := newECKey(t)
	sign := func(pki string, names ...string) ([]byte, error) {
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names, Subject: pkix.Name{CommonName: names[0]}}, key)
		if err != nil {
			t.Fatal(err)
		}
		return c.SignCertificate(t.Context(), CertificateRequest{Mount: "pki", Role: pki, CSR: csr, TTL: time.Hour})
	}
	want := ErrDenied
	if role == "ingress" {
		want = nil
	}
	chain, err := sign("postroad-ingress", "relay.example.com", "mx.example.com")
	if !errors.Is(err, want) {
		t.Errorf("%s gets a certificate: got %v, want %v", role, err, want)
	}
	if _, err := sign("postroad-ingress", "www.example.com"); err == nil || (role == "ingress") == errors.Is(err, ErrDenied) || errors.Is(err, ErrUnavailable) {
		t.Errorf("%s gets a certificate of another name: got %v, want a refusal", role, err)
	}
	if _, err := sign("other", "relay.example.com"); !errors.Is(err, ErrDenied) {
		t.Errorf("%s gets a certificate of another role: got %v, want %v", role, err, ErrDenied)
	}
	r := call{method: http.MethodPut, path: "pki/issue/postroad-ingress", body: map[string]any{"common_name": "relay.example.com"}}
	if _, err := c.do(t.Context(), "get key and certificate from", r); !errors.Is(err, ErrDenied) {
		t.Errorf("%s gets a certificate with a key: got %v, want %v", role, err, ErrDenied)
	}
	if err != nil {
		return
	}
	block, rest := pem.Decode(chain)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(rest) > 0 {
		t.Fatalf("got %v and %d more octets: want one certificate, its issuer is a root", err, len(rest))
	}
	var authority struct {
		Text string `json:"certificate"`
	}
	if err := decode(v.call(t, call{method: http.MethodGet, path: "pki/cert/ca"}).Data, &authority); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(authority.Text))
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "mx.example.com", KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		t.Error(err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) || time.Until(leaf.NotAfter) > 61*time.Minute {
		t.Errorf("got a certificate until %s", leaf.NotAfter)
	}
}
