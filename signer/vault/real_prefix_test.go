//go:build realvault

package vault

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// run runs deploy/vault/setup.sh with nothing but these arguments.
func (v *realServer) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	bin := t.TempDir()
	if err := os.Symlink(v.binary, filepath.Join(bin, "vault")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", append([]string{"../../deploy/vault/setup.sh"}, args...)...)
	cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin", "VAULT_ADDR=" + v.address, "VAULT_TOKEN=" + rootToken, "HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// testPrefixes: who may do everything below one prefix can do nothing below another, not even with a transit key.
func (v *realServer) testPrefixes(t *testing.T) {
	dir := t.TempDir()
	join := func(prefix string, args ...string) *Client {
		t.Helper()
		said, err := v.run(t, append(args, "-p", prefix, "admin="+filepath.Join(dir, "admin"))...)
		if err != nil {
			t.Fatalf("%v:\n%s", err, said)
		}
		id := regexp.MustCompile(`(?m)^admin role id: (\S+)$`).FindStringSubmatch(said)
		if id == nil {
			t.Fatalf("no role id in:\n%s", said)
		}
		o := v.options(t, "root")
		o.Prefix, o.Login = prefix, &AppRole{RoleID: id[1], SecretIDFile: filepath.Join(dir, "admin")}
		c, err := start(t, o)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	sign := func(c *Client, key string) error {
		_, err := c.do(t.Context(), "sign with", call{method: http.MethodPut, path: "transit/sign/" + key, body: map[string]any{"input": "AAAA"}})
		return err
	}
	for _, key := range []string{"dkim-example.com", "postroad-dev-dkim-example.com"} {
		v.call(t, call{method: http.MethodPut, path: "transit/keys/" + key, body: map[string]any{"type": "ed25519"}})
	}
	dev := join("postroad-dev", "-t", "transit")
	if err := sign(dev, "postroad-dev-dkim-example.com"); err != nil {
		t.Errorf("with its own key: %v", err)
	}
	if err := sign(dev, "dkim-example.com"); !errors.Is(err, ErrDenied) {
		t.Errorf("with a key of the default prefix: got %v, want %v", err, ErrDenied)
	}
	if err := sign(v.client(t, "admin"), "postroad-dev-dkim-example.com"); !errors.Is(err, ErrDenied) {
		t.Errorf("default prefix with a key of another: got %v, want %v", err, ErrDenied)
	}
	for _, path := range []string{"secret/data/postroad/dkim/a/b", "secret/metadata/postroad/clients/x", "secret/data/postroad-devil/x"} {
		if _, err := dev.do(t.Context(), "read", call{method: http.MethodGet, path: path}); !errors.Is(err, ErrDenied) {
			t.Errorf("reads %s: got %v, want %v", path, err, ErrDenied)
		}
	}
	if dev = join("postroad-dev"); !errors.Is(sign(dev, "postroad-dev-dkim-example.com"), ErrDenied) {
		t.Error("without -t there are rules for transit")
	}
	for prefix, want := range map[string]string{"postroad/dev": "of another mount or prefix", "postroad-dkim": "could not be told", "dkim-x": "could not be told"} {
		if said, err := v.run(t, "-p", prefix); err == nil || !strings.Contains(said, want) {
			t.Errorf("prefix %s: got %v, want %q in:\n%s", prefix, err, want, said)
		}
	}
}
