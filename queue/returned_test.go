package queue_test

import (
	"context"
	"testing"
	"time"

	"postroad/queue"
)

// What a worker puts aside stays there; released it is marked as such; sent back it comes to a worker with the reason.
func TestHoldReleaseReturn(t *testing.T) {
	q := testQueue(t)
	signAll(t, q, "")
	seen := make(chan queue.Job, 10)
	deliver(t, q, func(d *queue.Delivery) queue.Settlement {
		seen <- d.Job
		if d.Job.Returned != "" {
			return queue.Settlement{}
		}
		return queue.Settlement{Hold: "bounces", Remaining: d.Job.Recipients, Reason: "too much"}
	})
	id := accept(t, q, "hello", "bob@example.com")
	held := func() *queue.Entry {
		t.Helper()
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			for e, err := range q.List(t.Context(), queue.Selection{ID: id}, 0) {
				if err == nil && e.Place == queue.PlaceHeld {
					return &e
				}
			}
		}
		t.Fatal("it is not held")
		return nil
	}
	first := <-seen
	if e := held(); e.Why != "bounces" || e.Job.Reason != "too much" || e.Job.Tries != 0 || !e.Job.Due.IsZero() || first.Released {
		t.Errorf("got %+v, handed out as %+v", e, first)
	}
	for _, release := range []func(context.Context, queue.Selection) (int, error){q.Release, q.Retry} {
		now := time.Now()
		if n, err := release(t.Context(), queue.Selection{ID: id}); n != 1 || err != nil {
			t.Fatalf("release: got %d, %v", n, err)
		}
		if j := <-seen; !j.Released || j.Began().Before(now) { // else it may have expired while it was held
			t.Errorf("released: got %+v, began at %v", j, j.Began())
		}
		held()
	}
	if n, err := q.Return(t.Context(), queue.Selection{HeldFor: time.Hour}, "too old"); n != 0 || err != nil {
		t.Errorf("not held for so long: got %d, %v", n, err)
	}
	time.Sleep(20 * time.Millisecond)
	if n, err := q.Return(t.Context(), queue.Selection{HeldFor: 10 * time.Millisecond}, "too old"); n != 1 || err != nil {
		t.Errorf("return: got %d, %v", n, err)
	}
	if j := <-seen; j.Returned != "too old" {
		t.Errorf("sent back: got %+v", j)
	}
	if _, err := q.Return(t.Context(), queue.Selection{}, ""); err == nil {
		t.Error("sent back without a reason")
	}
}
