package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
	"postroad/delivery/smtpc"
	"postroad/delivery/throttle"
	"postroad/queue"
	"postroad/queue/embedded"
)

// clusterOf are n workers with queues of their own at one store.
func clusterOf(t *testing.T, n *fakeNet, count int, domains []string, change ...func(*Options)) ([]*Worker, []*queue.Queue) {
	t.Helper()
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), MaxBytes: queue.StoreBytes(1 << 30), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	end := func(stop func(context.Context) error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := stop(ctx); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { end(s.Stop) })
	records := mxtest.Records{MX: map[string][]mx.MX{}, Hosts: map[string][]string{}}
	for _, d := range domains {
		records.MX[d] = []mx.MX{{Host: "mx." + d, Preference: 10}}
		records.Hosts["mx."+d] = []string{"198.51.100.1"}
	}
	var workers []*Worker
	var queues []*queue.Queue
	for i := range count {
		q, err := queue.Open(t.Context(), queue.Options{Connect: s.Connect, Node: string(rune('a' + i)), MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { end(q.Close) })
		w := workerWith(t, n, append(change, func(o *Options) {
			o.Resolver, o.Cluster, o.Registerer = records, throttle.Shared(q), prometheus.NewRegistry()
		})...)
		workers, queues = append(workers, w), append(queues, q)
	}
	return workers, queues
}

// settled handles a job and returns what became of it.
func settled(t *testing.T, w *Worker, rcpt string) queue.Settlement {
	t.Helper()
	m := &fakeMail{}
	w.handle(t.Context(), testJob(rcpt), m)
	return m.only(t)
}

// until waits for something that others must hear of first: a second at most, and more on a machine that is busy.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in a minute: %s", what)
		}
	}
}

func TestSuspensionHoldsOnAllWorkers(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", ok)
	workers, queues := clusterOf(t, n, 2, []string{"example.net"})
	for _, name := range []string{"example.net", "mx.example.net"} { // a domain, a site
		for _, w := range workers {
			until(t, "delivered before", func() bool { return len(settled(t, w, "bob@example.net").Remaining) == 0 })
		}
		now := time.Now()
		x := throttle.Suspension{Name: name, Owner: "alice", Reason: "they asked us to", Since: now, Until: now.Add(2 * time.Hour)}
		data, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		if err := queues[0].Post(t.Context(), queue.Posting{Kind: throttle.KindSuspension, Name: name, Data: data, Until: x.Until}); err != nil {
			t.Fatal(err)
		}
		for i, w := range workers {
			until(t, "suspended on all", func() bool { return w.shaping.sites.Suspended("example.net", "mx.example.net", "") != nil })
			before := n.dialled("mx.example.net")
			s := settled(t, w, "bob@example.net")
			if len(s.Remaining) != 1 || s.Tried || s.Delay < time.Minute || s.Delay > maxSuspended || !strings.Contains(s.Reason, "by alice: they asked us to") {
				t.Errorf("worker %d: got %+v, want a wait with its reason", i, s)
			}
			if n.dialled("mx.example.net") != before {
				t.Errorf("worker %d dialled all the same", i)
			}
		}
		if err := queues[1].Unpost(t.Context(), queue.Posting{Kind: throttle.KindSuspension, Name: name}); err != nil {
			t.Fatal(err)
		}
		for _, w := range workers {
			until(t, "resumed on all", func() bool { return w.shaping.sites.Suspended("example.net", "mx.example.net", "") == nil })
		}
	}
}

