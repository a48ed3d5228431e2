// Package keyringtest is the conformance test of keyring.Source: what the signer
// relies on, whatever keeps the keys.
//
//	keyringtest.Run(t, func(t *testing.T) keyringtest.Fixture { ... })
package keyringtest

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"postroad/signer/keyring"
)

// Fixture is one empty source under test, with the means to change what is
// behind it, past the source.
type Fixture struct {
	Source keyring.Source
	// Within is how soon a change must show.
	Within time.Duration

	Store   func(keyring.Key)             // adds a key
	Remove  func(domain, selector string) // takes a key away
	Spoil   func(domain, selector string) // makes what is kept of a key unusable
	Cut     func()                        // puts what is behind the source out of reach
	Restore func()                        // and back
}

// NewKey makes a key that is stored nowhere.
func NewKey(t testing.TB, domain, selector string, algorithm keyring.Algorithm) keyring.Key {
	t.Helper()
	k := keyring.Key{Domain: domain, Selector: selector, Algorithm: algorithm}
	var err error
	switch algorithm {
	case keyring.RSA:
		k.Signer, err = rsa.GenerateKey(rand.Reader, 2048)
	case keyring.Ed25519:
		_, k.Signer, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("unknown algorithm %q", algorithm)
	}
	if err != nil {
		t.Fatalf("make key: %v", err)
	}
	return k
}

// Run tests the source that open makes, a new one for each case.
func Run(t *testing.T, open func(t *testing.T) Fixture) {
	cases := []struct {
		name string
		test func(*testing.T, Fixture)
	}{
		{"no key", noKey},
		{"both algorithms", bothAlgorithms},
		{"exactly the domain", exactDomain},
		{"names that are none", hostileNames},
		{"new and removed keys show", changesShow},
		{"replaced key shows", replacedKeyShows},
		{"bad key is isolated", badKeyIsolated},
		{"bad key beside a good one", badBesideGood},
		{"out of reach is not an answer", outOfReach},
		{"keys in memory outlast an outage", outlastsOutage},
		{"ended context", endedContext},
		{"parsed once, many at once", concurrent},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func noKey(t *testing.T, f Fixture) {
	keys, err := f.Source.Keys(t.Context(), "example.com")
	if !errors.Is(err, keyring.ErrNoKey) || len(keys) != 0 {
		t.Errorf("got %v, %v, want %v", keys, err, keyring.ErrNoKey)
	}
}

func bothAlgorithms(t *testing.T, f Fixture) {
	f.Store(NewKey(t, "example.com", "a-ed", keyring.Ed25519))
	f.Store(NewKey(t, "example.com", "b-rsa", keyring.RSA))
	keys := eventually(t, f, "example.com", 2)
	if keys[0].Algorithm != keyring.RSA || keys[1].Algorithm != keyring.Ed25519 {
		t.Errorf("got %s before %s, want RSA first", keys[0].Algorithm, keys[1].Algorithm)
	}
	for i, selector := range []string{"b-rsa", "a-ed"} {
		k := keys[i]
		if k.Domain != "example.com" || k.Selector != selector {
			t.Errorf("key %d: got %s of %s, want %s of example.com", i, k.Selector, k.Domain, selector)
		}
		proveSigns(t, k)
	}
}

// proveSigns signs a digest as the DKIM library does.
func proveSigns(t *testing.T, k keyring.Key) {
	t.Helper()
	digest := sha256.Sum256([]byte("content"))
	var ok bool
	switch public := k.Signer.Public().(type) {
	case *rsa.PublicKey:
		sig, err := k.Signer.Sign(rand.Reader, digest[:], crypto.SHA256)
		ok = err == nil && rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], sig) == nil && k.Algorithm == keyring.RSA
	case ed25519.PublicKey:
		sig, err := k.Signer.Sign(rand.Reader, digest[:], crypto.Hash(0))
		ok = err == nil && ed25519.Verify(public, digest[:], sig) && k.Algorithm == keyring.Ed25519
	}
	if !ok {
		t.Errorf("key %s (%s, %T) made no signature that its public key verifies", k.Selector, k.Algorithm, k.Signer.Public())
	}
}

func exactDomain(t *testing.T, f Fixture) {
	f.Store(NewKey(t, "example.com", "s1", keyring.Ed25519))
	for _, domain := range []string{"example.com", "EXAMPLE.com", "example.com."} {
		if keys := eventually(t, f, domain, 1); keys[0].Domain != "example.com" {
			t.Errorf("asked for %q: got domain %q, want example.com", domain, keys[0].Domain)
		}
	}
	for _, domain := range []string{"mail.example.com", "com", "xexample.com"} {
		if _, err := f.Source.Keys(t.Context(), domain); !errors.Is(err, keyring.ErrNoKey) {
			t.Errorf("asked for %q: got %v, want %v", domain, err, keyring.ErrNoKey)
		}
	}
}

func hostileNames(t *testing.T, f Fixture) {
	f.Store(NewKey(t, "example.com", "s1", keyring.Ed25519))
	eventually(t, f, "example.com", 1)
	for _, domain := range []string{
		"", ".", "..", "../dkim/example.com", "example.com/s1", "example.com/", "/", "example..com", "*", "?x=1", "a%2fb",
		"[192.0.2.1]", "exa mple.com", "example.com\x00", "münchen.example", "-a.example", string(make([]byte, 300)),
	} {
		if _, err := f.Source.Keys(t.Context(), domain); !errors.Is(err, keyring.ErrNoKey) {
			t.Errorf("asked for %q: got %v, want %v", domain, err, keyring.ErrNoKey)
		}
	}
}

