package account_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postroad/ingress/account"
	"postroad/ingress/account/accounttest"
)

// cupboard is Records in memory.
type cupboard struct {
	mu     sync.Mutex
	cut    bool
	slow   time.Duration
	shelf  map[string]record
	next   int
	reads  int
	listed int
}

type record struct {
	fields   map[string]any
	revision string
}

func newCupboard() *cupboard { return &cupboard{shelf: make(map[string]record)} }

// reach waits as long as it takes to get an answer, or says that there is none.
func (c *cupboard) reach(ctx context.Context) error {
	c.mu.Lock()
	slow, cut := c.slow, c.cut
	c.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("reach the cupboard: %w: %w", account.ErrUnavailable, err)
	}
	if cut {
		return fmt.Errorf("reach the cupboard: %w", account.ErrUnavailable)
	}
	return nil
}

func (c *cupboard) Names(ctx context.Context) ([]string, error) {
	if err := c.reach(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listed++
	return slices.Collect(maps.Keys(c.shelf)), nil
}

func (c *cupboard) Read(ctx context.Context, name string) (map[string]any, string, error) {
	if err := c.reach(ctx); err != nil {
		return nil, "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reads++
	r, ok := c.shelf[name]
	if !ok {
		return nil, "", account.ErrUnknown
	}
	return r.fields, r.revision, nil
}

func (c *cupboard) Write(ctx context.Context, name string, fields map[string]any, revision string) error {
	if err := c.reach(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shelf[name].revision != revision {
		return account.ErrChanged
	}
	c.next++
	c.shelf[name] = record{fields, strconv.Itoa(c.next)}
	return nil
}

func (c *cupboard) Remove(ctx context.Context, name string) error {
	if err := c.reach(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.shelf[name]; !ok {
		return account.ErrUnknown
	}
	delete(c.shelf, name)
	return nil
}

func (c *cupboard) spoil(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	c.shelf[name] = record{map[string]any{"version": "x"}, strconv.Itoa(c.next)}
}

func (c *cupboard) set(cut bool, slow time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut, c.slow = cut, slow
}

func newRemote(t *testing.T, c *cupboard, refresh time.Duration) *account.Remote {
	t.Helper()
	r, err := account.NewRemote(account.RemoteOptions{Records: c, Refresh: refresh})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRemoteConforms(t *testing.T) {
	accounttest.Run(t, func(t *testing.T) accounttest.Fixture {
		c := newCupboard()
		const refresh = 20 * time.Millisecond
		return accounttest.Fixture{Store: newRemote(t, c, refresh), Within: refresh, Spoil: c.spoil,
			Cut: func() { c.set(true, 0) }, Restore: func() { c.set(false, 0) }}
	})
}

// TestRemoteIsSpared: what guesses names and passwords does not reach what is behind.
func TestRemoteIsSpared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCupboard()
		r := newRemote(t, c, 0)
		if err := r.Put(t.Context(), accounttest.NewClient(t, "web1", "secret")); err != nil {
			t.Fatal(err)
		}
		for i := range 10_000 {
			if _, err := r.Latest(t.Context(), "web1"); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Latest(t.Context(), "guess"+strconv.Itoa(i)); !errors.Is(err, account.ErrUnknown) {
				t.Fatalf("got %v, want %v", err, account.ErrUnknown)
			}
			time.Sleep(time.Millisecond)
		}
		if c.reads > 12 || c.listed > 12 {
			t.Errorf("10 s of guesses took %d reads and %d lists, want one a second", c.reads, c.listed)
		}
	})
}

// TestRemoteThatIsSlow: who has logged in before does not wait for it.
func TestRemoteThatIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCupboard()
		r := newRemote(t, c, 0)
		if err := r.Put(t.Context(), accounttest.NewClient(t, "web1", "secret")); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Client(t.Context(), "web1"); err != nil {
			t.Fatal(err)
		}
		c.set(false, time.Hour)
		for range 10 {
			time.Sleep(time.Minute)
			began := time.Now()
			if _, err := r.Client(t.Context(), "web1"); err != nil || time.Since(began) > time.Second {
				t.Errorf("got %v after %s, want the old record within a second", err, time.Since(began))
			}
			if _, err := r.Client(t.Context(), "web2"); !errors.Is(err, account.ErrUnavailable) || time.Since(began) > 7*time.Second {
				t.Errorf("got %v after %s, want %v", err, time.Since(began), account.ErrUnavailable)
			}
		}
		time.Sleep(24 * time.Hour)
		if _, err := r.Client(t.Context(), "web1"); !errors.Is(err, account.ErrUnavailable) {
			t.Errorf("got %v after a day, want %v", err, account.ErrUnavailable)
		}
	})
}

// TestRemoteAfterAChange: who was told that somebody else was faster sees the record of the other at once. What is stored is not what stays in
// force when nothing can be read.
func TestRemoteAfterAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCupboard()
		r, elsewhere := newRemote(t, c, 0), newRemote(t, c, 0)
		if err := r.Put(t.Context(), accounttest.NewClient(t, "web1", "secret")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		old, err := r.Latest(t.Context(), "web1")
		if err != nil {
			t.Fatal(err)
		}
		theirs := old.Clone()
		theirs.Class = "theirs"
		if err := elsewhere.Put(t.Context(), theirs); err != nil {
			t.Fatal(err)
		}
		if err := r.Put(t.Context(), old.Clone()); !errors.Is(err, account.ErrChanged) {
			t.Fatalf("got %v, want %v", err, account.ErrChanged)
		}
		if got, err := r.Latest(t.Context(), "web1"); err != nil || got.Class != "theirs" {
			t.Errorf("got %+v, %v, want what somebody else has written", got, err)
		}
		if got, err := r.Stored(t.Context(), "web1"); err != nil || got.Class != "theirs" {
			t.Errorf("got %+v, %v", got, err)
		}
		if _, err := r.Stored(t.Context(), "web2"); !errors.Is(err, account.ErrUnknown) {
			t.Errorf("got %v, want %v", err, account.ErrUnknown)
		}
		c.set(true, 0)
		time.Sleep(time.Minute)
		if _, err := r.Latest(t.Context(), "web1"); err != nil {
			t.Errorf("got %v, want the old record", err)
		}
		if _, err := r.Stored(t.Context(), "web1"); !errors.Is(err, account.ErrUnavailable) {
			t.Errorf("got %v, want %v", err, account.ErrUnavailable)
		}
	})
}

// TestRemoteLatestWaits: many who come at once with a new password all wait for the look that shows it.
func TestRemoteLatestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCupboard()
		r, elsewhere := newRemote(t, c, 0), newRemote(t, c, 0)
		if err := elsewhere.Put(t.Context(), accounttest.NewClient(t, "web1", "secret")); err != nil {
			t.Fatal(err)
		}
		old, err := r.Client(t.Context(), "web1")
		if err != nil {
			t.Fatal(err)
		}
		changed := old.Clone()
		if _, err := changed.SetPassword("another horse", account.ChosenSCRAM, time.Now(), time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := elsewhere.Put(t.Context(), changed); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		c.set(false, 100*time.Millisecond)
		reads := c.reads
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if got, err := r.Latest(t.Context(), "web1"); err != nil || len(got.Passwords) != 2 {
					t.Errorf("got %d passwords, %v, want the old one and the new one", len(got.Passwords), err)
				}
			})
		}
		wg.Wait()
		if n := c.reads - reads; n != 1 {
			t.Errorf("got %d reads, want 1 for all", n)
		}
	})
}
