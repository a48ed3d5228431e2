//go:build realvault

package vault

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

// TestRealVault runs the conformance tests, and tests of what deploy/vault sets
// up, against a server in memory. VAULT_BINARY is the path of the program, as
// .ci/vault/build.sh prints it.
func TestRealVault(t *testing.T) {
	v := startReal(t)
	t.Run("secrets", func(t *testing.T) {
		v.enable(t, "plain", "kv", map[string]any{"version": "2"})
		o := v.options(t, "root")
		o.Mount = "plain"
		c, err := start(t, o)
		if err != nil {
			t.Fatal(err)
		}
		testSecrets(t, c)
	})
	t.Run("sealed", v.testSealed)
	t.Run("setup", v.testSetup)
	t.Run("policies", v.testPolicies)
	t.Run("prefixes", v.testPrefixes)
	t.Run("renewal", v.testRenewal)
	t.Run("batch", v.testBatch)
	t.Run("metadata", v.testMetadata)
	t.Run("rotation", v.testRotation)
	t.Run("source", func(t *testing.T) {
		keyringtest.Run(t, func(t *testing.T) keyringtest.Fixture { return v.fixture(t, v.store) })
	})
	t.Run("transit", func(t *testing.T) {
		keyringtest.Run(t, func(t *testing.T) keyringtest.Fixture { return v.fixture(t, v.storeTransit) })
	})
	t.Run("store", func(t *testing.T) {
		keyringtest.RunStore(t, func(t *testing.T) keyringtest.StoreFixture {
			v.clean(t)
			admin := v.client(t, "admin")
			return keyringtest.StoreFixture{
				Store:  startKeys(t, admin, quick()),
				Within: 500 * time.Millisecond,
				Other:  func() keyring.Store { return newKeys(t, admin, quick()) },
				Put:    func(k keyring.Key) { v.store(t, k) },
				Gone:   func(domain, selector string) bool { return v.gone(t, domain, selector) },
			}
		})
	})
}

// realServer is a server in development mode, unsealed.
type realServer struct {
	address, unseal, binary string
	root                    *Client
	roles                   map[string]Login // after testSetup
	secretIDs               string           // directory of their files
	keys                    int
}

const rootToken = "root"

func startReal(t testing.TB) *realServer {
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
	l.Close()
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
	unseal := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for s := bufio.NewScanner(out); s.Scan(); {
			if m := regexp.MustCompile(`^Unseal Key: (\S+)`).FindStringSubmatch(s.Text()); m != nil {
				unseal <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-read
		cmd.Wait()
	})
	v := &realServer{address: "http://" + listen, binary: binary, roles: map[string]Login{}, secretIDs: t.TempDir()}
	select {
	case v.unseal = <-unseal:
	case <-read:
		t.Fatalf("%s ended", binary)
	case <-time.After(5 * time.Minute):
		t.Fatalf("%s did not start within five minutes", binary)
	}
	if v.root, err = start(t, v.options(t, "root")); err != nil {
		t.Fatal(err)
	}
	return v
}

// options are those of a client with a role, or with the root token.
func (v *realServer) options(t testing.TB, role string) Options {
	o := Options{Address: v.address, Timeout: 30 * time.Second, Login: v.roles[role]}
	if role == "root" {
		o.Login = &TokenFile{Path: secretFile(t, rootToken)}
	}
	return o
}

func (v *realServer) client(t testing.TB, role string) *Client {
	t.Helper()
	c, err := start(t, v.options(t, role))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// call sends a request with the root token.
func (v *realServer) call(t testing.TB, r call) answer {
	t.Helper()
	got, err := v.root.send(context.Background(), v.root.api, r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.method, r.path, err)
	}
	return got
}

func (v *realServer) enable(t testing.TB, path, kind string, options map[string]any) {
	t.Helper()
	v.call(t, call{method: http.MethodPut, path: "sys/mounts/" + path, body: map[string]any{"type": kind, "options": options}})
	// A KV engine is made to one of version 2 in the background.
	if kind == "kv" {
		eventually(t, "engine ready", func() bool {
			_, err := v.root.send(t.Context(), v.root.api, call{method: http.MethodGet, path: path + "/config"})
			return err == nil
		})
	}
}

func (v *realServer) seal(t *testing.T) {
	v.call(t, call{method: http.MethodPut, path: "sys/seal", body: map[string]any{}})
}

func (v *realServer) open(t *testing.T) {
	v.call(t, call{method: http.MethodPut, path: "sys/unseal", body: map[string]any{"key": v.unseal}})
	eventually(t, "unsealed", func() bool { _, err := v.root.List(t.Context(), ""); return err == nil })
}

