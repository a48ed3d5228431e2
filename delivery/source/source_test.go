package source

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"postroad/queue"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// till is a Spender of one process without windows.
type till struct {
	spent  map[string]int
	limits map[string]queue.Limit
	err    error
}

func newTill() *till {
	return &till{spent: make(map[string]int), limits: make(map[string]queue.Limit)}
}

func (t *till) Spend(_ context.Context, key string, n int, l queue.Limit) (queue.Spent, error) {
	t.limits[key] = l
	switch {
	case t.err != nil:
		return queue.Spent{}, t.err
	case t.spent[key]+n > l.Count:
		return queue.Spent{RetryAfter: 20 * time.Minute}, nil
	}
	t.spent[key] += n
	return queue.Spent{OK: true, Left: n}, nil // Left says how much Refund takes back
}

func (t *till) Refund(key string, s queue.Spent) { t.spent[key] -= s.Left }

// three sources: one with both families, one with IPv4 and one with IPv6 only.
func options() Options {
	return Options{
		Sources: []Source{
			{Name: "both", IPv4: ip("192.0.2.1"), IPv6: ip("2001:db8::1"), Hostname: "both.example.com"},
			{Name: "four", IPv4: ip("192.0.2.2"), Hostname: "Four.example.com"},
			{Name: "six", IPv6: ip("2001:db8::3"), Hostname: "six.example.com"},
		},
		Pools: []Pool{
			{Name: "all", Members: []Member{{"both", 2}, {"four", 1}, {"six", 1}}},
			{Name: "one", Members: []Member{{"four", 1}}},
			{Name: "fours", Members: []Member{{"both", 3}, {"four", 1}}},
		},
		Default: "all",
		System:  Source{Hostname: "relay.example.com"},
		Spender: newTill(),
		Node:    "node1",
		HasAddr: func(netip.Addr) bool { return true },
	}
}

func newSet(t *testing.T, o Options) *Set {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func choose(t *testing.T, s *Set, r Request) string {
	t.Helper()
	c, err := s.Choose(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return c.Source.Name
}

func waits(t *testing.T, s *Set, r Request) *Wait {
	t.Helper()
	c, err := s.Choose(t.Context(), r)
	wait, ok := errors.AsType[*Wait](err)
	if !ok {
		t.Fatalf("got %+v, %v, want a wait", c, err)
	}
	return wait
}

func TestOptionsAreChecked(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Options)
		want   error
	}{
		{"bad name", func(o *Options) { o.Sources[0].Name = "a b" }, ErrName},
		{"no address", func(o *Options) { o.Sources[1].IPv4 = netip.Addr{} }, ErrAddress},
		{"wrong family", func(o *Options) { o.Sources[1].IPv4 = ip("2001:db8::9") }, ErrAddress},
		{"address of another", func(o *Options) { o.Sources[1].IPv4 = ip("192.0.2.1") }, ErrAddress},
		{"source twice", func(o *Options) { o.Sources[1].Name = "both" }, ErrTwice},
		{"pool twice", func(o *Options) { o.Pools[1].Name = "all" }, ErrTwice},
		{"no members", func(o *Options) { o.Pools[1].Members = nil }, ErrMember},
		{"strange member", func(o *Options) { o.Pools[1].Members = []Member{{"none", 1}} }, ErrMember},
		{"no weight", func(o *Options) { o.Pools[1].Members = []Member{{"four", 0}} }, ErrMember},
		{"member twice", func(o *Options) { o.Pools[1].Members = []Member{{"four", 1}, {"four", 1}} }, ErrMember},
		{"default", func(o *Options) { o.Default = "none" }, ErrPool},
		{"plan", func(o *Options) { o.WarmUp = WarmUp{Days: 3, First: 10, Last: 5} }, errWarmUp},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := options()
			tt.change(&o)
			if s, err := New(o); !errors.Is(err, tt.want) {
				t.Errorf("got %v, %v, want %v", s, err, tt.want)
			}
		})
	}
	o := options()
	o.Sources[2].Hostname = "[192.0.2.1]"
	if _, err := New(o); err == nil {
		t.Error("a literal was taken for a name")
	}
}

