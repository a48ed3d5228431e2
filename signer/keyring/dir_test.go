package keyring_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDirConforms(t *testing.T) {
	keyringtest.Run(t, func(t *testing.T) keyringtest.Fixture {
		secrets := t.TempDir()
		root := filepath.Join(secrets, "dkim")
		if err := os.Mkdir(root, 0o700); err != nil {
			t.Fatal(err)
		}
		const refresh = 20 * time.Millisecond
		return keyringtest.Fixture{
			Source: newDir(t, keyring.DirOptions{Path: secrets, Refresh: refresh}),
			Within: refresh,
			Store: func(k keyring.Key) {
				put(t, secrets, k.Domain, k.Selector, encode(t, k))
			},
			Remove: func(domain, selector string) {
				if err := os.Remove(keyPath(secrets, domain, selector)); err != nil {
					t.Fatal(err)
				}
			},
			Spoil: func(domain, selector string) {
				if err := os.Chmod(keyPath(secrets, domain, selector), 0o644); err != nil {
					t.Fatal(err)
				}
			},
			Cut: func() {
				if err := os.Rename(root, root+".away"); err != nil {
					t.Fatal(err)
				}
			},
			Restore: func() {
				if err := os.Rename(root+".away", root); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

// TestDirFaults reads files that cannot be used; each gets one error that names
// the file, what is wrong and what to do, and leaves other domains alone.
func TestDirFaults(t *testing.T) {
	good := encode(t, keyringtest.NewKey(t, "x", "x", keyring.Ed25519))
	rsa := encode(t, keyringtest.NewKey(t, "x", "x", keyring.RSA))
	testdata := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	write := func(data []byte, mode os.FileMode) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	cases := []struct {
		name string
		file string // default: s1.pem
		make func(*testing.T, string)
		want []string
	}{
		{"wide mode", "", write(good, 0o644), []string{"has mode 0644", "chmod 0600"}},
		{"group may write", "", write(good, 0o620), []string{"has mode 0620", "chmod 0600"}},
		{"executable", "", write(good, 0o700), []string{"has mode 0700", "chmod 0600"}},
		{"empty", "", write(nil, 0o600), []string{"is not PEM"}},
		{"not PEM", "", write([]byte("hello"), 0o600), []string{"is not PEM", "BEGIN PRIVATE KEY"}},
		{"cut off", "", write(good[:len(good)-30], 0o600), []string{"is not PEM"}},
		{"damaged", "", write(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1, 2}}), 0o600), []string{"holds a damaged key"}},
		{"two keys", "", write(append(good[:len(good):len(good)], rsa...), 0o600), []string{"more than one PEM block", "leave one"}},
		{"public key", "", write(testdata("public.pem"), 0o600), []string{`holds a "PUBLIC KEY"`, "want a private key"}},
		{"encrypted", "", write(testdata("encrypted.pem"), 0o600), []string{"is encrypted", "without a passphrase"}},
		{"encrypted the old way", "", write(testdata("encrypted-old.pem"), 0o600), []string{"is encrypted"}},
		{"RSA of 768 bits", "", write(testdata("rsa-768.pem"), 0o600), []string{"768 bits", "make one of 2048"}},
		{"RSA of 8192 bits", "", write(testdata("rsa-8192.pem"), 0o600), []string{"8192 bits", "make one of 2048"}},
		{"elliptic curve", "", write(testdata("ec.pem"), 0o600), []string{"ecdsa", "RSA and Ed25519"}},
		{"too large", "", write(make([]byte, 100_000), 0o600), []string{"larger than 65536 octets"}},
		{"selector in upper case", "Mail.pem", write(good, 0o600), []string{"Mail.pem is not named after a selector"}},
		{"directory", "", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, []string{"is not a regular file"}},
		{"FIFO", "", func(t *testing.T, path string) {
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"is not a regular file"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			secrets := t.TempDir()
			put(t, secrets, "good.example", "s1", good)
			name := c.file
			if name == "" {
				name = "s1.pem"
			}
			path := filepath.Join(secrets, "dkim", "example.com", name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			c.make(t, path)
			logs := &journal{}
			d := newDir(t, keyring.DirOptions{Path: secrets, Logger: logs.logger()})

			keys, err := d.Keys(t.Context(), "example.com")
			if !errors.Is(err, keyring.ErrBadKey) {
				t.Fatalf("got %v, %v, want %v", keys, err, keyring.ErrBadKey)
			}
			for _, want := range append(c.want, path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got error %q, want %q in it", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("got error of several lines: %q", err)
			}
			if n := logs.count("key file cannot be used"); n != 1 {
				t.Errorf("got %d lines in the log, want 1: %s", n, logs.text())
			}
			if keys, err := d.Keys(t.Context(), "good.example"); err != nil || len(keys) != 1 {
				t.Errorf("good.example: got %v, %v, want one key", keys, err)
			}
		})
	}
}

// TestDirForeignOwner needs a file of another user; only the superuser can make
// one. Others check the rule against a file of the system.
func TestDirForeignOwner(t *testing.T) {
	secrets := t.TempDir()
	k := keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519)
	put(t, secrets, k.Domain, k.Selector, encode(t, k))
	path := keyPath(secrets, k.Domain, k.Selector)
	want := "belongs to user 12345"
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 12345, -1); err != nil {
			t.Fatal(err)
		}
	} else {
		want = "/s1.pem " // any fault: /etc/passwd is root's, with a wide mode
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/etc/passwd", path); err != nil {
			t.Fatal(err)
		}
	}
	_, err := newDir(t, keyring.DirOptions{Path: secrets}).Keys(t.Context(), "example.com")
	if !errors.Is(err, keyring.ErrBadKey) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %v with %q", err, keyring.ErrBadKey, want)
	}
}

