package delivery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"postroad/delivery/smtpc"
	"postroad/delivery/throttle"
	"postroad/queue"
)

// errLapsed says that what is leased of a site's limits may be others' by now, because the queue did not answer.
var errLapsed = errors.New("the leases of this process are over: the queue does not answer")

// shaping is what a worker has of the limits of the cluster.
type shaping struct {
	slots *throttle.Slots // nil: connections are counted by this process alone
	pacer *throttle.Pacer
	sites *throttle.Sites
}

func (w *Worker) openShaping() error {
	w.shaping = &shaping{}
	o := throttle.SitesOptions{Configured: w.o.Shaping, Changed: w.siteChanged, Pace: w.pullPace, Logger: w.o.Logger}
	cluster, members := w.o.Cluster, func() int { return 1 }
	if cluster != nil {
		o.Board = cluster
	}
	var err error
	if w.shaping.sites, err = throttle.NewSites(o); err != nil {
		return err
	}
	if cluster == nil {
		w.shaping.sites.Start()
		w.shaping.pacer = throttle.NewPacer(throttle.Alone(), members)
		return nil
	}
	w.gate.evict = w.pool.evict
	w.gate.died = func(path string, h health) { w.shaping.sites.Died(h.circuit(path)) }
	w.gate.lives = w.shaping.sites.Lives
	w.shaping.slots, err = throttle.NewSlots(cluster, throttle.Users{
		Granted: w.gate.granted,
		Yield:   w.gate.yield,
		Lost:    func() { w.pool.sweep(func(*pooled, time.Time) bool { return false }) },
	})
	if err != nil {
		return err
	}
	w.gate.leases = w.shaping.slots
	w.shaping.pacer = throttle.NewPacer(cluster, w.shaping.slots.Members)
	w.shaping.sites.Start()
	return nil
}

// Conditions are what is wrong with the worker.
func (w *Worker) Conditions() []queue.Condition {
	if w.shaping.slots == nil {
		return nil
	}
	return w.shaping.slots.Conditions()
}

// close gives all leases back. Nothing may be under way any more.
func (s *shaping) close(ctx context.Context) {
	s.sites.Stop()
	s.pacer.Stop()
	if s.slots != nil {
		s.slots.Stop(ctx)
	}
}

// siteChanged takes over what others say about a path.
func (w *Worker) siteChanged(path string) {
	if path == "" {
		return // it is asked for with each job
	}
	if c, isDead := w.shaping.sites.Dead(path); isDead {
		w.gate.know(path, c, true)
	} else {
		w.gate.revive(path)
	}
}

const (
	pullRate    = 50 // jobs a second that are pulled forward where nothing is known of a site
	maxPullRate = 1000
)

// pullPace lets jobs of a path be pulled forward as fast as it can take them, and ends that when it is dead again.
func (w *Worker) pullPace(path string) (time.Duration, error) {
	perSecond := float64(pullRate)
	if path != "" {
		if _, isDead := w.shaping.sites.Dead(path); isDead {
			return 0, errDeadAgain
		}
		if known := w.gate.perSecond(path); known > 0 {
			perSecond = min(max(1, known), maxPullRate)
		}
	}
	return time.Duration(float64(time.Second) / perSecond), nil
}

// errOtherPath says that a rule was set while the job waited, by which it goes by another path.
var errOtherPath = errors.New("the limits have changed")

var errDeadAgain = errors.New("the site is dead again")

// suspended refuses a job that an operator, or a reaction, keeps from being sent.
func (a *attempt) suspended() bool {
	x := a.w.shaping.sites.Suspended(a.job.Domain, a.dest.site, a.limits.Path)
	if x == nil {
		return false
	}
	text := fmt.Sprintf("%s is suspended until %s by %s: %s", x.Name, x.Until.UTC().Format(time.RFC3339), x.Owner, x.Reason)
	a.refuse(&refusal{delay: max(minDelay, min(time.Until(x.Until), maxSuspended)), reply: localReply(451, "4.3.2", text)})
	return true
}

// maxSuspended is for how long a job of a suspended site is put aside at once: it may be resumed by a process that does not know of it.
const maxSuspended = time.Hour

// admit lets the attempt to its path, by what this process and the others know of it.
func (a *attempt) admit(ctx context.Context) (*pass, *refusal, error) {
	path, sites := a.limits.Path, a.w.shaping.sites
	if refused := a.rateRefusal(); refused != nil {
		return nil, refused, nil
	}
	if c, isDead := sites.Dead(path); isDead {
		a.w.gate.know(path, c, false)
	}
	p, refused, err := a.w.gate.enterBy(ctx, a.limits, true)
	if p != nil {
		a.w.gate.trim(p.site)
	}
	if refused != nil && refused.isDead {
		sites.Waits(path, a.job.Domain)
	}
	if p == nil || !p.isProbe || sites.Probe(ctx, path) {
		return p, refused, err
	}
	sites.Waits(path, a.job.Domain)
	refused = p.giveUpProbe()
	return nil, refused, nil
}