// Without a pool the system chooses the address, or the one address that was configured.
func TestSystemsChoice(t *testing.T) {
	o := Options{System: Source{Hostname: "relay.example.com", IPv4: ip("192.0.2.9")}}
	c, err := newSet(t, o).Choose(t.Context(), Request{Hosts: []netip.Addr{ip("2001:db8::7")}})
	if err != nil {
		t.Fatal(err)
	}
	s := c.Source
	if s.Name != "" || s.Addr(ip("198.51.100.1")) != ip("192.0.2.9") || s.Addr(ip("2001:db8::7")).IsValid() || !s.Reaches(ip("2001:db8::7")) {
		t.Errorf("got %+v", s)
	}
}

func TestWeights(t *testing.T) {
	s := newSet(t, options())
	got := make(map[string]int)
	for i := range 4000 {
		got[choose(t, s, Request{Key: fmt.Sprintf("0199%d.0", i)})]++
	}
	for name, want := range map[string]int{"both": 2000, "four": 1000, "six": 1000} {
		if n := got[name]; n < want*9/10 || n > want*11/10 {
			t.Errorf("%s: got %d of 4000, want about %d", name, n, want)
		}
	}
}

// S2.2: a source sends by the families that it has; others of the pool take what it cannot reach.
func TestFamilies(t *testing.T) {
	s := newSet(t, options())
	for i := range 100 {
		key := fmt.Sprint(i)
		if got := choose(t, s, Request{Key: key, Hosts: []netip.Addr{ip("198.51.100.1")}}); got == "six" {
			t.Fatal("IPv6 only for an IPv4 host")
		}
		if got := choose(t, s, Request{Key: key, Hosts: []netip.Addr{ip("2001:db8::99")}}); got == "four" {
			t.Fatal("IPv4 only for an IPv6 host")
		}
	}
	if has4, has6 := s.Families("one"); !has4 || has6 {
		t.Errorf("got %v, %v", has4, has6)
	}
	if has4, has6 := s.Families(""); !has4 || !has6 {
		t.Errorf("default pool: got %v, %v", has4, has6)
	}
	w := waits(t, s, Request{Pool: "one", Hosts: []netip.Addr{ip("2001:db8::99")}, Began: time.Now()})
	if w.Delay != soon || !strings.Contains(w.Text, "family") {
		t.Errorf("got %+v", w)
	}
}

// E6-75: a job that was tried before comes from the same source, whatever its weight is now.
func TestE6_75_SameSourceAgain(t *testing.T) {
	o := options()
	s := newSet(t, o)
	for i := range 50 {
		r := Request{Key: fmt.Sprint(i)}
		first := choose(t, s, r)
		if again := choose(t, s, r); again != first {
			t.Fatalf("got %s, then %s", first, again)
		}
		r.Last, r.LastTry = "four", time.Now().Add(-10*time.Minute)
		if again := choose(t, s, r); again != "four" {
			t.Fatalf("got %s, want the one of the last try", again)
		}
	}
	// Long after, or when the source is no more in the pool, any will do.
	r := Request{Key: "x", Pool: "one", Last: "both", LastTry: time.Now()}
	if got := choose(t, s, r); got != "four" {
		t.Errorf("got %s", got)
	}
	o.HasAddr = func(a netip.Addr) bool { return a != ip("192.0.2.2") }
	s = newSet(t, o)
	r = Request{Key: "x", Pool: "fours", Last: "four", LastTry: time.Now().Add(-30 * time.Minute)}
	if w := waits(t, s, r); w.Delay != soon || !strings.Contains(w.Text, "four") {
		t.Errorf("source of the last try is elsewhere: got %+v", w)
	}
	r.LastTry = time.Now().Add(-2 * time.Hour)
	if got := choose(t, s, r); got != "both" {
		t.Errorf("long after: got %s", got)
	}
}

