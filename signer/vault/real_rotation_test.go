//go:build realvault

package vault

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

// setup runs deploy/vault/setup.sh with more options.
func (v *realServer) setup(t *testing.T, more ...string) {
	t.Helper()
	bin := t.TempDir()
	if err := os.Symlink(v.binary, filepath.Join(bin, "vault")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", append([]string{"../../deploy/vault/setup.sh", "-t", "transit"}, more...)...)
	cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin", "VAULT_ADDR=" + v.address, "VAULT_TOKEN=" + rootToken, "HOME=" + t.TempDir()}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
}

// testRotation: with setup.sh -r signers may do to DKIM keys whatever the automatic rotation does, and to nothing else; without it they may not.
func (v *realServer) testRotation(t *testing.T) {
	v.clean(t)
	v.setup(t, "-r")
	c := v.client(t, "signer")
	keys := newKeys(t, c, quick())
	e, err := keys.Create(t.Context(), keyringtest.NewKey(t, "example.com", "s1", keyring.RSA), "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []keyring.State{keyring.Published, keyring.Active, keyring.Retiring, keyring.Revoked, keyring.Removed} {
		if e, err = keys.Change(t.Context(), e, to, "test"); err != nil {
			t.Fatalf("to %s: %v", to, err)
		}
	}
	if !v.gone(t, "example.com", "s1") {
		t.Error("the private half is not destroyed")
	}
	for _, path := range []string{"clients/x", "tls/x", "smarthosts/x", "ca/x"} {
		if _, err := c.Write(t.Context(), path, map[string]any{"a": "1"}, -1); !errors.Is(err, ErrDenied) {
			t.Errorf("writes %s: got %v, want %v", path, err, ErrDenied)
		}
		if err := c.Destroy(t.Context(), path, 1); !errors.Is(err, ErrDenied) {
			t.Errorf("destroys %s: got %v, want %v", path, err, ErrDenied)
		}
	}
	v.setup(t)
	keys = newKeys(t, v.client(t, "signer"), quick())
	if _, err := keys.Create(t.Context(), keyringtest.NewKey(t, "example.com", "s2", keyring.RSA), "test"); !errors.Is(err, ErrDenied) {
		t.Errorf("without -r: got %v, want %v", err, ErrDenied)
	}
	v.clean(t)
}
