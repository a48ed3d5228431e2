package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/smtp"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/secrets"
	"postroad/cmd/internal/secrets/fakevault"
	"postroad/ingress/certs"
)

// authority is a root certificate that signs what it is asked to.
type authority struct {
	t    *testing.T
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	a := &authority{t: t, root: root, key: key}
	a.root, err = x509.ParseCertificate(a.sign(root, key.Public()))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *authority) sign(template *x509.Certificate, public any) []byte {
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, public, a.key)
	if err != nil {
		a.t.Error(err)
	}
	return der
}

// leaf makes a certificate of one name, in PEM.
func (a *authority) leaf(name string, public any) string {
	der := a.sign(&x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}, public)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// vaultWithPKI is a Vault with the certificate tls/relay, and the engine pki/ with one role; it is sealed.
func vaultWithPKI(t *testing.T, a *authority) (*fakevault.Server, string) {
	t.Helper()
	v := fakevault.New(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	v.Put("postroad/tls/relay", map[string]any{"certificate": a.leaf("relay.test.example", key.Public()),
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))})
	v.Seal(true)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/pki/sign/postroad-ingress" {
			v.ServeHTTP(w, r)
			return
		}
		content, _ := io.ReadAll(r.Body)
		var q struct{ CSR string }
		_ = json.Unmarshal(content, &q)
		block, _ := pem.Decode([]byte(q.CSR))
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"data": map[string]any{"certificate": a.leaf(csr.DNSNames[0], csr.PublicKey)}})
	}))
	t.Cleanup(s.Close)
	return v, s.URL
}

// freeAddress is one that stays free: on a loopback address that nobody else uses.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+mrand.N(254), mrand.N(256), 1+mrand.N(254)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// TestListenersOpenWhenVaultIsBack: without Vault mail is accepted where no certificate of Vault's is needed.
func TestListenersOpenWhenVaultIsBack(t *testing.T) {
	a := newAuthority(t)
	v, url := vaultWithPKI(t, a)
	c := testConfig(shortDir(t), 1)
	c.Secrets.Vault.Address, c.Secrets.Vault.Login, c.Secrets.Vault.SecretFile = url, config.VaultToken, v.TokenFile
	for _, l := range []config.Listener{
		{TLS: config.TLSStart, Certificates: []config.Certificate{{Secret: "relay"}}},
		{TLS: config.TLSImplicit, Certificates: []config.Certificate{{PKI: "postroad-ingress"}}},
	} {
		l.Address, l.Auth, l.LineEnds = freeAddress(t), config.AuthRequired, config.LineEndsReject
		c.Ingress.Listeners = append(c.Ingress.Listeners, l)
	}
	d := start(t, c)
	if addrs := d.Addrs(); addrs[0] == nil || addrs[1] != nil || addrs[2] != nil {
		t.Fatalf("got addresses %v, want the first only", addrs)
	}
	send(t, d.Addrs()[0], "while Vault is sealed")
	if err := d.ready(); err != nil {
		t.Errorf("one listener is open: got %v", err)
	}
	closed := 0
	for _, c := range d.self().Conditions {
		if c.Part == "ingress" && strings.Contains(c.Text, "is closed") {
			closed++
		}
	}
	if closed != 2 {
		t.Errorf("got conditions %+v, want two closed listeners", d.self().Conditions)
	}

	v.Seal(false)
	for deadline := time.Now().Add(timeLimit); d.Addrs()[1] == nil || d.Addrs()[2] == nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("got addresses %v, want all open", d.Addrs())
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.root)
	trusting := &tls.Config{RootCAs: roots, ServerName: "relay.test.example"}
	client, err := smtp.Dial(d.Addrs()[1].String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if err := client.StartTLS(trusting); err != nil {
		t.Errorf("STARTTLS: %v", err)
	}
	conn, err := tls.Dial("tcp", d.Addrs()[2].String(), trusting)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	n := d.self()
	for _, name := range []string{"certificate relay", "certificate pki/postroad-ingress"} {
		if !strings.HasPrefix(n.Facts[name], "sha256:") {
			t.Errorf("got facts %v, want %s", n.Facts, name)
		}
	}
	for _, c := range n.Conditions {
		if c.Part == "ingress" || c.Part == "certificates" && strings.Contains(c.Text, "pki/") {
			t.Errorf("got condition %+v", c)
		}
	}
}

func TestNotReadyWithoutAnyListener(t *testing.T) {
	v, url := vaultWithPKI(t, newAuthority(t))
	c := testConfig(shortDir(t), 1)
	c.Secrets.Vault.Address, c.Secrets.Vault.Login, c.Secrets.Vault.SecretFile = url, config.VaultToken, v.TokenFile
	l := &c.Ingress.Listeners[0]
	l.Address, l.TLS, l.Certificates = freeAddress(t), config.TLSStart, []config.Certificate{{Secret: "relay"}}
	d := start(t, c)
	if err := d.ready(); err == nil || !strings.Contains(err.Error(), "no listener is open") {
		t.Errorf("got %v, want to hear of the listener", err)
	}
	v.Seal(false)
	for deadline := time.Now().Add(timeLimit); d.ready() != nil; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(d.ready())
		}
	}
}

