package queue_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"postroad/queue"
	"postroad/queue/address"
	"postroad/queue/embedded"
)

// testQueue is a queue on an embedded server in a directory of its own.
func testServer(t *testing.T) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), MaxBytes: queue.StoreBytes(1 << 30), Logger: slog.New(slog.DiscardHandler),
		OnFatal: func(err error) { t.Errorf("store: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func testQueue(t *testing.T, change ...func(*queue.Options)) *queue.Queue {
	t.Helper()
	return openQueue(t, testServer(t), change...)
}

func openQueue(t *testing.T, s *embedded.Server, change ...func(*queue.Options)) *queue.Queue {
	t.Helper()
	o := queue.Options{Connect: s.Connect, Node: "test", MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler)}
	queue.Patient(&o)
	for _, c := range change {
		c(&o)
	}
	q, err := queue.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := q.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return q
}

func envelope(rcpts ...string) queue.Envelope {
	e := queue.Envelope{ReversePath: address.Path{Local: "sender", Domain: "example.org"}, Accepted: time.Now()}
	for _, r := range rcpts {
		local, domain, _ := strings.Cut(r, "@")
		e.Recipients = append(e.Recipients, queue.Recipient{Path: address.Path{Local: local, Domain: domain}})
	}
	return e
}

func accept(t *testing.T, q *queue.Queue, content string, rcpts ...string) queue.MessageID {
	t.Helper()
	id := q.NewID()
	if err := q.Accept(t.Context(), id, envelope(rcpts...), strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	return id
}

// run starts a part of a role and ends it with the test.
func run(t *testing.T, fn func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := fn(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func signAll(t *testing.T, q *queue.Queue, signature string) {
	t.Helper()
	run(t, func(ctx context.Context) error {
		return q.Sign(ctx, 16, func(ctx context.Context, s *queue.Signing) {
			if err := s.Signed(ctx, signature); err != nil {
				t.Error(err)
			}
		})
	})
}

// deliver runs a worker that asks decide what each job comes to and reports the content that it read.
func deliver(t *testing.T, q *queue.Queue, decide func(d *queue.Delivery) queue.Settlement) <-chan string {
	t.Helper()
	out := make(chan string, 1000)
	run(t, func(ctx context.Context) error {
		return q.Deliver(ctx, 64, func(ctx context.Context, d *queue.Delivery) {
			r, err := d.Open(ctx)
			if errors.Is(err, queue.ErrGone) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			content, err := io.ReadAll(r)
			if err != nil {
				t.Error(err)
			}
			_ = r.Close()
			if int64(len(content)) != d.Size() {
				t.Errorf("content of %d octets, Size says %d", len(content), d.Size())
			}
			s := decide(d)
			if err := d.Settle(ctx, s); err != nil {
				t.Error(err)
			}
			out <- string(content)
		})
	})
	return out
}

func finish(*queue.Delivery) queue.Settlement { return queue.Settlement{Tried: true} }

func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(time.Minute):
		t.Fatal("nothing came within a minute")
		panic("unreachable")
	}
}

// drained waits until the queue holds nothing.
func drained(t *testing.T, q *queue.Queue) {
	t.Helper()
	var last string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		c, err := q.Counts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		later := uint64(0)
		for _, n := range c.Later {
			later += n
		}
		if c.Mails+c.Incoming+c.Sign+c.Ready+c.Held+later == 0 {
			return
		}
		last = fmt.Sprintf("%+v", c)
	}
	t.Fatalf("queue is not empty: %s", last)
}

func TestRoad(t *testing.T) {
	t.Parallel()
	q := testQueue(t)
	signAll(t, q, "DKIM-Signature: x\r\n")
	got := deliver(t, q, finish)
	accept(t, q, "Subject: hi\r\n\r\nbody\r\n", "a@example.com")
	if s := receive(t, got); s != "DKIM-Signature: x\r\nSubject: hi\r\n\r\nbody\r\n" {
		t.Errorf("got %q", s)
	}
	drained(t, q)
}