func TestDirFormats(t *testing.T) {
	for _, c := range []struct {
		file string
		want keyring.Algorithm
		weak bool
	}{
		{"rsa-pkcs1.pem", keyring.RSA, false},
		{"rsa-pkcs8.pem", keyring.RSA, false},
		{"rsa-4096.pem", keyring.RSA, false},
		{"rsa-1024.pem", keyring.RSA, true},
		{"ed25519.pem", keyring.Ed25519, false},
	} {
		t.Run(c.file, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join("testdata", c.file))
			if err != nil {
				t.Fatal(err)
			}
			secrets := t.TempDir()
			put(t, secrets, "example.com", "s1", data)
			logs := &journal{}
			keys, err := newDir(t, keyring.DirOptions{Path: secrets, Logger: logs.logger()}).Keys(t.Context(), "example.com")
			if err != nil || len(keys) != 1 || keys[0].Algorithm != c.want {
				t.Fatalf("got %v, %v, want one %s key", keys, err, c.want)
			}
			if got := logs.count("key is weak") == 1; got != c.weak {
				t.Errorf("warned: got %t, want %t", got, c.weak)
			}
		})
	}
}

func TestDirIgnoresOtherFiles(t *testing.T) {
	secrets := t.TempDir()
	k := keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519)
	put(t, secrets, k.Domain, k.Selector, encode(t, k))
	dir := filepath.Join(secrets, "dkim", "example.com")
	for _, name := range []string{"README", ".s2.pem", "s3.pem~", "s4.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "s5.pem")); err != nil {
		t.Fatal(err)
	}
	d := newDir(t, keyring.DirOptions{Path: secrets})
	if keys, err := d.Keys(t.Context(), "example.com"); err != nil || len(keys) != 1 {
		t.Errorf("got %v, %v, want one key", keys, err)
	}
	if err := d.Check(t.Context()); err != nil {
		t.Errorf("check: got %v, want nothing wrong", err)
	}
}

// TestDirBounds asks for more domains than are remembered, and offers more keys
// and files than are used.
func TestDirBounds(t *testing.T) {
	secrets := t.TempDir()
	data := encode(t, keyringtest.NewKey(t, "x", "x", keyring.Ed25519))
	for i := range 9 {
		put(t, secrets, "keys.example", fmt.Sprintf("s%d", i), data)
	}
	for i := range 300 {
		put(t, secrets, "files.example", fmt.Sprintf("s%d", i), nil)
	}
	put(t, secrets, "example.com", "s1", data)
	d := newDir(t, keyring.DirOptions{Path: secrets, Refresh: time.Hour})
	for domain, want := range map[string]string{"keys.example": "has 9 keys", "files.example": "more than 256 files"} {
		_, err := d.Keys(t.Context(), domain)
		if !errors.Is(err, keyring.ErrBadKey) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %v with %q", domain, err, keyring.ErrBadKey, want)
		}
	}
	first, err := d.Keys(t.Context(), "example.com")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 12_000 {
		if _, err := d.Keys(t.Context(), fmt.Sprintf("x%d.example", i)); !errors.Is(err, keyring.ErrNoKey) {
			t.Fatalf("got %v, want %v", err, keyring.ErrNoKey)
		}
	}
	if known, missing := keyring.Remembered(d); known > 3 || missing != keyring.MaxMissing {
		t.Errorf("remembered %d domains with and %d without keys, want at most 3 and %d", known, missing, keyring.MaxMissing)
	}
	again, err := d.Keys(t.Context(), "example.com")
	if err != nil || &first[0] != &again[0] {
		t.Errorf("got %v, %v: unknown domains have driven out a known one", again, err)
	}
}

