package config

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"time"

	egress "postroad/delivery/source"
	"postroad/queue/address"
)

// Source is where outgoing connections come from.
type Source struct {
	// Name is what pools, logs, limits and `postroad trace` call the source: letters, digits, dots, - and _, at most 40.
	Name string `yaml:"name"`

	// IPv4 is its IPv4 address. Empty: hosts are not tried by IPv4 from this source.
	IPv4 string `yaml:"ipv4" kind:"ip"`

	// IPv6 is its IPv6 address. Empty: hosts are not tried by IPv6 from this source.
	IPv6 string `yaml:"ipv6" kind:"ip"`

	// EHLO is the name that it says in EHLO. Empty takes hostname.
	//
	// Change it to the name that reverse DNS has for its addresses: receivers compare the two, and `postroad source check` does too.
	EHLO string `yaml:"ehlo"`

	// Started is the day on which it began to send, as 2026-11-29 (UTC). While it is new by delivery.warm_up it gets a few recipients a day.
	// Empty: long ago.
	Started string `yaml:"started"`

	// Nodes are the processes that have its addresses, by queue.node or hostname. Empty: all of them.
	//
	// Change it when one configuration is for several machines, each with addresses of its own: a process that should have a source and has
	// not says so in `postroad status`.
	Nodes []string `yaml:"nodes"`
}

// Pool is a set of sources that share the mail of some routes.
type Pool struct {
	// Name is what routes call it. "system" is not to be had: a route says that to leave the choice to the operating system.
	Name string `yaml:"name"`

	// Members are its sources.
	Members []PoolMember `yaml:"members"`
}

// PoolMember is a source in a pool.
type PoolMember struct {
	// Source is the name of the source.
	Source string `yaml:"source"`

	// Weight is its part of the mail beside the weights of the others, 1 to 1000.
	Weight int `yaml:"weight"`
}

// WarmUp is the plan for sources that are new to the receivers.
type WarmUp struct {
	// Days is how long a source is new. 0: there is no plan, and sources send all at once.
	Days int `yaml:"days"`

	// First is how many recipients a new source gets on its first day, in the whole cluster. Each day it gets more by the same factor.
	First int `yaml:"first"`

	// Last is how many it gets on its last day as a new one.
	//
	// Change it to about what it is to carry later.
	Last int `yaml:"last"`
}

func defaultPoolMember() PoolMember { return PoolMember{Weight: 1} }

func defaultWarmUp() WarmUp { return WarmUp{Days: 30, First: 200, Last: 100_000} }

var typePoolMember = reflect.TypeFor[PoolMember]()

// StartedAt is when the source began to send; zero: long ago.
func (s Source) StartedAt() (time.Time, error) {
	if s.Started == "" {
		return time.Time{}, nil
	}
	return time.Parse(time.DateOnly, s.Started)
}

// OwnNamesAndAddrs are what own_hosts names.
func (d *Delivery) OwnNamesAndAddrs() (names []string, addrs []netip.Addr) {
	for _, h := range d.OwnHosts {
		if addr, err := netip.ParseAddr(h); err == nil {
			addrs = append(addrs, addr.Unmap())
		} else {
			names = append(names, h)
		}
	}
	return names, addrs
}

// checkSources looks at each source and pool by itself, then at all of them as delivery does.
func (d *Delivery) checkSources(f *faults) {
	known := len(f.list)
	for i, s := range d.Sources {
		checkSource(f, "delivery.sources["+strconv.Itoa(i)+"]", s, d.Sources[:i])
	}
	for i, p := range d.Pools {
		d.checkPool(f, "delivery.pools["+strconv.Itoa(i)+"]", p, d.Pools[:i])
	}
	if d.Pool != "" && !d.HasPool(d.Pool) {
		f.add("delivery.pool", "there is no pool %q: name one of delivery.pools", d.Pool)
	}
	d.checkPools(f, "delivery.routes", d.Routes)
	if d.Pool != "" && d.LocalAddress != "" {
		f.add("delivery.local_address", "is given beside delivery.pool: the addresses of its sources are used, take one of the two away")
	}
	if w := d.WarmUp; w.Days < 0 || w.Days > 365 {
		f.add("delivery.warm_up.days", "%d is out of range: 0 to 365", w.Days)
	} else if w.Days > 0 && (w.First < 1 || w.Last < w.First || w.Last > 100_000_000) {
		f.add("delivery.warm_up", "first must be at least 1, and last at least as much, at most 100000000")
	}
	if len(f.list) == known { // what the rules above do not see
		if _, err := egress.New(d.SourceOptions("relay.example.com")); err != nil {
			f.add("delivery.sources", "%v", err)
		}
	}
}

// checkPools finds routes whose pool is not there.
func (d *Delivery) checkPools(f *faults, section string, routes []Route) {
	for i, r := range routes {
		if r.Source != "" && r.Source != egress.SystemPool && !d.HasPool(r.Source) {
			f.add(section+"["+strconv.Itoa(i)+"].source", "there is no pool %q: name one of delivery.pools, or system", r.Source)
		}
	}
}

