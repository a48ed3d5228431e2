package keyring_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

func TestDirStoreConforms(t *testing.T) {
	keyringtest.RunStore(t, func(t *testing.T) keyringtest.StoreFixture {
		secrets := t.TempDir()
		const refresh = 20 * time.Millisecond
		open := func() *keyring.Dir { return newDir(t, keyring.DirOptions{Path: secrets, Refresh: refresh}) }
		return keyringtest.StoreFixture{
			Store:  open(),
			Within: refresh,
			Other:  func() keyring.Store { return open() },
			Put:    func(k keyring.Key) { put(t, secrets, k.Domain, k.Selector, encode(t, k)) },
			Gone: func(domain, selector string) bool {
				_, err := os.Lstat(keyPath(secrets, domain, selector))
				return errors.Is(err, os.ErrNotExist)
			},
		}
	})
}

func statePath(secrets, domain, selector string) string {
	return strings.TrimSuffix(keyPath(secrets, domain, selector), ".pem") + ".json"
}

// live makes a store with one key in a state.
func live(t *testing.T, state keyring.State) (secrets string, d *keyring.Dir, k keyring.Key, e keyring.Entry) {
	t.Helper()
	secrets = t.TempDir()
	d = newDir(t, keyring.DirOptions{Path: secrets, Refresh: time.Nanosecond})
	k = keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519)
	e, err := d.Create(t.Context(), k, "test")
	if err == nil && state != keyring.Generated {
		e, err = d.Change(t.Context(), e, state, "test")
	}
	if err != nil {
		t.Fatal(err)
	}
	return secrets, d, k, e
}

