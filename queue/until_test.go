package queue

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"
)

// loseOne takes one message of a consumer and never answers: as a process that was killed with it in hand.
func (q *Queue) loseOne(t *testing.T, stream, consumer string) {
	t.Helper()
	c, err := q.js.Consumer(t.Context(), stream, consumer)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Fetch(1)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for range b.Messages() {
		n++
	}
	if n != 1 {
		t.Fatalf("consumer %s handed out %d messages, want 1", consumer, n)
	}
}

// until runs fn until just these subjects lie in the streams, two minutes at most, and waits for its end.
func (q *Queue) until(t *testing.T, want []string, fn func(context.Context) error) {
	t.Helper()
	slices.Sort(want)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		defer cancel()
		if err := fn(ctx); err != nil && !errors.Is(err, context.Canceled) { // of a lane that had not begun
			t.Error(err)
		}
	})
	for ctx.Err() == nil && !slices.Equal(slices.Sorted(maps.Keys(q.contents(t))), want) {
		_ = sleep(ctx, 50*time.Millisecond)
	}
	cancel()
	running.Wait()
	q.want(t, want...)
}

// nobodyElse is a time after which a test's jobs are not handed out a second time because it stood still for a moment.
func nobodyElse(o *Options) { o.AckWait = time.Minute }