func (v *realServer) testSealed(t *testing.T) {
	v.seal(t)
	_, err := v.root.Read(t.Context(), "a")
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "unseal it") {
		t.Errorf("got %v, want %v", err, ErrUnavailable)
	}
	v.open(t)
	o := v.options(t, "root")
	o.Mount = "nowhere"
	c, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	for what, do := range map[string]func() error{
		"read":  func() error { _, err := c.Read(t.Context(), "a"); return err },
		"list":  func() error { _, err := c.List(t.Context(), "a"); return err },
		"write": func() error { _, err := c.Write(t.Context(), "a", map[string]any{"x": "1"}, -1); return err },
	} {
		if err := do(); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotFound) {
			t.Errorf("%s without an engine: got %v, want %v", what, err, ErrUnavailable)
		}
	}
}

// testSetup runs deploy/vault/setup.sh twice; the second time changes nothing
// but the secret ids.
func (v *realServer) testSetup(t *testing.T) {
	var before string
	for range 2 {
		args := []string{"../../deploy/vault/setup.sh", "-t", "transit", "-k", "pki", "-d", "relay.example.com,mx.example.com"}
		for _, role := range []string{"ingress", "signer", "delivery", "admin"} {
			args = append(args, role+"="+filepath.Join(v.secretIDs, role))
		}
		bin := t.TempDir()
		if err := os.Symlink(v.binary, filepath.Join(bin, "vault")); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", args...)
		cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin", "VAULT_ADDR=" + v.address, "VAULT_TOKEN=" + rootToken, "HOME=" + t.TempDir()}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		ids := regexp.MustCompile(`(?m)^(\w+) role id: (\S+)$`).FindAllStringSubmatch(string(out), -1)
		if len(ids) != 4 || before != "" && before != fmt.Sprint(ids) {
			t.Errorf("got role ids %v, before %v", ids, before)
		}
		before = fmt.Sprint(ids)
		for _, id := range ids {
			file := filepath.Join(v.secretIDs, id[1])
			if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
				t.Errorf("%s: got %v, %v, want mode 0600", file, info, err)
			}
			v.roles[id[1]] = &AppRole{RoleID: id[2], SecretIDFile: file}
		}
	}
}

// testPolicies proves what each role may read, and that it may read no more.
func (v *realServer) testPolicies(t *testing.T) {
	may := map[string][]string{
		"ingress": {"clients/x", "tls/x", "tls/client-x"}, "signer": {"dkim/example.com/s1"}, "delivery": {"smarthosts/x", "tls/client-x"},
		"admin": {"clients/x", "tls/x", "tls/client-x", "dkim/example.com/s1", "smarthosts/x", "ca/x"},
	}
	v.call(t, call{method: http.MethodPut, path: "transit/keys/dkim-policy", body: map[string]any{"type": "ed25519"}})
	for _, path := range may["admin"] {
		if _, err := v.root.Write(t.Context(), path, map[string]any{"a": "1"}, -1); err != nil {
			t.Fatal(err)
		}
	}
	for role, allowed := range may {
		c := v.client(t, role)
		for _, path := range may["admin"] {
			want := error(nil)
			if !slices.Contains(allowed, path) {
				want = ErrDenied
			}
			if _, err := c.Read(t.Context(), path); !errors.Is(err, want) {
				t.Errorf("%s reads %s: got %v, want %v", role, path, err, want)
			}
			if _, err := c.Metadata(t.Context(), path); !errors.Is(err, want) {
				t.Errorf("%s reads metadata of %s: got %v, want %v", role, path, err, want)
			}
			wantList := want
			if dir, _, _ := strings.Cut(path, "/"); role == "delivery" && dir == "tls" {
				wantList = ErrDenied // it is told the names of its certificates
			}
			if _, err := c.List(t.Context(), strings.Split(path, "/")[0]); !errors.Is(err, wantList) {
				t.Errorf("%s lists what is beside %s: got %v, want %v", role, path, err, wantList)
			}
			if role != "admin" {
				want = ErrDenied
			}
			if _, err := c.Write(t.Context(), path, map[string]any{"a": "1"}, -1); !errors.Is(err, want) {
				t.Errorf("%s writes %s: got %v, want %v", role, path, err, want)
			}
			if err := c.SetCustom(t.Context(), path, map[string]string{"a": "1"}); !errors.Is(err, want) {
				t.Errorf("%s writes metadata of %s: got %v, want %v", role, path, err, want)
			}
			if err := c.Destroy(t.Context(), path, 1); !errors.Is(err, want) {
				t.Errorf("%s destroys %s: got %v, want %v", role, path, err, want)
			}
		}
		want := ErrDenied
		if role == "signer" || role == "admin" {
			want = nil
		}
		r := call{method: http.MethodPut, path: "transit/sign/dkim-policy", body: map[string]any{"input": "AAAA"}}
		if _, err := c.do(t.Context(), "sign with", r); !errors.Is(err, want) {
			t.Errorf("%s signs with transit: got %v, want %v", role, err, want)
		}
		v.testCertificates(t, role, c)
		for _, path := range []string{"transit/export/signing-key/dkim-policy", "sys/policies/acl", "auth/approle/role"} {
			if _, err := c.do(t.Context(), "read", call{method: http.MethodGet, path: path}); !errors.Is(err, ErrDenied) {
				t.Errorf("%s reads %s: got %v, want %v", role, path, err, ErrDenied)
			}
		}
	}
	v.clean(t)
}

