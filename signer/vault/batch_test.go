package vault

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

// gated is a fake whose requests to sign wait until the test lets them go on.
type gated struct {
	*fake
	doors chan struct{} // each request takes one
	keys  *Keys
	wg    sync.WaitGroup
}

func newGated(t *testing.T, timeout time.Duration) *gated {
	t.Helper()
	f := newFake(t)
	f.gate = make(chan struct{})
	o := f.options(t)
	o.Timeout = timeout
	c, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	g := &gated{fake: f, doors: f.gate, keys: newKeys(t, c, quick())}
	t.Cleanup(func() {
		close(g.doors)
		g.wg.Wait()
		g.settles(t, 0, 0)
		b := g.keys.transit.batches
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.lines) > 0 || len(b.turn) > 0 {
			t.Errorf("%d keys are left, %d of them in turn", len(b.lines), len(b.turn))
		}
	})
	return g
}

// transitKey makes a key of a domain in the transit engine.
func (g *gated) transitKey(t *testing.T, domain string, algorithm keyring.Algorithm) ContextSigner {
	t.Helper()
	g.storeTransit(keyringtest.NewKey(t, domain, "s1", algorithm))
	return g.key(t, domain)
}

func (g *gated) key(t *testing.T, domain string) ContextSigner {
	t.Helper()
	k, err := g.keys.Load(t.Context(), domain, "s1")
	if err != nil {
		t.Fatal(err)
	}
	return k.Signer.(ContextSigner)
}

// let lets so many requests go on.
func (g *gated) let(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		select {
		case g.doors <- struct{}{}:
		case <-time.After(time.Minute):
			t.Fatalf("request %d of %d did not come", i+1, n)
		}
	}
}

// outcomes are how signatures have ended, by number.
type outcomes struct {
	mu   sync.Mutex
	errs map[int]error
}

func (o *outcomes) wait(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d outcomes", n), func() bool { o.mu.Lock(); defer o.mu.Unlock(); return len(o.errs) == n })
}

// failed are the numbers of those that failed, and the error of one.
func (o *outcomes) failed() (numbers []int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, e := range o.errs {
		if e != nil {
			numbers, err = append(numbers, i), e
		}
	}
	slices.Sort(numbers)
	return numbers, err
}

// ask asks for signatures with these numbers.
func (g *gated) ask(ctx context.Context, s ContextSigner, from, to int) *outcomes {
	o := &outcomes{errs: make(map[int]error)}
	for i := from; i < to; i++ {
		g.askOne(ctx, s, i, o)
	}
	return o
}

func (g *gated) askOne(ctx context.Context, s ContextSigner, i int, o *outcomes) {
	g.wg.Go(func() {
		err := signOne(ctx, s, i)
		o.mu.Lock()
		defer o.mu.Unlock()
		o.errs[i] = err
	})
}

// signOne makes a signature of a digest of its own and verifies it.
func signOne(ctx context.Context, s ContextSigner, i int) error {
	digest := sha256.Sum256(fmt.Append(nil, i))
	hash := crypto.SHA256
	if _, is := s.Public().(ed25519.PublicKey); is {
		hash = 0
	}
	signature, err := s.SignContext(ctx, rand.Reader, digest[:], hash)
	if err == nil && !verifies(s.Public(), digest[:], signature) {
		err = errors.New("it is no signature of this digest")
	}
	return err
}

// settles waits until so many signatures wait and so many requests are on their
// way.
func (g *gated) settles(t *testing.T, waiting, requests int) {
	t.Helper()
	b := g.keys.transit.batches
	got := func() (w, r int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, l := range b.lines {
			w += len(l.waiting)
		}
		return w, b.requests
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		w, r := got()
		if w == waiting && r == requests {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d signatures wait and %d requests are on their way, want %d and %d", w, r, waiting, requests)
		}
	}
}

func (g *gated) sizes() []int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(slices.Values(g.batches))
}

