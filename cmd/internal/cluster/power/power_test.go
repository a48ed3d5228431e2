//go:build poweron

package power

import (
	"os"
	"path/filepath"
	"testing"
)

// The test needs root and loop devices; `go test -tags poweron` asks for it.
// chaos:power runs it before its own cuts: a rig that drops nothing proves
// nothing.
func TestCutDropsWhatWasNotSynced(t *testing.T) {
	d, err := New(t.Context(), t.TempDir(), 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	for cut := range 3 {
		kept, dropped := write(t, d, "kept", true), write(t, d, "dropped", false)
		if err := d.Cut(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d.Dir(), "late"), []byte("x"), 0o600); err == nil {
			t.Errorf("cut %d: a write after the cut worked", cut)
		}
		if err := d.Mount(t.Context()); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(kept); err != nil || string(text) != "kept" {
			t.Errorf("cut %d: synced file: got %q, %v", cut, text, err)
		}
		if text, err := os.ReadFile(dropped); err == nil && string(text) == "dropped" {
			t.Errorf("cut %d: the file that was not synced is still there", cut)
		}
		if err := os.Remove(kept); err != nil {
			t.Error(err)
		}
	}
}

func write(t *testing.T, d *Disk, name string, sync bool) string {
	t.Helper()
	path := filepath.Join(d.Dir(), name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(name); err != nil {
		t.Fatal(err)
	}
	if !sync {
		return path
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(d.Dir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		t.Fatal(err)
	}
	return path
}
