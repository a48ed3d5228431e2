package delivery

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/netip"
	"sync/atomic"
	"time"

	"postroad/delivery/route"
	"postroad/delivery/smtpc"
	"postroad/delivery/source"
	"postroad/delivery/throttle"
	"postroad/delivery/tlspolicy"
	"postroad/queue"
)

// mail is the part of *queue.Delivery that an attempt uses; see there.
type mail interface {
	Open(ctx context.Context) (io.ReadCloser, error)
	Size() int64
	Settle(ctx context.Context, s queue.Settlement) error
}

var _ mail = (*queue.Delivery)(nil)

// attempt is one try of one job.
type attempt struct {
	w     *Worker
	job   queue.Job
	mail  mail
	route route.Route
	key   poolKey
	dest  destination
	proof proof
	pass  *pass   // nil until the site lets us in
	conn  *pooled // while it is in use

	limits     throttle.Limits
	turn       time.Time        // until then it may begin to send
	isSent     atomic.Bool      // the message, all of it
	policy     tlspolicy.Domain // what the domain wants of TLS
	protection tlspolicy.Kind   // of the connection dialled last
	choice     *source.Choice   // where it comes from; nil until that is known
	hasSent    bool             // a transaction was begun
	isSettled  bool
	result
}

func (w *Worker) newAttempt(job queue.Job, m mail) *attempt {
	a := &attempt{w: w, job: job, mail: m, route: w.o.Routes.Lookup(queryOf(job))}
	a.startedAt, a.result.route = time.Now(), cmp.Or(a.route.Name, a.route.Match)
	a.key.tls = w.o.TLS
	if a.route.TLS != nil {
		a.key.tls = *a.route.TLS
	}
	if a.needsTLS() {
		a.key.tls = smtpc.TLSVerify // RFC 8689 §4.2.1
	}
	a.key.requireTLS = a.needsTLS()
	return a
}

// run comes to a result, or to an error: then there is nothing to settle, and the queue hands the job out again or has
// dropped it. Waiting ends with waitCtx, dialogues with ctx.
func (a *attempt) run(ctx, waitCtx context.Context) error {
	if a.returned() {
		return nil
	}
	if a.job.Unsigned && !a.job.Deadline.IsOver(a.startedAt) {
		// The signer gave it up. It is never relayed: past its time it ends here, before that it goes back.
		a.all(a.job, smtpc.Reply{Code: 451, Enhanced: "4.7.5", Lines: []string{a.job.Reason}, Phase: phaseRoute, Local: true})
		return nil
	}
	if a.job.Deadline.IsOver(a.startedAt) {
		a.all(a.job, overdue(a.job))
		return nil
	}
	if a.answer() {
		return nil
	}
	if a.suspended() {
		return nil
	}
	if isOver, err := a.screen(ctx); err != nil || isOver {
		return err
	}
	if isReady, err := a.prove(ctx); !isReady {
		return err
	}
	hasHosts, err := a.lookup(ctx, waitCtx)
	if err != nil || !hasHosts {
		return err
	}
	a.site = a.dest.site
	if hasSource, err := a.takeSource(ctx); err != nil || !hasSource {
		return err
	}
	a.findLimits()
	a.key.hosts = hostsKey(a.dest.targets)
	isFull, err := a.visit(ctx, waitCtx)
	if errors.Is(err, errOtherPath) {
		a.finish()
		a.findLimits()
		isFull, err = a.visit(ctx, waitCtx)
	}
	if isFull && err == nil {
		// It waits in line for one of the connections that there are.
		a.finish()
		_, err = a.visit(ctx, waitCtx)
	}
	a.took = time.Since(a.startedAt)
	return err
}

// overdue is what becomes of a mail past the time that its sender set (RFC 2852 §4.1).
func overdue(job queue.Job) smtpc.Reply {
	text := "not delivered by " + job.Deadline.At.UTC().Format(time.RFC3339) + ", as its sender asked"
	if job.Reason != "" {
		text += "; " + job.Reason
	}
	r := localReply(550, "5.4.7", text)
	r.Phase = phaseRoute
	return r
}

