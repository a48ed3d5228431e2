//go:build realvault

package secrets

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"postroad/cmd/internal/config"
	"postroad/ingress/certs"
)

// realVault is a server in development mode that deploy/vault/setup.sh has prepared.
type realVault struct {
	address, unsealKey, roleID, secretID string
}

const rootToken = "root"

func startVault(t *testing.T) *realVault {
	t.Helper()
	binary := os.Getenv("VAULT_BINARY")
	if binary == "" {
		t.Fatal("VAULT_BINARY is not set: it must be the path of the vault program, see .ci/vault/build.sh")
	}
	// A port that the system does not give to somebody else in between.
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.N(20000)))
	for tries := 0; err != nil && tries < 100; tries++ {
		l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.N(20000)))
	}
	if err != nil {
		t.Fatal(err)
	}
	listen := l.Addr().String()
	_ = l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, binary, "server", "-dev", "-dev-no-store-token", "-dev-root-token-id="+rootToken, "-dev-listen-address="+listen)
	cmd.Env = []string{"HOME=" + t.TempDir()}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	key, read := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(read)
		for s := bufio.NewScanner(out); s.Scan(); {
			if text, is := strings.CutPrefix(s.Text(), "Unseal Key: "); is {
				key <- text
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-read
		_ = cmd.Wait()
	})
	v := &realVault{address: "http://" + listen, secretID: filepath.Join(t.TempDir(), "secret-id")}
	select {
	case v.unsealKey = <-key:
	case <-time.After(5 * time.Minute):
		t.Fatal("the server did not start within five minutes")
	}
	bin := t.TempDir()
	if err := os.Symlink(binary, filepath.Join(bin, "vault")); err != nil {
		t.Fatal(err)
	}
	setup := exec.Command("sh", "../../../deploy/vault/setup.sh", "-k", "pki", "-d", "relay.example.com", "ingress="+v.secretID)
	setup.Env = []string{"PATH=" + bin + ":/usr/bin:/bin", "VAULT_ADDR=" + v.address, "VAULT_TOKEN=" + rootToken, "HOME=" + t.TempDir()}
	said, err := setup.CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, said)
	}
	id := regexp.MustCompile(`(?m)^ingress role id: (\S+)$`).FindSubmatch(said)
	if id == nil {
		t.Fatalf("setup.sh names no role id:\n%s", said)
	}
	v.roleID = string(id[1])
	return v
}

// call sends a request with the root token.
func (v *realVault) call(t *testing.T, method, path string, body any, into any) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, v.address+"/v1/"+path, bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", rootToken)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode >= 300 {
		t.Fatalf("%s %s: %s", method, path, answer.Status)
	}
	if into != nil {
		if err := json.NewDecoder(answer.Body).Decode(into); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRealCertificates: clients that trust Vault's authority connect all the time while certificates of a minute are renewed, also
// through a short outage, and because of a notice.
func TestRealCertificates(t *testing.T) {
	v := startVault(t)
	c := config.Default()
	c.Secrets.Vault.Address, c.Secrets.Vault.Role, c.Secrets.Vault.SecretFile = v.address, v.roleID, v.secretID
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := Open(Options{Config: &c, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	pair, err := s.Issued(config.Certificate{PKI: "postroad-ingress", TTL: time.Minute}, "relay.example.com")
	if err != nil {
		t.Fatal(err)
	}
	store, err := certs.New(t.Context(), certs.Options{Pairs: []certs.Pair{pair}, Hostname: "relay.example.com", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	s.OnIssued(store.Look)
	store.Start()
	defer func() {
		if err := store.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	var authority struct {
		Data struct{ Certificate string }
	}
	v.call(t, http.MethodGet, "pki/cert/ca", nil, &authority)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(authority.Data.Certificate)) {
		t.Fatal("the authority's certificate is none")
	}
	server, client := &tls.Config{GetCertificate: store.GetCertificate}, &tls.Config{RootCAs: roots, ServerName: "relay.example.com"}
	serials := make(map[string]int)
	// A renewal is due after 40 s; a quarter of a minute is left for it when the outage is over.
	events := []struct {
		at time.Duration
		do func()
	}{
		{34 * time.Second, func() { v.call(t, http.MethodPut, "sys/seal", map[string]any{}, nil) }},
		{45 * time.Second, func() { v.call(t, http.MethodPut, "sys/unseal", map[string]any{"key": v.unsealKey}, nil) }},
		{65 * time.Second, func() { s.Renew("pki/postroad-ingress") }},
	}
	shakes, begun := 0, time.Now()
	for end := begun.Add(3 * time.Minute); (len(serials) < 3 || len(events) > 0) && time.Now().Before(end); {
		if len(events) > 0 && time.Since(begun) >= events[0].at {
			events[0].do()
			events = events[1:]
		}
		serial, err := handshake(server, client)
		if err != nil {
			t.Fatalf("%d handshakes succeeded, then: %v", shakes, err)
		}
		serials[serial]++
		shakes++
		time.Sleep(5 * time.Millisecond)
	}
	if len(serials) < 3 || len(events) > 0 {
		t.Errorf("got %d certificates, want at least 3", len(serials))
	}
	t.Logf("%d handshakes with %d certificates, none failed", shakes, len(serials))
}

// handshake makes a TLS session and returns the serial number of the server's certificate.
func handshake(server, client *tls.Config) (string, error) {
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	ended := make(chan error, 1)
	go func() { ended <- tls.Server(a, server).Handshake() }()
	conn := tls.Client(b, client)
	if err := conn.Handshake(); err != nil {
		_ = b.Close()
		<-ended
		return "", err
	}
	go func() { _, _ = conn.Read(make([]byte, 1)) }() // takes the session tickets
	if err := <-ended; err != nil {
		return "", err
	}
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}
