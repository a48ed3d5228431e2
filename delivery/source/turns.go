package source

import (
	"sync"
	"time"
)

// turns spread the jobs that are left to other processes, so that many of them, when there is no such process, do not keep the queue busy with
// their coming and going.
type turns struct {
	mu   sync.Mutex
	last map[time.Duration]time.Time // the one given last, by the wait that it was to be
}

const (
	turnEvery = 20 * time.Millisecond
	maxTurn   = 10 * time.Minute
)

// next is when a job may come back that would in wait. Waits that depend on other things are as they are.
func (t *turns) next(wait time.Duration, now time.Time) time.Duration {
	if wait != soon && wait != later && wait != late {
		return wait
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = make(map[time.Duration]time.Time)
	}
	turn := now.Add(wait)
	if next := t.last[wait].Add(turnEvery); next.After(turn) {
		turn = next
	}
	if turn.Sub(now) > maxTurn {
		return maxTurn
	}
	t.last[wait] = turn
	return whole(turn.Sub(now))
}

// whole makes of a wait one that the queue has few moves for.
func whole(d time.Duration) time.Duration {
	switch {
	case d >= late:
		return d.Truncate(late)
	case d >= later:
		return d.Truncate(later)
	}
	return d.Truncate(soon)
}
