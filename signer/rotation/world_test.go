package rotation

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postroad/signer/keyring"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a DNS, a queue and a hook, as the tests want them.
type world struct {
	mu       sync.Mutex
	zone     map[string][]version // by name, in order
	lag      map[string]time.Duration
	ttl      time.Duration
	negative time.Duration
	caches   map[string]cached // by resolver and name
	hookLag  time.Duration     // from the hook to the zone
	hooks    []Record          // what was asked for
	hookErr  error
	dead     map[string]error // servers that do not answer
	queued   map[string]int   // by selector
	pool     []*rsa.PrivateKey
	made     int
}

// version is what a name has from a time on.
type version struct {
	at      time.Time
	records []string
}

type cached struct {
	until   time.Time
	records []string
}

func newWorld(pool []*rsa.PrivateKey) *world {
	return &world{
		zone: make(map[string][]version), lag: map[string]time.Duration{"ns1": 0, "ns2": 0}, caches: make(map[string]cached),
		ttl: time.Hour, negative: 15 * time.Minute, dead: make(map[string]error), queued: make(map[string]int), pool: pool,
	}
}

// keyPool makes RSA keys that are quick to make and to use.
func keyPool(t testing.TB) []*rsa.PrivateKey {
	t.Helper()
	var pool []*rsa.PrivateKey
	for range 8 {
		k, err := rsa.GenerateKey(rand.Reader, 1024)
		if err != nil {
			t.Fatal(err)
		}
		pool = append(pool, k)
	}
	return pool
}

func (w *world) makeKey(domain, selector string, a keyring.Algorithm) (keyring.Key, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := keyring.Key{Domain: domain, Selector: selector, Algorithm: a}
	if a == keyring.RSA {
		k.Signer = w.pool[w.made%len(w.pool)]
		w.made++
		return k, nil
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	k.Signer = private
	return k, err
}

// set changes the zone.
func (w *world) set(name string, records ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.zone[name] = append(w.zone[name], version{time.Now().Add(w.hookLag), records})
}

// at is what an authoritative server has.
func (w *world) at(server, name string, now time.Time) []string {
	var records []string
	for _, v := range w.zone[name] {
		if !v.at.Add(w.lag[server]).After(now) {
			records = v.records
		}
	}
	return records
}

// Lookup implements Publication. The resolvers r1 and r2 ask the slowest server.
func (w *world) Lookup(ctx context.Context, name string) (Answers, error) {
	if err := ctx.Err(); err != nil {
		return Answers{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	var answers []Answer
	for _, server := range []string{"ns1", "ns2"} {
		answers = append(answers, Answer{Server: server, IsAuthoritative: true, Records: w.at(server, name, now), TTL: w.ttl, Err: w.dead[server]})
	}
	for _, server := range []string{"r1", "r2"} {
		answers = append(answers, Answer{Server: server, Records: w.resolve(server, name, now), TTL: w.ttl, Err: w.dead[server]})
	}
	return Answers{answers, w.negative}, nil
}

func (w *world) resolve(server, name string, now time.Time) []string {
	id := server + " " + name
	if c := w.caches[id]; now.Before(c.until) {
		return c.records
	}
	c := cached{now.Add(w.negative), w.at("ns2", name, now)}
	if len(c.records) > 0 {
		c.until = now.Add(w.ttl)
	}
	w.caches[id] = c
	return c.records
}

// Publish implements Publisher.
func (w *world) Publish(_ context.Context, r Record) error {
	w.mu.Lock()
	w.hooks = append(w.hooks, r)
	err := w.hookErr
	w.mu.Unlock()
	if err != nil {
		return err
	}
	if r.Op == OpDelete {
		w.set(r.Name)
	} else {
		w.set(r.Name, r.Value)
	}
	return nil
}

// Queued implements Sent.
func (w *world) Queued(_ context.Context, _, selector string) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.queued[selector]; n >= 0 {
		return n, nil
	}
	return 0, errors.New("the queue is out of reach")
}

// verifiable reports why some verifier in the world could not check a signature
// of this key now.
func (w *world) verifiable(e *keyring.Entry) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	now, name := time.Now(), Name(e.Domain, e.Selector)
	everywhere := time.Time{}
	for _, server := range []string{"ns1", "ns2"} {
		if got := w.at(server, name, now); len(got) != 1 || got[0] != e.Record {
			return fmt.Errorf("%s has %q for %s", server, got, name)
		}
		history := w.zone[name]
		for i := len(history) - 1; i >= 0 && slices.Equal(history[i].records, []string{e.Record}); i-- {
			if at := history[i].at.Add(w.lag[server]); i == 0 || !slices.Equal(history[i-1].records, history[i].records) {
				if at.After(everywhere) {
					everywhere = at
				}
			}
		}
	}
	// Somebody may have asked a moment before it was everywhere.
	if until := everywhere.Add(w.negative); now.Before(until) {
		return fmt.Errorf("some resolver may remember until %v that there is no %s", until, name)
	}
	return nil
}

// bench is a Rotator over a store in memory, in a world.
type bench struct {
	*testing.T
	*world
	store *memory
	r     *Rotator
}

// benchPolicy has the defaults of a mail lifetime of five days.
func benchPolicy() Policy { return Policy{MaxQueueAge: 5 * day} }

func newBench(t *testing.T, change func(*Options)) *bench {
	t.Helper()
	b := &bench{T: t, world: newWorld(keyPool(t)), store: newMemory()}
	o := Options{Store: b.store, Publication: b.world, Sent: b.world, Publisher: b.world, Policy: benchPolicy(), By: "test", Make: b.makeKey}
	if change != nil {
		change(&o)
	}
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	b.r = r
	return b
}

const domain = "example.com"

// hand puts a key there by hand, with its record.
func (b *bench) hand(selector string, a keyring.Algorithm) {
	b.Helper()
	k, err := b.makeKey(domain, selector, a)
	if err != nil {
		b.Fatal(err)
	}
	b.store.put(k)
	b.set(Name(domain, selector), keyring.Record(k))
}

func (b *bench) run(demand time.Time) Pass {
	b.Helper()
	pass, err := b.r.Run(b.Context(), domain, demand)
	if err != nil {
		b.Fatalf("run: %v", err)
	}
	return pass
}

// demand is what a command makes of the wish to rotate.
func (b *bench) demand() time.Time {
	b.Helper()
	entries, err := b.store.Entries(b.Context(), domain)
	if err != nil {
		b.Fatal(err)
	}
	at, err := Begin(entries, b.r.o.Policy, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	return at
}

// are holds the states of all keys against a list.
func (b *bench) are(want ...string) {
	b.Helper()
	entries, err := b.store.Entries(b.Context(), domain)
	if err != nil {
		b.Fatal(err)
	}
	slices.Sort(want)
	if got := states(entries); !slices.Equal(got, want) {
		b.Errorf("got %s, want %s", strings.Join(got, ", "), strings.Join(want, ", "))
	}
}

// waits holds the first reason that a pass gives for a key against a text.
func (b *bench) waits(pass Pass, selector, want string) Wait {
	b.Helper()
	for _, w := range pass.Waiting {
		if w.Selector == selector {
			if !strings.Contains(w.Reason, want) {
				b.Errorf("%s waits %q, want %q in it", selector, w.Reason, want)
			}
			return w
		}
	}
	b.Errorf("%s waits for nothing, want %q", selector, want)
	return Wait{}
}