func TestTransitGathers(t *testing.T) {
	g := newGated(t, time.Minute)
	s := g.transitKey(t, "example.com", keyring.RSA)
	first := g.ask(t.Context(), s, 0, 1)
	g.settles(t, 0, 1) // nobody waits for others
	few := g.ask(t.Context(), s, 1, enough)
	g.settles(t, enough-1, 1)
	g.let(t, 1)
	first.wait(t, 1)
	g.settles(t, 0, 1) // they leave as soon as the one before is back
	many := g.ask(t.Context(), s, enough, enough+(maxRunning-1)*enough)
	g.settles(t, 0, maxRunning) // enough of them leave beside others
	crowd := g.ask(t.Context(), s, 1000, 1000+maxBatch+10)
	g.settles(t, maxBatch+10, maxRunning) // but not beside too many
	g.let(t, 6)
	few.wait(t, enough-1)
	many.wait(t, (maxRunning-1)*enough)
	crowd.wait(t, maxBatch+10)
	for what, o := range map[string]*outcomes{"first": first, "few": few, "many": many, "crowd": crowd} {
		if numbers, err := o.failed(); err != nil {
			t.Errorf("%s: %v failed, one with %v", what, numbers, err)
		}
	}
	want := []int{1, 10, enough - 1, enough, enough, enough, maxBatch}
	slices.Sort(want)
	if got := g.sizes(); !slices.Equal(got, want) {
		t.Errorf("got requests of %v signatures, want %v", got, want)
	}
}

