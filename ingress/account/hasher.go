package account

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// hashPatience bounds the wait for a hash; a client that waits longer has hung up.
const hashPatience = 20 * time.Second

// errCrowded says that too many wait for a hash.
var errCrowded = errors.New("too many passwords wait to be hashed")

// hasher lets a few hashes run at once. Those who wait stand in one line for
// each address, and the lines are served in turn: who asks for many waits
// behind himself. When all places are taken, the last one of the longest line
// has to go.
type hasher struct {
	most  int // who may wait
	gauge prometheus.Gauge

	mu      sync.Mutex
	free    int
	waiting int
	lines   []*line // not empty ones, the next to be served first
}

type line struct {
	from    netip.Prefix
	waiters []*waiter
}

type waiter struct {
	told chan error // gets one answer: nil to go on
}

func newHasher(parallel, most int, gauge prometheus.Gauge) *hasher {
	return &hasher{most: most, gauge: gauge, free: parallel}
}

// enter waits until a hash may run; leave must follow unless there is an error.
func (h *hasher) enter(ctx context.Context, from netip.Prefix) error {
	h.mu.Lock()
	if h.free > 0 {
		h.free--
		h.mu.Unlock()
		return nil
	}
	w, err := h.queue(from)
	h.mu.Unlock()
	if err != nil {
		return err
	}
	patience := time.NewTimer(hashPatience)
	defer patience.Stop()
	select {
	case err = <-w.told:
		return err
	case <-ctx.Done():
		err = fmt.Errorf("wait for a hash: %w", ctx.Err())
	case <-patience.C:
		err = errCrowded
	}
	if h.withdraw(from, w) {
		return err
	}
	if told := <-w.told; told == nil {
		h.leave() // it was our turn in this very moment
	}
	return err
}

// queue adds a waiter at the end of its line.
func (h *hasher) queue(from netip.Prefix) (*waiter, error) {
	i := slices.IndexFunc(h.lines, func(l *line) bool { return l.from == from })
	if h.waiting >= h.most {
		longest := slices.MaxFunc(h.lines, func(a, b *line) int { return len(a.waiters) - len(b.waiters) })
		if own := i >= 0 && len(h.lines[i].waiters) >= len(longest.waiters); own || len(longest.waiters) < 2 {
			return nil, errCrowded
		}
		last := len(longest.waiters) - 1
		longest.waiters[last].told <- errCrowded
		longest.waiters = longest.waiters[:last]
		h.count(-1)
	}
	if i < 0 {
		i = len(h.lines)
		h.lines = append(h.lines, &line{from: from})
	}
	w := &waiter{told: make(chan error, 1)}
	h.lines[i].waiters = append(h.lines[i].waiters, w)
	h.count(1)
	return w, nil
}

// withdraw takes a waiter out, and reports false when it was told something already.
func (h *hasher) withdraw(from netip.Prefix, w *waiter) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, l := range h.lines {
		if l.from != from {
			continue
		}
		j := slices.Index(l.waiters, w)
		if j < 0 {
			return false
		}
		if l.waiters = slices.Delete(l.waiters, j, j+1); len(l.waiters) == 0 {
			h.lines = slices.Delete(h.lines, i, i+1)
		}
		h.count(-1)
		return true
	}
	return false
}

// leave lets the first one of the next line in.
func (h *hasher) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.lines) == 0 {
		h.free++
		return
	}
	l := h.lines[0]
	h.lines = slices.Delete(h.lines, 0, 1)
	l.waiters[0].told <- nil
	if l.waiters = slices.Delete(l.waiters, 0, 1); len(l.waiters) > 0 {
		h.lines = append(h.lines, l)
	}
	h.count(-1)
}

func (h *hasher) count(n int) {
	h.waiting += n
	h.gauge.Set(float64(h.waiting))
}
