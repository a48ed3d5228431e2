package txt

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// zone is a zone as the resolvers know it.
type zone struct {
	name    string // with the final dot
	minimum time.Duration
	servers []server
	errs    []Answer // servers that cannot be asked, and why
}

// server is one address of a name server.
type server struct {
	host string // with the final dot
	addr netip.AddrPort
}

// findZone finds the zone that a name is in, with its servers.
func (c *Client) findZone(ctx context.Context, name string) (zone, error) {
	soa, err := c.findSOA(ctx, name)
	if err != nil {
		return zone{}, fmt.Errorf("find the zone of %s: %w", bare(name), err)
	}
	z := zone{name: dns.CanonicalName(soa.Hdr.Name), minimum: time.Duration(soa.Minttl) * time.Second}
	if z.name == "." {
		return zone{}, fmt.Errorf("find the zone of %s: there is none but the root: is the domain registered?", bare(name))
	}
	if err := c.findServers(ctx, &z, name); err != nil {
		return zone{}, fmt.Errorf("find the name servers of zone %s: %w", bare(z.name), err)
	}
	return z, nil
}

// findSOA walks from the name up to the apex of its zone. For an alias the
// resolvers answer with the SOA of the target's zone, so its own is found at
// the name above it.
func (c *Client) findSOA(ctx context.Context, name string) (*dns.SOA, error) {
	last := errors.New("no resolver names it")
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		reply, err := c.recurse(ctx, name[off:], dns.TypeSOA)
		if err != nil && (off > 0 || ctx.Err() != nil) {
			return nil, err
		}
		if err != nil {
			last = err // aliases that lead in a circle do this too: the name above may tell
			continue
		}
		if soa := soaFor(reply, name[off:]); soa != nil {
			return soa, nil
		}
	}
	return nil, last
}

// soaFor gives the SOA of the zone that name is in, if the reply tells.
func soaFor(reply *dns.Msg, name string) *dns.SOA {
	for _, rr := range slices.Concat(reply.Answer, reply.Ns) {
		if !strings.EqualFold(rr.Header().Name, name) {
			continue
		}
		switch rr := rr.(type) {
		case *dns.CNAME:
			return nil
		case *dns.SOA:
			return rr
		}
	}
	if len(reply.Answer) > 0 {
		return nil
	}
	for _, rr := range reply.Ns {
		if soa, ok := rr.(*dns.SOA); ok && dns.IsSubDomain(soa.Hdr.Name, name) {
			return soa
		}
	}
	return nil
}

// findServers finds the addresses of all name servers of a zone.
func (c *Client) findServers(ctx context.Context, z *zone, name string) error {
	reply, err := c.recurse(ctx, z.name, dns.TypeNS)
	if err != nil {
		return err
	}
	var hosts []string
	for _, rr := range reply.Answer {
		if ns, ok := rr.(*dns.NS); ok && strings.EqualFold(ns.Hdr.Name, z.name) {
			hosts = append(hosts, dns.CanonicalName(ns.Ns))
		}
	}
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	if len(hosts) == 0 {
		return errors.New("it has no NS records")
	}
	left := max(0, len(hosts)-maxAddresses)
	hosts = hosts[:len(hosts)-left]

	addrs, errs := make([][]netip.Addr, len(hosts)), make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, host := range hosts {
		wg.Go(func() { addrs[i], errs[i] = c.addresses(ctx, host) })
	}
	wg.Wait()
	for i, host := range hosts {
		if errs[i] != nil {
			z.errs = append(z.errs, Answer{Server: bare(host), Zone: bare(z.name), Name: bare(name), Err: errs[i]})
		}
		for _, addr := range addrs[i] {
			if len(z.servers) == maxAddresses {
				left++
				continue
			}
			z.servers = append(z.servers, server{host, netip.AddrPortFrom(addr, c.port)})
		}
	}
	if left > 0 {
		z.errs = append(z.errs, Answer{Server: fmt.Sprintf("%d more", left), Zone: bare(z.name), Name: bare(name), Err: ErrTooMany})
	}
	return nil
}

// addresses gives both families' addresses of a host, at least one if the error is nil.
func (c *Client) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	types := []uint16{dns.TypeA, dns.TypeAAAA}
	replies, errs := make([]*dns.Msg, len(types)), make([]error, len(types))
	var wg sync.WaitGroup
	for i, qtype := range types {
		wg.Go(func() { replies[i], errs[i] = c.recurse(ctx, host, qtype) })
	}
	wg.Wait()
	var addrs []netip.Addr
	for _, reply := range replies {
		if reply == nil {
			continue
		}
		for _, rr := range reply.Answer {
			addr := addressOf(rr)
			if strings.EqualFold(rr.Header().Name, host) && addr.IsValid() && !addr.IsUnspecified() && !addr.IsMulticast() {
				addrs = append(addrs, addr)
			}
		}
	}
	if len(addrs) > 0 {
		return addrs, nil
	}
	if err := cmp.Or(errs...); err != nil {
		return nil, fmt.Errorf("its address cannot be found: %w", err)
	}
	return nil, errors.New("it has no address: correct the NS record, or add an A or AAAA record")
}

// addressOf is the address in an A or AAAA record, or the zero Addr.
func addressOf(rr dns.RR) netip.Addr {
	var addr netip.Addr
	switch rr := rr.(type) {
	case *dns.A:
		addr, _ = netip.AddrFromSlice(rr.A)
	case *dns.AAAA:
		addr, _ = netip.AddrFromSlice(rr.AAAA)
	}
	return addr.Unmap()
}
