package delivery

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"strconv"
	"time"

	"postroad/delivery/smtpc"
)

// Memories of hosts.
const (
	maxHosts       = 20000
	badHostKept    = 5 * time.Minute
	brokenTLSKept  = time.Hour
	brokenBDATKept = 24 * time.Hour
	knownSiteKept  = time.Hour

	// connectTimeout is for hosts that others can stand in for.
	connectTimeout = 10 * time.Second
	// Names in the gate of what may be slow: all sites that were not reached lately, and all look-ups.
	strangersName = "strangers"
	lookupsName   = "lookups"
)

// connect dials the hosts of the site until one answers. Without a connection the attempt has its result, or there is
// an error.
func (a *attempt) connect(ctx, waitCtx context.Context) (*pooled, verdict, error) {
	if !a.w.knownSites.has(a.path()) {
		// Many dead sites with a few mails each could fill the window with connects that time out.
		pass, refused, err := a.w.strangers.enter(waitCtx, strangersName)
		if pass == nil {
			return nil, verdict{}, a.notIn(refused, err)
		}
		defer pass.done()
		defer pass.leave(verdict{})
	}
	if may, err := a.mayDial(waitCtx); !may {
		return nil, verdict{}, err
	}
	targets, sessions := a.w.sortTargets(a.dest.targets), maxSessions
	if !a.route.NextHop.IsMX() {
		sessions = len(targets) // an operator has named them to stand in for each other
	}
	c, err := a.connectTo(ctx, targets, sessions)
	switch {
	case err == nil:
		a.w.knownSites.add(a.path())
		return c, verdict{}, nil
	case ctx.Err() != nil:
		return nil, verdict{}, ctx.Err()
	case isNoAddr(err):
		a.lostAddr(err)
		return nil, verdict{}, nil
	}
	a.w.metrics.connections.WithLabelValues("failed").Inc()
	reply := errorReply(err)
	a.all(a.job, reply)
	a.tried, a.cause = true, causeConnection
	v := a.failure(err, reply)
	if v.failure != nil {
		a.w.knownSites.remove(a.path())
	}
	return nil, v, nil
}

// failure is what a connection that did not come about says about the site.
func (a *attempt) failure(err error, reply smtpc.Reply) verdict {
	isBusy := reply.Closing() && !reply.Local
	switch {
	case judge(reply) == bounced, isTLS(err), isLogin(err):
		return verdict{isAlive: true} // it answers, and means it
	case isBusy && a.w.knownSites.has(a.path()):
		return verdict{isFull: true}
	}
	v := verdict{failure: &reply, isSlow: isBusy}
	if !reply.Local {
		v.remote = a.host
	}
	return v
}

// connectTo makes a connection to one of the targets, which counts as one of the site's: there is leave for it.
func (a *attempt) connectTo(ctx context.Context, targets []target, sessions int) (made *pooled, err error) {
	defer func() { // also when something panics
		if made == nil {
			a.w.gate.closed(a.pass.site)
		}
	}()
	c, err := a.dialProved(ctx, targets, sessions)
	if err != nil {
		return nil, err
	}
	a.w.metrics.connections.WithLabelValues("opened").Inc()
	a.w.metrics.open.Inc()
	a.conn = &pooled{conn: c, key: a.key, opened: time.Now(), protection: a.protection,
		site: a.pass.site, messages: cmp.Or(a.limits.Messages, a.w.o.ConnectionMessages), closed: a.w.closeOf(a.pass.site), life: a.pass.life}
	return a.conn, nil
}

// dialTargets tries the targets in order, until as many hosts as sessions have spoken. A refusal counts as final only when all agree; a
// 5xx greeting of one host is a reason to ask the next (RFC 5321 §5.1), of the other family if there is one and the refusal is of us.
func (a *attempt) dialTargets(ctx context.Context, targets []target, sessions int) (conn, error) {
	var failure error
	for len(targets) > 0 && sessions > 0 {
		t := targets[0]
		targets = targets[1:]
		c, err := a.dialHost(ctx, t, len(targets) == 0)
		if err == nil {
			a.w.badHosts.remove(t.addr)
			return c, nil
		}
		if ctx.Err() != nil || isNoAddr(err) {
			return nil, err
		}
		if !isTLS(err) && !isLogin(err) {
			a.w.badHosts.add(t.addr)
		}
		a.w.o.Logger.Debug("connection failed", "site", a.site, "host", t.host, "addr", t.addr, "error", err)
		if isSession(err) && !isTLS(err) { // what one host lacks another may have, and REQUIRETLS ends only when all lack it
			sessions--
		}
		reply := errorReply(err)
		if other := otherFamily(targets, t.addr.Addr()); a.route.NextHop.IsMX() && isPolicy(reply) && len(other) > 0 {
			targets = other
		}
		if failure == nil || judge(reply) == deferred {
			failure = err
			a.host, a.addr = t.host, t.addr
		}
	}
	if failure == nil {
		failure = errors.New("the next hop has no host")
	}
	return nil, failure
}

// dialHost dials one address.
func (a *attempt) dialHost(ctx context.Context, t target, isLast bool) (conn, error) {
	o := smtpc.Options{
		Hostname:  a.choice.Source.Hostname,
		LocalAddr: a.choice.Source.Addr(t.addr.Addr()),
		Timeouts:  a.w.o.Timeouts,

		Auth:              a.proof.auth,
		ClientCertificate: a.proof.cert,
	}
	if !isLast && (o.Timeouts.Connect == 0 || o.Timeouts.Connect > connectTimeout) {
		o.Timeouts.Connect = connectTimeout
	}
	o.Tap, o.Chunking = a.tap(), !a.w.o.NoChunking && !a.w.brokenBDAT.has(t.addr)
	return a.dialTLS(ctx, t, o)
}

// sortTargets keeps the order among hosts that are well, and among those that are not.
func (w *Worker) sortTargets(targets []target) []target {
	sorted := make([]target, 0, len(targets))
	var bad []target
	for _, t := range targets {
		if w.badHosts.has(t.addr) {
			bad = append(bad, t)
		} else {
			sorted = append(sorted, t)
		}
	}
	return append(sorted, bad...)
}

func portText(addr netip.AddrPort) string { return strconv.Itoa(int(addr.Port())) }
