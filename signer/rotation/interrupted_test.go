package rotation

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"postroad/signer/keyring"
)

// trouble is what happens at a call to the world.
type trouble int

const (
	fine       trouble = iota
	killBefore         // the process dies
	killAfter
	failBefore // the call fails
	failAfter  // the call fails and was done all the same
)

var errTrouble = errors.New("trouble")

// killed is what a process dies of.
type killed struct{}

// shaky is the world of a process that dies and fails, and watches over what
// must never happen.
type shaky struct {
	*memory
	w        *world
	troubles []trouble // of the calls to come
	calls    int
	broken   error // the rule that was broken
	none     error // the worst: nothing signs
}

// shake runs a call with its trouble.
func (s *shaky) shake(call func() error) error {
	now := fine
	if s.calls++; s.calls <= len(s.troubles) {
		now = s.troubles[s.calls-1]
	}
	switch now {
	case killBefore:
		panic(killed{})
	case failBefore:
		return errTrouble
	}
	err := call()
	switch now {
	case killAfter:
		panic(killed{})
	case failAfter:
		return errTrouble
	}
	return err
}

func (s *shaky) Entries(ctx context.Context, domain string) (entries []keyring.Entry, err error) {
	return entries, s.shake(func() error { entries, err = s.memory.Entries(ctx, domain); return err })
}

func (s *shaky) Create(ctx context.Context, k keyring.Key, by string) (keyring.Entry, error) {
	var e keyring.Entry
	err := s.shake(func() (err error) { e, err = s.memory.Create(ctx, k, by); return err })
	if err != nil {
		return keyring.Entry{}, err
	}
	return e, nil
}

func (s *shaky) Load(ctx context.Context, domain, selector string) (k keyring.Key, err error) {
	return k, s.shake(func() error { k, err = s.memory.Load(ctx, domain, selector); return err })
}

func (s *shaky) Change(ctx context.Context, e keyring.Entry, to keyring.State, why string) (keyring.Entry, error) {
	var after keyring.Entry
	err := s.shake(func() (err error) {
		s.judge(&e, to)
		after, err = s.memory.Change(ctx, e, to, why)
		return err
	})
	if err != nil {
		return keyring.Entry{}, err
	}
	return after, nil
}

// judge holds a change against the rules.
func (s *shaky) judge(e *keyring.Entry, to keyring.State) {
	entries, _ := s.memory.Entries(context.Background(), domain)
	rsaBefore, rsaAfter, same := 0, 0, 0
	for _, other := range entries {
		if other.State == keyring.Active && other.Algorithm == e.Algorithm && other.Selector != e.Selector {
			same++
		}
		if other.Algorithm != keyring.RSA || other.State != keyring.Active {
			continue
		}
		rsaBefore++
		if other.Selector != e.Selector {
			rsaAfter++
		}
	}
	switch {
	case to == keyring.Active:
		if err := s.w.verifiable(e); err != nil {
			s.broken = fmt.Errorf("%s became Active: %w", e.Selector, err)
		}
		if e.Algorithm == keyring.Ed25519 && rsaBefore == 0 {
			s.broken = fmt.Errorf("%s became Active without RSA", e.Selector)
		}
	case rsaBefore > 0 && rsaAfter == 0 && e.State == keyring.Active:
		s.none = fmt.Errorf("%s became %s and no RSA key is left", e.Selector, to)
	case e.State == keyring.Active && same == 0:
		s.broken = fmt.Errorf("%s became %s and no %s key is left", e.Selector, to, e.Algorithm)
	case e.State == keyring.Active && slices.ContainsFunc(entries, func(other keyring.Entry) bool {
		return other.State == keyring.Active && other.Selector != e.Selector && time.Since(other.Since()) < 2*time.Minute
	}):
		s.broken = fmt.Errorf("%s became %s before all signers knew its successor", e.Selector, to)
	case !slices.Contains(ways[e.State], to):
		s.broken = fmt.Errorf("%s became %s when %s", e.Selector, to, e.State)
	}
}

// ways are the changes that a rotation may make.
var ways = map[keyring.State][]keyring.State{
	keyring.Generated: {keyring.Published, keyring.Removed}, keyring.Published: {keyring.Active, keyring.Removed},
	keyring.Active: {keyring.Retiring}, keyring.Retiring: {keyring.Revoked}, keyring.Revoked: {keyring.Removed},
}

// left reports where the zone does not fit the keys at rest.
func (s *shaky) left() error {
	entries, err := s.memory.Entries(context.Background(), domain)
	for _, e := range entries {
		got := strings.Join(s.w.at("ns2", Name(domain, e.Selector), time.Now().Add(day)), " and ")
		if want := wanted(&e); got != want {
			err = errors.Join(err, fmt.Errorf("%s is %s, got record %q, want %q", e.Selector, e.State, got, want))
		}
	}
	return err
}

