// Package delivery is the role that hands mail on: it takes ready jobs from the queue, finds the hosts for their
// domain, relays, and settles each job by what the hosts said.
//
// The life of one job is in this order: route and MX look-up (resolve.go), admission to the site (gate.go, health.go; leases.go,
// shaping.go and package throttle for what holds in the whole cluster),
// a connection (pool.go, connect.go), one transaction (attempt.go), the outcome of each recipient (outcome.go), what
// follows from it (settle.go, waits.go, package retry) and what the sender is told (notify.go, package bounce).
//
//	w, err := delivery.New(delivery.Options{Queue: q, Hostname: "mx1.example.net", Resolver: resolver})
//	w.Start()
//	…
//	err = w.Stop(ctx)
//
// Nothing that the worker knows of sites has to survive it: the queue alone holds what was promised.
package delivery

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"postroad/delivery/smtpc"
	"postroad/queue"
	"postroad/queue/failpoint"
)

// Worker delivers. Make it with New.
type Worker struct {
	o       Options
	metrics *metrics
	gate    *gate // sites, and domains at the name service
	shaping *shaping
	pool    *pool
	dial    func(ctx context.Context, host string, addr netip.AddrPort, o smtpc.Options) (conn, error)

	strangers  *gate // dials to sites that were not reached lately
	knownSites *memory[string]
	knownNames *memory[string] // of searches that were successful lately
	badHosts   *memory[netip.AddrPort]
	brokenTLS  *memory[netip.AddrPort]
	brokenBDAT *memory[netip.AddrPort]
	own        own

	refusedLogins refusedLogins

	taking  context.Context // ends when nothing new is to be started
	stop    context.CancelFunc
	running context.Context // ends when dialogues are to be broken off
	abort   context.CancelFunc
	ended   chan struct{} // closed when nothing runs any more
	started bool
}

// New checks the options and makes a worker that does nothing yet.
func New(o Options) (*Worker, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	// The queue gives each of its lanes its part of the window, and a domain is always in the same lane: what a site
	// may occupy is reckoned from that.
	lane := max(1, o.Window/queue.Lanes)
	slots := min(o.SiteConnections, max(1, lane/2))
	w := &Worker{
		o:          o,
		gate:       newGate(slots, max(slots+1, lane/4)),
		strangers:  newGate(max(1, lane/2), max(2, 3*lane/4)),
		knownSites: newMemory[string](maxSites, knownSiteKept),
		knownNames: newMemory[string](maxSites, knownSiteKept),
		badHosts:   newMemory[netip.AddrPort](maxHosts, badHostKept),
		brokenTLS:  newMemory[netip.AddrPort](maxHosts, brokenTLSKept),
		brokenBDAT: newMemory[netip.AddrPort](maxHosts, brokenBDATKept),
		dial:       dial,
	}
	if w.metrics, err = newMetrics(o.Registerer, w.gate.deadSites); err != nil {
		return nil, err
	}
	w.pool = newPool(o.Window, w.metrics)
	w.own.names = slices.Concat([]string{o.Hostname}, o.Sources.Hostnames(), o.OwnNames)
	w.own.fixed = slices.Concat(o.Sources.Addrs(), o.OwnAddrs)
	if err := w.openShaping(); err != nil {
		return nil, fmt.Errorf("delivery limits: %w", err)
	}
	if err := w.shaping.register(o.Registerer); err != nil {
		return nil, err
	}
	w.taking, w.stop = context.WithCancel(context.Background())
	w.running, w.abort = context.WithCancel(context.Background())
	w.ended = make(chan struct{})
	return w, nil
}

func dial(ctx context.Context, host string, addr netip.AddrPort, o smtpc.Options) (conn, error) {
	c, err := smtpc.Dial(ctx, host, addr, o)
	if err != nil {
		return nil, err // not the nil *Conn as a conn
	}
	return c, nil
}

// Start begins to take jobs.
func (w *Worker) Start() {
	w.started = true
	go w.run() // Stop waits for it
}

func (w *Worker) run() {
	defer close(w.ended)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { w.pool.reap(w.taking) })
	w.take()
}

// takePause is between two calls of Deliver when the queue could not hand out jobs.
const takePause = time.Second

func (w *Worker) take() {
	w.shaping.sites.Await(w.taking)
	for {
		err := w.o.Queue.Deliver(w.taking, w.o.Window, func(ctx context.Context, d *queue.Delivery) { w.handle(ctx, d.Job, d) })
		if w.taking.Err() != nil {
			return
		}
		w.o.Logger.Error("taking jobs ended, it will be tried again", "error", err)
		select {
		case <-w.taking.Done():
			return
		case <-time.After(takePause):
		}
	}
}

// Stop takes nothing new, lets dialogues end by themselves until ctx ends, then breaks them off: their jobs go to other
// workers. It returns an error when something was still in hand after that: a peer's 250 that the queue has not
// confirmed yet. Calling it again is harmless.
func (w *Worker) Stop(ctx context.Context) error {
	w.stop()
	if !w.started {
		w.abort()
		w.shaping.close(ctx)
		return nil
	}
	err := w.wait(ctx)
	w.abort()
	if err != nil {
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
		defer cancel()
		err = w.wait(short)
	}
	w.pool.close()
	w.shaping.close(context.WithoutCancel(ctx))
	if err != nil {
		return fmt.Errorf("stop delivery: jobs are still being settled: %w", err)
	}
	return nil
}

