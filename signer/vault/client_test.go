package vault

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

func TestOptions(t *testing.T) {
	role := &AppRole{RoleID: "r", SecretIDFile: "f"}
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"no address":         {Options{Login: role}, "no address"},
		"no URL":             {Options{Address: "vault:8200", Login: role}, "want https://"},
		"a path":             {Options{Address: "https://vault/v1", Login: role}, "want https://"},
		"credentials":        {Options{Address: "https://u:p@vault", Login: role}, "want https://"},
		"plain text":         {Options{Address: "http://vault.example:8200", Login: role}, "plain text"},
		"no login":           {Options{Address: "https://vault"}, "no way to log in"},
		"no role id":         {Options{Address: "https://vault", Login: &AppRole{}}, "no role id"},
		"wrapped nothing":    {Options{Address: "https://vault", Login: &AppRole{RoleID: "r", Wrapped: true}}, "needs a file"},
		"no kubernetes role": {Options{Address: "https://vault", Login: &Kubernetes{}}, "no role"},
		"no certificate":     {Options{Address: "https://vault", Login: &Certificate{CertFile: "c"}}, "needs a file"},
		"no token file":      {Options{Address: "https://vault", Login: &TokenFile{}}, "no token file"},
		"mount":              {Options{Address: "https://vault", Login: role, Mount: "a/../b"}, "no path"},
		"prefix":             {Options{Address: "https://vault", Login: role, Prefix: "a b"}, "no path"},
		"authorities":        {Options{Address: "https://vault", Login: role, CAFile: "/nowhere/ca.pem"}, "read authorities"},
		"timeout":            {Options{Address: "https://vault", Login: role, Timeout: -1}, "negative"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := New(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestEnvironmentIsNotUsed(t *testing.T) {
	t.Setenv("VAULT_ADDR", "http://127.0.0.1:1")
	t.Setenv("VAULT_TOKEN", "static") // one that the fake knows
	t.Setenv("VAULT_NAMESPACE", "another")
	t.Setenv("VAULT_HEADERS", `{"X-Extra": "1"}`)
	t.Setenv("VAULT_WRAP_TTL", "1m")
	t.Setenv("VAULT_MAX_RETRIES", "9")
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	f := newFake(t)
	var odd http.Header
	f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"X-Vault-Namespace", "X-Extra", "X-Vault-Wrap-Ttl"} {
			if r.Header.Get(name) != "" || r.Header.Get("X-Vault-Token") == "static" {
				odd = r.Header.Clone()
			}
		}
		f.ServeHTTP(w, r)
	})
	c := f.client(t)
	if _, err := c.List(t.Context(), ""); err != nil {
		t.Error(err)
	}
	if odd != nil {
		t.Errorf("got request headers of the environment: %v", odd)
	}
}

func TestSecrets(t *testing.T) {
	f := newFake(t)
	c := f.client(t)
	testSecrets(t, c)
}

