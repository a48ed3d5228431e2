package vault

import (
	"crypto"
	"errors"
	"strings"
	"testing"
	"time"

	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

func TestStoreConformance(t *testing.T) {
	keyringtest.RunStore(t, func(t *testing.T) keyringtest.StoreFixture {
		f := newFake(t)
		c := f.client(t)
		return keyringtest.StoreFixture{
			Store:  startKeys(t, c, quick()),
			Within: 500 * time.Millisecond,
			Other:  func() keyring.Store { return newKeys(t, c, quick()) },
			Put:    func(k keyring.Key) { f.store(t, k) },
			Gone: func(domain, selector string) (gone bool) {
				f.with(func() { gone = !f.secrets[f.path(domain, selector)].hasKey() })
				return gone
			},
		}
	})
}

func (s *fakeSecret) hasKey() bool {
	for _, v := range s.versions {
		if v.data["private_key"] != nil {
			return true
		}
	}
	return false
}

func TestListingReadsNoPrivateKey(t *testing.T) {
	f := newFake(t)
	k := newKeys(t, f.client(t), quick())
	e, err := k.Create(t.Context(), keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519), "ä 𝄞 "+strings.Repeat("x", 600))
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []keyring.State{keyring.Published, keyring.Retiring, keyring.Revoked} {
		if e, err = k.Change(t.Context(), e, to, strings.Repeat("because ", 100)); err != nil {
			t.Fatal(err)
		}
		entries, err := k.Entries(t.Context(), "example.com")
		if err != nil || len(entries) != 1 || entries[0].By != e.By || entries[0].State != to {
			t.Errorf("got %+v, %v, want it %s and by %q", entries, err, to, e.By)
		}
		k.Changed("example.com")
		if _, err := k.Keys(t.Context(), "example.com"); !errors.Is(err, keyring.ErrNoKey) {
			t.Errorf("%s: got %v, want %v", to, err, keyring.ErrNoKey)
		}
	}
	// Once the private half is destroyed, the secret may be read.
	if got := f.count("GET secret/data/" + f.path("example.com", "s1")); got > 1 {
		t.Errorf("the secret was read %d times, want at most once", got)
	}
}

// TestOthersMetadataStays: what an operator has put beside ours is theirs.
func TestOthersMetadataStays(t *testing.T) {
	for _, noPatch := range []bool{false, true} {
		f := newFake(t)
		f.noPatch = noPatch
		c := f.client(t)
		k := newKeys(t, c, quick())
		long := strings.Repeat("x", maxWhy)
		e, err := k.Create(t.Context(), keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519), long)
		if err != nil {
			t.Fatal(err)
		}
		path := secretPath("example.com", "s1")
		if err := c.SetCustom(t.Context(), path, map[string]string{"owner": "mail team", "ticket": "4711"}); err != nil {
			t.Fatal(err)
		}
		if err := c.SetCustom(t.Context(), path, nil, "ticket", "never-there"); err != nil {
			t.Fatal(err)
		}
		pieces := func() (n int, custom map[string]string) {
			m, err := c.Metadata(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			for name := range m.Custom {
				if strings.HasPrefix(name, "entry") {
					n++
				}
			}
			return n, m.Custom
		}
		if e, err = k.Change(t.Context(), e, keyring.Published, long); err != nil {
			t.Fatal(err)
		}
		before, custom := pieces()
		if custom["owner"] != "mail team" || custom["ticket"] != "" || custom["state"] != string(keyring.Published) {
			t.Errorf("patch refused: %v: got %v, want owner and the new state", noPatch, custom)
		}
		// A shorter entry leaves no pieces of the longer one.
		e.History, e.By = nil, ""
		k.reflect(t.Context(), path, e, 2)
		if after, custom := pieces(); after >= before || custom["owner"] == "" || custom["since"] != "" {
			t.Errorf("patch refused: %v: got %d pieces, before %d, and %v", noPatch, after, before, custom)
		}
	}
}

