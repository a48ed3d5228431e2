package vault

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

// throughTransit stores a key in the transit engine and finds it again.
func throughTransit(t testing.TB, f *fake, c *Client, algorithm keyring.Algorithm) crypto.Signer {
	t.Helper()
	f.storeTransit(keyringtest.NewKey(t, "example.com", "s1", algorithm))
	keys, err := newKeys(t, c, quick()).Keys(t.Context(), "example.com")
	if err != nil || len(keys) != 1 {
		t.Fatalf("got %v, %v, want one key", keys, err)
	}
	return keys[0].Signer
}

func TestTransitRefuses(t *testing.T) {
	f := newFake(t)
	c := f.client(t)
	digest := sha256.Sum256(nil)
	s := throughTransit(t, f, c, keyring.RSA)
	for _, opts := range []crypto.SignerOpts{crypto.SHA1, crypto.Hash(0), crypto.SHA512, &rsa.PSSOptions{Hash: crypto.SHA256}} {
		if _, err := s.Sign(rand.Reader, digest[:], opts); err == nil {
			t.Errorf("%T %v: got no error", opts, opts)
		}
	}
	if _, err := s.Sign(rand.Reader, []byte("short"), crypto.SHA256); err == nil {
		t.Error("no digest: got no error")
	}
	f.with(func() { clear(f.secrets); clear(f.transits) })
	if _, err := throughTransit(t, f, c, keyring.Ed25519).Sign(rand.Reader, digest[:], crypto.SHA256); err == nil {
		t.Error("Ed25519 over a hash: got no error")
	}
	if len(f.batches) > 0 {
		t.Errorf("got %d requests, want none", len(f.batches))
	}
}

func TestTransitTrouble(t *testing.T) {
	digest := sha256.Sum256(nil)
	for name, c := range map[string]struct {
		trouble func(*fake)
		want    error
	}{
		"sealed":         {func(f *fake) { f.sealed = true }, ErrUnavailable},
		"slow":           {func(f *fake) { f.slow = time.Hour }, ErrUnavailable},
		"forbidden":      {func(f *fake) { f.deny = "transit/sign" }, ErrDenied},
		"half an answer": {func(f *fake) { f.spoil = func() string { return `{"data":{"batch_results":[]}}` } }, ErrUnavailable},
		"no signature":   {func(f *fake) { f.spoil = func() string { return `{"data":{"batch_results":[{"signature":""}]}}` } }, ErrUnavailable},
		"another version": {func(f *fake) {
			f.spoil = func() string { return `{"data":{"batch_results":[{"signature":"vault:v9:AAAA"}]}}` }
		}, ErrUnavailable},
		"key destroyed": {func(f *fake) { clear(f.transits) }, nil},
		"not by this key": {func(f *fake) {
			for _, k := range f.transits {
				k.versions = []crypto.Signer{keyringtest.NewKey(t, "example.com", "s1", keyring.RSA).Signer}
			}
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			client := f.client(t)
			s := throughTransit(t, f, client, keyring.RSA)
			if name == "slow" {
				client.o.Timeout = 300 * time.Millisecond // not before the login and the look, which may take their time
			}
			f.with(func() { c.trouble(f) })
			begun := time.Now()
			signature, err := s.Sign(rand.Reader, digest[:], crypto.SHA256)
			if err == nil || len(signature) > 0 || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %x, %v, want %v", signature, err, c.want)
			}
			if took := time.Since(begun); took > time.Minute {
				t.Errorf("it took %s", took)
			}
			f.with(func() { f.sealed, f.slow, f.spoil = false, 0, nil })
		})
	}
}

func TestTransitKeyIsKeptWhenRevoked(t *testing.T) {
	f := newFake(t)
	k := newKeys(t, f.client(t), quick())
	f.storeTransit(keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519))
	entries, err := k.Entries(t.Context(), "example.com")
	if err != nil || len(entries) != 1 {
		t.Fatalf("got %v, %v, want one entry", entries, err)
	}
	e, err := k.Change(t.Context(), entries[0], keyring.Revoked, "")
	if !errors.Is(err, ErrTransitKept) || e.State != keyring.Revoked || !strings.Contains(err.Error(), `version 1 of "dkim-s1.example.com"`) {
		t.Errorf("got %+v, %v, want it revoked and %v", e, err, ErrTransitKept)
	}
	if _, err := k.Keys(t.Context(), "example.com"); !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("got %v, want %v", err, keyring.ErrNoKey)
	}
	if _, err := k.Load(t.Context(), "example.com", "s1"); !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("load: got %v, want %v", err, keyring.ErrNoKey)
	}
}

// TestForbiddenTransitKeyIsIsolated: a secret that names a transit key which is not for the signer is that domain's trouble, until the policy
// allows it; the secret does not change by that.
func TestForbiddenTransitKeyIsIsolated(t *testing.T) {
	f := newFake(t)
	k := newKeys(t, f.client(t), quick())
	f.storeTransit(keyringtest.NewKey(t, "shut.example", "s1", keyring.Ed25519))
	f.with(func() { f.deny = "transit/keys/" })
	_, err := k.Keys(t.Context(), "shut.example")
	if !errors.Is(err, keyring.ErrBadKey) || errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "transit/keys/dkim-s1.shut.example") {
		t.Errorf("got %v, want %v that names the path", err, keyring.ErrBadKey)
	}
	if err := k.Reachable(); err != nil {
		t.Errorf("got %v, want that Vault is within reach", err)
	}
	f.with(func() { f.deny = "" })
	eventually(t, "the key", func() bool {
		keys, err := k.Keys(t.Context(), "shut.example")
		return err == nil && len(keys) == 1
	})
}

// TestReachable: keys in memory sign while Vault is sealed, and without any nothing can be signed.
func TestReachable(t *testing.T) {
	f := newFake(t)
	c := f.client(t)
	k, none := newKeys(t, c, quick()), newKeys(t, c, quick())
	f.store(t, keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519))
	if _, err := k.Keys(t.Context(), "example.com"); err != nil {
		t.Fatal(err)
	}
	f.with(func() { f.sealed = true })
	for range 3 {
		if _, err := none.Keys(t.Context(), "example.com"); !errors.Is(err, ErrUnavailable) {
			t.Errorf("got %v, want %v", err, ErrUnavailable)
		}
	}
	if err := k.Reachable(); err != nil {
		t.Errorf("with keys in memory: got %v", err)
	}
	if err := none.Reachable(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without: got %v, want %v", err, ErrUnavailable)
	}
	f.with(func() { f.sealed = false })
	if _, err := none.Keys(t.Context(), "none.example"); !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("got %v, want %v", err, keyring.ErrNoKey)
	}
	if err := none.Reachable(); err != nil {
		t.Errorf("unsealed: got %v", err)
	}
}

// TestEntriesInTransit: it is seen in the entry where a private half is, also when that comes from the metadata.
func TestEntriesInTransit(t *testing.T) {
	f := newFake(t)
	k := newKeys(t, f.client(t), quick())
	f.storeTransit(keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519))
	f.store(t, keyringtest.NewKey(t, "example.com", "s2", keyring.Ed25519))
	for range 2 {
		entries, err := k.Entries(t.Context(), "example.com")
		if err != nil || len(entries) != 2 || !entries[0].InTransit || entries[1].InTransit {
			t.Fatalf("got %+v, %v, want that the first is in transit", entries, err)
		}
		if entries[0].State == keyring.Active {
			if _, err := k.Change(t.Context(), entries[0], keyring.Retiring, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
}
