package dkim

import (
	"context"
	"iter"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postroad/queue"
)

// slowQueue takes a while to go through.
type slowQueue struct {
	mu      sync.Mutex
	takes   time.Duration
	entries []queue.Entry
	looks   int
	retried []queue.Selection
}

func (q *slowQueue) List(ctx context.Context, _ queue.Selection, _ int) iter.Seq2[queue.Entry, error] {
	return func(yield func(queue.Entry, error) bool) {
		q.mu.Lock()
		q.looks++
		q.mu.Unlock()
		select {
		case <-time.After(q.takes):
		case <-ctx.Done():
			yield(queue.Entry{}, ctx.Err())
			return
		}
		for _, e := range q.entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (q *slowQueue) Retry(_ context.Context, sel queue.Selection) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.retried = append(q.retried, sel)
	return 1, nil
}

func (q *slowQueue) Notify(context.Context, string, string) error { return nil }

func beside(t *testing.T, run func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { run(ctx) })
	return func() { cancel(); wg.Wait() }
}

// TestCountOutlivesItsCaller: a count that takes longer than somebody waits, and longer than it is good for, serves those who ask next.
func TestCountOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &slowQueue{takes: 5 * time.Minute, entries: []queue.Entry{{Job: queue.Job{Signatures: "DKIM-Signature: d=example.com; s=s1\r\n"}}}}
		c := newCounted(func(ctx context.Context) iter.Seq2[queue.Entry, error] { return q.List(ctx, queue.Selection{}, 0) })
		defer beside(t, c.run)()
		short, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if _, err := c.Queued(short, "example.com", "s1"); err == nil || time.Since(began) != time.Minute {
			t.Errorf("got %v after %v, want that it gives up after a minute", err, time.Since(began))
		}
		for range 3 {
			if n, err := c.Queued(t.Context(), "example.com", "s1"); n != 1 || err != nil {
				t.Errorf("got %d, %v, want 1", n, err)
			}
			time.Sleep(10 * time.Second)
		}
		synctest.Wait()
		if q.looks != 1 {
			t.Errorf("the queue was gone through %d times, want once", q.looks)
		}
		time.Sleep(tallyAge)
		if _, err := c.Queued(t.Context(), "example.com", "s1"); err != nil || q.looks != 2 {
			t.Errorf("got %v after %d looks, want a second one", err, q.looks)
		}
	})
}

// TestRetriesGather: domains that come into force together cost one look through the queue, and nobody waits for it.
func TestRetriesGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		waits := func(id queue.MessageID, author string) queue.Entry {
			e := queue.Entry{Place: queue.PlaceLater, Job: queue.Job{ID: id, Unsigned: true}}
			e.Job.HeaderFrom = author
			return e
		}
		q := &slowQueue{takes: time.Minute, entries: []queue.Entry{waits("1", "a.example"), waits("1", "a.example"), waits("2", "News.B.example"), waits("3", "other.example")}}
		r := newRetries(&KeeperOptions{Queue: q, OwnDomain: "relay.example", Logger: slog.New(slog.DiscardHandler)})
		defer beside(t, r.run)()
		began := time.Now()
		for _, domain := range []string{"a.example", "b.example", "c.example", "a.example"} {
			r.add(domain)
		}
		if time.Since(began) != 0 {
			t.Error("somebody waited")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		want := []queue.Selection{{ID: "1", Unsigned: true}, {ID: "2", Unsigned: true}}
		if q.looks != 1 || !slices.Equal(q.retried, want) {
			t.Errorf("got %d looks and %+v, want one and %+v", q.looks, q.retried, want)
		}
		q.retried = nil
		for range 2 * manyMails {
			q.entries = append(q.entries, waits(queue.MessageID(strconv.Itoa(len(q.entries))), "a.example"))
		}
		r.add("a.example")
		r.add("b.example")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if want := []queue.Selection{{Unsigned: true}}; q.looks != 2 || !slices.Equal(q.retried, want) {
			t.Errorf("many: got %d looks and %d retries, want one of all", q.looks, len(q.retried))
		}
		q.looks, q.retried = 1, nil
		r.add("relay.example")
		r.add("a.example")
		time.Sleep(time.Minute)
		synctest.Wait()
		if want := []queue.Selection{{Unsigned: true}}; q.looks != 1 || !slices.Equal(q.retried, want) {
			t.Errorf("our own: got %d looks and %+v, want %+v", q.looks, q.retried, want)
		}
	})
}