// testSecrets is also run against the real thing.
func testSecrets(t *testing.T, c *Client) {
	ctx := t.Context()
	check := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) || (want == nil) != (err == nil) {
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
	}
	const path = "clients/host1.example"
	_, err := c.Read(ctx, path)
	check("read what is not there", err, ErrNotFound)
	_, err = c.Metadata(ctx, path)
	check("metadata of what is not there", err, ErrNotFound)
	_, err = c.Patch(ctx, path, map[string]any{"a": "1"}, -1)
	check("patch what is not there", err, ErrNotFound)
	names, err := c.List(ctx, "clients")
	check("list what is not there", err, nil)
	if len(names) != 0 {
		t.Errorf("got %v, want nothing", names)
	}
	check("delete what is not there", c.Delete(ctx, path), nil)

	begun := time.Now().Add(-time.Minute)
	version, err := c.Write(ctx, path, map[string]any{"a": "1", "b": "2"}, 0)
	check("write", err, nil)
	if version != 1 {
		t.Errorf("got version %d, want 1", version)
	}
	_, err = c.Write(ctx, path, map[string]any{"a": "x"}, 0)
	check("write what must not be there", err, ErrChanged)
	_, err = c.Patch(ctx, path, map[string]any{"a": "x"}, 7)
	check("patch another version", err, ErrChanged)
	version, err = c.Patch(ctx, path, map[string]any{"a": nil, "c": "3"}, 1)
	check("patch", err, nil)
	check("set custom metadata", c.SetCustom(ctx, path, map[string]string{"state": "new", "long": strings.Repeat("x", 512)}), nil)
	s, err := c.Read(ctx, path)
	check("read", err, nil)
	if diff := cmp.Diff(map[string]any{"b": "2", "c": "3"}, s.Data); diff != "" || s.Version != 2 || version != 2 || s.Custom["state"] != "new" || s.Created.Before(begun) {
		t.Errorf("got %+v (-want +got):\n%s", s, diff)
	}
	m, err := c.Metadata(ctx, path)
	check("metadata", err, nil)
	if m.Version != 2 || m.Deleted || !m.Created.Equal(s.Created) || m.Custom["state"] != "new" || !cmp.Equal(m.Kept, []int{1, 2}) {
		t.Errorf("got %+v", m)
	}
	_, err = c.Write(ctx, "clients/folder/x", map[string]any{"a": "1"}, -1)
	check("write below", err, nil)
	names, err = c.List(ctx, "clients")
	check("list", err, nil)
	if !cmp.Equal(names, []string{"folder/", "host1.example"}) {
		t.Errorf("got %v", names)
	}
	if names, err = c.List(ctx, ""); err != nil || !cmp.Equal(names, []string{"clients/"}) {
		t.Errorf("list of the prefix: got %v, %v", names, err)
	}
	check("destroy one", c.Destroy(ctx, path, 1), nil)
	if m, err = c.Metadata(ctx, path); err != nil || m.Deleted || !cmp.Equal(m.Kept, []int{2}) {
		t.Errorf("one destroyed: got %+v, %v", m, err)
	}
	check("destroy the other", c.Destroy(ctx, path, 2), nil)
	_, err = c.Read(ctx, path)
	check("read what is destroyed", err, ErrNotFound)
	if m, err = c.Metadata(ctx, path); err != nil || !m.Deleted || m.Version != 2 || len(m.Kept) != 0 {
		t.Errorf("both destroyed: got %+v, %v", m, err)
	}
	_, err = c.Write(ctx, path, map[string]any{"a": "1"}, 0)
	check("write what was there once", err, ErrChanged)
	check("delete", c.Delete(ctx, path), nil)
	_, err = c.Metadata(ctx, path)
	check("metadata of what was deleted", err, ErrNotFound)
	for _, hostile := range []string{"", ".", "..", "../x", "a/../b", "a//b", "/a", "a/", "a?b", "a%2fb", "a b", "ä", "a\n"} {
		if _, err := c.Read(ctx, hostile); err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnavailable) {
			t.Errorf("read %q: got %v, want it refused", hostile, err)
		}
	}
}

func TestDeletedVersionIsNotThere(t *testing.T) {
	f := newFake(t)
	c := f.client(t)
	if _, err := c.Write(t.Context(), "a", map[string]any{"x": "1"}, -1); err != nil {
		t.Fatal(err)
	}
	f.with(func() { f.secrets["postroad/a"].versions[0].deleted = true })
	if _, err := c.Read(t.Context(), "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want %v", err, ErrNotFound)
	}
	m, err := c.Metadata(t.Context(), "a")
	if err != nil || !m.Deleted || len(m.Kept) != 1 {
		t.Errorf("got %+v, %v, want it deleted and kept", m, err)
	}
}

func TestMissingEngineIsNoMissingSecret(t *testing.T) {
	f := newFake(t)
	o := f.options(t)
	o.Mount = "elsewhere"
	c, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	_, readErr := c.Read(t.Context(), "a")
	_, listErr := c.List(t.Context(), "a")
	for _, err := range []error{readErr, listErr} {
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "look at address, namespace and mount") {
			t.Errorf("got %v, want %v", err, ErrUnavailable)
		}
	}
}