// visit waits to be let to the site and relays there. isFull: the site wants no further connection beside those that we
// have.
func (a *attempt) visit(ctx, waitCtx context.Context) (isFull bool, err error) {
	if a.suspended() {
		return false, nil
	}
	pass, refused, err := a.admit(waitCtx)
	if pass == nil {
		return false, a.notIn(refused, err)
	}
	a.pass, a.conn = pass, nil
	hasEnded := false
	var v verdict
	var c *pooled
	defer func() { // also when something panics
		if v.failure != nil {
			a.w.shaping.sites.Waits(a.limits.Path, a.job.Domain) // if that kills the path, it waits for it too
		}
		switch leave := func() { pass.leave(v) }; {
		case !hasEnded && a.conn != nil:
			a.w.pool.end(a.conn, leave)
		case c == nil:
			leave()
		case pass.isSurplus():
			a.w.pool.end(c, leave)
		default:
			a.w.pool.put(c, leave)
		}
		if pass.isProbe && !v.isAlive && v.failure == nil {
			a.w.shaping.sites.EndProbe(a.limits.Path)
		}
	}()
	if throttle.IsSlow(a.limits.Rate) {
		if is, err := a.inTurn(waitCtx); !is {
			return false, err
		}
	}
	ctx, cancel := a.whileLeased(ctx)
	defer cancel()
	v, c, err = a.relay(ctx, waitCtx)
	hasEnded = true
	return v.isFull, err
}

// finish gives the job's place in the window back.
func (a *attempt) finish() {
	if a.pass != nil {
		a.pass.done()
	}
}

func (a *attempt) refuse(r *refusal) {
	a.all(a.job, r.reply)
	a.tried = false
	a.host, a.delay, a.cause = r.remote, r.delay, causeBusy
	if r.isDead {
		a.cause = causeDead
	}
}

// lookup finds the hosts. Domains whose name servers are slow or dead are kept from the window as sites are, one by one
// and all together: many dead domains with a few mails each could fill it too.
func (a *attempt) lookup(ctx, waitCtx context.Context) (found bool, err error) {
	name := lookupName(a.job.Domain, a.route.NextHop)
	if name == "" {
		if _, err := a.find(ctx); err != nil || a.replies != nil {
			return false, err
		}
		a.findPolicy(ctx)
		return true, nil
	}
	one, refused, err := a.w.gate.enter(waitCtx, name)
	if one == nil {
		return false, a.notIn(refused, err)
	}
	defer one.done()
	var v verdict
	defer func() { one.leave(v) }()
	if isIn, err := a.findAmong(ctx, waitCtx, name, &v); !isIn || err != nil || a.replies != nil {
		return false, err
	}
	a.findPolicy(ctx)
	return true, nil
}

// findAmong looks the hosts up, among all other searches unless this one was successful lately. isIn: it came to that.
func (a *attempt) findAmong(ctx, waitCtx context.Context, name string, v *verdict) (isIn bool, err error) {
	if !a.w.knownNames.has(name) {
		all, refused, err := a.w.strangers.enter(waitCtx, lookupsName)
		if all == nil {
			return false, a.notIn(refused, err)
		}
		defer all.done()
		defer all.leave(verdict{})
	}
	*v, err = a.find(ctx)
	switch {
	case v.failure != nil:
		a.w.knownNames.remove(name)
	case err == nil && a.replies == nil:
		a.w.knownNames.add(name)
	}
	return true, err
}

// notIn takes note that a gate did not let us in, and why.
func (a *attempt) notIn(refused *refusal, err error) error {
	if err == nil {
		a.refuse(refused)
	}
	return err
}

// find looks the hosts up. When there are none, the attempt has its replies.
func (a *attempt) find(ctx context.Context) (verdict, error) {
	dest, err := a.w.resolve(ctx, a.job.Domain, a.route)
	switch {
	case err == nil:
		a.dest = dest
		return verdict{isAlive: true}, nil
	case ctx.Err() != nil:
		return verdict{}, ctx.Err()
	}
	reply := lookupReply(err, a.route.NextHop)
	a.all(a.job, reply)
	a.tried, a.cause, a.took = true, causeLookup, time.Since(a.startedAt)
	if reply.Permanent() {
		return verdict{isAlive: true}, nil // the name service works
	}
	return verdict{failure: &reply}, nil
}

// lookupName is the key under which the gate knows a search; empty: there is nothing to look up.
func lookupName(domain string, n route.NextHop) string {
	if n.IsMX() {
		return "mx " + cmp.Or(n.MX, domain)
	}
	for _, e := range n.Endpoints {
		if !e.Addr.IsValid() {
			return "host " + n.String()
		}
	}
	return ""
}

