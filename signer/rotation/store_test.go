package rotation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

// memory is a keyring.Store in memory.
type memory struct {
	mu    sync.Mutex
	keys  map[string]*stored // by domain and selector
	turns int
}

type stored struct {
	entry keyring.Entry
	key   keyring.Key
}

func newMemory() *memory { return &memory{keys: make(map[string]*stored)} }

func place(domain, selector string) string { return domain + " " + selector }

func (m *memory) Keys(ctx context.Context, domain string) ([]keyring.Key, error) {
	entries, err := m.Entries(ctx, domain)
	if err != nil {
		return nil, err
	}
	var keys []keyring.Key
	for _, e := range entries {
		if e.State == keyring.Active {
			keys = append(keys, m.keys[place(e.Domain, e.Selector)].key)
		}
	}
	if len(keys) == 0 {
		return nil, keyring.ErrNoKey
	}
	return keys, nil
}

func (m *memory) Entries(ctx context.Context, domain string) ([]keyring.Entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	name, _ := keyring.CleanDomain(domain)
	var entries []keyring.Entry
	for _, s := range m.keys {
		if domain == "" || s.entry.Domain == name {
			entries = append(entries, s.entry)
		}
	}
	slices.SortFunc(entries, func(a, b keyring.Entry) int {
		return cmp.Or(strings.Compare(a.Domain, b.Domain), strings.Compare(a.Selector, b.Selector))
	})
	return entries, nil
}

func (m *memory) revision() string { m.turns++; return fmt.Sprint(m.turns) }

func (m *memory) describe(k keyring.Key) keyring.Entry {
	bits := 2048
	if k.Algorithm == keyring.Ed25519 {
		bits = 256
	}
	return keyring.Entry{Domain: k.Domain, Selector: k.Selector, Algorithm: k.Algorithm, Bits: bits, Record: keyring.Record(k), Revision: m.revision()}
}

// put adds a key by hand.
func (m *memory) put(k keyring.Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.describe(k)
	e.State = keyring.Active
	m.keys[place(k.Domain, k.Selector)] = &stored{e, k}
}

func (m *memory) Create(ctx context.Context, k keyring.Key, by string) (keyring.Entry, error) {
	if err := ctx.Err(); err != nil {
		return keyring.Entry{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if clean, ok := keyring.CleanDomain(k.Domain); !ok || clean != k.Domain {
		return keyring.Entry{}, errors.New("no domain")
	}
	if clean, ok := keyring.CleanDomain(k.Selector); !ok || clean != k.Selector {
		return keyring.Entry{}, errors.New("no selector")
	}
	if m.keys[place(k.Domain, k.Selector)] != nil {
		return keyring.Entry{}, keyring.ErrExists
	}
	e := m.describe(k)
	e.State, e.By = keyring.Generated, by
	e.History = []keyring.Step{{State: keyring.Generated, At: time.Now()}}
	m.keys[place(k.Domain, k.Selector)] = &stored{e, k}
	return e, nil
}

func (m *memory) Change(ctx context.Context, e keyring.Entry, to keyring.State, why string) (keyring.Entry, error) {
	if err := ctx.Err(); err != nil {
		return keyring.Entry{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.keys[place(e.Domain, e.Selector)]
	switch {
	case s == nil || s.entry.Revision != e.Revision:
		return keyring.Entry{}, keyring.ErrChanged
	case s.entry.State.Gone() && to != keyring.Removed:
		return keyring.Entry{}, errors.New("gone")
	case !slices.Contains([]keyring.State{keyring.Generated, keyring.Published, keyring.Active, keyring.Retiring, keyring.Revoked, keyring.Removed}, to):
		return keyring.Entry{}, errors.New("no state")
	}
	s.entry.State, s.entry.Revision = to, m.revision()
	s.entry.History = append(slices.Clone(s.entry.History), keyring.Step{State: to, At: time.Now(), Why: why})
	if to.Gone() {
		s.key.Signer = nil
	}
	return s.entry, nil
}

func (m *memory) Load(ctx context.Context, domain, selector string) (keyring.Key, error) {
	if err := ctx.Err(); err != nil {
		return keyring.Key{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.keys[place(domain, selector)]
	if s == nil || s.key.Signer == nil {
		return keyring.Key{}, keyring.ErrNoKey
	}
	return s.key, nil
}

func TestMemoryConforms(t *testing.T) {
	keyringtest.RunStore(t, func(*testing.T) keyringtest.StoreFixture {
		m := newMemory()
		return keyringtest.StoreFixture{
			Store: m, Within: time.Millisecond,
			Other: func() keyring.Store { return m },
			Put:   m.put,
			Gone: func(domain, selector string) bool {
				_, err := m.Load(context.Background(), domain, selector)
				return err != nil
			},
		}
	})
}

// TestRunOverFiles takes a pair into force over a directory of files, with real
// keys.
func TestRunOverFiles(t *testing.T) {
	secrets := t.TempDir()
	dir, err := keyring.NewDir(keyring.DirOptions{Path: secrets, Refresh: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.Generate(secrets, "example.com", "hand", keyring.RSA); err != nil {
		t.Fatal(err)
	}
	w := newWorld(nil)
	w.negative, w.ttl = time.Nanosecond, time.Nanosecond
	r, err := New(Options{Store: dir, Publication: w, Sent: w, Publisher: w, Policy: Policy{MaxQueueAge: 5 * day, Settle: time.Nanosecond}, By: "test"})
	if err != nil {
		t.Fatal(err)
	}
	demand := time.Now()
	for n := range 4 {
		if pass, err := r.Run(t.Context(), "example.com", demand); err != nil || pass.Err() != nil {
			t.Fatalf("pass %d: %v, %v", n, err, pass.Err())
		}
		time.Sleep(time.Millisecond)
	}
	month := time.Now().UTC().Format("200601")
	want := []string{"ed25519-" + month + " active", "hand retiring", "rsa-" + month + " active"}
	entries, err := dir.Entries(t.Context(), "example.com")
	if got := states(entries); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if keys, err := dir.Keys(t.Context(), "example.com"); err != nil || len(keys) != 2 {
		t.Errorf("got %v, %v, want both keys to sign", keys, err)
	}
	if _, err := r.Compromise(t.Context(), "example.com", "rsa-"+month, false); !errors.Is(err, ErrNoSpare) {
		t.Errorf("compromise without a spare: got %v, want %v", err, ErrNoSpare)
	}
	if _, err := r.Compromise(t.Context(), "example.com", "rsa-"+month, true); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(secrets, "dkim", "example.com", "rsa-"+month+".pem")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want the compromised key's file destroyed", err)
	}
}

// states are entries in short.
func states(entries []keyring.Entry) []string {
	var list []string
	for _, e := range entries {
		list = append(list, e.Selector+" "+string(e.State))
	}
	return list
}