// TestDirTime follows the clock: files are looked at again after Refresh, an
// unchanged one is not parsed again, keys in memory outlive the directory for
// MaxStale and no longer.
func TestDirTime(t *testing.T) {
	secrets := t.TempDir()
	k := keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519)
	put(t, secrets, k.Domain, k.Selector, encode(t, k))
	root := filepath.Join(secrets, "dkim")
	synctest.Test(t, func(t *testing.T) {
		logs := &journal{}
		d := newDir(t, keyring.DirOptions{Path: secrets, Refresh: time.Minute, MaxStale: time.Hour, Logger: logs.logger()})
		ask := func() ([]keyring.Key, error) { return d.Keys(t.Context(), "example.com") }
		for range 2 {
			if keys, err := ask(); err != nil || len(keys) != 1 {
				t.Fatalf("got %v, %v, want the key", keys, err)
			}
			time.Sleep(2 * time.Minute)
		}
		if n := logs.count("key read"); n != 1 {
			t.Errorf("key was read %d times, want once", n)
		}

		if err := os.Rename(root, root+".away"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(57 * time.Minute)
		for range 3 {
			if keys, err := ask(); err != nil || len(keys) != 1 {
				t.Fatalf("within MaxStale: got %v, %v, want the key", keys, err)
			}
			time.Sleep(10 * time.Second)
		}
		if n := logs.count("signing goes on with the keys in memory"); n != 1 {
			t.Errorf("the outage was logged %d times, want once", n)
		}
		time.Sleep(2 * time.Minute)
		_, err := ask()
		if err == nil || errors.Is(err, keyring.ErrNoKey) || errors.Is(err, keyring.ErrBadKey) {
			t.Errorf("after MaxStale: got %v, want a temporary error", err)
		}
		if err := os.Rename(root+".away", root); err != nil {
			t.Fatal(err)
		}
		if keys, err := ask(); err != nil || len(keys) != 1 {
			t.Errorf("after the outage: got %v, %v, want the key", keys, err)
		}
	})
}

func TestDirCheck(t *testing.T) {
	secrets := t.TempDir()
	d := newDir(t, keyring.DirOptions{Path: secrets})
	if err := d.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "create it with mode 0700") {
		t.Errorf("no directory: got %v, want what to do", err)
	}
	data := encode(t, keyringtest.NewKey(t, "x", "x", keyring.Ed25519))
	put(t, secrets, "good.example", "s1", data)
	put(t, secrets, "mixed.example", "s1", data)
	put(t, secrets, "mixed.example", "s2", []byte("x"))
	put(t, secrets, "bad.example", "s1", []byte("x"))
	put(t, secrets, "Upper.example", "s1", data)
	for _, dir := range []string{"empty.example", ".hidden"} {
		if err := os.Mkdir(filepath.Join(secrets, "dkim", dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(secrets, "dkim", "file.example"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := d.Check(t.Context())
	if err == nil {
		t.Fatal("got nothing wrong")
	}
	got := strings.Split(strings.ReplaceAll(err.Error(), secrets, ""), "\n")
	want := []string{
		"/dkim/Upper.example is not named after a domain: want lower case and A-labels",
		"key file /dkim/bad.example/s1.pem is not PEM: want \"-----BEGIN PRIVATE KEY-----\": unusable DKIM key",
		"/dkim/empty.example holds no key: add <selector>.pem or remove it",
		"/dkim/file.example is a file, want a directory with <selector>.pem in it: unusable DKIM key",
		"key file /dkim/mixed.example/s2.pem is not PEM: want \"-----BEGIN PRIVATE KEY-----\": unusable DKIM key",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("check (-want +got):\n%s", diff)
	}
}

func TestNewDirRefuses(t *testing.T) {
	for _, o := range []keyring.DirOptions{{}, {Path: "x", Refresh: -1}, {Path: "x", MaxStale: -1}} {
		if _, err := keyring.NewDir(o); err == nil {
			t.Errorf("%+v: got no error", o)
		}
	}
}

func newDir(t testing.TB, o keyring.DirOptions) *keyring.Dir {
	t.Helper()
	d, err := keyring.NewDir(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func keyPath(secrets, domain, selector string) string {
	return filepath.Join(secrets, "dkim", domain, selector+".pem")
}

// put writes a key file as an editor does: a new file in the place of the old.
func put(t testing.TB, secrets, domain, selector string, data []byte) {
	t.Helper()
	path := keyPath(secrets, domain, selector)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func encode(t testing.TB, k keyring.Key) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k.Signer)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// journal keeps what was logged.
type journal struct {
	mu sync.Mutex
	b  strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

func (j *journal) text() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func (j *journal) count(message string) int { return strings.Count(j.text(), message) }

// TestReachable: one domain that cannot be read is not the directory.
func TestReachable(t *testing.T) {
	dir := t.TempDir()
	d, err := keyring.NewDir(keyring.DirOptions{Path: dir, Refresh: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Reachable(); err == nil {
		t.Error("no directory: got no error")
	}
	if err := os.Mkdir(filepath.Join(dir, "dkim"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Reachable(); err != nil {
		t.Errorf("empty: got %v", err)
	}
	key, err := keyring.Make("example.com", "s1", keyring.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	e, err := d.Create(t.Context(), key, "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Change(t.Context(), e, keyring.Active, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Keys(t.Context(), "example.com"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "dkim"), filepath.Join(dir, "away")); err != nil {
		t.Fatal(err)
	}
	if err := d.Reachable(); err != nil {
		t.Errorf("away, with a key in memory: got %v", err)
	}
}
