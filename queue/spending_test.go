package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// memoryStore keeps spendings for spenders in one process.
type memoryStore struct {
	m     map[string]*memoryEntry
	calls int
	// before and after are called around a write and say what goes wrong with it.
	before, after func() error
}

type memoryEntry struct {
	data     []byte
	revision uint64
}

func newMemoryStore() *memoryStore {
	none := func() error { return nil }
	return &memoryStore{m: make(map[string]*memoryEntry), before: none, after: none}
}

func (m *memoryStore) read(_ context.Context, key string, _ bool) (spending, uint64, error) {
	m.calls++
	e := m.m[key]
	if e == nil {
		return spending{}, 0, nil
	}
	s, err := decodeSpending(e.data)
	return s, e.revision, err
}

func (m *memoryStore) write(_ context.Context, key string, s *spending, revision uint64, _ time.Duration) error {
	m.calls++
	if err := m.before(); err != nil {
		return err
	}
	e := m.m[key]
	if e == nil {
		e = &memoryEntry{}
		m.m[key] = e
	}
	if e.revision != revision {
		return errConflict
	}
	data, err := encodeSpending(s)
	if err != nil {
		return err
	}
	e.data, e.revision = data, revision+1
	return m.after()
}

// grant is what Spend gave at a true time.
type grant struct {
	at int64 // milliseconds
	n  int
}

// most is the largest sum of grants in any time of that length.
func most(grants []grant, window time.Duration) int {
	sum, high, first := 0, 0, 0
	for _, g := range grants { // in order of time
		sum += g.n
		for grants[first].at <= g.at-window.Milliseconds() {
			sum -= grants[first].n
			first++
		}
		high = max(high, sum)
	}
	return high
}

// world is some processes whose clocks differ, and a store on which others are quicker, answers come late or are lost.
type world struct {
	t      *rapid.T
	now    time.Time
	skew   time.Duration // between any two clocks
	store  *memoryStore
	nodes  []*spender
	clocks []time.Duration // ahead of now
	limits []Limit
	grants []grant
	fits   time.Duration // what the last refusal said
	last   *spender      // that was asked
	busy   *spender      // writes; another one may be quicker
}

func newWorld(t *rapid.T, limits ...Limit) *world {
	w := &world{t: t, now: time.UnixMilli(1_790_000_000_000), store: newMemoryStore(), limits: limits, skew: time.Hour}
	for _, l := range limits {
		w.skew = min(w.skew, l.skew())
	}
	w.clocks = make([]time.Duration, rapid.IntRange(1, 4).Draw(t, "nodes"))
	for i := range w.clocks {
		s := newSpender(w.store)
		s.time = func() time.Time { return w.now.Add(w.clocks[i]) }
		s.pause = func(_ context.Context, d time.Duration) error { w.now = w.now.Add(d); return nil }
		w.nodes = append(w.nodes, s)
	}
	w.store.before = func() error {
		w.wait("before")
		switch rapid.IntRange(0, 9).Draw(t, "before") {
		case 0:
			return errors.New("lost on its way")
		case 1:
			if w.busy == nil && len(w.nodes) > 1 {
				w.busy = w.last
				w.spend()
				w.last, w.busy = w.busy, nil
			}
		}
		return nil
	}
	w.store.after = func() error {
		w.wait("after")
		if rapid.IntRange(0, 9).Draw(t, "after") == 0 {
			return errors.New("the answer is lost")
		}
		return nil
	}
	return w
}

// wait lets time pass, mostly little, or as much as the last refusal said.
func (w *world) wait(what string) {
	half := int64(w.skew / 2)
	for i := range w.clocks {
		w.clocks[i] = time.Duration(rapid.Int64Range(-half, half).Draw(w.t, "clock"))
	}
	l := w.limits[0]
	longest := []time.Duration{0, 0, l.Window / 1000, l.Window / windowSlices, l.Window / 5, 2 * l.Window}
	choice := rapid.IntRange(0, len(longest)).Draw(w.t, what)
	if choice == len(longest) {
		w.now = w.now.Add(w.fits)
		return
	}
	w.now = w.now.Add(time.Duration(rapid.Int64Range(0, int64(longest[choice])).Draw(w.t, "pause")))
}

