package account_test

import (
	"bytes"
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

	"go.uber.org/goleak"

	"postroad/ingress/account"
	"postroad/ingress/account/accounttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// journal is a log to be read by a test.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) text() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func (j *journal) count(message string) int {
	return strings.Count(j.text(), fmt.Sprintf("msg=%q", message))
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

func newDir(t *testing.T, o account.DirOptions) *account.Dir {
	t.Helper()
	d, err := account.NewDir(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func path(secrets, name string) string { return filepath.Join(secrets, "clients", name+".json") }

func write(t *testing.T, secrets, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(secrets, "clients"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path(secrets, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDirConforms(t *testing.T) {
	accounttest.Run(t, func(t *testing.T) accounttest.Fixture {
		secrets := t.TempDir()
		root := filepath.Join(secrets, "clients")
		if err := os.Mkdir(root, 0o700); err != nil {
			t.Fatal(err)
		}
		const refresh = 20 * time.Millisecond
		return accounttest.Fixture{
			Store:  newDir(t, account.DirOptions{Path: secrets, Refresh: refresh}),
			Within: refresh,
			Spoil:  func(name string) { write(t, secrets, name, "{") },
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

// TestDirFaults reads files that cannot be used; each error names the file, what
// is wrong and what to do, and leaves other clients alone.
func TestDirFaults(t *testing.T) {
	const good = `{"version": 1}`
	put := func(text string, mode os.FileMode) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	cases := []struct {
		name string
		make func(*testing.T, string)
		want []string
	}{
		{"wide mode", put(good, 0o644), []string{"has mode 0644", "chmod 0600"}},
		{"group may write", put(good, 0o620), []string{"has mode 0620", "chmod 0600"}},
		{"executable", put(good, 0o700), []string{"has mode 0700", "chmod 0600"}},
		{"empty", put("", 0o600), []string{"is not JSON"}},
		{"a list", put("[]", 0o600), []string{"want a JSON object"}},
		{"two records", put(good+good, 0o600), []string{"behind its end"}},
		{"too large", put(strings.Repeat(" ", 70_000), 0o600), []string{"larger than 65536 octets"}},
		{"wrong field", put(`{"version":1,"sender":["@x.example"]}`, 0o600), []string{"sender: there is no such field", "senders"}},
		{"directory", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, []string{"is not a regular file"}},
		{"FIFO", func(t *testing.T, path string) {
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"is not a regular file"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			secrets := t.TempDir()
			write(t, secrets, "good", good)
			c.make(t, path(secrets, "web1"))
			logs := &journal{}
			d := newDir(t, account.DirOptions{Path: secrets, Logger: logs.logger()})
			for range 3 {
				_, err := d.Latest(t.Context(), "web1")
				if !errors.Is(err, account.ErrUnavailable) {
					t.Fatalf("got %v, want %v", err, account.ErrUnavailable)
				}
				for _, want := range append(c.want, path(secrets, "web1")) {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("got error %q, want %q in it", err, want)
					}
				}
				if strings.Contains(err.Error(), "\n") {
					t.Errorf("got error of several lines: %q", err)
				}
			}
			if n := logs.count("client cannot be used"); n != 1 {
				t.Errorf("got %d lines in the log, want 1: %s", n, logs.text())
			}
			if _, err := d.Client(t.Context(), "good"); err != nil {
				t.Errorf("good: got %v", err)
			}
			err := d.Check(t.Context())
			for _, want := range append(c.want, path(secrets, "web1")) {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("check: got %v, want %q in it", err, want)
				}
			}
		})
	}
}

// TestDirOwners: a file of another user is refused; but the superuser works for
// the user that the directory belongs to. Only the superuser can see that.
func TestDirOwners(t *testing.T) {
	secrets := t.TempDir()
	write(t, secrets, "web1", `{"version": 1}`)
	d := newDir(t, account.DirOptions{Path: secrets})
	if os.Geteuid() != 0 {
		if err := os.Remove(path(secrets, "web1")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/etc/passwd", path(secrets, "web1")); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Latest(t.Context(), "web1"); !errors.Is(err, account.ErrUnavailable) {
			t.Errorf("got %v, want %v", err, account.ErrUnavailable)
		}
		return
	}
	const other = 12345
	if err := os.Chown(path(secrets, "web1"), other, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Latest(t.Context(), "web1"); !errors.Is(err, account.ErrUnavailable) || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Errorf("a file of another user: got %v", err)
	}
	if err := os.Chown(filepath.Join(secrets, "clients"), other, other); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Latest(t.Context(), "web1"); err != nil {
		t.Errorf("a file of the directory's owner: got %v", err)
	}
	if err := d.Put(t.Context(), &account.Client{Name: "web2"}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path(secrets, "web2"))
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != other || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v, want a file of the directory's owner with mode 0600", info, err)
	}
}

func TestDirIgnoresOtherFiles(t *testing.T) {
	secrets := t.TempDir()
	write(t, secrets, "web1", `{"version": 1}`)
	for _, name := range []string{"README", ".web2.json-123", "web3.json~", "web4.txt", ".json"} {
		if err := os.WriteFile(filepath.Join(secrets, "clients", name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	clients, err := newDir(t, account.DirOptions{Path: secrets}).List(t.Context())
	if err != nil || len(clients) != 1 {
		t.Errorf("got %v, %v, want one client", clients, err)
	}
	write(t, secrets, "Web5", `{"version": 1}`)
	if _, err := newDir(t, account.DirOptions{Path: secrets}).List(t.Context()); err == nil || !strings.Contains(err.Error(), "not named after a client") {
		t.Errorf("got %v, want an error for the name in upper case", err)
	}
}

// TestDirBounds asks for more names than are remembered.
func TestDirBounds(t *testing.T) {
	secrets := t.TempDir()
	write(t, secrets, "web1", `{"version": 1}`)
	d := newDir(t, account.DirOptions{Path: secrets, Refresh: time.Hour})
	first, err := d.Client(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	for i := range account.MaxMissing + 2000 {
		if _, err := d.Client(t.Context(), fmt.Sprintf("x%d", i)); !errors.Is(err, account.ErrUnknown) {
			t.Fatalf("got %v, want %v", err, account.ErrUnknown)
		}
	}
	if known, missing := account.Remembered(d); known != 1 || missing != account.MaxMissing {
		t.Errorf("remembered %d known and %d missing names, want 1 and %d", known, missing, account.MaxMissing)
	}
	again, err := d.Client(t.Context(), "web1")
	if err != nil || first != again {
		t.Errorf("got %v, %v: unknown names have driven out a known one", again, err)
	}
}

// TestDirTime follows the clock: files are looked at again after Refresh, what is
// in force outlives a broken file for ever, and the directory for MaxStale.
func TestDirTime(t *testing.T) {
	secrets := t.TempDir()
	write(t, secrets, "web1", `{"version": 1, "class": "one"}`)
	root := filepath.Join(secrets, "clients")
	synctest.Test(t, func(t *testing.T) {
		logs := &journal{}
		d := newDir(t, account.DirOptions{Path: secrets, Refresh: time.Minute, MaxStale: time.Hour, Logger: logs.logger()})
		class := func(want string) {
			t.Helper()
			if c, err := d.Client(t.Context(), "web1"); err != nil || c.Class != want {
				t.Errorf("got %v, %v, want class %s", c, err, want)
			}
		}
		class("one")
		write(t, secrets, "web1", `{"version": 1, "class": "two"}`)
		time.Sleep(59 * time.Second)
		class("one")
		time.Sleep(time.Second)
		class("two")
		if n := logs.count("client read"); n != 2 {
			t.Errorf("got %d lines of reading, want 2: %s", n, logs.text())
		}

		const kept = "client cannot be read, what was read before stays in force"
		write(t, secrets, "web1", `{"version": 1, "class": "three",}`)
		for range 3 {
			time.Sleep(24 * time.Hour)
			class("two")
		}
		if n := logs.count(kept); n != 1 {
			t.Errorf("got %d lines of the fault, want 1: %s", n, logs.text())
		}
		write(t, secrets, "web1", `{"version": 1, "class": "three"}`)
		time.Sleep(time.Minute)
		class("three")
		write(t, secrets, "web1", `{`)
		time.Sleep(time.Minute)
		class("three")
		if n := logs.count(kept); n != 2 {
			t.Errorf("got %d lines of faults, want 2: %s", n, logs.text())
		}
		write(t, secrets, "web1", `{"version": 1, "class": "four"}`)
		time.Sleep(time.Minute)
		class("four")

		if err := os.Rename(root, root+".away"); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			time.Sleep(20 * time.Minute)
			class("four")
		}
		if n := logs.count("clients cannot be read, logging in goes on with the records in memory"); n != 1 {
			t.Errorf("got %d lines of the outage, want 1: %s", n, logs.text())
		}
		time.Sleep(time.Minute)
		if _, err := d.Client(t.Context(), "web1"); !errors.Is(err, account.ErrUnavailable) {
			t.Errorf("got %v, want %v", err, account.ErrUnavailable)
		}
		if err := os.Rename(root+".away", root); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		class("four")
		if err := os.Remove(path(secrets, "web1")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := d.Client(t.Context(), "web1"); !errors.Is(err, account.ErrUnknown) {
			t.Errorf("got %v, want %v", err, account.ErrUnknown)
		}
		if n := logs.count("client gone"); n != 1 {
			t.Errorf("got %d lines of its end, want 1: %s", n, logs.text())
		}
	})
}

// TestDirPut stores whole files only, where there was no directory yet.
func TestDirPut(t *testing.T) {
	secrets := filepath.Join(t.TempDir(), "secrets")
	d := newDir(t, account.DirOptions{Path: secrets})
	if _, err := d.List(t.Context()); !errors.Is(err, account.ErrUnavailable) || !strings.Contains(err.Error(), "is not there") {
		t.Errorf("list: got %v, want that the directory is not there", err)
	}
	if err := d.Remove(t.Context(), "web1"); !errors.Is(err, account.ErrUnavailable) {
		t.Errorf("remove: got %v, want %v", err, account.ErrUnavailable)
	}
	if err := d.Put(t.Context(), &account.Client{Name: "web1", Class: "Not a class"}); err == nil {
		t.Error("a record was stored that cannot be read")
	}
	if err := d.Put(t.Context(), &account.Client{Name: "web1"}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(secrets, "clients"))
	if err != nil || len(entries) != 1 || entries[0].Name() != "web1.json" {
		t.Errorf("got %v, %v, want web1.json alone", entries, err)
	}
	if info, err := os.Stat(filepath.Join(secrets, "clients")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("got %v, %v, want mode 0700", info, err)
	}
}

func TestNewDirOptions(t *testing.T) {
	for _, o := range []account.DirOptions{{}, {Path: "x", Refresh: -1}, {Path: "x", MaxStale: -1}} {
		if _, err := account.NewDir(o); err == nil {
			t.Errorf("%+v: got no error", o)
		}
	}
}
