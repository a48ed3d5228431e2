package suppress

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"postroad/delivery"
	"postroad/queue"
	"postroad/queue/address"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeStore is a list in memory.
type fakeStore struct {
	mu      sync.Mutex
	entries map[string]queue.Suppression
	log     []queue.SuppressionChange
	made    time.Time
	noStart error // of reading it from the start
	broken  error
	reads   int
	noted   []queue.Suppression
	after   []int
	notice  func(string)
}

func (s *fakeStore) set(e queue.Suppression) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries == nil {
		s.entries = make(map[string]queue.Suppression)
	}
	key := queue.SuppressionKey(e.Class, e.Address)
	s.entries[key] = e
	s.log = append(s.log, queue.SuppressionChange{Key: key})
}

func (s *fakeStore) makeAnew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log, s.entries, s.made = nil, nil, time.Now()
}

func (s *fakeStore) remove(class, target string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := queue.SuppressionKey(class, target)
	delete(s.entries, key)
	s.log = append(s.log, queue.SuppressionChange{Key: key, Gone: true})
}

func (s *fakeStore) Suppression(_ context.Context, key string) (*queue.Suppression, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if e, has := s.entries[key]; has && s.broken == nil {
		return &e, nil
	}
	return nil, s.broken
}

func (s *fakeStore) SuppressionChanges(_ context.Context, after queue.SuppressionPosition, fn func(queue.SuppressionChange)) (queue.SuppressionPosition, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return after, s.broken
	}
	if after != (queue.SuppressionPosition{}) && (!after.Made.Equal(s.made) || after.Seq > uint64(len(s.log))) {
		return queue.SuppressionPosition{}, nil
	}
	if after == (queue.SuppressionPosition{}) && s.noStart != nil {
		return after, s.noStart
	}
	for _, c := range s.log[after.Seq:] {
		fn(c)
	}
	return queue.SuppressionPosition{Made: s.made, Seq: uint64(len(s.log))}, nil
}

func (s *fakeStore) NoteRefusal(_ context.Context, e queue.Suppression, after int, _, _ time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noted, s.after = append(s.noted, e), append(s.after, after)
	return nil
}

func (s *fakeStore) OnNotice(_ string, fn func(string)) (func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notice = fn
	return func() {}, nil
}

func testList(t *testing.T, o Options) *List {
	t.Helper()
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	t.Cleanup(func() {
		if err := l.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return l
}

func job(class string, rcpts ...string) *queue.Job {
	j := &queue.Job{ReversePath: address.Path{Local: "alice", Domain: "example.org"}, Class: class}
	for _, r := range rcpts {
		p, err := address.Parse(r)
		if err != nil {
			panic(err)
		}
		j.Recipients = append(j.Recipients, queue.Recipient{Path: p})
	}
	return j
}

func TestBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{}
		store.set(queue.Suppression{Address: "bob@example.com"})
		store.set(queue.Suppression{Address: "carol@example.com", Class: "news"})
		store.set(queue.Suppression{Address: "example.net"})
		store.set(queue.Suppression{Address: "dave@example.com", Pending: true})
		store.set(queue.Suppression{Address: "erin@example.com", Until: time.Now().Add(-time.Second)})
		l := testList(t, Options{Store: store})
		synctest.Wait()
		null := job("", "bob@example.com")
		null.ReversePath = address.Path{}
		for _, tt := range []struct {
			name string
			job  *queue.Job
			want []bool // nil: nobody
		}{
			{"nobody", job("", "frank@example.com"), nil},
			{"one of two, whatever the case", job("", "frank@example.com", "BOB@example.com"), []bool{false, true}},
			{"everybody's, of a class", job("news", "bob@example.com"), []bool{true}},
			{"of that class", job("news", "carol@example.com"), []bool{true}},
			{"of another class", job("bulk", "carol@example.com"), nil},
			{"a whole domain", job("", "x@example.net"), []bool{true}},
			{"not the domains below it", job("", "x@a.example.net"), nil},
			{"too few refusals", job("", "dave@example.com"), nil},
			{"over", job("", "erin@example.com"), nil},
			{"a notification", null, nil},
		} {
			got, err := l.Blocked(t.Context(), tt.job)
			if err != nil || (got == nil) != (tt.want == nil) {
				t.Errorf("%s: got %v, %v, want %v", tt.name, got, err, tt.want)
				continue
			}
			for i := range got {
				if (got[i] != nil) != tt.want[i] {
					t.Errorf("%s: recipient %d: got %v, want %v", tt.name, i, got[i], tt.want[i])
				}
			}
		}
		before := store.reads
		if _, err := l.Blocked(t.Context(), job("news", "frank@example.com")); err != nil || store.reads != before {
			t.Errorf("somebody who is not on the list cost %d reads, %v", store.reads-before, err)
		}
	})
}

