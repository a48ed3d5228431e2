package bouncelimit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"postroad/queue"
	"postroad/queue/address"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeStore adds up and forgets nothing, but what a test takes away.
type fakeStore struct {
	mu     sync.Mutex
	totals map[string]queue.Bounced
	broken error
	calls  int
}

func (s *fakeStore) CountBounced(_ context.Context, sender string, add queue.Bounced, _ time.Duration) (queue.Bounced, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls++; s.broken != nil {
		return queue.Bounced{}, s.broken
	}
	if s.totals == nil {
		s.totals = make(map[string]queue.Bounced)
	}
	t := s.totals[sender]
	t.Ended, t.Refused = t.Ended+add.Ended, t.Refused+add.Refused
	s.totals[sender] = t
	return t, nil
}

func (s *fakeStore) forget(sender string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.totals, sender)
}

func (s *fakeStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = err
}

func (s *fakeStore) called() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

func testWatch(t *testing.T, o Options) *Watch {
	t.Helper()
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	w.Start()
	t.Cleanup(func() {
		if err := w.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func job(client string) *queue.Job {
	return &queue.Job{Client: client, ReversePath: address.Path{Local: "a", Domain: client + ".example"}}
}

func TestLimits(t *testing.T) {
	tests := []struct {
		name           string
		change         func(*Options)
		ended, refused int
		isOver, isHeld bool
	}{
		{"share, too few", nil, 99, 99, false, false},
		{"share, below", nil, 100, 19, false, false},
		{"share", nil, 100, 20, true, true},
		{"share, no such limit", func(o *Options) { o.Share = 0 }, 1000, 1000, false, false},
		{"count, below", func(o *Options) { o.Count = 50 }, 1000, 49, false, false},
		{"count", func(o *Options) { o.Count = 50 }, 1000, 50, true, true},
		{"warn", func(o *Options) { o.Policy = Warn }, 100, 20, true, false},
		{"off", func(o *Options) { o.Policy = Off }, 100, 100, false, false},
		{"exempt", func(o *Options) { o.Exempt = []string{"web"} }, 100, 100, false, false},
		{"by domain", func(o *Options) { o.By = ByDomain }, 100, 100, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := Options{Store: &fakeStore{}, Policy: Hold, Share: 20}
				if tt.change != nil {
					tt.change(&o)
				}
				w := testWatch(t, o)
				w.Ended(job("web"), tt.ended-1, tt.refused)
				w.Ended(job("web"), 1, 0)
				w.Ended(job("mail"), 1000, 0)
				time.Sleep(flushEvery + time.Second)
				if got := len(w.Conditions()) > 0; got != tt.isOver {
					t.Errorf("above the limit: got %v, want %v", got, tt.isOver)
				}
				if got := w.HoldFor(job("web")) != ""; got != tt.isHeld {
					t.Errorf("held: got %v, want %v", got, tt.isHeld)
				}
				released := job("web")
				released.Released = true
				if w.HoldFor(job("mail")) != "" || w.HoldFor(released) != "" {
					t.Error("somebody else's mail is held, or what an operator let go")
				}
			})
		})
	}
}

// The counts of all workers count, and a sender whose mail no longer comes is looked at again.
func TestCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{}
		one, two := testWatch(t, Options{Store: store, Policy: Hold, Count: 10}), testWatch(t, Options{Store: store, Policy: Hold, Count: 10})
		one.Ended(job("web"), 9, 9)
		time.Sleep(flushEvery + time.Second)
		two.Ended(job("web"), 1, 1)
		time.Sleep(flushEvery)
		if one.HoldFor(job("web")) != "" || two.HoldFor(job("web")) == "" {
			t.Errorf("got %q, %q: the second has seen the tenth", one.HoldFor(job("web")), two.HoldFor(job("web")))
		}
		since := two.Conditions()[0].Since
		store.fail(errors.New("no answer"))
		time.Sleep(flushEvery)
		if c := two.Conditions(); len(c) != 1 || c[0].Since != since {
			t.Errorf("a queue that does not answer: got %v", c)
		}
		store.fail(nil)
		store.forget("web")
		time.Sleep(flushEvery)
		if two.HoldFor(job("web")) != "" || two.Conditions() != nil {
			t.Error("its time is over, and it is still held")
		}
		calls := store.called()
		time.Sleep(10 * flushEvery)
		if got := store.called(); got != calls {
			t.Errorf("nothing ended: got %d calls", got-calls)
		}
	})
}

func TestBounds(t *testing.T) {
	w, err := New(Options{Store: &fakeStore{}, Share: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxSenders + 100 {
		w.Ended(job(fmt.Sprint("c", i)), 1, 1)
	}
	if len(w.counts) != maxSenders {
		t.Errorf("got %d senders, want %d", len(w.counts), maxSenders)
	}
	for _, o := range []Options{{}, {Store: &fakeStore{}, Policy: "shout"}, {Store: &fakeStore{}, Share: 101}, {Store: &fakeStore{}, Window: time.Second}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