// findLimits finds what holds for the attempt. Connections are kept by path, as they are counted.
func (a *attempt) findLimits() {
	a.limits = a.limitsNow()
	a.key.site = a.limits.Path
}

func (a *attempt) limitsNow() throttle.Limits {
	hosts := make([]string, len(a.dest.targets))
	for i, t := range a.dest.targets {
		hosts[i] = t.host
	}
	return a.w.shaping.sites.For(throttle.Query{Domain: a.job.Domain, Site: a.dest.site, Hosts: hosts, Source: a.egress})
}

// rateRefusal is how a job is told that its turn is too far away; nil: it may come in.
func (a *attempt) rateRefusal() *refusal {
	if a.limits.Rate.IsZero() {
		return nil
	}
	delay := a.w.shaping.pacer.Delay(a.limits.Path, a.limits.Rate, a.w.gate.line(a.limits.Path))
	if delay == 0 {
		return nil
	}
	return notYet(&throttle.NotYet{Delay: delay})
}

func notYet(n *throttle.NotYet) *refusal {
	return &refusal{delay: max(minDelay, n.Delay), reply: localReply(451, "4.4.5", n.Error())}
}

// inTurn waits for the attempt's turn to send, by the rate of its path. When it is not to be had soon, the attempt has its result. A turn that an
// earlier connection did not use is good for the next as long as it lasts.
func (a *attempt) inTurn(ctx context.Context) (bool, error) {
	if err := a.leased(); err != nil {
		return false, err
	}
	// It may have waited for a while: what was decided meanwhile holds.
	if limits := a.limitsNow(); limits.Path != a.limits.Path {
		return false, errOtherPath
	} else {
		a.limits = limits
	}
	if a.suspended() {
		return false, nil
	}
	if a.limits.Rate.IsZero() || time.Now().Before(a.turn) {
		return true, nil
	}
	until, err := a.w.shaping.pacer.Turn(ctx, a.limits.Path, a.limits.Rate)
	if err != nil {
		return false, a.noTurn(err)
	}
	a.turn = until
	err = a.leased()
	return err == nil, err
}

// noTurn makes a result of the news that there is no turn soon.
func (a *attempt) noTurn(err error) error {
	n, ok := errors.AsType[*throttle.NotYet](err)
	if !ok {
		return err
	}
	a.refuse(notYet(n))
	return nil
}

// mayDial waits until one more connection may be made. It returns false when the attempt has its result, or with an error.
func (a *attempt) mayDial(ctx context.Context) (bool, error) {
	if err := a.leased(); err != nil {
		return false, err
	}
	if !a.limits.ConnectionRate.IsZero() {
		if _, err := a.w.shaping.pacer.Turn(ctx, throttle.ConnectPrefix+a.limits.Path, a.limits.ConnectionRate); err != nil {
			return false, a.noTurn(err)
		}
	}
	refused, err := a.w.gate.mayConnect(ctx, a.pass.site)
	if refused != nil || err != nil {
		return false, a.notIn(refused, err)
	}
	if err := a.leased(); err != nil {
		a.w.gate.closed(a.pass.site)
		return false, err
	}
	return true, nil
}

// leased makes sure that what was leased is still ours, as far as a clock can tell.
func (a *attempt) leased() error {
	if a.pass != nil && a.pass.life != nil && (a.pass.life.Err() != nil || a.w.shaping.slots.Life() != a.pass.life) {
		return errLapsed
	}
	return nil
}

// whileLeased is a context that ends with the leases too, unless the whole message is sent by then: to hang up between that and its answer
// would send it twice.
func (a *attempt) whileLeased(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.pass.life == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(a.pass.life, func() {
		if !a.isSent.Load() {
			cancel()
		}
	})
	return ctx, func() { stop(); cancel() }
}

// closeOf makes what is to be called when a connection of a path is closed.
func (w *Worker) closeOf(s *site) func() { return func() { w.gate.closed(s) } }

// busyReply says why a job that waited for a connection did not get one.
func busyReply(trouble error) smtpc.Reply {
	if trouble != nil {
		return localReply(451, "4.3.5", "limits cannot be counted: the queue does not answer")
	}
	return localReply(451, "4.4.5", "site is busy: all connections to it are in use")
}