func TestDirStateFile(t *testing.T) {
	secrets, _, k, e := live(t, keyring.Active)
	path := statePath(secrets, "example.com", "s1")
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("got %v, %v, want mode 0600", info, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	at := func(n int) string { return e.History[n].At.Format(time.RFC3339Nano) }
	want := map[string]any{
		"version": 1.0, "domain": "example.com", "selector": "s1", "algorithm": "ed25519-sha256", "bits": 256.0,
		"record": keyring.Record(k), "state": "active", "by": "test",
		"history": []any{map[string]any{"state": "generated", "at": at(0)}, map[string]any{"state": "active", "at": at(1), "why": "test"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("state file (-want +got):\n%s", diff)
	}
	list, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(list) != 2 {
		t.Errorf("got %v, %v, want the key file and the state file alone", list, err)
	}
}

// TestDirStateFaults spoils the state file of an Active key: it does not sign,
// Check says why, and the other key goes on.
func TestDirStateFaults(t *testing.T) {
	edit := func(old, new string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			data, err := os.ReadFile(path)
			if err != nil || !bytes.Contains(data, []byte(old)) {
				t.Fatalf("%s: %v, %q", path, err, data)
			}
			if err := os.WriteFile(path, bytes.ReplaceAll(data, []byte(old), []byte(new)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	rsa := encode(t, keyringtest.NewKey(t, "x", "x", keyring.RSA))
	for _, c := range []struct {
		name  string
		spoil func(*testing.T, string)
		want  string
	}{
		{"empty", func(_ *testing.T, path string) { os.Truncate(path, 0) }, "is damaged"},
		{"no object", func(_ *testing.T, path string) { os.WriteFile(path, []byte("[]"), 0o600) }, "is damaged"},
		{"cut off", func(_ *testing.T, path string) { os.Truncate(path, 100) }, "is damaged"},
		{"wide mode", func(_ *testing.T, path string) { os.Chmod(path, 0o644) }, "has mode 0644"},
		{"newer", edit(`"version": 1`, `"version": 2`), "has format 2 and this Postroad knows up to 1"},
		{"no version", edit(`"version": 1`, `"version": 0`), "version 0"},
		{"of another domain", edit("example.com", "example.org"), `speaks of key "s1" of "example.org"`},
		{"of another selector", edit(`"selector": "s1"`, `"selector": "s2"`), `speaks of key "s2"`},
		{"unknown state", edit(`"active"`, `"Active"`), `state "Active", want generated`},
		{"unknown algorithm", edit("ed25519-sha256", "rsa-sha1"), `algorithm "rsa-sha1"`},
		{"unknown field", edit(`"bits"`, `"beats"`), `unknown field "beats"`},
		{"another history", edit(`"state": "active",`+"\n  \"history\"", `"state": "published",`+"\n  \"history\""), "history does not end"},
		{"two entries", edit("\n}\n", "\n}\n{}\n"), "after top-level value"},
		{"another key", edit("p=", "p=AAAA"), "is not the key that s1.json speaks of"},
		{"a directory", func(_ *testing.T, path string) { os.Remove(path); os.Mkdir(path, 0o700) }, "is not a regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			secrets, d, _, e := live(t, keyring.Active)
			c.spoil(t, statePath(secrets, "example.com", "s1"))
			if _, err := d.Keys(t.Context(), "example.com"); !errors.Is(err, keyring.ErrBadKey) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "s1.") {
				t.Errorf("got %v, want %v with %q", err, keyring.ErrBadKey, c.want)
			}
			if err := d.Check(t.Context()); err == nil || strings.Count(err.Error(), "\n") != 0 || !strings.Contains(err.Error(), c.want) {
				t.Errorf("check: got %v, want one line with %q", err, c.want)
			}
			if _, err := d.Change(t.Context(), e, keyring.Active, ""); err == nil {
				t.Error("change: got no error")
			}
			if _, err := d.Load(t.Context(), "example.com", "s1"); !errors.Is(err, keyring.ErrBadKey) {
				t.Errorf("load: got %v, want %v", err, keyring.ErrBadKey)
			}
			put(t, secrets, "example.com", "s2", rsa)
			if keys, err := d.Keys(t.Context(), "example.com"); err != nil || len(keys) != 1 || keys[0].Selector != "s2" {
				t.Errorf("got %v, %v, want s2 to sign", keys, err)
			}
			if entries, err := d.Entries(t.Context(), "example.com"); len(entries) == 0 || entries[len(entries)-1].Selector != "s2" || c.name != "another key" && err == nil {
				t.Errorf("entries: got %v, %v, want s2 and an error", entries, err)
			}
		})
	}
}

func TestDirNoneActive(t *testing.T) {
	_, d, _, e := live(t, keyring.Published)
	want := "no DKIM key that signs: keys of example.com are there but none is active: postroad dkim activate"
	if _, err := d.Keys(t.Context(), "example.com"); !errors.Is(err, keyring.ErrNoKey) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := d.Check(t.Context()); err != nil {
		t.Errorf("check: got %v, want nothing wrong", err)
	}
	if _, err := d.Change(t.Context(), e, keyring.Removed, ""); err != nil {
		t.Fatal(err)
	}
	if err := d.Check(t.Context()); err != nil {
		t.Errorf("check of a domain whose key is removed: got %v, want nothing wrong", err)
	}
}

// TestDirTakeover lets one key take over from another, again and again, while
// somebody asks: the domain has a key at every moment.
func TestDirTakeover(t *testing.T) {
	secrets := t.TempDir()
	d := newDir(t, keyring.DirOptions{Path: secrets})
	reader := newDir(t, keyring.DirOptions{Path: secrets, Refresh: time.Nanosecond})
	var entries [2]keyring.Entry
	for n := range entries {
		e, err := d.Create(t.Context(), keyringtest.NewKey(t, "example.com", fmt.Sprintf("s%d", n), keyring.Ed25519), "")
		if err != nil {
			t.Fatal(err)
		}
		entries[n] = e
	}
	change := func(n int, to keyring.State) {
		e, err := d.Change(t.Context(), entries[n], to, "")
		if err != nil {
			t.Error(err)
		}
		entries[n] = e
	}
	change(0, keyring.Active)
	done, asked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := range 40 {
			change((n+1)%2, keyring.Active)
			change(n%2, keyring.Published)
			for range 2 { // keys do not change faster than they are read: the second answer is to a question after the change
				<-asked
			}
		}
	}()
	for {
		if keys, err := reader.Keys(t.Context(), "example.com"); err != nil || len(keys) == 0 {
			t.Errorf("got %v, %v, want a key", keys, err)
		}
		select {
		case asked <- struct{}{}:
		case <-done:
			return
		default: // it is at a change
		}
	}
}

// TestDirInterrupted ends a creation and a destruction halfway.
func TestDirInterrupted(t *testing.T) {
	secrets, d, k, e := live(t, keyring.Active)
	path := keyPath(secrets, "example.com", "s1")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Change(t.Context(), e, keyring.Revoked, ""); err != nil {
		t.Fatal(err)
	}
	put(t, secrets, "example.com", "s1", data) // as if it had not come so far
	if keys, err := d.Keys(t.Context(), "example.com"); !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("got %v, %v, want %v", keys, err, keyring.ErrNoKey)
	}
	if _, err := d.Load(t.Context(), "example.com", "s1"); !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("load: got %v, want %v", err, keyring.ErrNoKey)
	}
	if err := d.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "s1.pem is still there and its key is revoked") {
		t.Errorf("check: got %v, want it to tell of the private half", err)
	}
	if _, err := d.Entries(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want the private half destroyed", err)
	}

	k.Selector = "s2"
	e, err = d.Create(t.Context(), k, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(keyPath(secrets, "example.com", "s2")); err != nil {
		t.Fatal(err)
	}
	if err := d.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "s2.pem is gone and its state file calls it generated") {
		t.Errorf("check: got %v, want it to tell of the missing key", err)
	}
	if _, err := d.Load(t.Context(), "example.com", "s2"); !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("load: got %v, want %v", err, keyring.ErrNoKey)
	}
	if _, err := d.Change(t.Context(), e, keyring.Active, ""); err == nil {
		t.Error("a key without a private half became active")
	}
	if _, err := d.Change(t.Context(), e, keyring.Removed, ""); err != nil {
		t.Errorf("remove: got %v", err)
	}
}