// relay runs the dialogue. It returns what it says about the site, and the connection, if one is to be put back.
func (a *attempt) relay(ctx, waitCtx context.Context) (verdict, *pooled, error) {
	// A job whose mail is gone is done; better to know before anybody is bothered.
	body, err := a.mail.Open(ctx)
	if err != nil {
		return verdict{}, nil, err
	}
	if c := a.w.pool.take(a.key); c != nil {
		a.conn = c
		if is, err := a.inTurn(waitCtx); !is {
			body.Close()
			return verdict{}, c, err
		}
		isStale, err := a.send(ctx, c, body)
		body.Close()
		if err != nil || !isStale {
			a.w.metrics.connections.WithLabelValues("reused").Inc()
			return a.fromOtherFamily(ctx, waitCtx, c, err)
		}
		a.w.metrics.connections.WithLabelValues("stale").Inc()
		a.conn = nil
		a.w.pool.put(c, nil)
		if body, err = a.mail.Open(ctx); err != nil {
			return verdict{}, nil, err
		}
	}
	defer body.Close()
	c, v, err := a.connect(ctx, waitCtx)
	if c == nil {
		return v, nil, err
	}
	if is, err := a.inTurn(waitCtx); !is {
		return verdict{isAlive: true}, c, err
	}
	_, err = a.send(ctx, c, body)
	return a.fromOtherFamily(ctx, waitCtx, c, err)
}

// send runs one transaction. isStale: the connection had served before and turned out to be dead, nothing has happened.
func (a *attempt) send(ctx context.Context, c *pooled, body io.Reader) (isStale bool, err error) {
	a.host, a.addr, a.tls, a.hasSent = c.Host(), c.RemoteAddr(), tlsText(c.TLSState(), c.protection), true
	turn := a.turn
	a.turn = time.Time{}
	res, err := a.transact(ctx, c, body)
	a.tried, a.cause = true, causeReply
	if err == nil && a.proof.auth != nil {
		a.w.refusedLogins.forgive(a.loginKey()) // a connection that was made before may serve who tries it again
	}
	a.replies, a.dsn, a.keepsDeadline, a.inDoubt = res.Recipients, res.DSN, res.Deadline, res.InDoubt
	if len(a.replies) != len(a.job.Recipients) {
		a.all(a.job, errorReply(err))
	}
	if errors.Is(err, smtpc.ErrChunking) {
		a.w.brokenBDAT.add(a.addr)
		a.w.o.Logger.Warn("the host offers CHUNKING and does not know BDAT: mail for it goes by DATA from now on", "site", a.site, "host", a.host)
	}
	if a.hasDelivered() {
		return false, nil
	}
	switch {
	case err == nil:
		return false, nil
	case ctx.Err() != nil && !a.inDoubt:
		return false, ctx.Err() // we broke it off ourselves
	case errors.Is(err, smtpc.ErrBody):
		return false, err // the queue could not give the content: not the peer's fault
	}
	if reply := errorReply(err); reply.Local {
		a.cause = causeConnection
	}
	if isStale = errors.Is(err, smtpc.ErrStale); isStale {
		a.turn = turn // it has not been used
	} else if !c.Reusable() {
		a.w.badHosts.add(a.addr) // it speaks and does not get through: the next try begins with another
	}
	return isStale, nil
}

func (a *attempt) hasDelivered() bool {
	for _, r := range a.replies {
		if judge(r) == delivered {
			return true
		}
	}
	return false
}

// verdict is what a dialogue says about the site: it was reached, at least.
func (a *attempt) verdict() verdict {
	v := verdict{isAlive: true}
	for _, r := range a.replies {
		v.isSlow = v.isSlow || r.Closing() && !r.Local
	}
	return v
}

// errorReply is the reply that stands for an error of smtpc.
func errorReply(err error) smtpc.Reply {
	if err == nil {
		return localReply(451, "4.5.0", "the dialogue ended without an answer")
	}
	if f, ok := errors.AsType[*tlspolicy.Failure](err); ok {
		return tlsReply(f)
	}
	e, ok := errors.AsType[*smtpc.Error](err)
	if !ok {
		return localReply(451, "4.4.2", err.Error())
	}
	r := e.Fate()
	r.Phase = e.Phase
	return r
}

func peerName(host string, addr netip.AddrPort) string {
	return host + "[" + addr.Addr().String() + "]:" + portText(addr)
}
