package delivery

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
	"postroad/delivery/smtpc"
	"postroad/delivery/throttle"
	"postroad/delivery/tlspolicy"
	"postroad/queue"
)

// lane hands jobs out as one lane of the queue does: in order, at most window at a time, and those that were deferred
// again when their time has come.
type lane struct {
	w      *Worker
	free   chan struct{}
	ready  chan queue.Job
	wg     sync.WaitGroup
	mu     sync.Mutex
	done   map[string][]time.Duration // from acceptance to delivery, by domain
	inHand map[string]int             // now, by domain
	most   map[string]int
	moves  int // deferrals
}

func newLane(w *Worker, window int) *lane {
	return &lane{w: w, free: make(chan struct{}, window), ready: make(chan queue.Job, 100000),
		done: make(map[string][]time.Duration), inHand: make(map[string]int), most: make(map[string]int)}
}

func (l *lane) run(ctx context.Context) {
	defer l.wg.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case l.free <- struct{}{}:
		}
		select {
		case <-ctx.Done():
			return
		case job := <-l.ready:
			l.wg.Go(func() {
				l.handle(ctx, job)
				<-l.free
			})
		}
	}
}

func (l *lane) handle(ctx context.Context, job queue.Job) {
	l.mu.Lock()
	l.inHand[job.Domain]++
	l.most[job.Domain] = max(l.most[job.Domain], l.inHand[job.Domain])
	l.mu.Unlock()
	m := &fakeMail{}
	l.w.handle(ctx, job, m)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inHand[job.Domain]--
	if len(m.settled) == 0 {
		return
	}
	s := m.settled[0]
	if len(s.Remaining) == 0 {
		l.done[job.Domain] = append(l.done[job.Domain], time.Since(job.Accepted))
		return
	}
	l.moves++
	if s.Tried {
		job.Tries++
	}
	l.wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-time.After(s.Delay):
			l.ready <- job
		}
	})
}

// worst is the longest time to delivery.
func worst(times []time.Duration) time.Duration {
	var most time.Duration
	for _, d := range times {
		most = max(most, d)
	}
	return most
}

// play sends a backlog of 5000 jobs for domain bad, then one job for good.test every 100 ms for two minutes, all in one lane.
func play(t *testing.T, w *Worker, bad func(i int) string) *lane {
	t.Helper()
	l := newLane(w, w.o.Window/queue.Lanes)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.run(ctx) })
	for i := range 5000 {
		l.ready <- testJob("x@" + bad(i))
	}
	for range 1200 {
		time.Sleep(100 * time.Millisecond)
		l.ready <- testJob("bob@good.test")
	}
	time.Sleep(5 * time.Second)
	cancel()
	wg.Wait()
	w.pool.close()
	return l
}

func TestDeadSiteDoesNotOccupyTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet()
		n.serve("mx.good.test", ok)
		n.refuse("mx.dead.test", connectTimeout) // the worst way to be dead
		l := play(t, testWorker(t, n, "good.test", "dead.test"), func(int) string { return "dead.test" })
		if got := len(l.done["good.test"]); got != 1200 {
			t.Errorf("%d of 1200 were delivered", got)
		}
		// The first two seconds are for finding out that the site is slow.
		late := 0
		for _, d := range l.done["good.test"] {
			if d > 100*time.Millisecond {
				late++
			}
		}
		if longest := worst(l.done["good.test"]); longest > 2500*time.Millisecond || late > 40 {
			t.Errorf("%d of 1200 were late, the longest waited %v", late, longest)
		}
		if dials := n.dialled("mx.dead.test"); dials > 60 {
			t.Errorf("the dead site was dialled %d times", dials)
		}
	})
}

// Not one dead site with many mails, but many with one each.
func TestManyDeadSitesDoNotOccupyTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet()
		n.serve("mx.good.test", ok)
		domains := []string{"good.test"}
		for i := range 200 {
			domains = append(domains, fmt.Sprintf("dead%d.test", i))
			n.refuse("mx."+domains[i+1], connectTimeout)
		}
		w := testWorker(t, n, domains...)
		handleOne(t, w, testJob("bob@good.test"), &fakeMail{}) // a site that was reached lately
		l := play(t, w, func(i int) string { return domains[1+i%200] })
		if got, longest := len(l.done["good.test"]), worst(l.done["good.test"]); got != 1200 || longest > 3*time.Second {
			t.Errorf("%d of 1200 were delivered, the longest waited %v", got, longest)
		}
	})
}

func TestSlowSiteDoesNotOccupyTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet()
		n.serve("mx.good.test", ok)
		n.serve("mx.slow.test", func(ctx context.Context, i int, m smtpc.Message) (smtpc.Result, error) {
			select {
			case <-ctx.Done():
				return every(m, smtpc.Reply{}), ctx.Err()
			case <-time.After(2 * time.Second): // ten a second
			}
			return ok(ctx, i, m)
		})
		l := play(t, testWorker(t, n, "good.test", "slow.test"), func(int) string { return "slow.test" })
		if got, longest := len(l.done["good.test"]), worst(l.done["good.test"]); got != 1200 || longest > 2500*time.Millisecond {
			t.Errorf("%d of 1200 were delivered, the longest waited %v", got, longest)
		}
		if got := len(l.done["slow.test"]); got < 700 { // in 125 s with 20 connections: 1250 at most
			t.Errorf("the slow site got %d, it can take more", got)
		}
		if l.moves > 10000 {
			t.Errorf("%d deferrals for 5000 jobs", l.moves)
		}
	})
}

// Sites that get one message in ten seconds, each over a connection that is busy with it for half of that, have no more than the next one in
// hand: the others of their backlogs come when it is their turn, as fast as the rate lets them. Three that had their shares would fill the window.
func TestSlowRatesDoNotOccupyTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet()
		n.serve("mx.good.test", ok)
		slow := []string{"slow0.test", "slow1.test", "slow2.test"}
		for _, d := range slow {
			n.serve("mx."+d, func(ctx context.Context, i int, m smtpc.Message) (smtpc.Result, error) {
				time.Sleep(5 * time.Second)
				return ok(ctx, i, m)
			})
		}
		w := workerWith(t, n, func(o *Options) {
			o.Window, o.Resolver = 64, testWorker(t, n, append(slow, "good.test")...).o.Resolver
			for _, d := range slow {
				o.Shaping = append(o.Shaping, throttle.Rule{Domain: d, Rate: queue.Rate{Count: 6, Window: time.Minute}, Connections: 1})
			}
		})
		l := newLane(w, w.o.Window/queue.Lanes)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { l.run(ctx) })
		for i := range 6000 {
			time.Sleep(100 * time.Millisecond)
			if i < 600 {
				l.ready <- testJob("x@" + slow[i%3])
			}
			l.ready <- testJob("bob@good.test")
		}
		time.Sleep(5 * time.Second)
		cancel()
		wg.Wait()
		w.pool.close()
		if got, longest := len(l.done["good.test"]), worst(l.done["good.test"]); got != 6000 || longest > 100*time.Millisecond {
			t.Errorf("%d of 6000 were delivered, the longest waited %v", got, longest)
		}
		for _, d := range slow {
			if got := len(l.done[d]); got < 50 || got > 61 { // in 605 s
				t.Errorf("%s got %d, want about 60", d, got)
			}
		}
	})
}

// A site that is fast may have the whole window, be it small or large: nothing is put off.
func TestFastSiteIsNotThrottled(t *testing.T) {
	for _, window := range []int{100, 400, DefaultWindow} {
		synctest.Test(t, func(t *testing.T) {
			n := newFakeNet()
			n.serve("mx.good.test", ok)
			n.serve("mx.fast.test", func(ctx context.Context, i int, m smtpc.Message) (smtpc.Result, error) {
				time.Sleep(20 * time.Millisecond)
				return ok(ctx, i, m)
			})
			w := workerWith(t, n, func(o *Options) {
				o.Window, o.Resolver = window, testWorker(t, n, "good.test", "fast.test").o.Resolver
			})
			l := play(t, w, func(int) string { return "fast.test" })
			if got, moves := len(l.done["fast.test"]), l.moves; got != 5000 || moves != 0 {
				t.Errorf("window %d: got %d of 5000 delivered and %d put off", window, got, moves)
			}
			if got, least := n.dialled("mx.fast.test"), min(DefaultSiteConnections, window/queue.Lanes/2); got < least || got > 100 {
				t.Errorf("window %d: got %d dials, want the connections to be used again", window, got)
			}
		})
	}
}

// A dead site that comes back gets its mail.
func TestE6_74_SiteReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet()
		n.refuse("mx.bad.test", time.Second)
		w := testWorker(t, n, "bad.test")
		l := newLane(w, 100)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { l.run(ctx) })
		for range 500 {
			l.ready <- testJob("x@bad.test")
		}
		time.Sleep(5 * time.Minute)
		if w.gate.deadSites() != 1 {
			t.Error("the site is not known to be dead")
		}
		n.serve("mx.bad.test", ok)
		time.Sleep(2 * time.Hour)
		cancel()
		wg.Wait()
		w.pool.close()
		if got := len(l.done["bad.test"]); got != 500 {
			t.Errorf("%d of 500 were delivered after the site's return", got)
		}
	})
}

