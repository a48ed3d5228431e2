package account

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// crowd lets visitors into a hasher and notes in which order they came in.
type crowd struct {
	t    *testing.T
	h    *hasher
	wg   sync.WaitGroup
	mu   sync.Mutex
	seen []string
}

func (c *crowd) visit(ctx context.Context, address, name string) {
	c.t.Helper()
	c.wg.Go(func() {
		err := c.h.enter(ctx, addressKey(from(address).Addr))
		c.mu.Lock()
		if err != nil {
			name += "!"
		}
		c.seen = append(c.seen, name)
		c.mu.Unlock()
		if err == nil {
			time.Sleep(time.Second) // the hash
			c.h.leave()
		}
	})
	synctest.Wait()
}

func (c *crowd) want(order string) {
	c.t.Helper()
	c.wg.Wait()
	if got := strings.Join(c.seen, " "); got != order {
		c.t.Errorf("got %q, want %q", got, order)
	}
	if c.h.waiting != 0 || len(c.h.lines) != 0 {
		c.t.Errorf("%d wait in %d lines when all are gone", c.h.waiting, len(c.h.lines))
	}
}

func newCrowd(t *testing.T, parallel, most int) *crowd {
	return &crowd{t: t, h: newHasher(parallel, most, prometheus.NewGauge(prometheus.GaugeOpts{Name: "x"}))}
}

// TestHasherTakesTurns: an address with many waits behind itself.
func TestHasherTakesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 1, 100)
		for i := range 4 {
			c.visit(t.Context(), "192.0.2.1", fmt.Sprint("a", i))
		}
		c.visit(t.Context(), "192.0.2.2", "b0")
		c.visit(t.Context(), "192.0.2.3", "c0")
		c.visit(t.Context(), "192.0.2.2", "b1")
		c.want("a0 a1 b0 c0 a2 b1 a3")
		if c.h.free != 1 {
			t.Errorf("got %d free, want 1", c.h.free)
		}
	})
}

// TestHasherIsBounded: the last one of the longest line goes.
func TestHasherIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 2, 4)
		for i := range 6 {
			c.visit(t.Context(), "192.0.2.1", fmt.Sprint("a", i))
		}
		c.visit(t.Context(), "192.0.2.1", "a6") // its own line is the longest
		c.visit(t.Context(), "192.0.2.2", "b0") // a5 goes
		c.visit(t.Context(), "192.0.2.3", "c0") // a4 goes
		c.visit(t.Context(), "192.0.2.4", "d0") // a3 goes
		c.visit(t.Context(), "192.0.2.5", "e0") // one in each line: this one has to go
		c.wg.Wait()
		slices.Sort(c.seen)
		c.want("a0 a1 a2 a3! a4! a5! a6! b0 c0 d0 e0!")
		if c.h.free != 2 {
			t.Errorf("got %d free, want 2", c.h.free)
		}
	})
}

// TestHasherLosesNoTurn: who gives up leaves, whether it was his turn or not.
func TestHasherLosesNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 1, 100)
		c.visit(t.Context(), "192.0.2.1", "a0")
		ctx, cancel := context.WithCancel(t.Context())
		c.visit(ctx, "192.0.2.1", "a1")
		c.visit(t.Context(), "192.0.2.1", "a2")
		cancel()
		synctest.Wait()
		c.want("a0 a1! a2")

		// The turn comes in the moment in which he gives up: whichever is seen
		// first, the place is free afterwards.
		for range 100 {
			c := newCrowd(t, 1, 100)
			if err := c.h.enter(t.Context(), addressKey(from("192.0.2.1").Addr)); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			c.wg.Go(func() {
				if c.h.enter(ctx, addressKey(from("192.0.2.2").Addr)) == nil {
					c.h.leave()
				}
			})
			synctest.Wait()
			go cancel()
			c.h.leave()
			c.wg.Wait()
			if c.h.free != 1 || c.h.waiting != 0 {
				t.Fatalf("got %d free and %d waiting, want 1 and none", c.h.free, c.h.waiting)
			}
		}
	})
}

// TestHasherHasPatience that ends.
func TestHasherHasPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, 1, 100)
		if err := c.h.enter(t.Context(), addressKey(from("192.0.2.1").Addr)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err := c.h.enter(t.Context(), addressKey(from("192.0.2.2").Addr))
		if took := time.Since(began); !errors.Is(err, errCrowded) || took != hashPatience {
			t.Errorf("got %v after %v, want %v after %v", err, took, errCrowded, hashPatience)
		}
		c.h.leave()
	})
}