// TestSaltKey: nodes agree on it, without asking Vault; a certificate of their own is no help.
func TestSaltKey(t *testing.T) {
	salt := func(change func(*config.Config)) string {
		c := config.Default()
		c.DataDir, c.Queue.URLs = t.TempDir(), []string{"nats://other"}
		c.Ingress.Listeners[0].Auth, c.Ingress.Listeners[0].TLS = config.AuthRequired, config.TLSStart
		change(&c)
		s, err := secrets.Open(secrets.Options{Config: &c})
		if err != nil {
			t.Fatal(err)
		}
		d := &Daemon{c: &c, secrets: s, hostname: "relay.test.example", log: slog.New(slog.DiscardHandler)}
		defer func() { _ = s.Stop(context.WithoutCancel(t.Context())) }()
		key, err := d.saltKey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return string(key)
	}
	role := func(role string) func(*config.Config) {
		return func(c *config.Config) {
			c.Secrets.Vault.Address, c.Secrets.Vault.Role = "http://127.0.0.1:1", role
			c.Ingress.Listeners[0].Certificates = []config.Certificate{{Secret: "relay"}}
		}
	}
	if one := salt(role("role-1")); one == "" || one != salt(role("role-1")) || one == salt(role("role-2")) {
		t.Error("AppRole: nodes of one role do not agree, or those of others do")
	}
	if salt(func(c *config.Config) {
		role("")(c)
		c.Secrets.Vault.Login, c.Secrets.Vault.SecretFile = config.VaultToken, "/nowhere"
		c.Ingress.Listeners[0].Certificates = []config.Certificate{{PKI: "relay"}}
	}) != "" {
		t.Error("the key of a node's own certificate was taken")
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, []byte("a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	files := func(c *config.Config) { c.Ingress.Listeners[0].Cert, c.Ingress.Listeners[0].Key = file, file }
	if one := salt(files); one == "" || one != salt(files) {
		t.Error("files: nodes do not agree")
	}
}

// TestListenersDiffer: one secret is in force on a node when all its listeners have it.
func TestListenersDiffer(t *testing.T) {
	facts := make(map[string]string)
	var one, other *certificates
	for i, to := range []**certificates{&one, &other} {
		dir := t.TempDir()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		pair := certs.Pair{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
		for file, text := range map[string]string{pair.Cert: newAuthority(t).leaf("relay.test.example", key.Public()),
			pair.Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))} {
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c := &certificates{options: certs.Options{Pairs: []certs.Pair{pair}}, names: map[string]string{pair.Cert: "relay"}}
		if err := c.open(t.Context()); err != nil {
			t.Fatal(i, err)
		}
		*to = c
	}
	one.facts(facts)
	one.facts(facts)
	if got := facts["certificate relay"]; !strings.HasPrefix(got, "sha256:") {
		t.Errorf("the same twice: got %q", got)
	}
	for range 2 {
		other.facts(facts)
		if got := facts["certificate relay"]; strings.HasPrefix(got, "sha256:") || got == "" {
			t.Errorf("two that differ: got %q", got)
		}
	}
}

// TestDeniedCertificate: a policy that forbids one certificate closes one listener.
func TestDeniedCertificate(t *testing.T) {
	v := fakevault.New(t)
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/tls/") || strings.Contains(r.URL.Path, "/pki/") {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errors":["permission denied"]}`)
			return
		}
		v.ServeHTTP(w, r)
	}))
	defer h.Close()
	c := testConfig(shortDir(t), 1)
	c.Secrets.Vault.Address, c.Secrets.Vault.Login, c.Secrets.Vault.SecretFile = h.URL, config.VaultToken, v.TokenFile
	for _, given := range []config.Certificate{{Secret: "relay"}, {PKI: "postroad-ingress"}} {
		l := config.Listener{Address: freeAddress(t), TLS: config.TLSStart, Auth: config.AuthRequired, LineEnds: config.LineEndsReject, Certificates: []config.Certificate{given}}
		c.Ingress.Listeners = append(c.Ingress.Listeners, l)
	}
	d := start(t, c)
	if addrs := d.Addrs(); addrs[0] == nil || addrs[1] != nil || addrs[2] != nil {
		t.Fatalf("got addresses %v, want the first only", addrs)
	}
	send(t, d.Addrs()[0], "though two certificates are forbidden")
	told := 0
	for _, c := range d.self().Conditions {
		if c.Part == "ingress" && strings.Contains(c.Text, "is closed") && strings.Contains(c.Do, "policy") {
			told++
		}
	}
	if told != 2 {
		t.Errorf("got conditions %+v, want two that name the policy", d.self().Conditions)
	}
}

// TestStopWhileVaultHangs: a listener that asks for its certificate holds nothing up.
func TestStopWhileVaultHangs(t *testing.T) {
	var took time.Duration
	for range 4 { // the question ends by itself after five seconds: on a machine that stands still now and then one of them tells
		if took = stopWhileVaultHangs(t); took < 2*time.Second {
			return
		}
	}
	t.Errorf("it ended after %v, want an end at once", took)
}

// stopWhileVaultHangs tells how long the end takes.
func stopWhileVaultHangs(t *testing.T) time.Duration {
	t.Helper()
	v := fakevault.New(t)
	v.Seal(true)
	var hangs atomic.Bool
	asked := make(chan struct{}, 100)
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if hangs.Load() && strings.Contains(r.URL.Path, "/tls/") {
			asked <- struct{}{}
			<-r.Context().Done()
			return
		}
		v.ServeHTTP(w, r)
	}))
	defer h.Close()
	c := testConfig(shortDir(t), 1)
	c.Secrets.Vault.Address, c.Secrets.Vault.Login, c.Secrets.Vault.SecretFile = h.URL, config.VaultToken, v.TokenFile
	c.Ingress.Listeners = append(c.Ingress.Listeners, config.Listener{Address: freeAddress(t), TLS: config.TLSStart, LineEnds: config.LineEndsReject,
		Certificates: []config.Certificate{{Secret: "relay"}}})
	d := start(t, c)
	hangs.Store(true)
	v.Seal(false)
	select {
	case <-asked:
	case <-time.After(timeLimit):
		t.Fatal("nobody asks for the certificate")
	}
	began := time.Now()
	if err := d.ingress.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	return time.Since(began)
}
