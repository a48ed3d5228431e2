package tlspolicy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postroad/delivery/mx"
)

// fakeNames has one TXT record for all.
type fakeNames struct {
	mu  sync.Mutex
	id  string // empty: no record
	err error
}

func (f *fakeNames) set(id string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.id, f.err = id, err
}

func (f *fakeNames) LookupTXT(context.Context, string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.id == "" || f.err != nil {
		return nil, f.err
	}
	return []string{"v=STSv1; id=" + f.id}, nil
}

func (f *fakeNames) LookupTLSA(context.Context, string) (mx.TLSAAnswer, error) {
	return mx.TLSAAnswer{}, nil
}

func (f *fakeNames) LookupAlias(context.Context, string) (bool, error) { return false, nil }

// fakeStore is shared by workers.
type fakeStore struct {
	mu  sync.Mutex
	m   map[string][]byte
	err error
	ttl time.Duration // of the last Put
}

func (f *fakeStore) set(m map[string][]byte, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.m, f.err = m, err
}

func (f *fakeStore) Get(_ context.Context, domain string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m[domain], f.err
}

func (f *fakeStore) Put(_ context.Context, domain string, value []byte, ttl time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m == nil {
		f.m = make(map[string][]byte)
	}
	f.m[domain], f.ttl = value, ttl
	return nil
}

// site publishes a policy and counts fetches.
type site struct {
	mu      sync.Mutex
	text    string
	err     error
	fetches int
	takes   time.Duration
}

func (s *site) set(text string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text, s.err = text, err
}

func (s *site) fetch(context.Context, string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetches++
	time.Sleep(s.takes)
	return s.text, s.err
}

func policyText(mx string, maxAge time.Duration) string {
	return fmt.Sprintf("version: STSv1\nmode: enforce\nmx: %s\nmax_age: %d\n", mx, int(maxAge.Seconds()))
}

// first is the first pattern of the policy that is in force.
func first(s *shelf) string {
	policy, trouble, isUnknown := s.get(context.Background(), theDomain)
	synctest.Wait()
	switch {
	case isUnknown:
		return "unknown"
	case policy != nil:
		return policy.MX[0]
	case trouble != nil:
		return string(trouble.Result)
	}
	return "none"
}

// Row E5-70: a policy holds until its max_age is over, is fetched again for a new id and in good time, and is kept when that fails
// (RFC 8461 §5.1, §10.2).
func TestE5_70_CacheOfPolicies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		life, end := context.WithCancel(t.Context())
		defer end()
		names, web := &fakeNames{id: "1"}, &site{text: policyText("a.test", 10*24*time.Hour)}
		s := newShelf(life, names, nil, web.fetch)
		step := func(name, want string, fetches int) {
			t.Helper()
			if got := first(s); got != want || web.fetches != fetches {
				t.Errorf("%s: got %s after %d fetches, want %s after %d", name, got, web.fetches, want, fetches)
			}
		}
		step("first", "a.test", 1)
		step("again", "a.test", 1)
		time.Sleep(2 * time.Minute)
		web.set(policyText("b.test", 10*24*time.Hour), nil)
		step("changed without a new id", "a.test", 1)
		names.set("2", nil)
		step("new id", "b.test", 2)

		time.Sleep(time.Hour)
		web.set("", errors.New("connection refused"))
		names.set("3", nil)
		step("new id, fetch fails: the old one is kept", "b.test", 3)
		step("no second try at once", "b.test", 3)
		time.Sleep(retryAfter)
		step("but later", "b.test", 4)
		names.set("", nil)
		step("record gone", "b.test", 4)
		names.set("", errors.New("SERVFAIL"))
		step("name service fails", "b.test", 4)

		names.set("2", nil)
		time.Sleep(25 * time.Hour)
		step("old enough to be refreshed on the side, which fails", "b.test", 5)
		web.set(policyText("c.test", 10*24*time.Hour), nil)
		time.Sleep(retryAfter)
		step("refresh is on its way", "b.test", 6)
		step("refreshed before its end", "c.test", 6)

		names.set("", nil)
		time.Sleep(10*24*time.Hour - time.Second)
		step("a moment before its end", "c.test", 6)
		time.Sleep(2 * time.Second)
		step("expired", "none", 6)
		names.set("9", nil)
		web.set("", errors.New("connection refused"))
		step("expired, fetch fails", "sts-policy-fetch-error", 7)
		web.set("nonsense", nil)
		time.Sleep(retryAfter)
		step("unreadable", "sts-policy-invalid", 8)
		web.set(policyText("d.test", 0), nil)
		time.Sleep(retryAfter)
		step("max_age 0 is in force for nothing", "none", 9)
		step("and is not fetched for each mail", "none", 9)
		s.wg.Wait()
	})
}