func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet()
		n.serve("mx.example.net", func(ctx context.Context, i int, m smtpc.Message) (smtpc.Result, error) {
			select {
			case <-ctx.Done():
				return every(m, smtpc.Reply{Code: 451, Local: true, Phase: smtpc.PhaseData}), &smtpc.Error{Phase: smtpc.PhaseData, Err: ctx.Err()}
			case <-time.After(time.Minute):
			}
			return ok(ctx, i, m)
		})
		for _, patience := range []time.Duration{2 * time.Minute, 10 * time.Second} {
			w := workerWith(t, n, func(o *Options) {
				o.SiteConnections = 1
				o.Resolver = testWorker(t, n, "example.net").o.Resolver
			})
			running, waiting := &fakeMail{}, &fakeMail{}
			q := &handingQueue{w: w, jobs: []*fakeMail{running, waiting}}
			w.o.Queue = q
			w.Start()
			synctest.Wait()
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			err := w.Stop(ctx)
			cancel()
			if took := time.Since(start); err != nil || took > min(patience, time.Minute)+time.Second {
				t.Errorf("Stop took %v: %v", took, err)
			}
			if got, want := len(running.settled), 0; patience > time.Minute && got != 1 || patience < time.Minute && got != want {
				t.Errorf("patience %v: the running dialogue was settled %d times", patience, got)
			}
			if len(waiting.settled) != 0 {
				t.Error("a waiting job was settled: it belongs to another worker now")
			}
			if err := w.Stop(t.Context()); err != nil {
				t.Errorf("second Stop: %v", err)
			}
		}
	})
}

// What a peer has accepted keeps Stop's error, not the mail's fate, in the balance.
func TestStopReportsWhatIsUnsettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet()
		n.serve("mx.example.net", ok)
		w := testWorker(t, n, "example.net")
		m := &fakeMail{settleErr: func(try int) error {
			if try < 60 {
				return errors.New("no leader")
			}
			return nil
		}}
		w.o.Queue = &handingQueue{w: w, jobs: []*fakeMail{m}}
		w.Start()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := w.Stop(ctx); err == nil {
			t.Error("got no error while a delivered job is unsettled")
		}
		time.Sleep(2 * time.Minute)
		m.only(t)
	})
}

// handingQueue hands out its jobs and behaves as queue.Queue.Deliver promises.
type handingQueue struct {
	w    *Worker
	jobs []*fakeMail
}

func (q *handingQueue) Deliver(ctx context.Context, _ int, _ func(context.Context, *queue.Delivery)) error {
	var wg sync.WaitGroup
	for _, m := range q.jobs {
		wg.Go(func() { q.w.handle(context.WithoutCancel(ctx), testJob("bob@example.net"), m) })
		time.Sleep(time.Millisecond)
	}
	<-ctx.Done()
	wg.Wait()
	return nil
}

// slowNames are records of which some names take a minute, or what they want of TLS does.
type slowNames struct{ mxtest.Records }

func (r slowNames) LookupMX(ctx context.Context, domain string) (mx.MXAnswer, error) {
	if strings.HasPrefix(domain, "slow") {
		<-ctx.Done()
		return mx.MXAnswer{}, ctx.Err()
	}
	return r.Records.LookupMX(ctx, domain)
}

func (r slowNames) LookupTLSA(context.Context, string) (mx.TLSAAnswer, error) {
	return mx.TLSAAnswer{}, nil
}

func (r slowNames) LookupTXT(ctx context.Context, name string) ([]string, error) {
	if strings.Contains(name, "lazy") {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, nil
}

func (r slowNames) LookupAlias(context.Context, string) (bool, error) { return false, nil }

func noHosts(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no hosts") }

// TestSlowNamesStopNobody: domains whose name servers are dead leave those alone that were found lately, and a domain that is slow to say what it
// wants of TLS keeps nobody from looking others up.
func TestSlowNamesStopNobody(t *testing.T) {
	for _, c := range []struct {
		name, slow string
		before     bool // the other domain was found before
	}{
		{"name servers are dead", "slow", true},
		{"the policy is slow", "lazy", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newFakeNet()
				records := mxtest.Records{MX: map[string][]mx.MX{}, Hosts: map[string][]string{"mx.example.net": {"198.51.100.1"}}}
				n.serve("mx.example.net", ok)
				records.MX["example.net"] = []mx.MX{{Host: "mx.example.net"}}
				policies := tlspolicy.New(tlspolicy.Options{Names: slowNames{records}, Lookup: noHosts})
				defer policies.Close()
				w := workerWith(t, n, func(o *Options) { o.Resolver, o.TLSPolicies = slowNames{records}, policies })
				if c.before {
					settled(t, w, "bob@example.net")
				}
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				name := func(i int) string { return fmt.Sprintf("%s%d.example", c.slow, i) }
				for i := range w.strangers.slots {
					records.MX[name(i)] = []mx.MX{{Host: "mx.example.net"}}
				}
				for i := range w.strangers.slots {
					domain := name(i)
					wg.Go(func() { w.handle(ctx, testJob("bob@"+domain), &fakeMail{}) })
				}
				synctest.Wait()
				begun := time.Now()
				if s := settled(t, w, "bob@example.net"); len(s.Remaining) > 0 || time.Since(begun) > time.Second {
					t.Errorf("got %+v after %s, want it delivered at once", s, time.Since(begun))
				}
				cancel()
				wg.Wait()
			})
		})
	}
}