func TestDeadSiteIsKnownToAllAndProbedByOne(t *testing.T) {
	n := newFakeNet()
	n.refuse("mx.example.net", 0)
	workers, _ := clusterOf(t, n, 2, []string{"example.net"})
	const path = "mx.example.net"
	for range deadAfter {
		settled(t, workers[0], "bob@example.net")
	}
	for i, w := range workers {
		until(t, "dead for all", func() bool {
			c, isDead := w.shaping.sites.Dead(path)
			return isDead && slices.Contains(c.Domains, "example.net") // the jobs that found it out wait for it
		})
		before := n.dialled(path)
		if s := settled(t, w, "bob@example.net"); s.Tried || !strings.Contains(s.Reason, reasonStart) || n.dialled(path) != before {
			t.Errorf("worker %d: got %+v, want to be sent away", i, s)
		}
	}
	// The time of the next probe has come: of many jobs on both workers one goes.
	c, _ := workers[0].shaping.sites.Dead(path)
	c.Until = time.Now().Add(-time.Second)
	data, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	board := workers[0].o.Cluster
	if err := board.Post(t.Context(), queue.Posting{Kind: throttle.KindCircuit, Name: path, Data: data, Until: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for _, w := range workers {
		until(t, "all know", func() bool { c, _ := w.shaping.sites.Dead(path); return c.Until.Before(time.Now()) })
		w.gate.mu.Lock()
		if s := w.gate.sites[path]; s != nil {
			s.deadTill = time.Now().Add(-time.Second)
		}
		w.gate.mu.Unlock()
	}
	var dials atomic.Int64
	release := make(chan struct{})
	n.set(path, func(ctx context.Context, _ smtpc.Options) (*fakeConn, error) {
		dials.Add(1)
		<-release
		return &fakeConn{answer: ok}, nil
	})
	var wg sync.WaitGroup
	var sent, handled atomic.Int64
	for _, w := range workers {
		for range 5 {
			wg.Go(func() {
				m := &fakeMail{}
				w.handle(context.Background(), testJob("bob@example.net"), m)
				if len(m.settled) == 1 && len(m.settled[0].Remaining) == 0 {
					sent.Add(1)
				}
				handled.Add(1)
			})
		}
	}
	until(t, "a probe", func() bool { return dials.Load() > 0 })
	until(t, "all others are sent away", func() bool { return handled.Load() == 9 })
	close(release)
	wg.Wait()
	if dials.Load() != 1 || sent.Load() != 1 {
		t.Errorf("%d dials and %d deliveries, want one probe", dials.Load(), sent.Load())
	}
	for i, w := range workers {
		until(t, "alive for all", func() bool { _, isDead := w.shaping.sites.Dead(path); return !isDead })
		until(t, "the gate knows", func() bool { return w.gate.deadSites() == 0 })
		until(t, fmt.Sprintf("delivered by worker %d after its return", i), func() bool { return len(settled(t, w, "bob@example.net").Remaining) == 0 })
	}
}

// TestProbeThatCameToNothing: when the mail of a probe is gone, any other job may probe.
func TestProbeThatCameToNothing(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", ok)
	workers, _ := clusterOf(t, n, 2, []string{"example.net"})
	const path = "mx.example.net"
	data, err := json.Marshal(throttle.Circuit{Path: path, Until: time.Now().Add(-time.Second), Pause: time.Minute, Code: 451, Text: "gone"})
	if err != nil {
		t.Fatal(err)
	}
	if err := workers[0].o.Cluster.Post(t.Context(), queue.Posting{Kind: throttle.KindCircuit, Name: path, Data: data}); err != nil {
		t.Fatal(err)
	}
	probed := func(is bool) func() bool {
		return func() bool {
			for _, w := range workers {
				if c, isDead := w.shaping.sites.Dead(path); !isDead || !c.ProbeUntil.IsZero() != is {
					return false
				}
			}
			return true
		}
	}
	until(t, "dead for all", probed(false))
	m := &blockedMail{fakeMail: fakeMail{openErr: queue.ErrGone}, open: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() { workers[0].handle(context.Background(), testJob("bob@example.net"), m) })
	until(t, "probed", probed(true))
	if s := settled(t, workers[1], "bob@example.net"); len(s.Remaining) != 1 {
		t.Errorf("got %+v while another process probes", s)
	}
	close(m.open)
	wg.Wait()
	until(t, "free for another probe", probed(false))
	until(t, "delivered", func() bool { return len(settled(t, workers[1], "bob@example.net").Remaining) == 0 })
}

// blockedMail is one whose content is slow to come.
type blockedMail struct {
	fakeMail
	open chan struct{}
}

func (m *blockedMail) Open(ctx context.Context) (io.ReadCloser, error) {
	<-m.open
	return m.fakeMail.Open(ctx)
}

// TestReactionToReply: a block is taken for temporary, and the path is suspended, on all workers.
func TestReactionToReply(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
		return every(m, smtpc.Reply{Code: 550, Enhanced: "5.7.1", Lines: []string{"Your address is on our block list (S3140)"}, Phase: smtpc.PhaseMail}), nil
	})
	reactions, err := throttle.NewReactions(throttle.Reaction{Name: "listed", Hosts: []string{"example.net"}, Code: "550", Text: "block list",
		Actions: []throttle.Action{throttle.ActionDefer, throttle.ActionSwitch, throttle.ActionSlow}, For: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	workers, _ := clusterOf(t, n, 2, []string{"example.net"}, func(o *Options) { o.Reactions = reactions })
	s := settled(t, workers[0], "bob@example.net")
	if len(s.Remaining) != 1 || !s.Tried || !strings.Contains(s.Reason, "block list") {
		t.Errorf("got %+v, want it deferred", s)
	}
	for i, w := range workers {
		until(t, "suspended on all", func() bool { return w.shaping.sites.Suspended("", "", "mx.example.net") != nil })
		limits := w.shaping.sites.For(throttle.Query{Domain: "example.net", Site: "mx.example.net"})
		until(t, "slow on all", func() bool {
			return w.shaping.sites.For(throttle.Query{Domain: "example.net", Site: "mx.example.net"}).Connections == throttle.DefaultConnections/2
		})
		if s := settled(t, w, "bob@example.net"); s.Tried || !strings.Contains(s.Reason, "listed: 550 5.7.1") {
			t.Errorf("worker %d with %+v: got %+v, want to be sent away with the reply as reason", i, limits, s)
		}
	}
}

// TestLimitsOfWorkers counts at the receiver: four workers with a limit of 100 messages a second and 5 connections, which is doubled by command.
func TestLimitsOfWorkers(t *testing.T) {
	n := newFakeNet()
	var mu sync.Mutex
	var seen []time.Time
	var open, most atomic.Int64
	n.set("mx.example.net", func(context.Context, smtpc.Options) (*fakeConn, error) {
		now := open.Add(1)
		for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
		}
		return &fakeConn{onEnd: func() { open.Add(-1) }, answer: func(ctx context.Context, n int, m smtpc.Message) (smtpc.Result, error) {
			mu.Lock()
			seen = append(seen, time.Now())
			mu.Unlock()
			time.Sleep(4 * time.Millisecond)
			return ok(ctx, n, m)
		}}, nil
	})
	rate := queue.Rate{Count: 100, Window: time.Second}
	workers, _ := clusterOf(t, n, 4, []string{"example.net"}, func(o *Options) {
		o.Shaping = []throttle.Rule{{Domain: "example.net", Rate: rate, Connections: 5}}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		until(t, "300 messages", func() bool { mu.Lock(); defer mu.Unlock(); return len(seen) >= 300 })
	})
	for _, w := range workers {
		for range 8 {
			wg.Go(func() {
				for ctx.Err() == nil {
					w.handle(ctx, testJob("bob@example.net"), &fakeMail{})
				}
			})
		}
	}
	wg.Wait()
	slices.SortFunc(seen, time.Time.Compare)
	if len(seen) < 300 {
		t.Fatal("too little was sent")
	}
	worst, from := 0, 0
	for i := range seen {
		for seen[i].Sub(seen[from]) >= time.Second {
			from++
		}
		worst = max(worst, i-from+1)
	}
	// A turn that was taken in time may be seen late, by one on each connection.
	if worst > rate.Count+rate.Block()+5 || most.Load() > 5 {
		t.Errorf("%d messages in a second and %d connections, want %d and a block of %d, and 5", worst, most.Load(), rate.Count, rate.Block())
	}
	t.Logf("%d messages in %s, %d in a second at most, %d connections", len(seen), seen[len(seen)-1].Sub(seen[0]), worst, most.Load())
}

// TestLowerLimitClosesConnections: what is idle is closed when fewer are allowed.
func TestLowerLimitClosesConnections(t *testing.T) {
	n := newFakeNet()
	var open atomic.Int64
	together := make(chan struct{})
	n.set("mx.example.net", func(context.Context, smtpc.Options) (*fakeConn, error) {
		if open.Add(1) == 4 {
			close(together)
		}
		return &fakeConn{onEnd: func() { open.Add(-1) }, answer: func(ctx context.Context, n int, m smtpc.Message) (smtpc.Result, error) {
			<-together
			return ok(ctx, n, m)
		}}, nil
	})
	workers, queues := clusterOf(t, n, 1, []string{"example.net"}, func(o *Options) { o.Shaping = []throttle.Rule{{MX: "example.net", Connections: 4}} })
	w := workers[0]
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { w.handle(context.Background(), testJob("bob@example.net"), &fakeMail{}) })
	}
	wg.Wait()
	if got := open.Load(); got != 4 {
		t.Fatalf("%d connections, want 4 idle ones", got)
	}
	rule := throttle.Rule{MX: "example.net", Connections: 1}
	data, err := json.Marshal(throttle.LiveLimit{Rule: rule})
	if err != nil {
		t.Fatal(err)
	}
	if err := queues[0].Post(t.Context(), queue.Posting{Kind: throttle.KindLimit, Name: rule.Match(), Data: data}); err != nil {
		t.Fatal(err)
	}
	q := throttle.Query{Site: "mx.example.net", Hosts: []string{"mx.example.net"}}
	until(t, "the new limit", func() bool { return w.shaping.sites.For(q).Connections == 1 })
	if s := settled(t, w, "bob@example.net"); len(s.Remaining) > 0 {
		t.Errorf("got %+v", s)
	}
	until(t, "one connection at most", func() bool { return open.Load() <= 1 })
}