func TestTransitBoundsRequests(t *testing.T) {
	g := newGated(t, time.Minute)
	const keys = maxRequests + 8
	var all []*outcomes
	for i := range keys {
		s := g.transitKey(t, fmt.Sprintf("d%d.example", i), keyring.Ed25519)
		all = append(all, g.ask(t.Context(), s, 0, 2))
	}
	// Every key has one request on its way and one signature that waits for the next, or two that wait for their turn.
	g.settles(t, maxRequests+2*8, maxRequests)
	g.let(t, 2*maxRequests+8)
	for i, o := range all {
		o.wait(t, 2)
		if _, err := o.failed(); err != nil {
			t.Errorf("key %d: %v", i, err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mostSigning > maxRequests {
		t.Errorf("%d requests were on their way at once, want at most %d", g.mostSigning, maxRequests)
	}
}

// TestTransitSharesRequests: keys of many domains may be one transit key.
func TestTransitSharesRequests(t *testing.T) {
	g := newGated(t, time.Minute)
	one := g.transitKey(t, "one.example", keyring.RSA)
	g.with(func() {
		g.put(g.path("two.example", "s1"), g.secrets[g.path("one.example", "s1")].versions[0].data)
	})
	other := g.key(t, "two.example")
	a := g.ask(t.Context(), one, 0, 1)
	g.settles(t, 0, 1)
	b := g.ask(t.Context(), other, 0, 3)
	g.settles(t, 3, 1)
	g.let(t, 2)
	a.wait(t, 1)
	b.wait(t, 3)
	if got := g.sizes(); !slices.Equal(got, []int{1, 3}) {
		t.Errorf("got requests of %v signatures, want 1 and 3", got)
	}
}

func TestTransitObeysContexts(t *testing.T) {
	g := newGated(t, time.Minute)
	s := g.transitKey(t, "example.com", keyring.RSA)
	under, cancelUnder := context.WithCancel(t.Context())
	first := g.ask(under, s, 0, 1)
	g.settles(t, 0, 1)
	waiting, cancelWaiting := context.WithCancel(t.Context())
	others := g.ask(t.Context(), s, 1, 3)
	gone := g.ask(waiting, s, 3, 5)
	g.settles(t, 4, 1)
	cancelWaiting()
	gone.wait(t, 2)
	g.settles(t, 2, 1)
	cancelUnder()
	first.wait(t, 1)
	for what, o := range map[string]*outcomes{"it waited": gone, "it was on its way": first} {
		if _, err := o.failed(); !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: got %v, want %v", what, err, context.Canceled)
		}
	}
	if err := signOne(under, s, 9); !errors.Is(err, context.Canceled) {
		t.Errorf("its context had ended: got %v, want %v", err, context.Canceled)
	}
	g.let(t, 2)
	others.wait(t, 2)
	if numbers, err := others.failed(); err != nil {
		t.Errorf("others: %v failed with %v", numbers, err)
	}
	if got := g.sizes(); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("got requests of %v signatures, want 1 and 2", got)
	}
}

func TestTransitFaultsOfABatch(t *testing.T) {
	const n = 4
	item := func(r any) map[string]any { return r.(map[string]any) }
	for name, c := range map[string]struct {
		trouble func(*fake)
		want    []int // that fail
		text    string
		is      error
	}{
		"one is refused": {func(f *fake) {
			f.answer = func(r []any) []any {
				r[2] = map[string]any{"error": "unable to decode input", "key_version": 0, "reference": "2"}
				return r
			}
		}, []int{2}, "vault refuses it (unable to decode input)", nil},
		"one is no signature": {func(f *fake) {
			f.answer = func(r []any) []any { item(r[1])["signature"] = "vault:v1:AAAA"; return r }
		}, []int{1}, "no signature by this key", nil},
		"one by another version": {func(f *fake) {
			f.answer = func(r []any) []any {
				item(r[1])["signature"] = strings.Replace(item(r[1])["signature"].(string), "v1", "v2", 1)
				return r
			}
		}, []int{1}, "no signature by version 1", ErrUnavailable},
		"one too few": {func(f *fake) {
			f.answer = func(r []any) []any { return r[1:] }
		}, []int{0, 1, 2, 3}, "3 results for 4 signatures", ErrUnavailable},
		"one too many": {func(f *fake) {
			f.answer = func(r []any) []any { return append(r, r[0]) }
		}, []int{0, 1, 2, 3}, "5 results for 4 signatures", ErrUnavailable},
		"wrong order": {func(f *fake) {
			f.answer = func(r []any) []any { r[0], r[3] = r[3], r[0]; return r }
		}, []int{0, 3}, "another signature", ErrUnavailable},
		"wrong order, nothing said": {func(f *fake) {
			f.answer = func(r []any) []any {
				for i := range r {
					delete(item(r[i]), "reference")
				}
				r[0], r[3] = r[3], r[0]
				return r
			}
		}, []int{0, 3}, "no signature by this key", nil},
		"an old Vault says no references": {func(f *fake) {
			f.answer = func(r []any) []any {
				for i := range r {
					delete(item(r[i]), "reference")
				}
				return r
			}
		}, nil, "", nil},
		"sealed":    {func(f *fake) { f.sealed = true }, []int{0, 1, 2, 3}, "unseal it", ErrUnavailable},
		"no answer": {func(f *fake) { f.slow = time.Hour }, []int{0, 1, 2, 3}, "no answer in time", ErrUnavailable},
		"nonsense":  {func(f *fake) { f.spoil = func() string { return "<html>" } }, []int{0, 1, 2, 3}, "not what Vault says", ErrUnavailable},
		"key gone":  {func(f *fake) { clear(f.transits) }, []int{0, 1, 2, 3}, "signing key not found", nil},
	} {
		t.Run(name, func(t *testing.T) {
			timeout := time.Minute
			if name == "no answer" {
				timeout = 15 * time.Second // the first request takes part of it
			}
			g := newGated(t, timeout)
			s := g.transitKey(t, "example.com", keyring.RSA)
			first := g.ask(t.Context(), s, 100, 101)
			g.settles(t, 0, 1)
			rest := &outcomes{errs: make(map[int]error)}
			for i := range n {
				g.askOne(t.Context(), s, i, rest)
				g.settles(t, i+1, 1) // one after the other
			}
			g.let(t, 1)
			first.wait(t, 1)
			if _, err := first.failed(); err != nil {
				t.Errorf("before: %v", err)
			}
			g.with(func() { c.trouble(g.fake) })
			g.let(t, 1)
			rest.wait(t, n)
			numbers, err := rest.failed()
			if !slices.Equal(numbers, c.want) || err != nil && !strings.Contains(err.Error(), c.text) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v failed, one with %v, want %v with %q and %v", numbers, err, c.want, c.text, c.is)
			}
			g.with(func() { g.sealed, g.slow, g.spoil, g.answer, g.gate = false, 0, nil, nil, nil })
			if err := signOne(t.Context(), s, 7); err != nil && name != "key gone" {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestTransitAfterStop(t *testing.T) {
	g := newGated(t, time.Minute)
	s := g.transitKey(t, "example.com", keyring.RSA)
	o := g.ask(t.Context(), s, 0, 3)
	g.settles(t, 2, 1)
	if err := g.keys.client.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	o.wait(t, 3)
	if numbers, err := o.failed(); len(numbers) != 3 || !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v failed with %v, want all with %v", numbers, err, ErrUnavailable)
	}
	if err := signOne(t.Context(), s, 4); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want %v", err, ErrUnavailable)
	}
}

// TestForgetLeavesOthers: a caller that gives up late does not drop the line that has taken the place of its own.
func TestForgetLeavesOthers(t *testing.T) {
	b := newBatcher(nil)
	id := lineID{path: "transit/sign/k", version: 1}
	fresh := &line{id: id, running: 1}
	b.lines[id] = fresh
	b.forget(&line{id: id})
	if b.lines[id] != fresh {
		t.Error("a line with a request on its way was dropped")
	}
}
