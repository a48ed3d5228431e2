package queue

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// TestAckThatIsNeverAnswered: Settle is through although nobody confirms the acknowledgement, as for one from before a
// server's crash; repeated for ever it would hold its place in the window.
func TestAckThatIsNeverAnswered(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	j := q.storeMail(t, NewID(), "example.com")[0]
	r := q.storeJob(t, q.readySpot("example.com"), j, 1)
	var took time.Duration
	handed, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	err := q.Deliver(handed, 8, func(ctx context.Context, d *Delivery) {
		cancel()
		if err := q.js.DeleteConsumer(ctx, streamJobs, laneOfTest("example.com")); err != nil {
			t.Error(err)
		}
		begun := time.Now()
		if err := d.Settle(ctx, Settlement{Tried: true}); err != nil {
			t.Error(err)
		}
		took = time.Since(begun)
	})
	if err != nil && !errors.Is(err, context.Canceled) { // of a lane that had not begun
		t.Error(err)
	}
	if took == 0 || took > ackPatience+time.Minute {
		t.Errorf("settled after %s, want about %s", took, ackPatience)
	}
	q.want(t, r.subject()) // the mail is gone, so the job is dropped when it is handed out again
}

// TestAckOnAnotherConnection: after a power cut a store of one copy may have given the sequence of a message to another one.
// An acknowledgement from before names only the sequence, so it is not sent.
func TestAckOnAnotherConnection(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	j := q.storeMail(t, NewID(), "example.com")[0]
	r := q.storeJob(t, q.readySpot("example.com"), j, 1)
	q.SetRest(10 * time.Second) // until then nothing is handed out on the new connection, which may be acknowledged
	q.until(t, nil, func(ctx context.Context) error {
		var calls atomic.Int64
		return q.Deliver(ctx, 8, func(ctx context.Context, d *Delivery) {
			if calls.Add(1) > 1 {
				if _, err := d.Open(ctx); !errors.Is(err, ErrGone) {
					t.Errorf("got %v, want %v", err, ErrGone)
				}
				return
			}
			before := q.linkNumber()
			if err := q.nc.ForceReconnect(); err != nil {
				t.Error(err)
			}
			for q.linkNumber() == before || !q.nc.IsConnected() {
				time.Sleep(time.Millisecond)
			}
			if err := d.Settle(ctx, Settlement{Tried: true}); err != nil {
				t.Error(err)
			}
			if _, err := q.getLeader(ctx, streamJobs, r.subject()); err != nil {
				t.Errorf("job of a stale hand: %v", err)
			}
		})
	}) // handed out again, its mail is gone, so it was dropped
}

// TestSequenceOfAnotherMessage: the same seen by the process that still holds the first message. What it is handed is not
// the first one again.
func TestSequenceOfAnotherMessage(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	first := q.storeMail(t, NewID(), "example.com")[0]
	q.storeJob(t, q.readySpot("example.com"), first, 1)
	second := q.storeMail(t, NewID(), "example.com")[0]
	handed := make(chan struct{})
	var once sync.Once
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	err := q.Deliver(ctx, 8*Lanes, func(_ context.Context, d *Delivery) {
		if d.Job.ID == second.ID {
			once.Do(func() { close(handed) })
			d.settled = true
			return
		}
		if err := q.js.DeleteStream(ctx, streamJobs); err != nil {
			t.Error(err)
		}
		if err := q.ensure(ctx); err != nil {
			t.Error(err)
		}
		q.storeJob(t, q.readySpot("example.com"), second, 1)
		select {
		case <-handed:
		case <-ctx.Done():
			t.Error("the second message was never handed out")
		}
		d.settled = true
		cancel()
	})
	if err != nil && !errors.Is(err, context.Canceled) { // of a lane that had not begun
		t.Error(err)
	}
}

// TestOneConnectionBreaks: what waits for an answer on another one goes on waiting.
func TestOneConnectionBreaks(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	on, cancel := q.onLink(t.Context(), time.Minute)
	defer cancel()
	for _, nc := range []*nats.Conn{q.calls, q.lists} {
		before := nc.Stats().Reconnects
		if err := nc.ForceReconnect(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "no new connection", func() bool { return nc.IsConnected() && nc.Stats().Reconnects > before })
	}
	time.Sleep(50 * time.Millisecond) // handlers run on goroutines of their own
	if err := on.Err(); err != nil {
		t.Errorf("a request on nc ended with another connection: %v", err)
	}
	if err := q.nc.ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a request waits for an answer on a connection that broke", func() bool { return on.Err() != nil })
}

// TestLinksBreakAtTheSameTime: whichever break is the last to be noticed, requests work on the connection that follows.
func TestLinksBreakAtTheSameTime(t *testing.T) {
	t.Parallel()
	var l atomic.Pointer[link]
	newLink(&l)
	for range 300 {
		var wg sync.WaitGroup
		start := make(chan struct{})
		for range 16 {
			wg.Go(func() {
				<-start
				for range 20 {
					newLink(&l)
				}
			})
		}
		close(start)
		wg.Wait()
		ctx, cancel := within(t.Context(), &l, time.Minute)
		err := ctx.Err()
		if err == nil {
			time.Sleep(10 * time.Microsecond) // AfterFunc runs on a goroutine of its own
			err = ctx.Err()
		}
		cancel()
		if err != nil {
			t.Fatalf("a request on the new connection: %v", err)
		}
	}
}
