package keyringtest

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postroad/signer/keyring"
)

// StoreFixture is one empty store under test, with the means to reach what is
// behind it, past the store.
type StoreFixture struct {
	Store keyring.Store
	// Within is how soon a change must show in Keys.
	Within time.Duration

	Other func() keyring.Store               // opens another store over the same place, as another process does
	Put   func(keyring.Key)                  // adds a key by hand, without a state
	Gone  func(domain, selector string) bool // reports that no private half of the key is to be found
}

// RunStore tests the store that open makes, a new one for each case. What Run
// tests is for Run.
func RunStore(t *testing.T, open func(t *testing.T) StoreFixture) {
	cases := []struct {
		name string
		test func(*testing.T, StoreFixture)
	}{
		{"nothing there", nothingThere},
		{"a whole life", wholeLife},
		{"removed at once", removedAtOnce},
		{"a selector is used once", selectorOnce},
		{"no way back", noWayBack},
		{"stale entry", staleEntry},
		{"two changes at once", twoChanges},
		{"two creations at once", twoCreations},
		{"key made by hand", madeByHand},
		{"many domains", manyDomains},
		{"names that are none", hostileStoreNames},
		{"states that are none", unknownState},
		{"ended context", endedStoreContext},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

// life is what the cases do with a store; it fails the test by itself.
type life struct {
	*testing.T
	f StoreFixture
}

func (l life) create(domain, selector string, algorithm keyring.Algorithm) keyring.Entry {
	l.Helper()
	e, err := l.f.Store.Create(l.Context(), NewKey(l, domain, selector, algorithm), "test")
	if err != nil {
		l.Fatalf("create %s of %s: %v", selector, domain, err)
	}
	return e
}

func (l life) change(e keyring.Entry, to keyring.State) keyring.Entry {
	l.Helper()
	got, err := l.f.Store.Change(l.Context(), e, to, "for the test")
	if err != nil {
		l.Fatalf("change %s of %s from %s to %s: %v", e.Selector, e.Domain, e.State, to, err)
	}
	if got.State != to {
		l.Errorf("changed to %s: got an entry that is %s", to, got.State)
	}
	return got
}

// entry reads one entry through another store.
func (l life) entry(domain, selector string) keyring.Entry {
	l.Helper()
	entries, err := l.f.Other().Entries(l.Context(), domain)
	if err != nil {
		l.Fatalf("entries of %s: %v", domain, err)
	}
	for _, e := range entries {
		if e.Selector == selector {
			return e
		}
	}
	l.Fatalf("entries of %s: got %v, want %s among them", domain, entries, selector)
	return keyring.Entry{}
}

// signing waits until exactly these selectors sign for the domain.
func (l life) signing(domain string, selectors ...string) {
	l.Helper()
	want := strings.Join(selectors, " ")
	until(l.T, Fixture{Source: l.f.Store, Within: l.f.Within}, domain, "signing by: "+want, func(keys []keyring.Key, err error) bool {
		var got []string
		for _, k := range keys {
			got = append(got, k.Selector)
		}
		slices.Sort(got)
		return strings.Join(got, " ") == want && (err == nil) == (want != "") && (err == nil || errors.Is(err, keyring.ErrNoKey))
	})
}

func nothingThere(t *testing.T, f StoreFixture) {
	for _, domain := range []string{"example.com", ""} {
		if entries, err := f.Store.Entries(t.Context(), domain); err != nil || len(entries) != 0 {
			t.Errorf("entries of %q: got %v, %v, want none", domain, entries, err)
		}
	}
	if _, err := f.Store.Load(t.Context(), "example.com", "s1"); !errors.Is(err, keyring.ErrNoKey) {
		t.Errorf("load: got %v, want %v", err, keyring.ErrNoKey)
	}
	e := keyring.Entry{Domain: "example.com", Selector: "s1", Algorithm: keyring.Ed25519, State: keyring.Published, Revision: "made up"}
	if _, err := f.Store.Change(t.Context(), e, keyring.Active, ""); err == nil {
		t.Error("change of a key that is not there: got no error")
	}
}

func wholeLife(t *testing.T, f StoreFixture) {
	for _, algorithm := range []keyring.Algorithm{keyring.RSA, keyring.Ed25519} {
		t.Run(string(algorithm), func(t *testing.T) { oneLife(life{t, f}, algorithm) })
	}
}

func oneLife(l life, algorithm keyring.Algorithm) {
	domain := map[keyring.Algorithm]string{keyring.RSA: "rsa.example", keyring.Ed25519: "ed25519.example"}[algorithm]
	key := NewKey(l, domain, "s1", algorithm)
	begun := time.Now().Add(-2 * time.Second) // a store's clock may be another one
	e, err := l.f.Store.Create(l.Context(), key, "somebody")
	if err != nil {
		l.Fatal(err)
	}
	bits := map[keyring.Algorithm]int{keyring.RSA: 2048, keyring.Ed25519: 256}[algorithm]
	if e.Domain != domain || e.Selector != "s1" || e.Algorithm != algorithm || e.Bits != bits || e.Record != keyring.Record(key) ||
		e.State != keyring.Generated || e.By != "somebody" || len(e.History) != 1 || e.Revision == "" {
		l.Errorf("created: got %+v", e)
	}
	l.signing(domain)

	states := []keyring.State{keyring.Published, keyring.Active, keyring.Retiring, keyring.Revoked, keyring.Removed}
	for n, state := range states {
		e = l.change(e, state)
		seen := l.entry(domain, "s1")
		if seen.State != state || seen.Record != e.Record || seen.Bits != bits || seen.By != "somebody" || len(seen.History) != n+2 {
			l.Errorf("%s: got %+v from another store", state, seen)
		}
		last := seen.History[len(seen.History)-1]
		if last.State != state || last.Why != "for the test" || last.At.Before(begun) || last.At.After(time.Now().Add(2*time.Second)) || !seen.Since().Equal(last.At) {
			l.Errorf("%s: got history %v", state, seen.History)
		}
		if seen.Revision != e.Revision {
			l.Errorf("%s: got revision %q from another store, want %q", state, seen.Revision, e.Revision)
		}
		if state == keyring.Active {
			l.signing(domain, "s1")
		} else {
			l.signing(domain)
		}
		l.loads(key, state)
	}
}

// loads holds what Load says against the state.
func (l life) loads(key keyring.Key, state keyring.State) {
	l.Helper()
	got, err := l.f.Store.Load(l.Context(), key.Domain, key.Selector)
	if state == keyring.Revoked || state == keyring.Removed {
		if !errors.Is(err, keyring.ErrNoKey) {
			l.Errorf("load of a key that is %s: got %v, want %v", state, err, keyring.ErrNoKey)
		}
		if !l.f.Gone(key.Domain, key.Selector) {
			l.Errorf("the key is %s and its private half is still there", state)
		}
		return
	}
	if err != nil {
		l.Fatalf("load of a key that is %s: %v", state, err)
	}
	public, ok := got.Signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if got.Domain != key.Domain || got.Selector != key.Selector || got.Algorithm != key.Algorithm || !ok || !public.Equal(key.Signer.Public()) {
		l.Errorf("load of a key that is %s: got another key", state)
	}
	proveSigns(l.T, got)
	if l.f.Gone(key.Domain, key.Selector) {
		l.Errorf("the key is %s and its private half is gone", state)
	}
}

func removedAtOnce(t *testing.T, f StoreFixture) {
	l := life{t, f}
	for i, from := range []keyring.State{keyring.Generated, keyring.Published, keyring.Active, keyring.Retiring} {
		selector := fmt.Sprintf("s%d", i)
		e := l.create("example.com", selector, keyring.Ed25519)
		if from != keyring.Generated {
			e = l.change(e, from)
		}
		l.change(e, keyring.Removed)
		if _, err := f.Store.Load(t.Context(), "example.com", selector); !errors.Is(err, keyring.ErrNoKey) || !f.Gone("example.com", selector) {
			t.Errorf("removed when %s: load: got %v, want %v and no private half", from, err, keyring.ErrNoKey)
		}
	}
	l.signing("example.com")
}

func selectorOnce(t *testing.T, f StoreFixture) {
	l := life{t, f}
	e := l.create("example.com", "s1", keyring.Ed25519)
	refused := func(when string) {
		t.Helper()
		for _, s := range []keyring.Store{f.Store, f.Other()} {
			if _, err := s.Create(t.Context(), NewKey(t, "example.com", "s1", keyring.Ed25519), "test"); !errors.Is(err, keyring.ErrExists) {
				t.Errorf("create a key whose selector is %s: got %v, want %v", when, err, keyring.ErrExists)
			}
		}
	}
	record := e.Record
	refused("generated")
	e = l.change(e, keyring.Revoked)
	refused("revoked")
	e = l.change(e, keyring.Removed)
	refused("removed")
	if e.Record != record || l.entry("example.com", "s1").Record != record {
		t.Error("the record of a removed key has changed")
	}
	l.create("other.example", "s1", keyring.Ed25519) // selectors are a domain's own
	f.Put(NewKey(t, "hand.example", "s1", keyring.Ed25519))
	if _, err := f.Store.Create(t.Context(), NewKey(t, "hand.example", "s1", keyring.Ed25519), "test"); !errors.Is(err, keyring.ErrExists) {
		t.Errorf("create over a key made by hand: got %v, want %v", err, keyring.ErrExists)
	}
}

func noWayBack(t *testing.T, f StoreFixture) {
	l := life{t, f}
	for _, gone := range []keyring.State{keyring.Revoked, keyring.Removed} {
		e := l.change(l.create("example.com", "s-"+string(gone), keyring.Ed25519), gone)
		for _, to := range []keyring.State{keyring.Generated, keyring.Published, keyring.Active, keyring.Retiring} {
			if _, err := f.Store.Change(t.Context(), e, to, ""); err == nil {
				t.Errorf("from %s to %s: got no error", gone, to)
			}
		}
		if seen := l.entry("example.com", e.Selector); seen.State != gone {
			t.Errorf("got %s, want %s", seen.State, gone)
		}
	}
}

func staleEntry(t *testing.T, f StoreFixture) {
	l := life{t, f}
	old := l.create("example.com", "s1", keyring.Ed25519)
	l.change(old, keyring.Published)
	for _, to := range []keyring.State{keyring.Published, keyring.Active, keyring.Removed} {
		if _, err := f.Other().Change(t.Context(), old, to, ""); !errors.Is(err, keyring.ErrChanged) {
			t.Errorf("change of a stale entry to %s: got %v, want %v", to, err, keyring.ErrChanged)
		}
	}
	if seen := l.entry("example.com", "s1"); seen.State != keyring.Published || len(seen.History) != 2 {
		t.Errorf("got %+v, want it as it was", seen)
	}
}

// raceRounds is how often the cases of two at once are tried.
const raceRounds = 5

func twoChanges(t *testing.T, f StoreFixture) {
	l := life{t, f}
	for round := range raceRounds {
		e := l.create("example.com", fmt.Sprintf("s%d", round), keyring.Ed25519)
		to := []keyring.State{keyring.Published, keyring.Active, keyring.Removed, keyring.Retiring}
		won := race(len(to), func(n int, s keyring.Store) error {
			_, err := s.Change(t.Context(), e, to[n], "race")
			if err != nil && !errors.Is(err, keyring.ErrChanged) {
				t.Errorf("got %v, want %v", err, keyring.ErrChanged)
			}
			return err
		}, f)
		if len(won) != 1 {
			t.Fatalf("%d of %d changes happened, want 1", len(won), len(to))
		}
		if seen := l.entry("example.com", e.Selector); seen.State != to[won[0]] || len(seen.History) != 2 {
			t.Errorf("got %+v, want %s", seen, to[won[0]])
		}
	}
}

func twoCreations(t *testing.T, f StoreFixture) {
	l := life{t, f}
	for round := range raceRounds {
		keys := make([]keyring.Key, 3)
		for n := range keys {
			keys[n] = NewKey(t, "example.com", fmt.Sprintf("s%d", round), keyring.Ed25519)
		}
		won := race(len(keys), func(n int, s keyring.Store) error {
			_, err := s.Create(t.Context(), keys[n], "race")
			if err != nil && !errors.Is(err, keyring.ErrExists) {
				t.Errorf("got %v, want %v", err, keyring.ErrExists)
			}
			return err
		}, f)
		if len(won) != 1 {
			t.Fatalf("%d of %d creations happened, want 1", len(won), len(keys))
		}
		if got, want := l.entry("example.com", keys[0].Selector).Record, keyring.Record(keys[won[0]]); got != want {
			t.Errorf("got record %q, want that of the winner", got)
		}
		l.loads(keys[won[0]], keyring.Generated)
	}
}

// race does something n times at once, each through its own store, and returns
// who had no error.
func race(n int, do func(int, keyring.Store) error, f StoreFixture) []int {
	stores := make([]keyring.Store, n)
	for i := range stores {
		stores[i] = f.Other()
	}
	var mu sync.Mutex
	var won []int
	var wg sync.WaitGroup
	for i, s := range stores {
		wg.Go(func() {
			if do(i, s) == nil {
				mu.Lock()
				won = append(won, i)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return won
}

func madeByHand(t *testing.T, f StoreFixture) {
	l := life{t, f}
	key := NewKey(t, "example.com", "hand", keyring.RSA)
	f.Put(key)
	l.signing("example.com", "hand")
	e := l.entry("example.com", "hand")
	if e.State != keyring.Active || !e.Since().IsZero() || e.By != "" || e.Algorithm != keyring.RSA || e.Bits != 2048 || e.Record != keyring.Record(key) {
		t.Errorf("got %+v, want it Active since nobody knows when", e)
	}
	l.loads(key, keyring.Active)
	again := e
	e = l.change(e, keyring.Retiring)
	l.signing("example.com")
	if seen := l.entry("example.com", "hand"); seen.State != keyring.Retiring || seen.Since().IsZero() || seen.Record != keyring.Record(key) {
		t.Errorf("got %+v, want it Retiring since now", seen)
	}
	if _, err := f.Store.Change(t.Context(), again, keyring.Retiring, ""); !errors.Is(err, keyring.ErrChanged) {
		t.Errorf("change of a stale entry: got %v, want %v", err, keyring.ErrChanged)
	}
	e = l.change(e, keyring.Active)
	l.signing("example.com", "hand")
	l.change(e, keyring.Removed)
	l.signing("example.com")
	l.loads(key, keyring.Removed)
	if _, err := f.Store.Create(t.Context(), NewKey(t, "example.com", "hand", keyring.RSA), ""); !errors.Is(err, keyring.ErrExists) {
		t.Errorf("create under its selector: got %v, want %v", err, keyring.ErrExists)
	}
}

func manyDomains(t *testing.T, f StoreFixture) {
	l := life{t, f}
	var want []string
	for i := range 12 {
		domain := fmt.Sprintf("d%02d.example", 11-i)
		for _, selector := range []string{"s2", "s1"} {
			l.create(domain, selector, keyring.Ed25519)
			want = append(want, domain+" "+selector)
		}
	}
	f.Put(NewKey(t, "a-hand.example", "s1", keyring.Ed25519))
	want = append(want, "a-hand.example s1")
	slices.Sort(want)
	entries, err := f.Other().Entries(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Domain+" "+e.Selector)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	one, err := f.Store.Entries(t.Context(), "D05.example.")
	if err != nil || len(one) != 2 || one[0].Selector != "s1" || one[1].Selector != "s2" || one[0].Domain != "d05.example" {
		t.Errorf("entries of one domain: got %v, %v, want s1 and s2", one, err)
	}
}

func hostileStoreNames(t *testing.T, f StoreFixture) {
	l := life{t, f}
	good := l.create("example.com", "s1", keyring.Ed25519)
	hostile := []string{
		".", "..", "../example.com", "example.com/s1", "/", "a//b", "*", "?x=1", "a%2fb", "exa mple.com", "s1\x00", "münchen.example", "-a", strings.Repeat("a", 300),
	}
	for _, name := range append(hostile, "") {
		if _, err := f.Store.Create(t.Context(), NewKey(t, name, "s1", keyring.Ed25519), "test"); err == nil {
			t.Errorf("create for domain %q: got no error", name)
		}
		if _, err := f.Store.Create(t.Context(), NewKey(t, "example.com", name, keyring.Ed25519), "test"); err == nil {
			t.Errorf("create with selector %q: got no error", name)
		}
		for _, pair := range [][2]string{{name, "s1"}, {"example.com", name}} {
			if _, err := f.Store.Load(t.Context(), pair[0], pair[1]); !errors.Is(err, keyring.ErrNoKey) {
				t.Errorf("load %q: got %v, want %v", pair, err, keyring.ErrNoKey)
			}
			e := good
			e.Domain, e.Selector = pair[0], pair[1]
			if _, err := f.Store.Change(t.Context(), e, keyring.Active, ""); err == nil {
				t.Errorf("change %q: got no error", pair)
			}
		}
	}
	for _, name := range hostile {
		if entries, err := f.Store.Entries(t.Context(), name); len(entries) != 0 {
			t.Errorf("entries of %q: got %v, %v, want none", name, entries, err)
		}
	}
	entries, err := f.Store.Entries(t.Context(), "")
	if err != nil || len(entries) != 1 || entries[0].State != keyring.Generated {
		t.Errorf("got %v, %v, want the one key as it was", entries, err)
	}
}

func unknownState(t *testing.T, f StoreFixture) {
	l := life{t, f}
	e := l.create("example.com", "s1", keyring.Ed25519)
	for _, to := range []keyring.State{"", "ACTIVE", "gone"} {
		if _, err := f.Store.Change(t.Context(), e, to, ""); err == nil {
			t.Errorf("change to %q: got no error", to)
		}
	}
	if seen := l.entry("example.com", "s1"); seen.State != keyring.Generated || seen.Revision != e.Revision {
		t.Errorf("got %+v, want it as it was", seen)
	}
}

func endedStoreContext(t *testing.T, f StoreFixture) {
	l := life{t, f}
	e := l.create("example.com", "s1", keyring.Ed25519)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.Store.Entries(ctx, "example.com")
	_, createErr := f.Store.Create(ctx, NewKey(t, "example.com", "s2", keyring.Ed25519), "")
	_, changeErr := f.Store.Change(ctx, e, keyring.Active, "")
	_, loadErr := f.Store.Load(ctx, "example.com", "s1")
	for name, err := range map[string]error{"entries": err, "create": createErr, "change": changeErr, "load": loadErr} {
		if err == nil || errors.Is(err, keyring.ErrNoKey) {
			t.Errorf("%s: got %v, want what ended the context", name, err)
		}
	}
	if seen := l.entry("example.com", "s1"); seen.State != keyring.Generated {
		t.Errorf("got %s, want it as it was", seen.State)
	}
}