func (s *shaky) Lookup(ctx context.Context, name string) (a Answers, err error) {
	return a, s.shake(func() error { a, err = s.w.Lookup(ctx, name); return err })
}

func (s *shaky) Queued(ctx context.Context, domain, selector string) (n int, err error) {
	return n, s.shake(func() error { n, err = s.w.Queued(ctx, domain, selector); return err })
}

func (s *shaky) Publish(ctx context.Context, r Record) error {
	return s.shake(func() error {
		s.judgeRecord(r)
		return s.w.Publish(ctx, r)
	})
}

// judgeRecord lets no record go that somebody may still need.
func (s *shaky) judgeRecord(r Record) {
	entries, _ := s.memory.Entries(context.Background(), domain)
	selector, _, _ := strings.Cut(r.Name, "._domainkey.")
	e, _ := find(entries, selector)
	signed := slices.ContainsFunc(e.History, func(step keyring.Step) bool { return step.State == keyring.Active || step.State == keyring.Retiring })
	switch {
	case r.Op == OpAdd && e.State != keyring.Generated:
		s.broken = fmt.Errorf("%s was published when %s", selector, e.State)
	case r.Op == OpRevoke && (e.State != keyring.Retiring || time.Since(e.Since()) < 12*day || s.w.queued[selector] > 0):
		s.broken = fmt.Errorf("%s was revoked too early", selector)
	case r.Op == OpDelete && signed && (e.State != keyring.Revoked || time.Since(e.Since()) < 30*day):
		s.broken = fmt.Errorf("%s was deleted too early", selector)
	}
}

// start is what a domain begins with.
type start struct {
	name  string
	hand  []string // selectors; ed… are Ed25519
	pairs []keyring.State
}

var starts = []start{
	{name: "nothing"},
	{name: "one key by hand", hand: []string{"s1"}},
	{name: "two keys by hand", hand: []string{"s1", "ed1"}},
	{name: "a pair", pairs: []keyring.State{keyring.Active}},
	{name: "a pair and a spare", pairs: []keyring.State{keyring.Active, keyring.Published}},
	{name: "a pair, and one just made", pairs: []keyring.State{keyring.Active, keyring.Generated}},
	{name: "a pair and keys by hand", hand: []string{"s1", "s2"}, pairs: []keyring.State{keyring.Active}},
}