func TestInterruptedDestruction(t *testing.T) {
	f := newFake(t)
	k := newKeys(t, f.client(t), quick())
	e, err := k.Create(t.Context(), keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519), "")
	if err != nil {
		t.Fatal(err)
	}
	f.with(func() { f.deny = "secret/destroy" })
	e, err = k.Change(t.Context(), e, keyring.Revoked, "")
	if !errors.Is(err, ErrDenied) || e.State != keyring.Revoked || !f.secrets[f.path("example.com", "s1")].hasKey() {
		t.Fatalf("got %+v, %v, want it revoked and an error", e, err)
	}
	if entries, err := k.Entries(t.Context(), ""); !errors.Is(err, ErrDenied) || len(entries) != 1 {
		t.Errorf("got %v, %v, want the entry and an error", entries, err)
	}
	f.with(func() { f.deny = "" })
	if entries, err := k.Entries(t.Context(), ""); err != nil || len(entries) != 1 || f.secrets[f.path("example.com", "s1")].hasKey() {
		t.Errorf("got %v, %v, want it finished", entries, err)
	}
}

func TestChangedByHand(t *testing.T) {
	f := newFake(t)
	c := f.client(t)
	k := newKeys(t, c, quick())
	e, err := k.Create(t.Context(), keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Patch(t.Context(), "dkim/example.com/s1", map[string]any{"state": "active"}, -1); err != nil {
		t.Fatal(err)
	}
	entries, err := k.Entries(t.Context(), "example.com")
	if err != nil || len(entries) != 1 || entries[0].State != keyring.Active || len(entries[0].History) != 2 || entries[0].Revision == e.Revision {
		t.Errorf("got %+v, %v, want it active", entries, err)
	}
	if keys, err := k.Keys(t.Context(), "example.com"); err != nil || len(keys) != 1 {
		t.Errorf("got %v, %v, want one key", keys, err)
	}
	other := pemOf(t, keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519))
	if _, err := c.Patch(t.Context(), "dkim/example.com/s1", map[string]any{"private_key": other}, -1); err != nil {
		t.Fatal(err)
	}
	k.Changed("example.com")
	if _, err := k.Keys(t.Context(), "example.com"); !errors.Is(err, keyring.ErrBadKey) {
		t.Errorf("another private key under the record: got %v, want %v", err, keyring.ErrBadKey)
	}
}

func TestBadSecrets(t *testing.T) {
	f := newFake(t)
	f.transits["old"] = &fakeTransit{versions: []crypto.Signer{keyringtest.NewKey(t, "x.example", "s", keyring.Ed25519).Signer}}
	k := newKeys(t, f.client(t), quick())
	good := pemOf(t, keyringtest.NewKey(t, "x.example", "s", keyring.Ed25519))
	for name, c := range map[string]struct {
		data map[string]any
		want string
	}{
		"nothing":         {map[string]any{}, "holds no key"},
		"no PEM":          {map[string]any{"private_key": "MIIE"}, "not PEM"},
		"two":             {map[string]any{"private_key": good + good}, "more than one"},
		"a public key":    {map[string]any{"private_key": strings.ReplaceAll(good, "PRIVATE", "PUBLIC")}, "want a private key"},
		"encrypted":       {map[string]any{"private_key": strings.ReplaceAll(good, "PRIVATE", "ENCRYPTED PRIVATE")}, "without a passphrase"},
		"damaged":         {map[string]any{"private_key": strings.Replace(good, "MC4CAQAw", "MC4CAQAx", 1)}, "damaged"},
		"state":           {map[string]any{"private_key": good, "state": "on"}, `state "on"`},
		"algorithm":       {map[string]any{"private_key": good, "algorithm": "rsa-sha256"}, "holds another key"},
		"both":            {map[string]any{"private_key": good, "transit_key": "old"}, "leave one of them"},
		"transit name":    {map[string]any{"transit_key": "../old", "transit_version": 1}, "no name"},
		"transit absent":  {map[string]any{"transit_key": "new", "transit_version": 1}, "does not exist"},
		"transit unsaid":  {map[string]any{"transit_key": "old"}, "without a transit_version"},
		"transit version": {map[string]any{"transit_key": "old", "transit_version": 2}, "want one that exists"},
	} {
		t.Run(name, func(t *testing.T) {
			domain := strings.ToLower(strings.ReplaceAll(name, " ", "-")) + ".example"
			f.with(func() { f.put(f.path(domain, "s1"), c.data) })
			_, err := k.Keys(t.Context(), domain)
			if !errors.Is(err, keyring.ErrBadKey) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "s1") {
				t.Errorf("got %v, want %v with %q", err, keyring.ErrBadKey, c.want)
			}
			if entries, err := k.Entries(t.Context(), domain); err == nil || len(entries) != 0 {
				t.Errorf("entries: got %v, %v, want an error", entries, err)
			}
		})
	}
}