// TestSlowRateAndSlowGreeting: a turn that was taken before connecting is good for as long as a host takes to greet.
func TestSlowRateAndSlowGreeting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet()
		n.set("mx.example.net", func(context.Context, smtpc.Options) (*fakeConn, error) {
			time.Sleep(40 * time.Second)
			return &fakeConn{answer: ok}, nil
		})
		records := mxtest.Records{MX: map[string][]mx.MX{"example.net": {{Host: "mx.example.net"}}}, Hosts: map[string][]string{"mx.example.net": {"198.51.100.1"}}}
		w := workerWith(t, n, func(o *Options) {
			o.Resolver = records
			o.Shaping = []throttle.Rule{{Domain: "example.net", Rate: queue.Rate{Count: 1, Window: 5 * time.Minute}}}
		})
		if s := settled(t, w, "bob@example.net"); len(s.Remaining) > 0 {
			t.Errorf("got %+v", s)
		}
	})
}

// TestLapsedLeasesAreNotUsed: a process that was stopped for a while finds by its clock that what it had is over.
func TestLapsedLeasesAreNotUsed(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", ok)
	w := testWorker(t, n, "example.net")
	life, end := context.WithCancel(t.Context())
	a := w.newAttempt(testJob("bob@example.net"), &fakeMail{})
	slots, err := throttle.NewSlots(oneMember{life}, throttle.Users{Granted: func(string) {}, Yield: func(string) {}, Lost: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	defer slots.Stop(context.Background())
	w.shaping.slots = slots
	until(t, "a life", func() bool { return slots.Life() == life })
	a.pass = &pass{gate: w.gate, site: &site{}, life: life}
	if err := a.leased(); err != nil {
		t.Fatalf("got %v while it lives", err)
	}
	if !a.nextTurn(t.Context()) {
		t.Fatal("no further transaction while it lives")
	}
	ctx, cancel := a.whileLeased(t.Context())
	defer cancel()
	a.isSent.Store(true)
	end()
	if err := a.leased(); !errors.Is(err, errLapsed) {
		t.Errorf("got %v after its end", err)
	}
	if a.nextTurn(t.Context()) {
		t.Error("a further transaction after its end")
	}
	time.Sleep(10 * time.Millisecond)
	if ctx.Err() != nil {
		t.Error("a message that was sent whole was broken off before its answer")
	}
	w.shaping.slots = nil
}

// oneMember is a cluster whose member lives as long as a context.
type oneMember struct{ life context.Context }

func (m oneMember) Join(func(string)) (throttle.Member, error) { return m, nil }
func (m oneMember) Life() context.Context                      { return m.life }
func (m oneMember) Members() int                               { return 1 }
func (m oneMember) Leave(context.Context)                      {}
func (m oneMember) Claim(_ context.Context, _ context.Context, _ string, c queue.Claim) (queue.Claimed, error) {
	return queue.Claimed{Have: c.Want, Fair: c.Limit}, nil
}

// slowToQuit is a connection to a host that does not answer QUIT.
type slowToQuit struct{ *fakeConn }

func (c slowToQuit) Close(ctx context.Context) { <-ctx.Done() }

// TestNoQuitWithoutLeases: others may have the connections two seconds after the leases are over, so none is kept for as long as a QUIT may take.
func TestNoQuitWithoutLeases(t *testing.T) {
	for _, isOver := range []bool{true, false} { // before the connection is closed, while it is
		synctest.Test(t, func(t *testing.T) {
			w := testWorker(t, newFakeNet())
			life, end := context.WithCancel(t.Context())
			defer end()
			if isOver {
				end()
			}
			begun := time.Now()
			w.pool.end(&pooled{conn: slowToQuit{&fakeConn{}}, life: life}, nil)
			synctest.Wait()
			end()
			w.pool.closing.Wait()
			if took := time.Since(begun); took > 0 {
				t.Errorf("closed after %s", took)
			}
		})
	}
}

// unreadBoard is a cluster of one whose board cannot be read for a while.
type unreadBoard struct {
	throttle.Board
	throttle.Pace
	oneMember
	read chan struct{}
}

func (b unreadBoard) FollowPostings(ctx context.Context, fn func(queue.Posting, bool), looked func(error)) error {
	select {
	case <-b.read:
		data, err := json.Marshal(throttle.Suspension{Name: "example.net", Until: time.Now().Add(time.Hour)})
		fn(queue.Posting{Kind: throttle.KindSuspension, Name: "example.net", Data: data}, true)
		looked(err)
		<-ctx.Done()
	case <-ctx.Done():
	}
	return nil
}

// onTake is a queue that says when jobs are asked for.
type onTake func()

func (f onTake) Deliver(ctx context.Context, _ int, _ func(context.Context, *queue.Delivery)) error {
	f()
	<-ctx.Done()
	return nil
}

// TestJobsAreTakenAfterTheFirstReading: a worker that has just started goes by what operators have set before.
func TestJobsAreTakenAfterTheFirstReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *Worker
		begun, taken, isSuspended := time.Now(), time.Duration(-1), false
		b := unreadBoard{Pace: throttle.Alone(), oneMember: oneMember{t.Context()}, read: make(chan struct{})}
		w = workerWith(t, newFakeNet(), func(o *Options) {
			o.Cluster = b
			o.Queue = onTake(func() {
				taken, isSuspended = time.Since(begun), w.shaping.sites.Suspended("example.net", "", "") != nil
			})
		})
		w.Start()
		time.Sleep(3 * time.Second)
		if taken >= 0 {
			t.Fatalf("jobs were taken after %s, before the first reading", taken)
		}
		close(b.read)
		synctest.Wait()
		if taken < 0 || !isSuspended {
			t.Errorf("jobs taken after %s, with the suspension known: %v", taken, isSuspended)
		}
	})
}
