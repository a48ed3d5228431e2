// Package source chooses the egress source of an attempt: the local addresses that a connection comes from, and the name in its EHLO.
//
// Sources are members of pools, with weights; a route names a pool. The choice goes by the message, so that it is the same for
// every try as long as the pool is; a job that was tried before keeps its source (RFC 6647 §4.2: greylisting knows the address), as
// long as there is some process that has it. A source that is new sends a few mails a day first, counted over the whole cluster; what is
// more goes by the others.
//
//	set, err := source.New(source.Options{Sources: sources, Pools: pools, Spender: q})
//	choice, err := set.Choose(ctx, source.Request{Pool: "bulk", Key: id, Recipients: 1, IPv4: true})
//	dial from choice.Source.IPv4 as choice.Source.Hostname
//	choice.Refund() // when nothing was sent
//
// An error is a *Wait: no source can be had now, why, and when to ask again. Check (see there) is what receivers would say of the
// sources: names, SPF and DMARC.
package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"postroad/queue"
	"postroad/queue/address"
)

// Source is where connections come from.
type Source struct {
	Name     string     // empty: the system's choice
	IPv4     netip.Addr // zero: hosts with IPv4 addresses are not tried from it, except by the system's choice
	IPv6     netip.Addr // the same for IPv6
	Hostname string     // in EHLO, an A-label name
	Started  time.Time  // when it began to send; zero: long ago
	Nodes    []string   // processes that should have its addresses; empty: all
}

// Addr is the local address for connections to remote. Without one that is valid the system chooses.
func (s Source) Addr(remote netip.Addr) netip.Addr {
	if remote.Unmap().Is4() {
		return s.IPv4
	}
	return s.IPv6
}

// Reaches reports that the source has the family of remote.
func (s Source) Reaches(remote netip.Addr) bool { return s.Name == "" || s.Addr(remote).IsValid() }

// addrs are the addresses that there are.
func (s Source) addrs() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{s.IPv4, s.IPv6}, func(a netip.Addr) bool { return !a.IsValid() })
}

// Member is a source's part in a pool.
type Member struct {
	Source string
	Weight int // at least 1
}

// SystemPool is the pool of a route that leaves the choice to the system although there is a default pool.
const SystemPool = "system"

// Pool is a weighted set of sources.
type Pool struct {
	Name    string
	Members []Member
}

// Spender counts what new sources send in the whole cluster; *queue.Queue is one.
type Spender interface {
	Spend(ctx context.Context, key string, n int, l queue.Limit) (queue.Spent, error)
	Refund(key string, s queue.Spent)
}

var _ Spender = (*queue.Queue)(nil)

// Options of a Set. With no sources, everything goes by System.
type Options struct {
	Sources []Source
	Pools   []Pool
	Default string // pool for routes that name none; empty: System
	System  Source // what is used without a pool; its Name is empty
	WarmUp  WarmUp
	Spender Spender // required when a source has Started
	Node    string  // name of this process, for Source.Nodes; its machine's name will do too
	Logger  *slog.Logger

	// HasAddr reports that this machine can send from an address; default: it asks the system.
	HasAddr func(netip.Addr) bool
}

// Causes of refused options; match them with errors.Is.
var (
	ErrName    = errors.New("not a name: want letters, digits, dots, - and _, at most 40 of them")
	ErrTwice   = errors.New("is there twice")
	ErrAddress = errors.New("needs an IPv4 or an IPv6 address of its own, or both")
	ErrMember  = errors.New("has a member that is no source, or one twice, or one with a weight that is not 1 to 1000, or none")
	ErrPool    = errors.New("there is no such pool")
)

// Set are the sources of a configuration and what is known of them here. It is safe for concurrent use.
type Set struct {
	o       Options
	sources map[string]Source
	pools   map[string][]Member
	here    presence
	turns   turns
}

// New checks the options and reports everything that is wrong with them.
func New(o Options) (*Set, error) {
	s := &Set{o: o, sources: make(map[string]Source), pools: make(map[string][]Member)}
	if o.Logger == nil {
		s.o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.HasAddr == nil {
		s.o.HasAddr = canBind
	}
	s.here.init(&s.o)
	var wrong []error
	for _, src := range o.Sources {
		if err := s.add(src); err != nil {
			wrong = append(wrong, fmt.Errorf("source %.100q: %w", src.Name, err))
		}
	}
	for _, p := range o.Pools {
		if err := s.addPool(p); err != nil {
			wrong = append(wrong, fmt.Errorf("pool %.100q: %w", p.Name, err))
		}
	}
	if o.Default != "" && !s.HasPool(o.Default) {
		wrong = append(wrong, fmt.Errorf("default pool %.100q: %w", o.Default, ErrPool))
	}
	if err := o.WarmUp.check(); err != nil {
		wrong = append(wrong, err)
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	return s, nil
}

func (s *Set) add(src Source) error {
	if !IsName(src.Name) {
		return ErrName
	}
	if _, exists := s.sources[src.Name]; exists {
		return ErrTwice
	}
	if v4, v6 := src.IPv4, src.IPv6; !v4.IsValid() && !v6.IsValid() || v4.IsValid() && !v4.Is4() || v6.IsValid() && (!v6.Is6() || v6.Is4In6()) {
		return ErrAddress
	}
	for _, addr := range src.addrs() {
		for _, other := range s.sources {
			if slices.Contains(other.addrs(), addr) {
				return fmt.Errorf("%s is %s's: %w", addr, other.Name, ErrAddress)
			}
		}
	}
	name, err := address.Normalize(src.Hostname)
	if err != nil || address.IsLiteral(name) {
		return fmt.Errorf("name for EHLO %.300q: must be a host name", src.Hostname)
	}
	src.Hostname = name
	s.sources[src.Name] = src
	return nil
}

func (s *Set) addPool(p Pool) error {
	if !IsName(p.Name) || p.Name == SystemPool {
		return ErrName
	}
	if _, exists := s.pools[p.Name]; exists {
		return ErrTwice
	}
	seen := make(map[string]bool)
	for _, m := range p.Members {
		if _, exists := s.sources[m.Source]; !exists || seen[m.Source] || m.Weight < 1 || m.Weight > 1000 {
			return ErrMember
		}
		seen[m.Source] = true
	}
	if len(p.Members) == 0 {
		return ErrMember
	}
	s.pools[p.Name] = slices.Clone(p.Members)
	return nil
}

// HasPool reports that there is a pool of that name.
func (s *Set) HasPool(name string) bool {
	_, exists := s.pools[name]
	return exists
}

// Addrs are the addresses of all sources, of this machine or not: mail to them would come back to us.
func (s *Set) Addrs() []netip.Addr {
	var addrs []netip.Addr
	for _, src := range s.o.Sources {
		addrs = append(addrs, src.addrs()...)
	}
	return addrs
}

// Hostnames are the names that the sources call themselves by.
func (s *Set) Hostnames() []string {
	var names []string
	for _, src := range s.sources {
		names = append(names, src.Hostname)
	}
	return names
}

const maxName = 40

// IsName reports a name that a source or a pool may have: it goes into keys, logs and labels.
func IsName(name string) bool {
	if name == "" || len(name) > maxName {
		return false
	}
	for _, r := range name {
		isLetter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !isLetter && r != '.' && r != '-' && r != '_' {
			return false
		}
	}
	return true
}

// canBind asks the system whether it would let us send from addr.
func canBind(addr netip.Addr) bool {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	if err != nil {
		return false
	}
	_ = c.Close() // nothing was sent
	return true
}
