package smarthost

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"postroad/queue"
)

// shelf holds the secrets of one kind.
type shelf[T any] struct {
	keeper   *Keeper
	prefix   string // of names, for people
	refresh  time.Duration
	maxStale time.Duration
	log      *slog.Logger
	read     func(ctx context.Context, name string) (value T, revision string, err error)

	mu    sync.Mutex
	items map[string]*item[T]
}

// item is what is known of one secret, guarded by shelf.mu.
type item[T any] struct {
	looking  chan struct{} // closed when the look ends that is under way; nil: none is
	has      bool          // value is in force
	value    T
	revision string
	good     time.Time // when value was last seen to be what is there
	looked   time.Time // zero: never
	err      error     // of the last look
	since    time.Time // when the looks began to fail
	used     time.Time
}

func newShelf[T any](k *Keeper, o Options, prefix string, read func(context.Context, string) (T, string, error)) *shelf[T] {
	return &shelf[T]{keeper: k, prefix: prefix, refresh: o.Refresh, maxStale: o.MaxStale, log: o.Logger, read: read, items: make(map[string]*item[T])}
}

// item finds or makes what is known of a name. s.mu is held.
func (s *shelf[T]) item(name string, now time.Time) *item[T] {
	i := s.items[name]
	if i == nil {
		if len(s.items) >= maxNames {
			s.makeRoom()
		}
		i = &item[T]{}
		s.items[name] = i
	}
	i.used = now
	return i
}

// makeRoom drops the item that was used least lately. s.mu is held.
func (s *shelf[T]) makeRoom() {
	oldest := ""
	for name, i := range s.items {
		if oldest == "" || i.used.Before(s.items[oldest].used) {
			oldest = name
		}
	}
	delete(s.items, oldest)
}

// answer is what the last look came to. s.mu is held.
func (s *shelf[T]) answer(name string, i *item[T], now time.Time) (T, error) {
	if i.has && now.Sub(i.good) <= s.maxStale {
		return i.value, nil
	}
	var none T
	return none, fmt.Errorf("%s%s: %w", s.prefix, name, i.err)
}

// get gives what is in force. It looks anew when the last look is too old, on the side as long as that is soon enough.
func (s *shelf[T]) get(ctx context.Context, name string) (T, error) {
	now := time.Now()
	s.mu.Lock()
	i := s.item(name, now)
	age := now.Sub(i.looked)
	isFresh := !i.looked.IsZero() && age < s.refresh
	if i.err != nil && !i.has {
		isFresh = !i.looked.IsZero() && age < min(afterAway, s.refresh)
	}
	isSoon := i.has && i.err == nil && age < 2*s.refresh
	if isFresh || isSoon {
		defer s.mu.Unlock()
		if !isFresh {
			s.begin(name, i)
		}
		return s.answer(name, i, now)
	}
	s.mu.Unlock()
	return s.look(ctx, name, i, now)
}

// getNew looks now, unless somebody has done so within a second.
func (s *shelf[T]) getNew(ctx context.Context, name string) (T, error) {
	now := time.Now()
	s.mu.Lock()
	i := s.item(name, now)
	s.mu.Unlock()
	return s.look(ctx, name, i, now.Add(-time.Second))
}

// age makes what is known of a name too old.
func (s *shelf[T]) age(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.items[name]; i != nil {
		i.looked = time.Time{}
	}
}

// look waits for a look that began at a time or later, and gives what it came to.
func (s *shelf[T]) look(ctx context.Context, name string, i *item[T], since time.Time) (T, error) {
	for {
		s.mu.Lock()
		if !i.looked.Before(since) {
			defer s.mu.Unlock()
			return s.answer(name, i, time.Now())
		}
		s.begin(name, i)
		looking := i.looking
		s.mu.Unlock()
		select {
		case <-looking:
		case <-ctx.Done():
			var none T
			return none, fmt.Errorf("%s%s: %w: %w", s.prefix, name, ErrAway, ctx.Err())
		}
	}
}

// begin begins a look, unless one is under way. s.mu is held.
func (s *shelf[T]) begin(name string, i *item[T]) {
	if i.looking != nil {
		return
	}
	done := make(chan struct{})
	i.looking = done
	limit := lookTimeout
	if i.has {
		limit = hurryTimeout
	}
	s.keeper.wg.Go(func() {
		ctx, cancel := context.WithTimeout(s.keeper.ctx, limit)
		defer cancel()
		began := time.Now()
		value, revision, err := s.read(ctx, name)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.note(name, i, began, value, revision, err)
		i.looking = nil
		close(done)
	})
}

// note takes what a look came to. s.mu is held.
func (s *shelf[T]) note(name string, i *item[T], began time.Time, value T, revision string, err error) {
	before := i.err
	i.looked, i.err = began, err
	switch {
	case err == nil:
		if !i.has || i.revision != revision {
			s.log.Info("secret for next hops in force", "secret", s.prefix+name, "revision", revision)
		} else if before != nil {
			s.log.Info("secret for next hops can be read again", "secret", s.prefix+name)
		}
		i.has, i.value, i.revision, i.good = true, value, revision, began
		return
	case errors.Is(err, ErrMissing):
		var none T
		i.has, i.value, i.revision = false, none, ""
	}
	if before == nil {
		i.since = began
	}
	if s.keeper.ctx.Err() == nil && (before == nil || before.Error() != err.Error()) {
		s.log.Error("secret for next hops cannot be had", "secret", s.prefix+name, "old_one_in_force", i.has, "error", err)
	}
}

// conditions are what is wrong with the secrets that somebody has asked for of late.
func (s *shelf[T]) conditions() []queue.Condition {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []queue.Condition
	for _, name := range slices.Sorted(maps.Keys(s.items)) {
		i := s.items[name]
		unused := time.Since(i.used)
		if unused > unusedFor {
			delete(s.items, name)
		}
		if i.err == nil || unused > toldFor {
			continue
		}
		c := queue.Condition{Part: "smart hosts", Since: i.since, Do: "put the secret in its place, or right; mail goes by itself then"}
		what := "mail that needs it waits"
		if i.has {
			what = "the one before stays in force"
		}
		if errors.Is(i.err, ErrAway) {
			c.Do = "bring back what it is read from, or let this role (delivery) read it"
		}
		c.Text = fmt.Sprintf("the secret %s%s: %s: %v", s.prefix, name, what, i.err)
		list = append(list, c)
	}
	return list
}

// inForce are the values by name.
func (s *shelf[T]) inForce() map[string]T {
	s.mu.Lock()
	defer s.mu.Unlock()
	values := make(map[string]T, len(s.items))
	for name, i := range s.items {
		if i.has {
			values[name] = i.value
		}
	}
	return values
}