func changesShow(t *testing.T, f Fixture) {
	if _, err := f.Source.Keys(t.Context(), "example.com"); !errors.Is(err, keyring.ErrNoKey) {
		t.Fatalf("got %v, want %v", err, keyring.ErrNoKey)
	}
	f.Store(NewKey(t, "example.com", "s1", keyring.Ed25519))
	eventually(t, f, "example.com", 1)
	f.Store(NewKey(t, "example.com", "s2", keyring.Ed25519))
	eventually(t, f, "example.com", 2)
	f.Remove("example.com", "s1")
	if keys := eventually(t, f, "example.com", 1); keys[0].Selector != "s2" {
		t.Errorf("got selector %q, want s2", keys[0].Selector)
	}
	f.Remove("example.com", "s2")
	until(t, f, "example.com", "no key", func(_ []keyring.Key, err error) bool { return errors.Is(err, keyring.ErrNoKey) })
}

func replacedKeyShows(t *testing.T, f Fixture) {
	f.Store(NewKey(t, "example.com", "s1", keyring.Ed25519))
	eventually(t, f, "example.com", 1)
	second := NewKey(t, "example.com", "s1", keyring.Ed25519)
	f.Store(second)
	want := second.Signer.Public().(ed25519.PublicKey)
	until(t, f, "example.com", "the new key", func(keys []keyring.Key, err error) bool {
		return err == nil && len(keys) == 1 && want.Equal(keys[0].Signer.Public())
	})
}

func badKeyIsolated(t *testing.T, f Fixture) {
	f.Store(NewKey(t, "bad.example", "s1", keyring.Ed25519))
	f.Store(NewKey(t, "good.example", "s1", keyring.Ed25519))
	f.Spoil("bad.example", "s1")
	until(t, f, "bad.example", "a bad key", func(_ []keyring.Key, err error) bool { return errors.Is(err, keyring.ErrBadKey) })
	eventually(t, f, "good.example", 1)
	f.Store(NewKey(t, "bad.example", "s1", keyring.Ed25519))
	eventually(t, f, "bad.example", 1)
}

func badBesideGood(t *testing.T, f Fixture) {
	f.Store(NewKey(t, "example.com", "s1", keyring.Ed25519))
	f.Store(NewKey(t, "example.com", "s2", keyring.Ed25519))
	eventually(t, f, "example.com", 2)
	f.Spoil("example.com", "s2")
	if keys := eventually(t, f, "example.com", 1); keys[0].Selector != "s1" {
		t.Errorf("got selector %q, want s1", keys[0].Selector)
	}
}

func outOfReach(t *testing.T, f Fixture) {
	f.Store(NewKey(t, "example.com", "s1", keyring.Ed25519))
	f.Cut()
	for _, domain := range []string{"example.com", "unknown.example"} {
		keys, err := f.Source.Keys(t.Context(), domain)
		if err == nil || errors.Is(err, keyring.ErrNoKey) || errors.Is(err, keyring.ErrBadKey) {
			t.Errorf("%s: got %v, %v, want an error that is temporary", domain, keys, err)
		}
	}
	f.Restore()
	eventually(t, f, "example.com", 1)
	until(t, f, "unknown.example", "no key", func(_ []keyring.Key, err error) bool { return errors.Is(err, keyring.ErrNoKey) })
}

func outlastsOutage(t *testing.T, f Fixture) {
	f.Store(NewKey(t, "example.com", "s1", keyring.Ed25519))
	eventually(t, f, "example.com", 1)
	f.Cut()
	for end := time.Now().Add(2 * f.Within); time.Now().Before(end); time.Sleep(f.Within / 10) {
		if keys, err := f.Source.Keys(t.Context(), "example.com"); err != nil || len(keys) != 1 {
			t.Fatalf("got %v, %v, want the key that was read before", keys, err)
		}
	}
	f.Restore()
	f.Remove("example.com", "s1")
	until(t, f, "example.com", "no key", func(_ []keyring.Key, err error) bool { return errors.Is(err, keyring.ErrNoKey) })
}

func endedContext(t *testing.T, f Fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.Source.Keys(ctx, "example.com")
	if !errors.Is(err, context.Canceled) || errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

func concurrent(t *testing.T, f Fixture) {
	f.Store(NewKey(t, "example.com", "s1", keyring.Ed25519))
	eventually(t, f, "example.com", 1)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for n := range 200 {
				keys, err := f.Source.Keys(t.Context(), "example.com")
				if err != nil || len(keys) != 1 {
					t.Errorf("got %v, %v, want one key", keys, err)
					return
				}
				if _, err := f.Source.Keys(t.Context(), fmt.Sprintf("x%d-%d.example", i, n)); !errors.Is(err, keyring.ErrNoKey) {
					t.Errorf("got %v, want %v", err, keyring.ErrNoKey)
					return
				}
			}
		})
	}
	wg.Wait()
}

// eventually waits until the domain has n keys, and returns them.
func eventually(t *testing.T, f Fixture, domain string, n int) []keyring.Key {
	t.Helper()
	return until(t, f, domain, fmt.Sprintf("%d keys", n), func(keys []keyring.Key, err error) bool {
		return err == nil && len(keys) == n
	})
}

// until asks for the keys of a domain until they are as wanted, and fails when
// that takes longer than the fixture allows.
func until(t *testing.T, f Fixture, domain, want string, is func([]keyring.Key, error) bool) []keyring.Key {
	t.Helper()
	// What an outside change takes to show, and some time for a busy machine.
	for end := time.Now().Add(f.Within + time.Minute); ; time.Sleep(f.Within/20 + time.Millisecond) {
		keys, err := f.Source.Keys(t.Context(), domain)
		if is(keys, err) {
			return keys
		}
		if time.Now().After(end) {
			t.Fatalf("keys of %s: got %v, %v, want %s", domain, keys, err, want)
		}
	}
}