func (w *world) spend() {
	others := slices.DeleteFunc(slices.Clone(w.nodes), func(s *spender) bool { return s == w.busy })
	node := rapid.SampledFrom(others).Draw(w.t, "node")
	w.last = node
	l := rapid.SampledFrom(w.limits).Draw(w.t, "limit")
	n := rapid.SampledFrom([]int{1, l.block(), max(1, l.Count/2), max(1, l.Count)}).Draw(w.t, "n")
	for range rapid.IntRange(1, 5).Draw(w.t, "times") {
		spent, err := node.spend(context.Background(), "key", n, l)
		switch {
		case err != nil:
			return
		case !spent.OK:
			w.fits = spent.RetryAfter
			return
		case rapid.IntRange(0, 9).Draw(w.t, "refund") == 0:
			node.refund("key", spent)
		default:
			w.grants = append(w.grants, grant{w.now.UnixMilli(), n})
		}
	}
}

// checkOften checks a property more often than rapid does: the tight cases are rare.
func checkOften(t *testing.T, property func(*rapid.T)) {
	for range 20 {
		rapid.Check(t, property)
	}
}

// TestNoWindowHoldsMoreThanTheLimit: whatever the processes do, with clocks that differ as much as they may.
func TestNoWindowHoldsMoreThanTheLimit(t *testing.T) {
	checkOften(t, func(t *rapid.T) {
		l := Limit{rapid.IntRange(1, 300).Draw(t, "count"), time.Duration(rapid.IntRange(1, 7200).Draw(t, "window")) * time.Second}
		w := newWorld(t, l)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			w.wait("step")
			w.spend()
		}
		if got := most(w.grants, l.Window); got > l.Count {
			t.Fatalf("%d in %s, want %d at most: %v", got, l.Window, l.Count, w.grants)
		}
	})
}

// TestLimitIsUsed: sessions on several processes that always want more get nearly all of the limit, window after window.
func TestLimitIsUsed(t *testing.T) {
	const processes, windows = 4, 10
	for _, l := range []Limit{{300, 2 * time.Second}, {360, time.Hour}, {100, 6 * time.Hour}, {100_000, time.Minute}} {
		now := time.UnixMilli(1_790_000_000_000)
		start, store := now, newMemoryStore()
		var nodes []*spender
		for range processes {
			s := newSpender(store)
			s.time = func() time.Time { return now }
			s.pause = func(_ context.Context, d time.Duration) error { now = now.Add(d); return nil }
			nodes = append(nodes, s)
		}
		var grants []grant
		for end := start.Add(windows * l.Window); now.Before(end); now = now.Add(l.Window / 500) {
			for i, refused := 0, 0; refused < len(nodes); i++ { // in turn, until all are refused
				spent, err := nodes[i%processes].spend(t.Context(), "key", 1+i%3, l)
				switch {
				case err != nil:
					t.Fatal(err)
				case spent.OK:
					grants, refused = append(grants, grant{now.UnixMilli(), 1 + i%3}), 0
				default:
					refused++
				}
			}
		}
		total := 0
		for _, g := range grants {
			total += g.n
		}
		if got := most(grants, l.Window); got > l.Count {
			t.Errorf("%+v: %d in a window", l, got)
		}
		if want := windows * l.Count * 9 / 10; total < want {
			t.Errorf("%+v: %d were given in %d windows, want %d at least", l, total, windows, want)
		}
		t.Logf("%+v: %d of %d", l, total, windows*l.Count)
	}
}

// TestLimitsThatDiffer: while processes do not agree on the limit, because one has read the new configuration and another
// has not, the weakest of their limits holds.
func TestLimitsThatDiffer(t *testing.T) {
	checkOften(t, func(t *rapid.T) {
		var limits []Limit
		weakest := Limit{0, time.Hour}
		for range 3 {
			l := Limit{rapid.IntRange(1, 300).Draw(t, "count"), time.Duration(rapid.IntRange(1, 600).Draw(t, "window")) * time.Second}
			limits = append(limits, l)
			weakest = Limit{max(weakest.Count, l.Count), min(weakest.Window, l.Window)}
		}
		w := newWorld(t, limits...)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			w.wait("step")
			w.spend()
		}
		if got := most(w.grants, weakest.Window); got > weakest.Count {
			t.Fatalf("%d in %s, want %d at most: %v", got, weakest.Window, weakest.Count, w.grants)
		}
	})
}

func TestSpendingKeepsFewShares(t *testing.T) {
	var s spending
	l := Limit{1 << 30, time.Hour}
	total := 0
	for i := range int64(3 * maxShares) {
		s.add(share{End: i * l.slice(), N: 1})
		total++
	}
	sum := 0
	for _, sh := range s.Shares {
		sum += sh.N
	}
	if len(s.Shares) > maxShares || sum != total {
		t.Errorf("%d shares of %d together, want %d at most of %d", len(s.Shares), sum, maxShares, total)
	}
}