func TestTroubleIsUnavailable(t *testing.T) {
	const get, put = "GET secret/data/postroad/a", "PUT secret/data/postroad/a"
	for name, c := range map[string]struct {
		trouble   func(*fake)
		gets      int // 0: any number
		text      string
		withinOne bool
	}{
		"sealed":     {func(f *fake) { f.sealed = true }, maxTries, "unseal it", false},
		"slow":       {func(f *fake) { f.slow = time.Hour }, 0, "no answer in time", true},
		"empty":      {func(f *fake) { f.spoil = func() string { return "" } }, maxTries, "", false},
		"half":       {func(f *fake) { f.spoil = func() string { return `{"data":{"data":{"x":"1"},"meta` } }, maxTries, "", false},
		"a web page": {func(f *fake) { f.spoil = func() string { return "<html>welcome</html>" } }, maxTries, "", false},
		"no data":    {func(f *fake) { f.spoil = func() string { return `{"data":null}` } }, 1, "", false},
		"no version": {func(f *fake) { f.spoil = func() string { return `{"data":{"data":{"x":"1"},"metadata":{}}}` } }, 1, "", false},
		"endless":    {func(f *fake) { f.spoil = func() string { return `{"data":"` + strings.Repeat("x", maxBodyBytes) } }, 0, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			client := f.client(t)
			if c.withinOne {
				client.o.Timeout = 300 * time.Millisecond // not before the login, which may take its time
			}
			f.with(func() { c.trouble(f) })
			begun := time.Now()
			_, err := client.Read(t.Context(), "a")
			if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("read: got %v, want %v with %q", err, ErrUnavailable, c.text)
			}
			if strings.ContainsAny(err.Error(), "\r\n") || len(err.Error()) > 500 {
				t.Errorf("got an error that is no short line: %q", err)
			}
			if took := time.Since(begun); c.withinOne && took > time.Minute {
				t.Errorf("it took %s", took)
			}
			if got := f.count(get); c.gets > 0 && got != c.gets {
				t.Errorf("got %d reads, want %d", got, c.gets)
			}
			if _, err := client.Write(t.Context(), "a", map[string]any{"x": "1"}, -1); !errors.Is(err, ErrUnavailable) && name != "no version" && name != "no data" {
				t.Errorf("write: got %v, want %v", err, ErrUnavailable)
			}
			if got := f.count(put); got > 1 {
				t.Errorf("got %d writes, want 1: what it did is not known", got)
			}
			f.with(func() { f.sealed, f.slow, f.spoil = false, 0, nil })
		})
	}
}

func TestForbidden(t *testing.T) {
	f := newFake(t)
	c := f.client(t)
	f.with(func() { f.deny = "postroad/secret" })
	for range 3 {
		if _, err := c.Read(t.Context(), "secret"); !errors.Is(err, ErrDenied) {
			t.Errorf("got %v, want %v", err, ErrDenied)
		}
	}
	if got := f.loginCount(); got != 2 {
		t.Errorf("got %d logins, want the first and one more", got)
	}
	if _, err := c.List(t.Context(), ""); err != nil {
		t.Errorf("another path: %v", err)
	}
}

func TestRevokedTokenIsReplaced(t *testing.T) {
	f := newFake(t)
	c := f.client(t)
	f.revoke()
	if _, err := c.List(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if got := f.loginCount(); got != 2 {
		t.Errorf("got %d logins, want 2", got)
	}
}

func TestStop(t *testing.T) {
	f := newFake(t)
	c := f.client(t)
	for range 2 {
		if err := c.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(f.tokens) != 1 {
		t.Errorf("got tokens %v, want the client's given back", f.tokens)
	}
	if _, err := c.List(t.Context(), ""); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want %v", err, ErrUnavailable)
	}
	if err := c.Start(t.Context()); err == nil {
		t.Error("started again: got no error")
	}
}

func TestMetrics(t *testing.T) {
	f := newFake(t)
	o := f.options(t)
	registry := prometheus.NewRegistry()
	o.Registerer = registry
	c, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	f.revoke()
	if _, err := c.List(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.Metric {
			name := family.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{"relay_vault_logins_total ok": 2, "relay_vault_requests_total ok": 1, "relay_vault_requests_total denied": 1} {
		if got[name] != want {
			t.Errorf("%s: got %v, want %v", name, got[name], want)
		}
	}
	if ttl := got["relay_vault_token_ttl_seconds"]; ttl < 3500 || ttl > 3600 {
		t.Errorf("ttl: got %v, want nearly 3600", ttl)
	}
}

func TestBrief(t *testing.T) {
	if got := brief("a\r\n\tb\x00c \x1b[31m"); got != "a b c [31m" {
		t.Errorf("got %q", got)
	}
	if got := brief(strings.Repeat("ä", 500)); len(got) > maxText+len("…") {
		t.Errorf("got %d octets", len(got))
	}
}

func TestReadSecret(t *testing.T) {
	path := secretFile(t, "s")
	if got, err := readSecret(path, 0o600); got != "s" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := readSecret(path, 0o600); err == nil || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("mode 0640: got %v", err)
	}
	if _, err := readSecret(path, 0o640); err != nil {
		t.Errorf("mode 0640 allowed: got %v", err)
	}
	if _, err := readSecret(t.TempDir(), 0o777); err == nil {
		t.Error("a directory: got no error")
	}
	if _, err := readSecret(secretFile(t, "  "), 0o600); err == nil {
		t.Error("an empty file: got no error")
	}
}
