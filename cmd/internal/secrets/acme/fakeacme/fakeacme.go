// Package fakeacme is an authority for tests that makes mistakes on purpose. What it does of ACME is what a client of dns-01 uses; it does not look
// at signatures. The real thing is in .ci/verify/acme.sh.
//
//	s := fakeacme.New(t)
//	s.Look = dns.Get // where it looks for proofs
//	s.Fault = func(step string, n int) *fakeacme.Problem { … }
//	acme.New(acme.Options{Directory: s.URL, CAFile: s.CAFile, …})
package fakeacme

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Terms are what it wants agreed to.
const Terms = "https://authority.example/terms"

// Problem is an answer that is an error.
type Problem struct {
	Status     int
	Type       string // without urn:…
	Detail     string
	RetryAfter string
}

// Server is the authority. Its fields are set before it is asked.
type Server struct {
	URL    string // of the directory
	CAFile string // that vouches for its HTTPS

	// Look is how it looks at the DNS. A name that has no record is not proved.
	Look func(record string) string
	// Fault may refuse the n-th request, from 1, of a step: account, order, authz, challenge, poll (of an order), finalize, cert.
	Fault func(step string, n int) *Problem
	// Processing is how many times it says that an order is not done yet after finalize.
	Processing int
	// Template may change a certificate before it is signed.
	Template func(c *x509.Certificate)
	// Key may certify another key than that of the request.
	Key crypto.PublicKey
	// Stranger puts an issuer into the chain that has issued nothing.
	Stranger bool
	// AsksFor is a name that it wants proved in place of the ordered ones.
	AsksFor string

	mu      sync.Mutex
	base    string
	root    *x509.Certificate
	key     *ecdsa.PrivateKey
	nonces  map[string]bool
	counts  map[string]int
	known   bool
	names   []string // of the order
	proved  map[string]string
	csr     *x509.CertificateRequest
	serials int64
}

// New runs one until the test ends.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{nonces: map[string]bool{}, counts: map[string]int{}, Look: func(string) string { return "" }}
	s.root, s.key = newRoot(t)
	web := httptest.NewTLSServer(http.HandlerFunc(s.serve))
	t.Cleanup(web.Close)
	s.base, s.URL, s.CAFile = web.URL, web.URL+"/dir", filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})
	if err := os.WriteFile(s.CAFile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

func newRoot(t testing.TB) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Fake root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return root, key
}

// Count is how often a step was asked for.
func (s *Server) Count(step string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[step]
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	nonce := fmt.Sprintf("nonce-%d", len(s.nonces)+1)
	s.nonces[nonce] = true
	w.Header().Set("Replay-Nonce", nonce)
	step, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch step {
	case "dir":
		s.answer(w, 200, map[string]any{"newNonce": s.base + "/nonce", "newAccount": s.base + "/account", "newOrder": s.base + "/order", "meta": map[string]any{"termsOfService": Terms}})
		return
	case "nonce":
		return
	}
	var jws struct{ Protected, Payload string }
	if err := json.NewDecoder(r.Body).Decode(&jws); err != nil {
		s.refuse(w, &Problem{Status: 400, Type: "malformed", Detail: err.Error()})
		return
	}
	var head struct{ Nonce string }
	_ = json.Unmarshal(decode(jws.Protected), &head)
	s.counts[step]++
	if s.Fault != nil {
		if p := s.Fault(step, s.counts[step]); p != nil {
			s.refuse(w, p)
			return
		}
	}
	if !s.nonces[head.Nonce] {
		s.refuse(w, &Problem{Status: 400, Type: "badNonce", Detail: "never seen, or seen before"})
		return
	}
	s.nonces[head.Nonce] = false
	s.step(w, step, rest, decode(jws.Payload))
}

func decode(text string) []byte {
	octets, _ := base64.RawURLEncoding.DecodeString(text)
	return octets
}