// A source whose address this machine does not have is not used here; a pool without any is left to other processes, ever less often.
func TestAbsence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		present := map[netip.Addr]bool{ip("192.0.2.1"): true}
		o := options()
		o.HasAddr = func(a netip.Addr) bool { return present[a] }
		s := newSet(t, o)
		for i := range 20 {
			c, err := s.Choose(t.Context(), Request{Key: fmt.Sprint(i)})
			if err != nil || c.Source.Name != "both" || c.Source.IPv6.IsValid() {
				t.Fatalf("got %+v, %v", c, err)
			}
		}
		for age, want := range map[time.Duration]time.Duration{0: soon, 10 * time.Minute: later, 2 * time.Hour: late} {
			if w := waits(t, s, Request{Pool: "one", Began: time.Now().Add(-age)}); w.Delay != want || !strings.Contains(w.Text, `"one"`) {
				t.Errorf("age %v: got %+v", age, w)
			}
		}
		since := time.Now()
		list := s.Conditions()
		if len(list) != 3 || !strings.Contains(list[0].Text, "source both is not used here: this machine has no address 2001:db8::1") || !list[0].Since.Equal(since) {
			t.Errorf("got conditions %+v", list)
		}
		present[ip("192.0.2.2")] = true
		waits(t, s, Request{Pool: "one"})
		time.Sleep(hereFor)
		if got := choose(t, s, Request{Pool: "one"}); got != "four" {
			t.Errorf("got %s", got)
		}
		delete(present, ip("192.0.2.2"))
		s.Look()
		waits(t, s, Request{Pool: "one"})
		present = map[netip.Addr]bool{ip("192.0.2.1"): true, ip("2001:db8::1"): true, ip("192.0.2.2"): true, ip("2001:db8::3"): true}
		s.Look()
		if list := s.Conditions(); len(list) != 0 {
			t.Errorf("got conditions %+v", list)
		}
	})
}

// Ten thousand jobs for a pool that nobody has do not come back all at once, and one that waits for its own source is not held up by those
// that wait longer.
func TestManyJobsWithoutSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options()
		o.HasAddr = func(a netip.Addr) bool { return a == ip("192.0.2.1") }
		s := newSet(t, o)
		perMinute := make(map[time.Duration]int)
		for range 10_000 {
			w := waits(t, s, Request{Pool: "one", Began: time.Now()})
			perMinute[w.Delay.Truncate(time.Minute)]++
			if w.Delay < soon || w.Delay > maxTurn || w.Delay%soon != 0 {
				t.Fatalf("got %v", w.Delay)
			}
		}
		for at, n := range perMinute {
			if n > 3001 {
				t.Fatalf("%d jobs come back after %v", n, at)
			}
		}
		for range 100_000 {
			waits(t, s, Request{Pool: "one", Began: time.Now().Add(-2 * time.Hour)})
		}
		if w := waits(t, s, Request{Pool: "one", Began: time.Now().Add(-2 * time.Hour)}); w.Delay != maxTurn {
			t.Errorf("got %v", w.Delay)
		}
		time.Sleep(maxTurn)
		waits(t, s, Request{Pool: "one", Began: time.Now().Add(-2 * time.Hour)})
		if w := waits(t, s, Request{Pool: "one", Began: time.Now()}); w.Delay != soon {
			t.Errorf("got %v, want %v", w.Delay, soon)
		}
	})
}

// A source of other nodes is none of ours, even if we could bind to its address, and says nothing.
func TestNodes(t *testing.T) {
	o := options()
	o.Sources[1].Nodes = []string{"node2"}
	s := newSet(t, o)
	waits(t, s, Request{Pool: "one"})
	o.HasAddr = func(a netip.Addr) bool { return a != ip("192.0.2.2") }
	if list := newSet(t, o).Conditions(); len(list) != 0 {
		t.Errorf("got conditions %+v", list)
	}
	o.HasAddr = func(netip.Addr) bool { return true }
	for _, name := range []string{"node1", "relay.example.com"} {
		o.Sources[1].Nodes = []string{"node2", name}
		if got := choose(t, newSet(t, o), Request{Pool: "one"}); got != "four" {
			t.Errorf("got %s", got)
		}
	}
}

func TestUnknownPool(t *testing.T) {
	if w := waits(t, newSet(t, options()), Request{Pool: "gone"}); w.Delay != late {
		t.Errorf("got %+v", w)
	}
}