// TestHold: what is to be held comes out on time, signed then; or at once when an operator says so, and its life begins there.
func TestHold(t *testing.T) {
	t.Parallel()
	q := testQueue(t)
	run(t, func(ctx context.Context) error {
		return q.Sign(ctx, 16, func(ctx context.Context, s *queue.Signing) {
			if time.Now().Before(s.HoldUntil) {
				if err := s.Hold(ctx); err != nil {
					t.Error(err)
				}
			} else if err := s.Signed(ctx, "DKIM-Signature: x\r\n"); err != nil {
				t.Error(err)
			}
		})
	})
	run(t, q.RunTimers)
	began := make(chan time.Time, 2)
	got := deliver(t, q, func(d *queue.Delivery) queue.Settlement {
		began <- d.Job.Began()
		return finish(d)
	})
	hold := func(d time.Duration) (queue.MessageID, time.Time) {
		t.Helper()
		id, e := q.NewID(), envelope("a@example.com")
		e.HoldUntil = time.Now().Add(d).Round(0)
		if err := q.Accept(t.Context(), id, e, strings.NewReader("body")); err != nil {
			t.Fatal(err)
		}
		return id, e.HoldUntil
	}
	_, soon := hold(3 * time.Second)
	long, much := hold(30 * 24 * time.Hour)
	if s := receive(t, got); s != "DKIM-Signature: x\r\nbody" || time.Now().Before(soon) {
		t.Errorf("got %q at %s, held until %s", s, time.Now(), soon)
	}
	if b := receive(t, began); !b.Equal(soon) {
		t.Errorf("life began %s, want %s", b, soon)
	}
	waitUntil(t, q, fmt.Sprintf("only one, held until %s", much), func(all []queue.Entry) bool {
		return len(all) == 1 && all[0].Place == queue.PlaceLater && all[0].Job.Due.Equal(much) && strings.Contains(all[0].Job.Reason, "held until ")
	})
	now := time.Now()
	if n, err := q.Retry(t.Context(), queue.Selection{ID: long}); err != nil || n != 1 {
		t.Fatalf("got %d, %v", n, err)
	}
	receive(t, got)
	if b := receive(t, began); b.Before(now) || b.After(time.Now()) {
		t.Errorf("life began %s, want the retry at %s", b, now)
	}
	drained(t, q)
}

func TestPartsFinishTogether(t *testing.T) {
	t.Parallel()
	q := testQueue(t)
	var rcpts []string
	for i := range 250 {
		rcpts = append(rcpts, fmt.Sprintf("u%d@example.com", i))
	}
	rcpts = append(rcpts, "x@example.net", "y@example.org")
	signAll(t, q, "")
	got := deliver(t, q, finish)
	accept(t, q, "body", rcpts...)
	for range 5 { // three parts of one domain, two others
		receive(t, got)
	}
	drained(t, q)
}

func TestLargeMessage(t *testing.T) {
	t.Parallel()
	q := testQueue(t)
	signAll(t, q, "")
	got := deliver(t, q, finish)
	b := make([]byte, 9<<20+17)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	id := q.NewID()
	if err := q.Accept(t.Context(), id, envelope("a@example.com"), iotest.OneByteReader(bytes.NewReader(b[:2<<20]))); err != nil {
		t.Fatal(err)
	}
	if s := receive(t, got); s != string(b[:2<<20]) {
		t.Error("content of 2 MiB came out changed")
	}
	if err := q.Accept(t.Context(), q.NewID(), envelope("a@example.com", "b@example.net"), bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if s := receive(t, got); s != string(b) {
			t.Error("content of 9 MiB came out changed")
		}
	}
	drained(t, q)
}

func TestUnreadablePayloadIsNotAccepted(t *testing.T) {
	t.Parallel()
	q := testQueue(t)
	cause := errors.New("client went away")
	for _, size := range []int{100, 3 << 20} {
		r := io.MultiReader(strings.NewReader(strings.Repeat("x", size)), iotest.ErrReader(cause))
		if err := q.Accept(t.Context(), q.NewID(), envelope("a@example.com"), r); !errors.Is(err, cause) {
			t.Errorf("%d octets: got %v, want the reader's error", size, err)
		}
	}
	drained(t, q)
}

func TestDeferralComesBack(t *testing.T) {
	t.Parallel()
	q := testQueue(t)
	signAll(t, q, "")
	tries := make(chan queue.Job, 10)
	deliver(t, q, func(d *queue.Delivery) queue.Settlement {
		tries <- d.Job
		if d.Job.Tries == 0 {
			return queue.Settlement{Tried: true, Remaining: d.Job.Recipients[1:], Delay: time.Second, Reason: "450 busy", Source: "out2"}
		}
		return queue.Settlement{Tried: true}
	})
	accept(t, q, "body", "a@example.com", "b@example.com")
	first := receive(t, tries)
	waitUntil(t, q, "only one, deferred for ten seconds at most", func(all []queue.Entry) bool {
		return len(all) == 1 && all[0].Place == queue.PlaceLater && all[0].Job.Reason == "450 busy" && time.Until(all[0].Job.Due) <= 10*time.Second
	})
	run(t, q.RunTimers)
	second := receive(t, tries)
	if len(first.Recipients) != 2 || len(second.Recipients) != 1 || second.Tries != 1 || second.Source != "out2" || second.Move != first.Move+2 {
		t.Errorf("got %+v then %+v", first, second)
	}
	drained(t, q)
}

