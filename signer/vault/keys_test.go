package vault

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

// quick are options under which changes show soon.
func quick() KeysOptions {
	return KeysOptions{Poll: 50 * time.Millisecond, Soft: 500 * time.Millisecond, Missing: 50 * time.Millisecond}
}

func newKeys(t testing.TB, c *Client, o KeysOptions) *Keys {
	t.Helper()
	k, err := NewKeys(c, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopKeys(t, k) })
	return k
}

func stopKeys(t testing.TB, k *Keys) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := k.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func startKeys(t testing.TB, c *Client, o KeysOptions) *Keys {
	t.Helper()
	k := newKeys(t, c, o)
	if err := k.Start(); err != nil {
		t.Fatal(err)
	}
	return k
}

func pemOf(t testing.TB, k keyring.Key) string {
	t.Helper()
	text, err := encodeKey(k.Signer)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (f *fake) path(domain, selector string) string {
	return "postroad/" + secretPath(domain, selector)
}

// store puts a key there by hand.
func (f *fake) store(t testing.TB, k keyring.Key) {
	text := pemOf(t, k)
	f.with(func() { f.put(f.path(k.Domain, k.Selector), map[string]any{"private_key": text}) })
}

// storeTransit puts a key into the transit engine, and a secret that names it.
func (f *fake) storeTransit(k keyring.Key) {
	f.with(func() {
		name := "dkim-" + k.Selector + "." + k.Domain
		key := f.transits[name]
		if key == nil {
			key = &fakeTransit{}
			f.transits[name] = key
		}
		key.versions = append(key.versions, k.Signer)
		f.put(f.path(k.Domain, k.Selector), map[string]any{"transit_key": name, "transit_version": len(key.versions), "algorithm": string(k.Algorithm)})
	})
}

func (f *fake) fixture(t *testing.T, store func(keyring.Key)) keyringtest.Fixture {
	return keyringtest.Fixture{
		Source: startKeys(t, f.client(t), quick()),
		Within: 500 * time.Millisecond,
		Store:  store,
		Remove: func(domain, selector string) { f.with(func() { delete(f.secrets, f.path(domain, selector)) }) },
		Spoil: func(domain, selector string) {
			f.with(func() { f.put(f.path(domain, selector), map[string]any{"private_key": "x"}) })
		},
		Cut:     func() { f.with(func() { f.sealed = true }) },
		Restore: func() { f.with(func() { f.sealed = false }) },
	}
}

func TestSourceConformance(t *testing.T) {
	keyringtest.Run(t, func(t *testing.T) keyringtest.Fixture {
		f := newFake(t)
		return f.fixture(t, func(k keyring.Key) { f.store(t, k) })
	})
}

func TestTransitConformance(t *testing.T) {
	keyringtest.Run(t, func(t *testing.T) keyringtest.Fixture {
		f := newFake(t)
		return f.fixture(t, f.storeTransit)
	})
}

func TestPreload(t *testing.T) {
	f := newFake(t)
	for i := range 20 {
		f.store(t, keyringtest.NewKey(t, fmt.Sprintf("d%d.example", i), "s1", keyring.Ed25519))
	}
	k := startKeys(t, f.client(t), KeysOptions{})
	loaded := func() int {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.known)
	}
	eventually(t, "all in memory", func() bool { return loaded() == 20 })
	f.with(func() { f.sealed = true })
	for i := range 20 {
		if keys, err := k.Keys(t.Context(), fmt.Sprintf("d%d.example", i)); err != nil || len(keys) != 1 {
			t.Fatalf("got %v, %v, want the key in memory", keys, err)
		}
	}
}

func TestOutageMakesNobodyWait(t *testing.T) {
	f := newFake(t)
	f.store(t, keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519))
	o := quick()
	o.Hard = time.Hour
	client := f.options(t)
	client.Timeout = lookTimeout
	c, err := start(t, client)
	if err != nil {
		t.Fatal(err)
	}
	k := startKeys(t, c, o)
	if _, err := k.Keys(t.Context(), "example.com"); err != nil {
		t.Fatal(err)
	}
	f.with(func() { f.slow = time.Hour })
	defer f.with(func() { f.slow, f.sealed = 0, false })
	time.Sleep(4 * o.Poll) // what is in memory is older than it should be
	begun := time.Now()
	if keys, err := k.Keys(t.Context(), "example.com"); err != nil || len(keys) != 1 {
		t.Errorf("got %v, %v, want the key in memory", keys, err)
	}
	if took := time.Since(begun); took > lookTimeout*3/4 { // patience, and a busy machine
		t.Errorf("it took %s", took)
	}
	f.with(func() { f.slow, f.sealed = 0, true })
	k.mu.Lock()
	k.known["example.com"].read = time.Now().Add(-2 * o.Hard)
	k.mu.Unlock()
	eventually(t, "too old to sign", func() bool {
		_, err := k.Keys(t.Context(), "example.com")
		return errors.Is(err, ErrUnavailable) && !errors.Is(err, keyring.ErrNoKey)
	})
	eventually(t, "dropped", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.known) == 0
	})
}