// TestDirDestroys looks at what is left of a private half.
func TestDirDestroys(t *testing.T) {
	for _, c := range []struct {
		name string
		mode os.FileMode
		link bool // the key file is a link
	}{{"a file", 0o600, false}, {"read-only", 0o400, false}, {"a link", 0o600, true}} {
		t.Run(c.name, func(t *testing.T) {
			secrets := t.TempDir()
			k := keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519)
			data := encode(t, k)
			put(t, secrets, k.Domain, k.Selector, data)
			path, copied := keyPath(secrets, k.Domain, k.Selector), filepath.Join(secrets, "copy")
			move := os.Link // keeps the contents within reach
			if c.link {
				move = func(old, new string) error { return errors.Join(os.Rename(old, new), os.Symlink(new, old)) }
			}
			if err := errors.Join(move(path, copied), os.Chmod(copied, c.mode)); err != nil {
				t.Fatal(err)
			}
			d := newDir(t, keyring.DirOptions{Path: secrets})
			entries, err := d.Entries(t.Context(), "example.com")
			if err != nil || len(entries) != 1 {
				t.Fatalf("got %v, %v", entries, err)
			}
			if _, err := d.Change(t.Context(), entries[0], keyring.Revoked, "test"); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("got %v, want the key file gone", err)
			}
			left, err := os.ReadFile(copied)
			if err != nil || len(left) != len(data) || len(bytes.Trim(left, "\x00")) != 0 {
				t.Errorf("got %q, %v, want zeros", left, err)
			}
		})
	}
}

// TestDirDestroysNoStranger replaces a key file by a link to a file that is no
// key, after the key was read.
func TestDirDestroysNoStranger(t *testing.T) {
	secrets, d, _, e := live(t, keyring.Active)
	path, other := keyPath(secrets, "example.com", "s1"), filepath.Join(secrets, "precious")
	if err := errors.Join(os.WriteFile(other, []byte("precious"), 0o600), os.Remove(path), os.Symlink(other, path)); err != nil {
		t.Fatal(err)
	}
	got, err := d.Change(t.Context(), e, keyring.Revoked, "")
	if err == nil || got.State != keyring.Revoked || !strings.Contains(err.Error(), "do it by hand") {
		t.Errorf("got %v, %v, want it revoked, and told that the private half was not destroyed", got.State, err)
	}
	if data, err := os.ReadFile(other); err != nil || string(data) != "precious" {
		t.Errorf("got %q, %v, want the other file as it was", data, err)
	}
}

// TestDirManyRemoved keeps a domain in use whose keys were changed for decades.
func TestDirManyRemoved(t *testing.T) {
	secrets, d, _, e := live(t, keyring.Removed)
	data, err := os.ReadFile(statePath(secrets, e.Domain, e.Selector))
	if err != nil {
		t.Fatal(err)
	}
	for n := range 400 {
		name := fmt.Sprintf("old%d", n)
		text := strings.ReplaceAll(string(data), `"s1"`, `"`+name+`"`)
		if err := os.WriteFile(statePath(secrets, e.Domain, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(t, secrets, e.Domain, "s2", encode(t, keyringtest.NewKey(t, "x", "x", keyring.RSA)))
	if keys, err := d.Keys(t.Context(), e.Domain); err != nil || len(keys) != 1 {
		t.Errorf("got %v, %v, want a key", keys, err)
	}
	if entries, err := d.Entries(t.Context(), e.Domain); err != nil || len(entries) != 402 {
		t.Errorf("got %d entries, %v, want 402", len(entries), err)
	}
	if err := d.Check(t.Context()); err != nil {
		t.Errorf("check: got %v", err)
	}
}

func TestDirHistoryIsBounded(t *testing.T) {
	_, d, _, e := live(t, keyring.Generated)
	long := strings.Repeat("ä", 10_000)
	for n := range 150 {
		var err error
		if e, err = d.Change(t.Context(), e, []keyring.State{keyring.Published, keyring.Generated}[n%2], long); err != nil {
			t.Fatal(err)
		}
	}
	if n, why := len(e.History), e.History[0].Why; n != 64 || len(why) > 410 {
		t.Errorf("got %d steps with %d octets of why, want 64 and at most 410", n, len(why))
	}
	if entries, err := d.Entries(t.Context(), ""); err != nil || len(entries) != 1 {
		t.Errorf("got %v, %v, want it readable", entries, err)
	}
}

// TestDirStoreOutOfReach tells a place that is still to be made from one that
// is not there.
func TestDirStoreOutOfReach(t *testing.T) {
	d := newDir(t, keyring.DirOptions{Path: filepath.Join(t.TempDir(), "away")})
	for _, domain := range []string{"", "example.com"} {
		if entries, err := d.Entries(t.Context(), domain); err == nil {
			t.Errorf("entries of %q: got %v, want an error", domain, entries)
		}
	}
	if _, err := d.Load(t.Context(), "example.com", "s1"); err == nil || errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("load: got %v, want an error that is temporary", err)
	}
}