// testRenewal keeps a token alive beyond its longest life.
func (v *realServer) testRenewal(t *testing.T) {
	const role = "auth/approle/role/short"
	v.call(t, call{method: http.MethodPut, path: role, body: map[string]any{
		"token_ttl": "2s", "token_max_ttl": "4s", "token_policies": "postroad-signer", "bind_secret_id": false, "token_bound_cidrs": "127.0.0.0/8",
	}})
	var id struct {
		RoleID string `json:"role_id"`
	}
	if err := decode(v.call(t, call{method: http.MethodGet, path: role + "/role-id"}).Data, &id); err != nil {
		t.Fatal(err)
	}
	o := v.options(t, "root")
	o.Login = &AppRole{RoleID: id.RoleID}
	c, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(9 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, err := c.List(t.Context(), directory); err != nil {
			t.Fatal(err)
		}
	}
	c.mu.Lock()
	generation := c.session.generation
	c.mu.Unlock()
	if generation < 2 || generation > 9 {
		t.Errorf("got %d logins in 9s for a token that lives 4s", generation)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func (v *realServer) fixture(t *testing.T, store func(*testing.T, keyring.Key)) keyringtest.Fixture {
	v.clean(t)
	sealed := false
	t.Cleanup(func() {
		if sealed {
			v.open(t)
		}
	})
	return keyringtest.Fixture{
		Source: startKeys(t, v.client(t, "signer"), quick()),
		Within: 500 * time.Millisecond,
		Store:  func(k keyring.Key) { store(t, k) },
		Remove: func(domain, selector string) {
			if err := v.root.Delete(context.Background(), secretPath(domain, selector)); err != nil {
				t.Error(err)
			}
		},
		Spoil: func(domain, selector string) {
			v.put(t, domain, selector, map[string]any{"private_key": "x"})
		},
		Cut:     func() { v.seal(t); sealed = true },
		Restore: func() { v.open(t); sealed = false },
	}
}

func (v *realServer) put(t *testing.T, domain, selector string, data map[string]any) {
	t.Helper()
	if _, err := v.root.Write(context.Background(), secretPath(domain, selector), data, -1); err != nil {
		t.Fatal(err)
	}
}

func (v *realServer) store(t *testing.T, k keyring.Key) {
	t.Helper()
	v.put(t, k.Domain, k.Selector, map[string]any{"private_key": pemOf(t, k)})
}

// clean deletes all keys.
func (v *realServer) clean(t *testing.T) {
	t.Helper()
	domains, err := v.root.List(t.Context(), directory)
	if err != nil {
		t.Fatal(err)
	}
	for _, domain := range domains {
		selectors, err := v.root.List(t.Context(), directory+"/"+strings.TrimSuffix(domain, "/"))
		if err != nil {
			t.Fatal(err)
		}
		for _, selector := range selectors {
			if err := v.root.Delete(t.Context(), directory+"/"+domain+selector); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// gone reads all versions of a secret.
func (v *realServer) gone(t *testing.T, domain, selector string) bool {
	t.Helper()
	path := secretPath(domain, selector)
	m, err := v.root.Metadata(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range m.Version {
		r := call{method: http.MethodGet, path: "secret/data/postroad/" + path, query: url.Values{"version": {fmt.Sprint(n + 1)}}}
		got, err := v.root.do(t.Context(), "read", r)
		if err != nil && !isNotFound(err) {
			t.Fatal(err)
		}
		if strings.Contains(string(got.Data), "PRIVATE KEY") {
			return false
		}
	}
	return true
}

// storeTransit imports a key into the transit engine under a new name, and
// stores a secret that names it.
// wrap is AES key wrap with padding (RFC 5649 §4.1), for more than 8 octets.