func TestForbiddenDomainIsIsolated(t *testing.T) {
	f := newFake(t)
	f.store(t, keyringtest.NewKey(t, "good.example", "s1", keyring.Ed25519))
	f.store(t, keyringtest.NewKey(t, "shut.example", "s1", keyring.Ed25519))
	f.with(func() { f.deny = "shut.example" })
	k := newKeys(t, f.client(t), quick())
	if _, err := k.Keys(t.Context(), "shut.example"); !errors.Is(err, ErrDenied) || errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("got %v, want %v", err, ErrDenied)
	}
	if _, err := k.Keys(t.Context(), "good.example"); err != nil {
		t.Error(err)
	}
}

func TestOneLookForMany(t *testing.T) {
	f := newFake(t)
	f.store(t, keyringtest.NewKey(t, "example.com", "s1", keyring.Ed25519))
	k := newKeys(t, f.client(t), KeysOptions{})
	f.with(func() { f.slow = 50 * time.Millisecond })
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if keys, err := k.Keys(t.Context(), "example.com"); err != nil || len(keys) != 1 {
				t.Errorf("got %v, %v, want one key", keys, err)
			}
		})
	}
	wg.Wait()
	if got := f.count("GET secret/data/" + f.path("example.com", "s1")); got != 1 {
		t.Errorf("got %d reads, want 1", got)
	}
}

func TestMissingIsBounded(t *testing.T) {
	f := newFake(t)
	k := newKeys(t, f.client(t), KeysOptions{})
	k.mu.Lock()
	for i := range maxMissing {
		k.missing[fmt.Sprintf("x%d.example", i)] = time.Now()
	}
	k.mu.Unlock()
	if _, err := k.Keys(t.Context(), "one-more.example"); !errors.Is(err, keyring.ErrNoKey) {
		t.Fatal(err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, is := k.missing["one-more.example"]; !is || len(k.missing) != maxMissing {
		t.Errorf("got %d domains, the newest among them: %t; want %d", len(k.missing), is, maxMissing)
	}
}

func TestDroppedKeysAreOverwritten(t *testing.T) {
	for _, algorithm := range []keyring.Algorithm{keyring.RSA, keyring.Ed25519} {
		t.Run(string(algorithm), func(t *testing.T) {
			f := newFake(t)
			f.store(t, keyringtest.NewKey(t, "example.com", "s1", algorithm))
			k := newKeys(t, f.client(t), quick())
			keys, err := k.Keys(t.Context(), "example.com")
			if err != nil {
				t.Fatal(err)
			}
			inner := keys[0].Signer.(*held).signer
			digest := sha256.Sum256(nil)
			sign := func() error {
				var opts crypto.SignerOpts = crypto.SHA256
				if algorithm == keyring.Ed25519 {
					opts = crypto.Hash(0)
				}
				_, err := keys[0].Signer.Sign(rand.Reader, digest[:], opts)
				return err
			}
			f.with(func() { delete(f.secrets, f.path("example.com", "s1")) })
			k.Changed("example.com")
			if _, err := k.Keys(t.Context(), "example.com"); !errors.Is(err, keyring.ErrNoKey) {
				t.Fatal(err)
			}
			if err := sign(); err != nil {
				t.Errorf("right after: %v, want the signature to be finished", err)
			}
			stopKeys(t, k)
			if err := sign(); !errors.Is(err, errWiped) {
				t.Errorf("got %v, want %v", err, errWiped)
			}
			if p, is := inner.(ed25519.PrivateKey); is && strings.Trim(string(p), "\x00") != "" {
				t.Error("the key is in memory still")
			}
		})
	}
}

func TestRotationLeavesNoGap(t *testing.T) {
	f := newFake(t)
	c := f.client(t)
	k := newKeys(t, c, quick())
	var es []keyring.Entry
	for _, selector := range []string{"a", "b"} {
		e, err := k.Create(t.Context(), keyringtest.NewKey(t, "example.com", selector, keyring.Ed25519), "")
		if err != nil {
			t.Fatal(err)
		}
		es = append(es, e)
	}
	signer := startKeys(t, c, quick())
	var err error
	if es[0], err = k.Change(t.Context(), es[0], keyring.Active, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first key", func() bool { _, err := signer.Keys(t.Context(), "example.com"); return err == nil })
	for n := range 20 { // the keys take turns
		on, off := (n+1)%2, n%2
		if es[on], err = k.Change(t.Context(), es[on], keyring.Active, ""); err != nil {
			t.Fatal(err)
		}
		if es[off], err = k.Change(t.Context(), es[off], keyring.Retiring, ""); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the other key alone", func() bool {
			keys, err := signer.Keys(t.Context(), "example.com")
			if err != nil {
				t.Fatalf("got %v, %v, want a key at all times", keys, err)
			}
			return len(keys) == 1 && keys[0].Selector == es[on].Selector
		})
	}
}