func TestOperatorMoves(t *testing.T) {
	t.Parallel()
	q := testQueue(t)
	ctx := t.Context()
	signAll(t, q, "")
	id := accept(t, q, "body", "a@example.com")
	accept(t, q, "body", "b@example.net")
	waitFor(t, q, queue.PlaceReady, 2)
	if n, err := q.Hold(ctx, queue.Selection{Domain: "example.com"}, "legal"); n != 1 || err != nil {
		t.Fatalf("hold: %d, %v", n, err)
	}
	got := deliver(t, q, finish)
	receive(t, got)
	waitFor(t, q, queue.PlaceHeld, 1)
	if n, err := q.Release(ctx, queue.Selection{ID: id}); n != 1 || err != nil {
		t.Fatalf("release: %d, %v", n, err)
	}
	receive(t, got)
	drained(t, q)
}

func TestRetryAndCancel(t *testing.T) {
	t.Parallel()
	q := testQueue(t)
	ctx := t.Context()
	signAll(t, q, "")
	run(t, q.RunTimers)
	var once sync.Map
	got := deliver(t, q, func(d *queue.Delivery) queue.Settlement {
		if _, again := once.LoadOrStore(fmt.Sprint(d.Job.ID, d.Job.Part), true); again {
			return queue.Settlement{}
		}
		return queue.Settlement{Tried: true, Remaining: d.Job.Recipients, Delay: time.Hour}
	})
	id := accept(t, q, "body", "a@example.com")
	other := accept(t, q, "body", "a@example.com", "b@example.net")
	waitFor(t, q, queue.PlaceLater, 3)
	for range 3 {
		receive(t, got)
	}
	if n, err := q.Retry(ctx, queue.Selection{ID: id}); n != 1 || err != nil {
		t.Fatalf("retry: %d, %v", n, err)
	}
	receive(t, got)
	if n, err := q.Cancel(ctx, queue.Selection{ID: other}); n != 2 || err != nil {
		t.Fatalf("cancel: %d, %v", n, err)
	}
	drained(t, q)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for e, err := range q.Trace(ctx, queue.TraceFilter{ID: other}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == queue.AdminBounce {
				return
			}
		}
	}
	t.Error("the trace does not tell that it was cancelled")
}

func TestNotificationOnce(t *testing.T) {
	t.Parallel()
	q := testQueue(t)
	signAll(t, q, "")
	kinds := make(chan queue.Job, 10)
	deliver(t, q, func(d *queue.Delivery) queue.Settlement {
		kinds <- d.Job
		if d.Job.Kind == queue.KindDSN {
			return queue.Settlement{Tried: true}
		}
		n := queue.Notification{Key: "failed a@example.com", Envelope: envelope("sender@example.org"), Payload: []byte("report")}
		n.Envelope.ReversePath = address.Path{}
		return queue.Settlement{Tried: true, Notify: []queue.Notification{n, n}}
	})
	id := accept(t, q, "body", "a@example.com")
	receive(t, kinds)
	dsn := receive(t, kinds)
	if dsn.Kind != queue.KindDSN || dsn.Maker != id {
		t.Errorf("notification: %+v", dsn)
	}
	drained(t, q)
	select {
	case j := <-kinds:
		t.Errorf("came too much: %+v", j)
	default:
	}
}

func waitFor(t *testing.T, q *queue.Queue, p queue.Place, want int) {
	t.Helper()
	listed := func(all []queue.Entry) bool {
		n := 0
		for _, e := range all {
			if e.Place == p {
				n++
			}
		}
		return n == want
	}
	waitUntil(t, q, fmt.Sprintf("%d jobs in %s", want, p), listed)
}

// waitUntil waits until the list of all is as it should be.
func waitUntil(t *testing.T, q *queue.Queue, what string, is func([]queue.Entry) bool) {
	t.Helper()
	var all []queue.Entry
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(25 * time.Millisecond) {
		all = nil
		for e, err := range q.List(t.Context(), queue.Selection{}, 0) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, e)
		}
		if is(all) {
			return
		}
	}
	t.Fatalf("never saw %s, but %+v", what, all)
}
