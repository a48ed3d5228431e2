package throttle

import (
	"context"
	"sync"
	"time"

	"postroad/queue"
)

// Alone keeps turns in the memory of this process, which shares them with nobody.
func Alone() Pace { return &alone{next: make(map[string]nextTurn)} }

type alone struct {
	mu   sync.Mutex
	next map[string]nextTurn
}

type nextTurn struct {
	at    time.Time
	every time.Duration // after the last one
}

func (a *alone) Reserve(_ context.Context, key string, n int, r queue.Rate, within time.Duration) (queue.Turns, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	for k, t := range a.next {
		if len(a.next) < maxPaces {
			break
		}
		if t.at.Before(now) {
			delete(a.next, k)
		}
	}
	last := a.next[key]
	first := last.at.Add(r.Every() - last.every) // by this rate
	if rested := now.Add(-time.Duration(max(1, r.Burst)-1) * r.Every()); first.Before(rested) {
		first = rested
	}
	if wait := first.Sub(now); wait > within {
		return queue.Turns{First: first, Every: r.Every(), Wait: wait}, nil
	}
	n = min(n, int(now.Add(within).Sub(first)/r.Every())+1)
	a.next[key] = nextTurn{first.Add(time.Duration(n) * r.Every()), r.Every()}
	return queue.Turns{First: first, Every: r.Every(), Count: n}, nil
}