func TestSpendingStoredForm(t *testing.T) {
	s := spending{Count: 360, Window: 3_600_000, At: 1_790_000_000_123, Shares: []share{{1_790_000_040_000, 7}, {1_790_000_100_000, 14}}}
	b, err := encodeSpending(&s)
	if err != nil {
		t.Fatal(err)
	}
	const want = `PRL1{"count":360,"window":3600000,"at":1790000000123,"shares":[{"e":1790000040000,"n":7},{"e":1790000100000,"n":14}]}`
	if string(b) != want {
		t.Errorf("got %s, want %s", b, want)
	}
	got, err := decodeSpending(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(s, got); d != "" {
		t.Error(d)
	}
	for text, want := range map[string]error{"PRL2{}": ErrNewerFormat, "PRL1{": ErrCorrupt, "x": ErrCorrupt, "": nil} {
		if _, err := decodeSpending([]byte(text)); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", text, err, want)
		}
	}
}

// watch is a clock that a test sets.
type watch struct{ t time.Time }

func (w *watch) now() time.Time { return w.t }

func testSpender(store limitStore) (*spender, *watch) {
	s, w := newSpender(store), &watch{time.UnixMilli(1_790_000_000_000)} // the begin of a slice of a minute
	s.time = w.now
	return s, w
}

func spend(t *testing.T, s *spender, n int, l Limit) Spent {
	t.Helper()
	spent, err := s.spend(t.Context(), "client/web01", n, l)
	if err != nil {
		t.Fatal(err)
	}
	return spent
}

func TestSpendAllOrNothing(t *testing.T) {
	store := newMemoryStore()
	s, w := testSpender(store)
	l := Limit{100, time.Hour}
	type answer struct {
		OK   bool
		Left int
	}
	for i, c := range []struct {
		n     int
		want  answer
		calls int // of the store
	}{
		{1, answer{true, 99}, 2}, // a block of 2
		{1, answer{true, 98}, 0},
		{90, answer{true, 8}, 2},
		{9, answer{false, 8}, 1},
		{9, answer{false, 8}, 0},
		{100, answer{false, 8}, 0},
		{101, answer{}, 0}, // never
		{8, answer{true, 0}, 2},
		{1, answer{false, 0}, 1},
		{0, answer{true, 0}, 0},
	} {
		before := store.calls
		got := spend(t, s, c.n, l)
		if d := cmp.Diff(c.want, answer{got.OK, got.Left}); d != "" {
			t.Errorf("%d: spend %d: %s", i, c.n, d)
		}
		if got := store.calls - before; got != c.calls {
			t.Errorf("%d: spend %d: %d calls, want %d", i, c.n, got, c.calls)
		}
	}
	if got := spend(t, s, 101, l).RetryAfter; got != 0 {
		t.Errorf("more than the limit: retry after %s, want 0", got)
	}
	// All was spent in this slice, which counts until an hour and two seconds after its end.
	fits := spend(t, s, 1, l).RetryAfter
	if min, max := time.Hour, time.Hour+time.Minute+3*time.Second; fits < min || fits > max {
		t.Errorf("retry after %s, want %s to %s", fits, min, max)
	}
	w.t = w.t.Add(fits - time.Second)
	if spend(t, s, 1, l).OK {
		t.Error("got more than the limit")
	}
	w.t = w.t.Add(time.Second)
	if !spend(t, s, 100, l).OK {
		t.Error("got nothing after the window")
	}
}

func TestUnusedBlockIsGivenBack(t *testing.T) {
	store := newMemoryStore()
	a, clock := testSpender(store)
	b, _ := testSpender(store)
	b.time = clock.now
	l := Limit{1000, time.Hour}
	for range 3 {
		spend(t, a, 1, l)
		spend(t, b, 1, l)
		clock.t = clock.t.Add(time.Minute)
	}
	spend(t, a, 1, l)
	spend(t, b, 1, l)
	s, _, err := store.read(t.Context(), "client/web01", false)
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, sh := range s.Shares {
		got = append(got, sh.N)
	}
	if d := cmp.Diff([]int{2, 2, 2, 40}, got); d != "" {
		t.Error(d)
	}
}

