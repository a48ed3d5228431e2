package secrets

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postroad/cmd/internal/secrets/authority"
	"postroad/ingress/account"
	"postroad/signer/keyring"
)

// filled puts one secret of each kind in place.
func filled(t *testing.T, s *Secrets) (pair *authority.Pair, client *account.Client, root *authority.Authority) {
	t.Helper()
	ctx := t.Context()
	keys, err := s.Keys()
	if err != nil {
		t.Fatal(err)
	}
	key, err := keyring.Make("example.com", "s1", keyring.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Create(ctx, key, "test"); err != nil {
		t.Fatal(err)
	}
	clients, err := s.Clients()
	if err != nil {
		t.Fatal(err)
	}
	client = &account.Client{Name: "web1", Class: "host"}
	for range 2 {
		if _, err := client.SetPassword(account.GeneratePassword(), account.Generated, time.Now(), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if err := clients.Put(ctx, client); err != nil {
		t.Fatal(err)
	}
	pair = selfSigned(t, "relay.example.com")
	if _, err := s.StorePair(ctx, "relay", pair, Version{}); err != nil {
		t.Fatal(err)
	}
	if root, err = authority.New(time.Now()); err == nil {
		root, err = root.Successor(time.Now())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.StoreAuthority(ctx, "postroad", root, Version{}); err != nil {
		t.Fatal(err)
	}
	return pair, client, root
}

func TestEntries(t *testing.T) {
	both(t, func(t *testing.T, s *Secrets) {
		if list, err := s.Entries(t.Context(), "", time.Now()); err != nil || len(list) != 0 {
			t.Fatalf("got %v, %v, want nothing", list, err)
		}
		pair, client, root := filled(t, s)
		list, err := s.Entries(t.Context(), "", time.Now())
		if err != nil || len(list) != 4 {
			t.Fatalf("got %+v, %v", list, err)
		}
		text, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{"PRIVATE", "SCRAM", "argon"} {
			if strings.Contains(string(text), secret) {
				t.Errorf("%s in the list:\n%s", secret, text)
			}
		}
		for i, want := range []struct {
			kind, name, state, fingerprint string
			expires                        time.Time
		}{
			{KindDKIM, "example.com/s1", "generated", "", time.Time{}},
			{KindClients, "web1", "enabled", "", client.Passwords[1].NotAfter},
			{KindTLS, "relay", "", authority.Fingerprint(pair.Leaf), pair.Leaf.NotAfter},
			{KindAuthority, "postroad", "root, 1 before it", authority.Fingerprint(root.Root), root.Root.NotAfter},
		} {
			e := list[i]
			if e.Kind != want.kind || e.Name != want.name || e.State != want.state || e.Fingerprint != want.fingerprint || !e.Expires.Equal(want.expires) || e.Problem != "" {
				t.Errorf("got %+v, want %+v", e, want)
			}
			if e.Since.IsZero() || time.Since(e.Since) > time.Minute || s.IsVault() != (e.Number > 0) {
				t.Errorf("%s/%s: got since %v, version %s", e.Kind, e.Name, e.Since, e.Version)
			}
		}
		if one, err := s.Entries(t.Context(), KindTLS, time.Now()); err != nil || len(one) != 1 {
			t.Errorf("got %v, %v, want one kind", one, err)
		}
	})
}

// TestListsReadNoKeys: what the commands have written is listed without reading what is secret of it; what was written by hand is not hidden.
func TestListsReadNoKeys(t *testing.T) {
	s, v := inVault(t)
	filled(t, s)
	const smarthost = "postroad/smarthosts/provider"
	v.Put(smarthost, map[string]any{"username": "u", "password": "secret"})
	paths := []string{"postroad/tls/relay", "postroad/ca/postroad", "postroad/dkim/example.com/s1", smarthost}
	before := map[string]int{}
	for _, path := range paths {
		before[path] = v.Reads(path)
	}
	list, err := s.Entries(t.Context(), "", time.Now())
	if err != nil || len(list) != 5 || list[3].Kind != KindSmarthosts || list[3].Number != 1 {
		t.Fatalf("got %+v, %v", list, err)
	}
	for _, path := range paths {
		if n := v.Reads(path) - before[path]; n != 0 {
			t.Errorf("%s was read %d times by a list", path, n)
		}
	}
	pair := selfSigned(t, "by-hand.example")
	chain, key, err := pair.PEM()
	if err != nil {
		t.Fatal(err)
	}
	v.Put("postroad/tls/relay", map[string]any{"certificate": string(chain), "private_key": string(key)})
	v.Put("postroad/tls/broken", map[string]any{"certificate": "x"})
	v.Put("postroad/clients/broken", map[string]any{"version": 7})
	list, err = s.Entries(t.Context(), KindTLS, time.Now())
	if err != nil || len(list) != 2 || list[1].Fingerprint != authority.Fingerprint(pair.Leaf) || list[1].Number != 2 {
		t.Errorf("got %+v, %v, want what was written by hand", list, err)
	}
	if list[0].Problem == "" || list[0].State != "unreadable" {
		t.Errorf("got %+v, want its problem", list[0])
	}
	if list, err = s.Entries(t.Context(), KindClients, time.Now()); err != nil || len(list) != 2 || list[0].Problem == "" {
		t.Errorf("got %+v, %v, want a broken client with its problem", list, err)
	}
	v.Delete("postroad/tls/broken")
	if list, err = s.Entries(t.Context(), KindTLS, time.Now()); err != nil || len(list) != 1 {
		t.Errorf("got %+v, %v, want no deleted one", list, err)
	}
}

// TestDirectoryReadsNoKeys: the key's file need not even be readable.
func TestDirectoryReadsNoKeys(t *testing.T) {
	s, root := inDirectory(t)
	pair, _, _ := filled(t, s)
	for _, path := range []string{"tls/relay/key.pem", "ca/postroad/key.pem"} {
		if err := os.Remove(filepath.Join(root, path)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "smarthosts"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "smarthosts", "provider.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := s.Entries(t.Context(), "", time.Now())
	if err != nil || len(list) != 5 || list[2].Fingerprint != authority.Fingerprint(pair.Leaf) || list[3].Name != "provider" || list[4].Problem != "" {
		t.Errorf("got %+v, %v", list, err)
	}
	if _, _, err := s.Authority(t.Context(), "postroad", true); err == nil {
		t.Error("an authority without a key was read with it")
	}
	if _, _, err := s.CheckPair(t.Context(), "relay"); err == nil {
		t.Error("a certificate without a key passes")
	}
}

func TestStatesOfClients(t *testing.T) {
	now := time.Now()
	with := func(change func(*account.Client)) *account.Client {
		c := &account.Client{Name: "a"}
		change(c)
		return c
	}
	password := account.Password{ID: "x", Created: now.Add(-time.Hour)}
	ended := password
	ended.NotAfter = now.Add(-time.Minute)
	for want, c := range map[string]*account.Client{
		"disabled":         with(func(c *account.Client) { c.Disabled = true }),
		"no password":      with(func(*account.Client) {}),
		"certificate only": with(func(c *account.Client) { c.Certificates = []account.Certificate{"a.example"} }),
		"passwords ended":  with(func(c *account.Client) { c.Passwords = []account.Password{ended} }),
		"enabled":          with(func(c *account.Client) { c.Passwords = []account.Password{password, ended} }),
	} {
		e := Entry{}
		if e.ofClient(c, now); e.State != want {
			t.Errorf("got %q, want %q", e.State, want)
		}
		if want == "enabled" && !e.Expires.IsZero() {
			t.Errorf("an old password that has ended expires at %v", e.Expires)
		}
	}
	c, err := account.Decode("a", "", map[string]any{"password": "correct horse"})
	if err != nil {
		t.Fatal(err)
	}
	e := Entry{}
	if e.ofClient(c, now); e.State != "password in clear" {
		t.Errorf("got %q", e.State)
	}
}
