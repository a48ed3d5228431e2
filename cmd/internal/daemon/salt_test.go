package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/secrets"
)

// TestSaltOfFile: with files salts outlive certificates; a node alone makes the secret, in a cluster it is an operator who does.
func TestSaltOfFile(t *testing.T) {
	dir, log := t.TempDir(), new(strings.Builder)
	c := config.Default()
	c.Secrets.Dir = dir
	c.Ingress.Listeners[0].Auth, c.Ingress.Listeners[0].TLS = config.AuthRequired, config.TLSStart
	key := filepath.Join(dir, "key.pem")
	c.Ingress.Listeners[0].Cert, c.Ingress.Listeners[0].Key = key, key
	salt := func(keyText string) string {
		t.Helper()
		if err := os.WriteFile(key, []byte(keyText), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := secrets.Open(secrets.Options{Config: &c})
		if err != nil {
			t.Fatal(err)
		}
		d := &Daemon{c: &c, secrets: s, hostname: "relay.test.example", log: slog.New(slog.NewTextHandler(log, nil))}
		got, err := d.saltKey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	before := salt("one")
	if before == "" || !strings.Contains(log.String(), "cannot be kept") {
		t.Errorf("there is no directory: got %q and log %s", before, log.String())
	}
	if err := os.Mkdir(filepath.Join(dir, "clients"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.Queue.URLs = []string{"nats://other"}
	if salt("one") != before {
		t.Error("a node of a cluster has made a secret of its own")
	}
	c.Queue.URLs = nil
	kept := salt("one")
	if kept == before || kept != salt("two") {
		t.Error("the salt hangs on the key of the certificate")
	}
	c.Queue.URLs = []string{"nats://other"}
	if kept != salt("three") {
		t.Error("a node of a cluster does not take the file that is there")
	}
	list, err := os.ReadDir(filepath.Join(dir, "clients"))
	if err != nil || len(list) != 1 || list[0].Name() != saltFile {
		t.Fatalf("got %v, %v, want the salt only", list, err)
	}
	if info, err := list[0].Info(); err != nil || info.Mode() != 0o600 || info.Size() != saltBytes {
		t.Errorf("got %v, %v", info, err)
	}
	s, err := secrets.Open(secrets.Options{Config: &c})
	if err != nil {
		t.Fatal(err)
	}
	if all, err := s.Entries(t.Context(), secrets.KindClients, time.Now()); err != nil || len(all) != 0 {
		t.Errorf("got %+v, %v, want no client", all, err)
	}
	file := filepath.Join(dir, "clients", saltFile)
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readSalt(file); err == nil {
		t.Error("others can read it")
	}
}