// Workers share what one has fetched, and a new one does not begin from nothing.
func TestE5_70_SharedPolicies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		names, web, store := &fakeNames{id: "1"}, &site{text: policyText("a.test", 24*time.Hour)}, &fakeStore{}
		one, two := newShelf(t.Context(), names, store, web.fetch), newShelf(t.Context(), names, store, web.fetch)
		if got := first(one) + " " + first(two); got != "a.test a.test" || web.fetches != 1 {
			t.Errorf("got %s after %d fetches, want 1", got, web.fetches)
		}
		names.set("", nil) // somebody in between takes the record away
		web.set("", errors.New("connection refused"))
		if got := first(newShelf(t.Context(), names, store, web.fetch)); got != "a.test" {
			t.Errorf("after a restart: got %s", got)
		}
		names.set("2", nil)
		web.set(policyText("b.test", 24*time.Hour), nil)
		time.Sleep(2 * fetchSpacing)
		if got := first(one) + " " + first(two); got != "b.test b.test" || web.fetches != 2 {
			t.Errorf("new id: got %s after %d fetches, want 2", got, web.fetches)
		}
		if err := store.Put(t.Context(), "damaged.test", []byte("{"), 0); err != nil {
			t.Fatal(err)
		}
		names.set("", nil)
		if policy, trouble, isUnknown := one.get(t.Context(), "damaged.test"); policy != nil || trouble != nil || isUnknown {
			t.Errorf("damaged: got %v, %v", policy, trouble)
		}
	})
}

// Of a large policy only what says something is stored, and not for a year.
func TestLargePolicyIsStoredSmall(t *testing.T) {
	store := &fakeStore{}
	web := &site{text: policyText("a.test", 365*24*time.Hour) + strings.Repeat("comment: of no use\n", 2000)}
	s := newShelf(t.Context(), &fakeNames{id: "1"}, store, web.fetch)
	policy, _, _ := s.get(t.Context(), theDomain)
	s.close()
	if policy == nil || len(store.m[theDomain]) > 300 || store.ttl != maxStored {
		t.Fatalf("got %v, %d octets for %s", policy, len(store.m[theDomain]), store.ttl)
	}
	again := parseStored(store.m[theDomain])
	if !slices.Equal(again.policy.Lines(), policy.Lines()) || again.policy.MaxAge != policy.MaxAge {
		t.Errorf("stored %+v of %+v", again.policy, policy)
	}
}

// What cannot be found out is not "no policy", and is asked again.
func TestE5_70_UnknownPolicies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("down")
		names, web, store := &fakeNames{err: down}, &site{text: policyText("a.test", 24*time.Hour)}, &fakeStore{err: down}
		s := newShelf(t.Context(), names, store, web.fetch)
		step := func(name, want string) {
			t.Helper()
			if got := first(s); got != want {
				t.Errorf("%s: got %s, want %s", name, got, want)
			}
		}
		step("name service and store fail", "unknown")
		names.set("", mx.ErrNoName)
		step("no record", "none")
		names.set("", down)
		data, err := json.Marshal(storedSTS{ID: "1", Fetched: time.Now(), Text: policyText("kept.test", time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		store.set(map[string][]byte{theDomain: data}, nil)
		step("the store is back", "kept.test")
		time.Sleep(2 * time.Hour)
		step("expired", "unknown")
		names.set("2", nil)
		step("the name service is back", "a.test")
	})
}

func TestManyAskOneFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		web := &site{text: policyText("a.test", time.Hour), takes: 5 * time.Second}
		s := newShelf(t.Context(), &fakeNames{id: "1"}, nil, web.fetch)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if policy, _, _ := s.get(t.Context(), theDomain); policy == nil {
					t.Error("got no policy")
				}
			})
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if policy, trouble, isUnknown := s.get(ctx, theDomain); policy != nil || trouble != nil || !isUnknown {
			t.Errorf("impatient: got %v, %v", policy, trouble)
		}
		wg.Wait()
		if web.fetches != 1 {
			t.Errorf("got %d fetches", web.fetches)
		}
	})
}

func TestShelfIsBounded(t *testing.T) {
	s := newShelf(t.Context(), &fakeNames{}, nil, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep("good.test", held{policy: STS{MaxAge: time.Hour}, fetched: time.Now()})
	for i := range maxShelf + 100 {
		s.keep(fmt.Sprintf("d%d.test", i), held{})
	}
	if _, kept := s.held["good.test"]; len(s.held) != maxShelf || !kept {
		t.Errorf("got %d, policy kept %t", len(s.held), kept)
	}
}
