package delivery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"postroad/delivery/mx"
	"postroad/delivery/route"
	"postroad/delivery/smtpc"
	"postroad/delivery/source"
)

// takeSource chooses where the attempt comes from, and leaves of the targets those that can be reached from there. Not ok: there is no
// source for now, and the attempt has its replies.
func (a *attempt) takeSource(ctx context.Context) (ok bool, err error) {
	hosts := make([]netip.Addr, 0, len(a.dest.targets))
	for _, t := range a.dest.targets {
		hosts = append(hosts, t.addr.Addr())
	}
	choice, err := a.w.o.Sources.Choose(ctx, source.Request{
		Pool: a.route.Source, Key: fmt.Sprintf("%s.%d", a.job.ID, a.job.Part), Recipients: len(a.job.Recipients),
		Last: a.job.Source, LastTry: a.job.LastTry, Began: a.job.Began(), Hosts: hosts,
		Usable: func(source string) bool { return a.w.shaping.sites.Usable(source, a.site) },
	})
	if wait, is := errors.AsType[*source.Wait](err); is {
		a.noSource(wait)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	a.choice, a.egress, a.key.source = choice, choice.Source.Name, choice.Source.Name
	a.dest.targets = slices.DeleteFunc(slices.Clone(a.dest.targets), func(t target) bool { return !choice.Source.Reaches(t.addr.Addr()) })
	return true, nil
}

// noSource puts the job off: it is no fault of the site.
func (a *attempt) noSource(w *source.Wait) {
	a.all(a.job, localReply(451, "4.3.2", w.Text))
	a.tried, a.delay, a.cause = false, w.Delay, causeSource
}

// release gives back what a new source may send when nothing was sent.
func (a *attempt) release() {
	if a.choice != nil && !a.hasSent {
		a.choice.Refund()
	}
}

// path is the egress path: what is counted together, and reused for each other.
func (a *attempt) path() string {
	if a.egress == "" {
		return a.site
	}
	return a.site + "@" + a.egress
}

// isNoAddr reports that the machine does not have the source's address. A connect that fails so is the target's matter: there is no way to
// its family from here, or no port is free for it.
func isNoAddr(err error) bool {
	call, is := errors.AsType[*os.SyscallError](err)
	return is && call.Syscall == "bind" && errors.Is(call.Err, syscall.EADDRNOTAVAIL)
}

// lostAddr puts off a job whose source turned out not to be there.
func (a *attempt) lostAddr(err error) {
	a.w.o.Sources.Look()
	a.w.o.Logger.Warn("no connection from this source", "egress", a.egress, "site", a.site, "error", err)
	a.noSource(&source.Wait{Text: "its source address cannot be used now: " + err.Error(), Delay: minDelay})
}

// Targets after a refusal.

// maxSessions bounds the hosts of a site that may answer one attempt with a refusal (Postfix's smtp_mx_session_limit).
const maxSessions = 2

// isSession reports a failure of a host that was there and spoke. One that takes no mail at all (RFC 7504) does not count: that is only
// final when all say so.
func isSession(err error) bool {
	e, ok := errors.AsType[*smtpc.Error](err)
	return ok && e.Reply != nil && !e.Reply.Local && e.Reply.Code != 521 && e.Reply.Code != 556
}

// isPolicy reports a refusal of us and not of a mail: by the policy codes (RFC 3463 §3.8), or before anything was said of a mail.
func isPolicy(r smtpc.Reply) bool {
	if r.Local || r.Code/100 != 5 {
		return false
	}
	switch r.Phase {
	case smtpc.PhaseGreeting, smtpc.PhaseEhlo:
		return r.Code != 521 && r.Code != 556 // says that there is no mail at all (RFC 7504)
	case smtpc.PhaseMail:
		return subject(r) == "5.7"
	}
	return r.Enhanced == "5.7.25" // no name for the address (RFC 7372 §3.3)
}

// subject is the class and the subject of an enhanced code.
func subject(r smtpc.Reply) string {
	if len(r.Enhanced) < 3 {
		return ""
	}
	return r.Enhanced[:3]
}

// otherFamily leaves of targets those of another family than addr, if there are any.
func otherFamily(targets []target, addr netip.Addr) []target {
	other := make([]target, 0, len(targets))
	for _, t := range targets {
		if t.addr.Addr().Is4() != addr.Is4() {
			other = append(other, t)
		}
	}
	return other
}

// fromOtherFamily sends once more, by the other family, when the first was refused for the address that we came from: what receivers know
// of our IPv4 and of our IPv6 address differs. Where that is not to be had, it stays with the refusal.
func (a *attempt) fromOtherFamily(ctx, waitCtx context.Context, c *pooled, err error) (verdict, *pooled, error) {
	v := a.verdict()
	if err != nil || slices.ContainsFunc(a.replies, func(r smtpc.Reply) bool { return !isPolicy(r) }) {
		return v, c, err
	}
	targets := otherFamily(a.dest.targets, c.RemoteAddr().Addr())
	if len(targets) == 0 {
		return v, c, nil
	}
	first := a.result
	a.conn = nil
	a.w.pool.end(c, nil)
	stay := func() (verdict, *pooled, error) {
		a.result = first
		return v, nil, nil
	}
	if may, err := a.mayDial(waitCtx); err != nil || !may {
		return stay()
	}
	c, err = a.connectTo(ctx, targets, maxSessions-1)
	if err != nil {
		return stay()
	}
	body, err := a.mail.Open(ctx)
	if err != nil {
		a.conn = nil
		a.w.pool.end(c, nil)
		return stay()
	}
	defer body.Close()
	if is, err := a.inTurn(waitCtx); err != nil || !is {
		a.conn = nil
		a.w.pool.put(c, nil)
		return stay()
	}
	_, err = a.send(ctx, c, body)
	return a.verdict(), c, err
}

// own are the names and addresses that mail would come back to us from.
type own struct {
	names []string
	fixed []netip.Addr

	mu      sync.Mutex
	machine []netip.Addr
	looked  time.Time
}

// ownFor is how long the addresses of the machine are believed.
const ownFor = time.Minute

// addrs gives our addresses. Loopback is not among them: what may go there at all is a host that the operator means.
func (o *own) addrs() []netip.Addr {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := time.Now(); o.looked.IsZero() || now.Sub(o.looked) > ownFor {
		o.looked = now
		if list, err := MachineAddrs(); err == nil { // else we go by what we knew
			o.machine = list
		}
	}
	return slices.Concat(o.fixed, o.machine)
}

// MachineAddrs are the addresses of this machine that mail would come back to it from: without loopback and link-local ones.
func MachineAddrs() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list own addresses: %w", err)
	}
	var addrs []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			addrs = append(addrs, p.Addr().Unmap())
		}
	}
	return addrs, nil
}

// mxOptions say which hosts of a route's domains may be tried.
func (w *Worker) mxOptions(r route.Route) mx.Options {
	has4, has6 := w.o.Sources.Families(r.Source)
	return mx.Options{
		Self: w.own.names, SelfAddrs: w.own.addrs(), NoIPv4: !has4, NoIPv6: !has6,
		AllowPrivate: w.o.AllowPrivate || r.AllowPrivate, AllowLiteral: w.o.AllowLiteral,
	}
}
