package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"postroad/delivery/mx"
	"postroad/delivery/route"
	"postroad/delivery/smtpc"
)

// target is one address of one host to try.
type target struct {
	host string
	addr netip.AddrPort
	tls  bool // from the first octet

	canonical string // name at the end of the host's aliases
	secureMX  bool   // DNSSEC proves that it is a host of the domain, or the route says so
	secure    bool   // DNSSEC proves its address
}

// destination is where a route leads.
type destination struct {
	site    string
	targets []target
}

// lookupTimeout bounds the search for the hosts of one domain.
const lookupTimeout = 30 * time.Second

var (
	errPrivate = errors.New("the address is private, and the route does not allow that")
)

// resolve finds the hosts for a domain.
func (w *Worker) resolve(ctx context.Context, domain string, r route.Route) (destination, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if r.NextHop.IsMX() {
		hosts, err := mx.Candidates(ctx, w.o.Resolver, cmp.Or(r.NextHop.MX, domain), w.mxOptions(r))
		if err != nil {
			return destination{}, err
		}
		d := destination{site: mx.Site(hosts)}
		for _, h := range hosts {
			d.targets = append(d.targets, target{host: h.Name, addr: netip.AddrPortFrom(h.Addr, route.DefaultPort),
				canonical: h.Canonical, secureMX: h.SecureMX, secure: h.Secure})
		}
		return d, nil
	}
	d := destination{site: r.NextHop.Site()}
	var last error
	for _, e := range r.NextHop.Order(nil) {
		targets, err := w.endpoint(ctx, e, w.o.AllowPrivate || r.AllowPrivate)
		if err != nil {
			last = err
			continue // the next host of the route may be known
		}
		d.targets = append(d.targets, targets...)
	}
	if len(d.targets) == 0 {
		return destination{}, last
	}
	return d, nil
}

// endpoint finds the addresses of a fixed host. A host that was given as a number needs no leave to be private: the
// operator has written it down.
func (w *Worker) endpoint(ctx context.Context, e route.Endpoint, allowPrivate bool) ([]target, error) {
	if e.Addr.IsValid() {
		return []target{{host: e.Name(), addr: netip.AddrPortFrom(e.Addr, e.Port), tls: e.IsTLS, secureMX: true}}, nil
	}
	answer, err := w.o.Resolver.LookupHost(ctx, e.Host)
	if err != nil {
		return nil, fmt.Errorf("find next hop %s: %w", e, err)
	}
	var targets []target
	for _, a := range answer.Addrs {
		addr := a.Unmap()
		if !allowPrivate && !addr.IsGlobalUnicast() || !allowPrivate && addr.IsPrivate() {
			err = fmt.Errorf("next hop %s has %s: %w", e, addr, errPrivate)
			continue
		}
		targets = append(targets, target{host: e.Host, addr: netip.AddrPortFrom(addr, e.Port), tls: e.IsTLS,
			canonical: answer.Canonical, secureMX: true, secure: a.IsSecure})
	}
	if len(targets) == 0 && err == nil {
		err = fmt.Errorf("find next hop %s: %w", e, mx.ErrNoAddress)
	}
	if len(targets) == 0 {
		return nil, err
	}
	return targets, nil
}

// lookupReply is what a failed search means. Only what package mx proved about a recipient's domain is permanent: a
// next hop of the route that cannot be found, host or domain, is a matter of our configuration.
func lookupReply(err error, n route.NextHop) smtpc.Reply {
	reply := localReply(451, "4.4.3", err.Error())
	if e, ok := errors.AsType[*mx.Error](err); ok && n.MX == "" {
		reply.Code, reply.Enhanced = e.Code, e.Enhanced
	}
	reply.Phase = phaseRoute
	return reply
}