// Changes are seen after the next look, an operator's at once; a list that was made anew is read anew.
func TestFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{}
		l := testList(t, Options{Store: store})
		synctest.Wait()
		isBlocked := func() bool {
			t.Helper()
			got, err := l.Blocked(t.Context(), job("", "bob@example.com"))
			if err != nil {
				t.Fatal(err)
			}
			return got != nil
		}
		store.set(queue.Suppression{Address: "bob@example.com"})
		if time.Sleep(followEvery + time.Second); !isBlocked() {
			t.Error("not seen after a look")
		}
		store.remove("", "bob@example.com")
		store.notice("")
		synctest.Wait()
		if isBlocked() || l.len() != 0 {
			t.Errorf("a removal was not seen at once: %d keys", l.len())
		}
		store.set(queue.Suppression{Address: "bob@example.com"})
		time.Sleep(followEvery + time.Second)
		before := len(store.log)
		store.makeAnew()
		for i := range 2 * before { // the new one is longer than the old one was
			store.set(queue.Suppression{Address: fmt.Sprintf("new%d@example.com", i)})
		}
		want := len(store.log)
		if time.Sleep(followEvery + time.Second); isBlocked() || l.len() != want {
			t.Errorf("made anew: got %d keys, want %d", l.len(), want)
		}
	})
}

// While a list that was made anew is read, nobody on it is written to.
func TestMadeAnewIsReadFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{}
		l := testList(t, Options{Store: store})
		store.set(queue.Suppression{Address: "bob@example.com"})
		time.Sleep(2 * openAfter)
		store.makeAnew()
		store.set(queue.Suppression{Address: "bob@example.com"})
		store.mu.Lock()
		store.noStart = errors.New("no answer")
		store.mu.Unlock()
		time.Sleep(followEvery + time.Second)
		if got, err := l.Blocked(t.Context(), job("", "bob@example.com")); got == nil || err != nil {
			t.Errorf("got %v, %v, want him blocked", got, err)
		}
	})
}

// What cannot be told makes mail wait; a list that was never had does so for a minute.
func TestUnknownList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{broken: errors.New("no answer")}
		l := testList(t, Options{Store: store})
		synctest.Wait()
		if _, err := l.Blocked(t.Context(), job("", "bob@example.com")); err == nil || l.Conditions() != nil {
			t.Errorf("at first: got %v, %v", err, l.Conditions())
		}
		time.Sleep(openAfter + time.Second)
		if got, err := l.Blocked(t.Context(), job("", "bob@example.com")); got != nil || err != nil || len(l.Conditions()) != 1 {
			t.Errorf("after a minute: got %v, %v, %v", got, err, l.Conditions())
		}
		store.mu.Lock()
		store.broken = nil
		store.mu.Unlock()
		store.set(queue.Suppression{Address: "bob@example.com"})
		time.Sleep(followEvery + time.Second)
		if got, err := l.Blocked(t.Context(), job("", "bob@example.com")); got == nil || err != nil || l.Conditions() != nil {
			t.Errorf("once it is known: got %v, %v, %v", got, err, l.Conditions())
		}
		store.mu.Lock()
		store.broken = errors.New("no answer")
		store.mu.Unlock()
		time.Sleep(2 * openAfter)
		if _, err := l.Blocked(t.Context(), job("", "bob@example.com")); err == nil {
			t.Error("somebody who may be on the list was written to")
		}
		if got, err := l.Blocked(t.Context(), job("", "carol@example.com")); got != nil || err != nil {
			t.Errorf("somebody who is not on it: got %v, %v", got, err)
		}
	})
}

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{}
		l := testList(t, Options{Store: store, Reasons: []string{"invalid_recipient", delivery.ClassComplaint}, After: 3})
		bob := address.Path{Local: "Bob", Domain: "example.com"}
		l.HardBounced(delivery.HardBounce{Recipient: bob, Class: "policy", ID: "m0"})
		l.HardBounced(delivery.HardBounce{Recipient: bob, Class: "invalid_recipient", MailClass: "news", ID: "m1", Text: "550 no such user"})
		l.HardBounced(delivery.HardBounce{Recipient: bob, Class: delivery.ClassComplaint, MailClass: "news", ID: "m2"})
		synctest.Wait()
		if len(store.noted) != 2 {
			t.Fatalf("got %+v, want 2", store.noted)
		}
		if s := store.noted[0]; s.Address != "bob@example.com" || s.Class != "" || s.Reason != "invalid_recipient" || s.Source != "m1" || s.Text != "550 no such user" || store.after[0] != 3 {
			t.Errorf("refusal: got %+v after %d", s, store.after[0])
		}
		if s := store.noted[1]; s.Class != "news" || store.after[1] != 1 {
			t.Errorf("complaint: got %+v after %d", s, store.after[1])
		}
	})
}

// fill makes a list know n entries.
func fill(t testing.TB, n int) *List {
	t.Helper()
	l, err := New(Options{Store: &fakeStore{}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		l.apply(queue.SuppressionChange{Key: queue.SuppressionKey("", fmt.Sprintf("user%d@example.com", i))})
	}
	l.isKnown = true
	return l
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A million entries may take 100 MB of a worker.
func TestMemoryOfEntry(t *testing.T) {
	const n = 100_000
	before := heap()
	l := fill(t, n)
	each := float64(heap()-before) / n
	t.Logf("%d entries take %.1f octets each", n, each)
	if each > 100 {
		t.Errorf("an entry takes %.1f octets, want 100 at most", each)
	}
	runtime.KeepAlive(l)
}

func BenchmarkNotOnList(b *testing.B) {
	before := heap()
	l := fill(b, 1_000_000)
	taken := float64(heap()-before) / 1e6
	j := job("news", "nobody@example.net")
	for b.Loop() {
		if got, err := l.Blocked(b.Context(), j); got != nil || err != nil {
			b.Fatal(got, err)
		}
	}
	b.ReportMetric(taken, "MB/million")
}