func TestRefund(t *testing.T) {
	store := newMemoryStore()
	s, clock := testSpender(store)
	l := Limit{10, time.Hour}
	all := spend(t, s, 10, l)
	if spend(t, s, 1, l).OK {
		t.Fatal("got more than the limit")
	}
	s.refund("client/web01", all)
	s.refund("client/other", all) // never heard of
	first := spend(t, s, 4, l)
	if !first.OK || first.Left != 6 {
		t.Fatalf("after a refund: got %+v", first)
	}
	if !spend(t, s, 6, l).OK {
		t.Error("the rest: refused")
	}
	clock.t = clock.t.Add(5 * time.Minute) // its slice is over, so it goes back to the store
	s.refund("client/web01", first)
	if spend(t, s, 5, l).OK || !spend(t, s, 4, l).OK {
		t.Error("after a late refund of 4: want 4, and no more")
	}
}

func TestNewLimitIsInForceAtOnce(t *testing.T) {
	s, _ := testSpender(newMemoryStore())
	spend(t, s, 50, Limit{100, time.Hour})
	if spend(t, s, 60, Limit{100, time.Hour}).OK {
		t.Fatal("got more than the limit")
	}
	if !spend(t, s, 60, Limit{200, time.Hour}).OK {
		t.Error("a higher limit is not in force")
	}
	if spend(t, s, 1, Limit{100, 6 * time.Hour}).OK {
		t.Error("a lower limit is not in force")
	}
	if !spend(t, s, 1, Limit{120, 2 * time.Hour}).OK {
		t.Error("a higher limit is not in force")
	}
}

func TestSpendSaysThatItCouldNotAsk(t *testing.T) {
	store := newMemoryStore()
	s, clock := testSpender(store)
	cause := errors.New("no answer")
	store.after = func() error { return cause } // written, but nobody says so
	l := Limit{10, time.Hour}
	if _, err := s.spend(t.Context(), "client/web01", 4, l); !errors.Is(err, ErrUnavailable) || !errors.Is(err, cause) {
		t.Errorf("got %v, want %v and its cause", err, ErrUnavailable)
	}
	store.after = func() error { return nil }
	if spend(t, s, 7, l).OK {
		t.Error("what may have been written is not counted")
	}
	clock.t = clock.t.Add(maxRefusal)
	store.before = func() error { return errConflict }
	if _, err := s.spend(t.Context(), "client/web01", 1, l); !errors.Is(err, ErrUnavailable) {
		t.Errorf("others are always quicker: got %v, want %v", err, ErrUnavailable)
	}
	for _, l := range []Limit{{-1, time.Hour}, {1, time.Millisecond}, {1, 10 * maxWindow}} {
		if _, err := s.spend(t.Context(), "client/web01", 1, l); err == nil {
			t.Errorf("limit %v: no error", l)
		}
	}
	if _, err := s.spend(t.Context(), fmt.Sprintf("%0*d", maxLimitKey+1, 0), 1, l); err == nil {
		t.Error("a long key: no error")
	}
}

func TestPursesAreBounded(t *testing.T) {
	s, clock := testSpender(newMemoryStore())
	l := Limit{1, time.Hour}
	fill := func() {
		for i := range maxPurses + 10 {
			if _, err := s.spend(t.Context(), fmt.Sprint(i), 1, l); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill()
	if got := len(s.m); got > maxPurses {
		t.Errorf("%d purses, want %d at most", got, maxPurses)
	}
	clock.t = clock.t.Add(time.Hour)
	if _, err := s.spend(t.Context(), "new", 1, l); err != nil {
		t.Fatal(err)
	}
	if got := len(s.m); got != 1 {
		t.Errorf("%d purses an hour later, want 1", got)
	}
}

func TestClockMovesNoMoreThanItMust(t *testing.T) {
	var c clock
	asked := time.UnixMilli(1_000_000)
	at := func(ms int64) time.Time { return asked.Add(time.Duration(ms) * time.Millisecond) }
	for i, step := range []struct{ server, answered, want int64 }{
		{3, 10, 0},       // between the two: nothing to learn
		{5010, 20, 4990}, // five seconds ahead, or nearly
		{5005, 10, 4995},
		{5000, 4000, 4995}, // a slow answer says little
		{-300, 2, -300},    // another leader, behind
	} {
		c.note(at(step.server), asked, at(step.answered))
		if got := c.offset.Load() / int64(time.Millisecond); got != step.want {
			t.Errorf("%d: got an offset of %d ms, want %d", i, got, step.want)
		}
	}
	c.note(time.Time{}, asked, at(1))
	if got := c.millis(at(0)); got != asked.UnixMilli()-300 {
		t.Errorf("got %d, want %d", got, asked.UnixMilli()-300)
	}
}
