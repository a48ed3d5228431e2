package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go/jetstream"

	"postroad/queue/embedded"
)

func startServer(t testing.TB, dir string) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(embedded.Options{Dir: dir, MaxBytes: StoreBytes(1 << 30), Logger: slog.New(slog.DiscardHandler)})
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

func openNode(t testing.TB, s *embedded.Server, node string, change ...func(*Options)) *Queue {
	t.Helper()
	o := Options{Connect: s.Connect, Node: node, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler), leeway: time.Minute}
	for _, c := range change {
		c(&o)
	}
	q, err := Open(t.Context(), o)
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

// TestProcessesShareALimit: four processes, each with many sessions that want more than there is. How much of the limit they
// can use at best is a question of time, for TestLimitIsUsed.
func TestProcessesShareALimit(t *testing.T) {
	t.Parallel()
	s := startServer(t, t.TempDir())
	l := Limit{300, 2 * time.Second}
	type given struct {
		began, ended time.Time
		n            int
	}
	var mu sync.Mutex
	var all []given
	total := 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var nodes []*Queue
	for i := range 4 {
		nodes = append(nodes, openNode(t, s, fmt.Sprintf("mx%d", i)))
	}
	var sessions sync.WaitGroup
	defer sessions.Wait()
	defer cancel()
	for _, q := range nodes {
		for j := range 16 {
			n := 1 + j%3
			sessions.Go(func() {
				for ctx.Err() == nil {
					began := time.Now()
					spent, err := q.Spend(ctx, "class/hosts", n, l)
					if err != nil {
						if ctx.Err() == nil {
							t.Error(err)
						}
						return
					}
					if !spent.OK {
						_ = sleep(ctx, min(max(spent.RetryAfter, time.Millisecond), 20*time.Millisecond))
						continue
					}
					mu.Lock()
					all = append(all, given{began, time.Now(), n})
					total += n
					mu.Unlock()
				}
			})
		}
	}
	time.Sleep(3*l.Window + l.Window/2)
	eventually(t, fmt.Sprintf("nothing is given of what is free again, after the first %d", l.Count), func() bool {
		mu.Lock()
		defer mu.Unlock()
		return total > l.Count
	})
	cancel()
	sessions.Wait()
	slices.SortFunc(all, func(a, b given) int { return a.began.Compare(b.began) })
	for i, first := range all {
		sum := 0
		for _, g := range all[i:] {
			if g.ended.Sub(first.began) < l.Window {
				sum += g.n
			}
		}
		if sum > l.Count {
			t.Fatalf("%d in %s, want %d at most", sum, l.Window, l.Count)
		}
	}
}

func TestSpendings(t *testing.T) {
	t.Parallel()
	s := startServer(t, t.TempDir())
	q, other := openNode(t, s, "mx1"), openNode(t, s, "mx2")
	host, short := Limit{100, time.Hour}, Limit{1000, time.Second}
	for _, err := range []error{
		spendOn(t, q, "client/Web 01.example", 10, host),
		spendOn(t, other, "client/Web 01.example", 60, host),
		spendOn(t, q, "class/hosts", 5, Limit{1000, time.Hour}),
		spendOn(t, q, "class/short", 5, short),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if spent, err := q.Spend(t.Context(), "client/Web 01.example", 40, host); err != nil || spent.OK {
		t.Errorf("more than is left: got %+v, %v", spent, err)
	}
	list := func() []Spending {
		t.Helper()
		all, err := q.Spendings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	// A key that nobody uses goes away by itself, and begins anew.
	eventually(t, "the key of a short window is still there", func() bool { return len(list()) == 2 })
	want := []Spending{{Key: "client/Web 01.example", Limit: host, Used: 70}, {Key: "class/hosts", Limit: Limit{1000, time.Hour}, Used: 20}}
	if d := cmp.Diff(want, list(), cmpopts.IgnoreFields(Spending{}, "Last")); d != "" {
		t.Error(d)
	}
	if err := spendOn(t, other, "class/short", 1000, short); err != nil {
		t.Error(err)
	}
}

func spendOn(t *testing.T, q *Queue, key string, n int, l Limit) error {
	t.Helper()
	spent, err := q.Spend(t.Context(), key, n, l)
	if err == nil && !spent.OK {
		err = fmt.Errorf("%d of %s refused: %+v", n, key, spent)
	}
	return err
}

// TestSpendWithoutServer: the error comes in time for an answer to the client.
func TestSpendWithoutServer(t *testing.T) {
	t.Parallel()
	s := startServer(t, t.TempDir())
	q := openNode(t, s, "mx1", func(o *Options) { o.leeway = 0 })
	if err := q.js.DeleteKeyValue(t.Context(), limitBucket); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err := q.Spend(t.Context(), "client/web01", 1, Limit{10, time.Hour})
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want %v", err, ErrUnavailable)
	}
	if took := time.Since(began); took > spendTimeout+time.Minute {
		t.Errorf("took %s", took)
	}
}

// TestOldStoreGetsWhatIsNew: a data directory of a version that knew neither limits nor repeats.
func TestOldStoreGetsWhatIsNew(t *testing.T) {
	t.Parallel()
	s := startServer(t, t.TempDir())
	old := openNode(t, s, "old")
	for _, name := range []string{streamLimits, streamSeen} {
		if err := old.js.DeleteStream(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	opened := make(chan *Queue)
	var follower sync.WaitGroup
	defer follower.Wait()
	follower.Go(func() { opened <- openNode(t, s, "follower", func(o *Options) { o.Follow = true }) })
	select {
	case <-opened:
		t.Fatal("the follower did not wait")
	case <-time.After(300 * time.Millisecond):
	}
	openNode(t, s, "manager", func(o *Options) { o.SeenWindow = time.Minute })
	q := <-opened
	if err := spendOn(t, q, "client/web01", 3, Limit{10, time.Hour}); err != nil {
		t.Error(err)
	}
	id := NewID()
	if err := q.Remember(t.Context(), [32]byte{1}, id); err != nil {
		t.Error(err)
	}
	got, known, err := q.Seen(t.Context(), [32]byte{1})
	if err != nil || !known || got != id {
		t.Errorf("got %s, %v, %v, want %s", got, known, err, id)
	}
	info, err := old.js.Stream(t.Context(), streamSeen)
	if err != nil {
		t.Fatal(err)
	}
	c := info.CachedInfo().Config
	if c.Storage != jetstream.MemoryStorage || c.MaxAge != time.Minute || c.Discard != jetstream.DiscardOld {
		t.Errorf("stream %s: got %+v", streamSeen, c)
	}
}

// BenchmarkSpend spends from a block that is here, and with a block for each.
func BenchmarkSpend(b *testing.B) {
	q := openNode(b, startServer(b, b.TempDir()), "bench")
	l := Limit{1 << 40, time.Hour}
	b.Run("leased", func(b *testing.B) {
		for range b.N {
			if _, err := q.Spend(b.Context(), "leased", 1, l); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("asked", func(b *testing.B) {
		for i := range b.N {
			if _, err := q.Spend(b.Context(), "asked"+strconv.Itoa(i/40), l.block()+1, l); err != nil {
				b.Fatal(err)
			}
		}
	})
}