func (s *Server) refuse(w http.ResponseWriter, p *Problem) {
	if p.RetryAfter != "" {
		w.Header().Set("Retry-After", p.RetryAfter)
	}
	s.answer(w, p.Status, map[string]any{"type": "urn:ietf:params:acme:error:" + p.Type, "detail": p.Detail, "status": p.Status})
}

func (s *Server) answer(w http.ResponseWriter, status int, value any) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value)
}

func (s *Server) step(w http.ResponseWriter, step, rest string, payload []byte) {
	switch step {
	case "account":
		w.Header().Set("Location", s.base+"/account/1")
		isNew := !s.known
		if isNew && strings.Contains(string(payload), "onlyReturnExisting") {
			s.refuse(w, &Problem{Status: 400, Type: "accountDoesNotExist", Detail: "no account"})
			return
		}
		s.known = true
		s.answer(w, map[bool]int{true: 201, false: 200}[isNew], map[string]any{"status": "valid"})
	case "order":
		var want struct{ Identifiers []struct{ Value string } }
		_ = json.Unmarshal(payload, &want)
		s.names, s.proved, s.csr = nil, map[string]string{}, nil
		for _, one := range want.Identifiers {
			s.names = append(s.names, one.Value)
		}
		w.Header().Set("Location", s.base+"/poll/1")
		s.answer(w, 201, s.order())
	case "poll":
		if s.csr != nil && s.Processing > 0 {
			s.Processing--
		}
		s.answer(w, 200, s.order())
	case "authz":
		s.answer(w, 200, s.authz(rest))
	case "challenge":
		s.proved[rest] = "invalid"
		if s.Look("_acme-challenge."+strings.TrimPrefix(rest, "*.")) != "" {
			s.proved[rest] = "valid"
		}
		s.answer(w, 200, map[string]any{"type": "dns-01", "url": s.base + "/challenge/" + rest, "token": "token", "status": "processing"})
	case "finalize":
		var want struct{ CSR string }
		_ = json.Unmarshal(payload, &want)
		csr, err := x509.ParseCertificateRequest(decode(want.CSR))
		if err != nil {
			s.refuse(w, &Problem{Status: 400, Type: "badCSR", Detail: err.Error()})
			return
		}
		s.csr = csr
		s.answer(w, 200, s.order())
	case "cert":
		_, _ = w.Write(s.issue())
	}
}

func (s *Server) order() map[string]any {
	o := map[string]any{"status": "ready", "finalize": s.base + "/finalize/1", "certificate": s.base + "/cert/1"}
	var urls []string
	for _, name := range s.names {
		urls = append(urls, s.base+"/authz/"+name)
		if s.proved[name] != "valid" {
			o["status"] = "pending"
		}
	}
	o["authorizations"] = urls
	switch {
	case s.csr != nil && s.Processing > 0:
		o["status"] = "processing"
	case s.csr != nil:
		o["status"] = "valid"
	}
	return o
}

func (s *Server) authz(name string) map[string]any {
	status := s.proved[name]
	if status == "" {
		status = "pending"
	}
	challenge := map[string]any{"type": "dns-01", "url": s.base + "/challenge/" + name, "token": "token", "status": status}
	if status == "invalid" {
		challenge["error"] = map[string]any{"type": "urn:ietf:params:acme:error:unauthorized", "detail": "no TXT record\x1b[2J for " + name, "status": 403}
	}
	asked := strings.TrimPrefix(name, "*.")
	if s.AsksFor != "" {
		asked = s.AsksFor
	}
	return map[string]any{"status": status, "identifier": map[string]any{"type": "dns", "value": asked}, "challenges": []any{challenge}}
}

func (s *Server) issue() []byte {
	s.serials++
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1 + s.serials), DNSNames: s.csr.DNSNames, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(900 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if s.Template != nil {
		s.Template(c)
	}
	public, issuer := s.csr.PublicKey, s.root
	if s.Key != nil {
		public = s.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, public, s.key)
	if err != nil {
		return []byte(err.Error())
	}
	above := issuer.Raw
	if s.Stranger {
		above = der
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: above})...)
}
