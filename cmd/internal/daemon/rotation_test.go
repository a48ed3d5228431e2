package daemon

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/dkim"
	"postroad/cmd/internal/dkim/dnstest"
	"postroad/cmd/internal/ops"
	"postroad/ingress/account"
	"postroad/queue"
	"postroad/signer/keyring"
)

// TestKeysComeIntoForce: mail waits for a key; somebody makes one; the signer has it published, lets it sign and the mail go.
func TestKeysComeIntoForce(t *testing.T) {
	port, got := destination(t, accepts)
	dns := dnstest.Start(t, "b.example")
	c := testConfig(shortDir(t), port)
	c.Signer.MissingKey = config.MissingHold
	r := &c.Signer.Rotation
	r.Automatic, r.Hook, r.Resolvers, r.NameServerPort = true, dns.Hook(t), []string{dns.Addr()}, dns.Port()
	d := start(t, c)
	client := ops.NewClient(c.SocketPath())
	send(t, d.Addrs()[0], "waits for a key")
	until(t, "the mail waits", func() bool {
		for e, err := range client.List(t.Context(), ops.Selection{Author: "b.example", Unsigned: true}, 0) {
			if err == nil && e.Place == queue.PlaceLater && strings.Contains(e.Job.Reason, "no DKIM key") {
				return true
			}
		}
		return false
	})
	// As the command does it, in another process.
	store, err := keyring.NewDir(keyring.DirOptions{Path: c.SecretsDir()})
	if err != nil {
		t.Fatal(err)
	}
	rotator, err := dkim.New(dkim.Options{Config: c, Store: store, Sent: dkim.Count(client), By: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rotator.New(t.Context(), "b.example"); err != nil {
		t.Fatal(err)
	}
	if err := client.Notify(t.Context(), topicKeys, "b.example"); err != nil {
		t.Fatal(err)
	}
	select {
	case mail := <-got:
		if n := strings.Count(mail, "d=b.example;"); n != 2 {
			t.Errorf("got %d signatures, want 2:\n%s", n, mail)
		}
	case <-time.After(timeLimit):
		t.Fatal("the mail did not leave when its domain had keys")
	}
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(timeLimit); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: waited too long", what)
		}
	}
}

// certificate puts a certificate that signs itself where the secret tls/relay is.
func certificate(t *testing.T, secrets string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{"relay.test.example"}, Subject: pkix.Name{CommonName: "relay"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(secrets, "tls", "relay")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNotices: what is changed elsewhere is in force at once, in one process with all roles.
func TestNotices(t *testing.T) {
	port, _ := destination(t, accepts)
	c := testConfig(shortDir(t), port)
	c.Signer.Rotation.CheckEvery = 0
	c.Secrets.Dir = filepath.Join(c.DataDir, "secrets")
	certificate(t, c.Secrets.Dir, 1)
	l := &c.Ingress.Listeners[0]
	l.TLS, l.Auth, l.Certificates = config.TLSImplicit, config.AuthOptional, []config.Certificate{{Secret: "relay"}}
	d := start(t, c)
	client := ops.NewClient(c.SocketPath())
	serial := func() int64 {
		t.Helper()
		conn, err := tls.Dial("tcp", d.Addrs()[0].String(), &tls.Config{InsecureSkipVerify: true}) // it signs itself, and its number is what is looked at
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if got := serial(); got != 1 {
		t.Fatalf("got certificate %d, want 1", got)
	}
	took := time.Hour
	for n := int64(2); n < 7 && took > 5*time.Second; n++ { // without a notice it takes 7.5 seconds at least; with one, on a machine that stands still, seldom
		certificate(t, c.Secrets.Dir, n)
		began := time.Now()
		if err := client.Notify(t.Context(), topicCertificates, "relay"); err != nil {
			t.Fatal(err)
		}
		until(t, "the new certificate", func() bool { return serial() == n })
		took = time.Since(began)
	}
	if took > 5*time.Second {
		t.Errorf("the new certificate was in force after %v", took)
	}
	// Clients: a source that is told reads again.
	source, err := d.secrets.Clients()
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 1)
	if err := d.follow(topicClients, teller{source, told}); err != nil {
		t.Fatal(err)
	}
	if err := client.Notify(t.Context(), topicClients, "web"); err != nil {
		t.Fatal(err)
	}
	select {
	case name := <-told:
		if name != "web" {
			t.Errorf("told of %q, want web", name)
		}
	case <-time.After(timeLimit):
		t.Error("a source of clients was not told")
	}
}

// teller is a source of clients that says what it is told.
type teller struct {
	account.Source
	told chan string
}

// Changed implements changing.
func (t teller) Changed(name string) { t.told <- name }