func (s *shaky) begin(t *rapid.T, from start) {
	add := func(selector string, a keyring.Algorithm) keyring.Key {
		k, err := s.w.makeKey(domain, selector, a)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	for _, selector := range from.hand {
		a := keyring.RSA
		if strings.HasPrefix(selector, "ed") {
			a = keyring.Ed25519
		}
		k := add(selector, a)
		s.memory.put(k)
		s.w.set(Name(domain, selector), keyring.Record(k))
	}
	p, err := benchPolicy().complete()
	if err != nil {
		t.Fatal(err)
	}
	for n, state := range from.pairs {
		for _, a := range p.Algorithms {
			k := add(p.selector(a, time.Now(), n+1), a)
			e, err := s.memory.Create(t.Context(), k, "before")
			if err == nil && state != keyring.Generated {
				s.w.set(Name(domain, k.Selector), keyring.Record(k))
				_, err = s.memory.Change(t.Context(), e, state, "before")
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	time.Sleep(3 * day)
}

// rotate asks for a rotation again and again, as somebody does whose process
// dies, until nothing is left to be done, and returns what the keys are then.
func (s *shaky) rotate(t *rapid.T, o Options) []string {
	o.Store, o.Publication, o.Sent, o.Publisher, o.Make = s, s, s, s, s.w.makeKey
	before, err := s.memory.Entries(t.Context(), domain)
	if err != nil {
		t.Fatal(err)
	}
	for range 600 {
		entries, err := s.memory.Entries(t.Context(), domain)
		if err != nil {
			t.Fatal(err)
		}
		var demand time.Time
		if !rotated(before, entries) {
			if demand, err = Begin(entries, o.Policy, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		pass, err := s.process(t.Context(), o, demand)
		if err := errors.Join(s.broken, s.none); err != nil {
			t.Fatalf("%v (%v)", err, states(entries))
		}
		if err == nil && len(pass.Waiting) == 0 {
			entries, err := s.memory.Entries(t.Context(), domain)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.left(); err != nil {
				t.Fatal(err)
			}
			return states(entries)
		}
		at := pass.Again(time.Now())
		if at.IsZero() {
			at = time.Now().Add(time.Minute)
		}
		time.Sleep(time.Until(at))
	}
	t.Fatal("it came to no end")
	return nil
}

// rotated reports that no key signs any more that signed before, and another
// one does.
func rotated(before, now []keyring.Entry) bool {
	signs := false
	for _, e := range now {
		old, was := find(before, e.Selector)
		if e.State == keyring.Active {
			if was && old.State == keyring.Active {
				return false
			}
			signs = true
		}
	}
	return signs
}

// process is one pass of a process of its own, which may die.
func (s *shaky) process(ctx context.Context, o Options, demand time.Time) (pass Pass, err error) {
	defer func() {
		if p := recover(); p != nil {
			if p != (killed{}) {
				panic(p)
			}
			err = errTrouble
		}
	}()
	r, err := New(o)
	if err != nil {
		return Pass{}, err
	}
	pass, err = r.Run(ctx, domain, demand)
	if err == nil && pass.Err() != nil {
		err = pass.Err()
	}
	return pass, err
}

// TestInterrupted kills and fails a rotation at any calls: it ends as one does
// that nobody disturbs, and at no time signs a key that a verifier could not
// check, or none.
func TestInterrupted(t *testing.T) {
	pool := keyPool(t)
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.SampledFrom(starts).Draw(t, "from")
		o := Options{Policy: benchPolicy()}
		o.Policy.KeepSpare = rapid.Bool().Draw(t, "keep spare")
		lag := time.Duration(rapid.IntRange(0, 12).Draw(t, "lag in minutes")) * time.Minute
		hookLag := time.Duration(rapid.IntRange(0, 12).Draw(t, "lag of the hook in minutes")) * time.Minute
		troubles := rapid.SliceOfN(rapid.SampledFrom([]trouble{fine, fine, killBefore, killAfter, failBefore, failAfter}), 0, 80).Draw(t, "troubles")
		var ends [2][]string
		for n, troubles := range [][]trouble{nil, troubles} {
			rapid.SyncTest(t, func(t *rapid.T) {
				s := newShaky(pool, troubles)
				s.w.lag["ns2"], s.w.hookLag = lag, hookLag
				s.begin(t, from)
				ends[n] = s.rotate(t, o)
			})
		}
		if !slices.Equal(kinds(ends[0]), kinds(ends[1])) {
			t.Fatalf("got %v, want as without trouble %v", ends[1], ends[0])
		}
		active := 0
		for _, end := range ends[0] {
			if strings.HasSuffix(end, " active") {
				active++
			}
		}
		if active != 2 {
			t.Fatalf("got %v, want a pair that signs", ends[0])
		}
	})
}

// kinds are states without their selectors: a rotation that takes longer may make its keys in another month.
func kinds(states []string) []string {
	var out []string
	for _, s := range states {
		selector, state, _ := strings.Cut(s, " ")
		kind := "rsa"
		if strings.HasPrefix(selector, "ed") {
			kind = "ed25519"
		}
		out = append(out, kind+" "+state)
	}
	slices.Sort(out)
	return out
}

func newShaky(pool []*rsa.PrivateKey, troubles []trouble) *shaky {
	return &shaky{memory: newMemory(), w: newWorld(pool), troubles: troubles}
}

// TestCompromiseInterrupted kills the replacement of a stolen key at any calls,
// and repeats it.
func TestCompromiseInterrupted(t *testing.T) {
	pool := keyPool(t)
	rapid.Check(t, func(t *rapid.T) {
		troubles := rapid.SliceOfN(rapid.SampledFrom([]trouble{fine, killBefore, killAfter, failBefore, failAfter}), 0, 40).Draw(t, "troubles")
		stolen := rapid.SampledFrom([]string{"rsa-200001", "ed25519-200001"}).Draw(t, "stolen")
		rapid.SyncTest(t, func(t *rapid.T) {
			s := newShaky(pool, troubles)
			s.begin(t, start{pairs: []keyring.State{keyring.Active, keyring.Published}})
			for n := 0; ; n++ {
				err := s.compromise(t.Context(), stolen)
				if err == nil {
					break
				}
				if n == 100 {
					t.Fatalf("it came to no end: %v", err)
				}
			}
			entries, err := s.memory.Entries(t.Context(), domain)
			if err != nil {
				t.Fatal(err)
			}
			e, _ := find(entries, stolen)
			spare, _ := find(entries, "rsa-200001-2")
			// Without its Ed25519 key a domain goes on signing, so that trouble with the spare does not matter.
			if e.State != keyring.Revoked || e.Algorithm == keyring.RSA && spare.State != keyring.Active || s.none != nil {
				t.Fatalf("got %v, %v, want %s revoked and the spare active", states(entries), s.none, stolen)
			}
			if got := s.w.at("ns1", Name(domain, stolen), time.Now()); len(got) != 1 || got[0] != revokedValue {
				t.Fatalf("got record %q, want it revoked", got)
			}
		})
	})
}

func (s *shaky) compromise(ctx context.Context, selector string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if p != (killed{}) {
				panic(p)
			}
			err = errTrouble
		}
	}()
	r, err := New(Options{Store: s, Publication: s, Sent: s, Publisher: s, Make: s.w.makeKey, Policy: benchPolicy()})
	if err != nil {
		return err
	}
	_, err = r.Compromise(ctx, domain, selector, false)
	return err
}
