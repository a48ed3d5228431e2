package keyring_test

import (
	"errors"
	"testing"
	"time"

	"postroad/signer/keyring"
)

// TestDirChanged: a directory that is told of a change looks at once.
func TestDirChanged(t *testing.T) {
	path := t.TempDir()
	d, err := keyring.NewDir(keyring.DirOptions{Path: path, Refresh: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	want := func(n int) {
		t.Helper()
		if keys, err := d.Keys(t.Context(), "example.com"); len(keys) != n || n == 0 && !errors.Is(err, keyring.ErrNoKey) || n > 0 && err != nil {
			t.Errorf("got %v, %v, want %d keys", keys, err, n)
		}
	}
	if _, err := keyring.Generate(path, "other.example", "e1", keyring.Ed25519); err != nil { // makes the directory
		t.Fatal(err)
	}
	want(0)
	if _, err := keyring.Generate(path, "example.com", "e1", keyring.Ed25519); err != nil {
		t.Fatal(err)
	}
	want(0)
	d.Changed("Example.com.")
	want(1)
	if _, err := keyring.Generate(path, "example.com", "e2", keyring.Ed25519); err != nil {
		t.Fatal(err)
	}
	want(1)
	d.Changed("a/b")
	d.Changed("example.com")
	want(2)
}