// The plan grows by one factor a day from the first to the last.
func TestWarmUpPlan(t *testing.T) {
	w := WarmUp{Days: 5, First: 10, Last: 100_000}
	for day, want := range []int{10, 100, 1000, 10_000, 100_000} {
		if got := w.PerDay(day); got != want {
			t.Errorf("day %d: got %d, want %d", day, got, want)
		}
	}
	if got := w.PerDay(-1); got != 0 {
		t.Errorf("before it begins: got %d", got)
	}
	started := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	for after, want := range map[time.Duration]string{-time.Hour: "-1 false", 0: "0 false", 47 * time.Hour: "1 false", 120 * time.Hour: "5 true"} {
		if day, isWarm := w.Day(started, started.Add(after)); fmt.Sprint(day, isWarm) != want {
			t.Errorf("after %v: got %d, %v, want %s", after, day, isWarm, want)
		}
	}
	if _, isWarm := w.Day(time.Time{}, started); !isWarm {
		t.Error("a source of long ago is new")
	}
}

// A new source takes what the plan allows, what is more goes by the others; with none left the job waits.
func TestWarmUp(t *testing.T) {
	now := time.Now()
	o := options()
	o.WarmUp = WarmUp{Days: 10, First: 100, Last: 1000}
	o.Sources[0].Started = now.Add(-time.Hour)
	o.Pools[2].Members = []Member{{"both", 1000}, {"four", 1}}
	bank := newTill()
	o.Spender = bank
	s := newSet(t, o)
	got := make(map[string]int)
	for i := range 500 {
		got[choose(t, s, Request{Pool: "fours", Key: fmt.Sprint(i), Recipients: 1})]++
	}
	if got["both"] != 100 || got["four"] != 400 || bank.limits["source/both"] != (queue.Limit{Count: 100, Window: 24 * time.Hour}) {
		t.Errorf("got %v, limits %v", got, bank.limits)
	}

	o.Sources[1].Started = now.Add(-25 * time.Hour)
	bank.spent["source/four"] = 1000
	s = newSet(t, o)
	w := waits(t, s, Request{Pool: "fours", Key: "x", Recipients: 1})
	if w.Delay != 20*time.Minute || !strings.Contains(w.Text, "new") {
		t.Errorf("got %+v", w)
	}
	bank.spent = make(map[string]int)
	if got := choose(t, s, Request{Pool: "fours", Key: "x", Recipients: 5000}); got != "both" || bank.spent["source/both"] != 100 {
		t.Errorf("more recipients than a day has: got %s, spent %v", got, bank.spent)
	}
	bank.spent = make(map[string]int)
	bank.err = errors.New("no queue")
	if w := waits(t, s, Request{Pool: "fours", Key: "x"}); w.Delay != later {
		t.Errorf("nobody counts: got %+v", w)
	}
	o.Sources[0].Started, o.Sources[1].Started = now.Add(time.Hour), now.Add(time.Hour)
	if w := waits(t, newSet(t, o), Request{Pool: "fours", Key: "x"}); w.Delay != maxWarmWait {
		t.Errorf("none has begun: got %+v", w)
	}
}

func TestRefund(t *testing.T) {
	o := options()
	o.WarmUp = WarmUp{Days: 10, First: 100, Last: 1000}
	o.Sources[1].Started = time.Now()
	bank := newTill()
	o.Spender = bank
	c, err := newSet(t, o).Choose(t.Context(), Request{Pool: "one", Recipients: 7})
	if err != nil || bank.spent["source/four"] != 7 {
		t.Fatalf("got %v, spent %v", err, bank.spent)
	}
	c.Refund()
	c.Refund()
	if want := map[string]int{"source/four": 0}; !maps.Equal(bank.spent, want) {
		t.Errorf("got %v, want %v", bank.spent, want)
	}
}

// What the system says of addresses is asked for real.
func TestCanBind(t *testing.T) {
	if !canBind(ip("127.0.0.2")) || canBind(ip("240.0.0.1")) {
		t.Error("127.0.0.2 must be here, 240.0.0.1 must not")
	}
}

func TestNamesAndAddresses(t *testing.T) {
	s := newSet(t, options())
	if got := fmt.Sprint(s.Addrs()); got != "[192.0.2.1 2001:db8::1 192.0.2.2 2001:db8::3]" {
		t.Errorf("got %s", got)
	}
	if got := s.Hostnames(); len(got) != 3 {
		t.Errorf("got %v", got)
	}
}
