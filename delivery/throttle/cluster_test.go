package throttle_test

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postroad/delivery/throttle"
	"postroad/queue"
	"postroad/queue/embedded"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// openQueues are several processes at one store.
func openQueues(t testing.TB, n int) []*queue.Queue {
	t.Helper()
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), MaxBytes: queue.StoreBytes(1 << 30), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s.Stop) })
	var all []*queue.Queue
	for i := range n {
		q, err := queue.Open(t.Context(), queue.Options{Connect: s.Connect, Node: string(rune('a' + i)), MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stop(t, q.Close) })
		all = append(all, q)
	}
	return all
}

func stop(t testing.TB, end func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := end(ctx); err != nil {
		t.Error(err)
	}
}

// TestRateOfFourWorkers counts at the receiver: four workers, 100 a second for all of them, messages of a few milliseconds.
func TestRateOfFourWorkers(t *testing.T) {
	t.Parallel()
	rate := queue.Rate{Count: 100, Window: time.Second}
	const lasts = 4 * time.Second
	var mu sync.Mutex
	var seen []time.Time
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var first sync.Once
	var wg sync.WaitGroup
	var pacers []*throttle.Pacer
	for _, q := range openQueues(t, 4) {
		p := throttle.NewPacer(throttle.Shared(q), func() int { return 4 })
		pacers = append(pacers, p)
		for range 3 { // connections
			wg.Go(func() {
				for ctx.Err() == nil {
					if _, err := p.Turn(ctx, "site", rate); err != nil {
						continue
					}
					mu.Lock()
					seen = append(seen, time.Now())
					mu.Unlock()
					first.Do(func() { time.AfterFunc(lasts, cancel) }) // opening the queues may take long
					time.Sleep(3 * time.Millisecond)
				}
			})
		}
	}
	wg.Wait()
	for _, p := range pacers {
		p.Stop()
	}
	if len(seen) == 0 {
		t.Fatal("nobody had a turn in two minutes")
	}
	slices.SortFunc(seen, time.Time.Compare)
	const late = 4 * 3 // a turn that was taken in time may be noted late, by one on each connection
	if most := mostIn(seen, time.Second); most > rate.Count+rate.Block()+late {
		t.Errorf("%d messages within a second, want no more than %d and a block of %d", most, rate.Count, rate.Block())
	}
	took := seen[len(seen)-1].Sub(seen[0])
	t.Logf("%d messages in %s, %d at most in a second", len(seen), took, mostIn(seen, time.Second))
}

// mostIn is the largest number of moments in any window.
func mostIn(at []time.Time, window time.Duration) int {
	most, from := 0, 0
	for i := range at {
		for at[i].Sub(at[from]) >= window {
			from++
		}
		most = max(most, i-from+1)
	}
	return most
}

// worker uses connections of one path as they are leased.
type worker struct {
	slots *throttle.Slots
	mu    sync.Mutex
	use   int
	want  int
}

const path, connections = "mx.example.net", 10

func (w *worker) changed(string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tell()
}

func (w *worker) yield(string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	have, fair := w.slots.Have(path)
	w.slots.Keep(path, max(w.use, min(have, fair, w.want)))
}

func (w *worker) tell() {
	w.slots.Need(path, throttle.Need{Limit: connections, Use: w.use, Want: w.want})
}

// open tries to open a connection for a moment.
func (w *worker) open(total *atomic.Int64, most *atomic.Int64) {
	w.mu.Lock()
	have, fair := w.slots.Have(path)
	if w.slots.Life().Err() != nil || w.use >= min(have, fair) {
		w.mu.Unlock()
		time.Sleep(time.Millisecond)
		return
	}
	w.use++
	w.mu.Unlock()
	n := total.Add(1)
	for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
	}
	time.Sleep(5 * time.Millisecond)
	total.Add(-1)
	w.mu.Lock()
	w.use--
	w.tell()
	w.mu.Unlock()
}

// TestConnectionsOfFourWorkers starts them one after the other: the first has all, and must give up a part for each that comes.
func TestConnectionsOfFourWorkers(t *testing.T) {
	t.Parallel()
	qs := openQueues(t, 4)
	var total, most atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var workers []*worker
	for i, q := range qs {
		w := &worker{want: connections}
		slots, err := throttle.NewSlots(throttle.Shared(q), throttle.Users{Granted: w.changed, Yield: w.yield, Lost: func() {}})
		if err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		w.slots = slots
		w.tell()
		w.mu.Unlock()
		workers = append(workers, w)
		for range connections {
			wg.Go(func() {
				for ctx.Err() == nil {
					w.open(&total, &most)
				}
			})
		}
		end := time.Now().Add(time.Minute)
		for ; time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if have, _ := slots.Have(path); have >= connections/(i+1)-1 && have > 0 && most.Load() >= connections-1 {
				break
			}
		}
		if have, _ := slots.Have(path); have == 0 {
			t.Fatalf("worker %d of 4 got no connection in a minute", i+1)
		}
	}
	cancel()
	wg.Wait()
	sum := 0
	for _, w := range workers {
		have, _ := w.slots.Have(path)
		sum += have
	}
	for _, w := range workers {
		w.slots.Stop(context.Background())
	}
	if got := most.Load(); got > connections || got < connections-1 || sum > connections {
		t.Errorf("%d connections at a time, %d leased in the end, want %d", got, sum, connections)
	}
}