// abortTimeout is how long dialogues may take to notice that they are broken off.
const abortTimeout = 2 * time.Second

func (w *Worker) wait(ctx context.Context) error {
	select {
	case <-w.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// handle takes one job through an attempt. ctx lives until the queue is closed.
func (w *Worker) handle(ctx context.Context, job queue.Job, m mail) {
	w.metrics.inHand.Inc()
	defer w.metrics.inHand.Dec()
	var a *attempt
	defer func() { w.survive(ctx, job, m, a, recover()) }()

	if w.isComeback(&job) {
		w.takeBack(ctx, job, m)
		return
	}
	if w.hold(ctx, job, m) {
		return
	}
	a = w.newAttempt(job, m)
	defer a.finish()
	defer a.release()
	runCtx, cancel := both(ctx, w.running)
	defer cancel()
	waitCtx, cancelWait := both(runCtx, w.taking)
	defer cancelWait()
	err := a.run(runCtx, waitCtx)
	switch {
	case err == nil:
		a.react()
		a.complete()
		var d decision
		if d, a.isSettled = w.settle(ctx, job, m, a.result); a.isSettled {
			w.account(job, d, a.result)
		}
	case errors.Is(err, queue.ErrGone), waitCtx.Err() != nil:
	default:
		w.o.Logger.Warn("attempt given up, the job will be handed out again", "msg_id", job.ID, "part", job.Part, "error", err)
	}
}

// survive keeps one bad job from ending the process. Recipients who have the mail are settled all the same, or they would get it again each
// time; the others are tried again. a is nil before there is an attempt.
func (w *Worker) survive(ctx context.Context, job queue.Job, m mail, a *attempt, p any) {
	if p == nil {
		return
	}
	w.metrics.panics.Inc()
	w.o.Logger.Error("programming error, the job will be handed out again", "msg_id", job.ID, "panic", p, "stack", string(debug.Stack()))
	if a == nil || a.isSettled || !a.hasDelivered() {
		return
	}
	s := queue.Settlement{Tried: true, Delay: minDelay, Source: a.egress, Reason: "programming error"}
	for i, rcpt := range job.Recipients {
		if reply := a.replies[i]; judge(reply) == delivered {
			s.Facts = append(s.Facts, queue.Event{Type: queue.Delivered, Recipient: rcpt.Path.String(), Client: job.Client, Site: a.site, Code: reply.Code})
		} else {
			s.Remaining = append(s.Remaining, rcpt)
		}
	}
	for err := m.Settle(ctx, s); err != nil; err = m.Settle(ctx, s) {
		w.o.Logger.Warn("the queue did not confirm a settlement", "msg_id", job.ID, "part", job.Part, "delivered", true, "error", err)
		if errors.Is(err, queue.ErrGone) || !pause(ctx, settlePause) {
			return
		}
	}
}

// both is a context that ends with either.
func both(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(other, cancel)
	return ctx, func() { stop(); cancel() }
}

// settlePause is between two tries to record what a peer has accepted.
const settlePause = time.Second

// settle records a result. Once a peer has said 250 it does not give up while ctx lives.
func (w *Worker) settle(ctx context.Context, job queue.Job, m mail, r result) (d decision, isSettled bool) {
	now := time.Now()
	d = w.o.decide(job, r, now)
	isDelivered := d.has(delivered)
	if isDelivered {
		failpoint.Hit("deliver.accepted")
	}
	if err := w.notify(ctx, job, m, &d, now); err != nil {
		if errors.Is(err, queue.ErrGone) {
			return d, false
		}
		w.o.Logger.Warn("notification cannot have the mail with it", "msg_id", job.ID, "error", err)
		if !isDelivered {
			return d, false // handed out again
		}
		if n, ok, err := w.bareNotification(job, d, now); err != nil {
			w.o.Logger.Error("no notification", "msg_id", job.ID, "error", err)
		} else if ok {
			d.Notify = append(d.Notify, n)
		}
	}
	for {
		err := m.Settle(ctx, d.Settlement)
		if err == nil {
			return d, true
		}
		w.o.Logger.Warn("the queue did not confirm a settlement", "msg_id", job.ID, "part", job.Part, "delivered", isDelivered, "error", err)
		if !isDelivered || errors.Is(err, queue.ErrGone) || !pause(ctx, settlePause) {
			return d, false
		}
		d.Notify = nil // if that is what cannot be stored: better no notification than the mail twice
	}
}

// account tells people and metrics what was settled.
func (w *Worker) account(job queue.Job, d decision, r result) {
	w.count(d, r)
	w.countRefusals(job, d)
	w.tellRefusals(job, r, d)
	w.tellEnds(job, r, d)
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (d decision) has(o outcome) bool {
	for _, state := range d.outcomes {
		if state == o {
			return true
		}
	}
	return false
}

// count raises the metrics for a settlement that the queue has confirmed.
func (w *Worker) count(d decision, r result) {
	for _, state := range d.outcomes {
		w.metrics.recipients.WithLabelValues(string(state)).Inc()
	}
	if d.has(deferred) {
		w.metrics.deferrals.WithLabelValues(string(r.cause)).Inc()
	}
	if r.tried {
		w.metrics.duration.Observe(r.took.Seconds())
	}
	if r.inDoubt {
		w.metrics.inDoubt.Inc()
	}
	if len(d.Notify) > 0 {
		for _, report := range d.reports {
			w.metrics.notifications.WithLabelValues(string(report.Action)).Inc()
		}
	}
}