func checkSource(f *faults, setting string, s Source, before []Source) {
	switch {
	case !egress.IsName(s.Name):
		f.add(setting+".name", "%q is no name: letters, digits, dots, - and _, at most 40", s.Name)
	case slices.ContainsFunc(before, func(o Source) bool { return o.Name == s.Name }):
		f.add(setting+".name", "%s is there twice", s.Name)
	}
	if s.IPv4 == "" && s.IPv6 == "" {
		f.add(setting, "has neither ipv4 nor ipv6: give one or both")
	}
	if a, err := netip.ParseAddr(s.IPv4); s.IPv4 != "" && (err != nil || !a.Is4()) {
		f.add(setting+".ipv4", "%q is no IPv4 address", s.IPv4)
	}
	if a, err := netip.ParseAddr(s.IPv6); s.IPv6 != "" && (err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "") {
		f.add(setting+".ipv6", "%q is no IPv6 address", s.IPv6)
	}
	if name, err := address.Normalize(s.EHLO); s.EHLO != "" && (err != nil || address.IsLiteral(name)) {
		f.add(setting+".ehlo", "%q is no name of a host", s.EHLO)
	}
	if _, err := s.StartedAt(); err != nil {
		f.add(setting+".started", "%q is no day: write it as 2026-11-29", s.Started)
	}
}

func (d *Delivery) checkPool(f *faults, setting string, p Pool, before []Pool) {
	switch {
	case p.Name == egress.SystemPool:
		f.add(setting+".name", "%s is the system's choice of addresses: name it otherwise", p.Name)
	case !egress.IsName(p.Name):
		f.add(setting+".name", "%q is no name: letters, digits, dots, - and _, at most 40", p.Name)
	case slices.ContainsFunc(before, func(o Pool) bool { return o.Name == p.Name }):
		f.add(setting+".name", "%s is there twice", p.Name)
	}
	if len(p.Members) == 0 {
		f.add(setting, "has no members: name at least one source")
	}
	for i, m := range p.Members {
		name := setting + ".members[" + strconv.Itoa(i) + "]"
		switch {
		case !slices.ContainsFunc(d.Sources, func(s Source) bool { return s.Name == m.Source }):
			f.add(name+".source", "there is no source %q: name one of delivery.sources", m.Source)
		case slices.ContainsFunc(p.Members[:i], func(o PoolMember) bool { return o.Source == m.Source }):
			f.add(name+".source", "%s is there twice", m.Source)
		case m.Weight < 1 || m.Weight > 1000:
			f.add(name+".weight", "%d is out of range: 1 to 1000", m.Weight)
		}
	}
}

// checkNames looks at what delivery is told of names and name servers.
func (d *Delivery) checkNames(f *faults) {
	for i, r := range d.TrustedResolvers {
		if _, err := netip.ParseAddr(r); err != nil {
			f.add("delivery.trusted_resolvers["+strconv.Itoa(i)+"]", "%q is no IP address", r)
		}
	}
	for i, h := range d.OwnHosts {
		if _, err := netip.ParseAddr(h); err == nil {
			continue
		}
		if name, err := address.Normalize(h); err != nil || address.IsLiteral(name) {
			f.add("delivery.own_hosts["+strconv.Itoa(i)+"]", "%q is neither the name of a host nor an IP address", h)
		}
	}
}

// HasPool tells whether there is a pool of that name.
func (d *Delivery) HasPool(name string) bool {
	return slices.ContainsFunc(d.Pools, func(p Pool) bool { return p.Name == name })
}

// SourceOptions are the sources as delivery takes them. hostname is that of this machine. The settings must have been checked.
func (d *Delivery) SourceOptions(hostname string) egress.Options {
	o := egress.Options{
		Default: d.Pool,
		System:  egress.Source{Hostname: hostname},
	}
	if d.WarmUp.Days > 0 {
		o.WarmUp = egress.WarmUp(d.WarmUp)
	}
	if a, err := netip.ParseAddr(d.LocalAddress); err == nil {
		if a = a.Unmap(); a.Is4() {
			o.System.IPv4 = a
		} else {
			o.System.IPv6 = a
		}
	}
	for _, s := range d.Sources {
		src := egress.Source{Name: s.Name, Hostname: cmp.Or(s.EHLO, hostname), Nodes: s.Nodes}
		src.IPv4, _ = netip.ParseAddr(s.IPv4) // empty stays zero
		src.IPv6, _ = netip.ParseAddr(s.IPv6)
		src.Started, _ = s.StartedAt() // checked
		o.Sources = append(o.Sources, src)
	}
	for _, p := range d.Pools {
		pool := egress.Pool{Name: p.Name}
		for _, m := range p.Members {
			pool.Members = append(pool.Members, egress.Member(m))
		}
		o.Pools = append(o.Pools, pool)
	}
	return o
}
