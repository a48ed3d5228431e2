package source

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"postroad/queue"
)

// hereFor is how long we believe what addresses this machine has.
const hereFor = 30 * time.Second

// presence knows which addresses of sources this machine has.
type presence struct {
	o *Options

	mu   sync.Mutex
	seen map[netip.Addr]sighting
}

type sighting struct {
	is    bool
	since time.Time // that it is so
	at    time.Time // when we looked
}

func (p *presence) init(o *Options) { p.o, p.seen = o, make(map[netip.Addr]sighting) }

// has looks whether the machine has an address.
func (p *presence) has(addr netip.Addr, now time.Time) sighting {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, known := p.seen[addr]
	if known && now.Sub(s.at) < hereFor {
		return s
	}
	is := p.o.HasAddr(addr)
	if !known || s.is != is {
		s.is, s.since = is, now
	}
	s.at = now
	p.seen[addr] = s
	return s
}

// trim gives a source with the addresses only that this machine has; isHere: there is one at least.
func (p *presence) trim(src Source, now time.Time) (here Source, isHere bool) {
	if src.Name == "" {
		return src, true
	}
	if !p.expects(src) {
		return src, false
	}
	for _, addr := range []*netip.Addr{&src.IPv4, &src.IPv6} {
		if addr.IsValid() && !p.has(*addr, now).is {
			*addr = netip.Addr{}
		}
	}
	return src, len(src.addrs()) > 0
}

// expects reports that this process is one of those that should have the source.
func (p *presence) expects(src Source) bool {
	return len(src.Nodes) == 0 || slices.Contains(src.Nodes, p.o.Node) || slices.Contains(src.Nodes, p.o.System.Hostname)
}

// Look makes the next choice look again what addresses this machine has: a connection found that one is not there.
func (s *Set) Look() {
	s.here.mu.Lock()
	defer s.here.mu.Unlock()
	for addr, seen := range s.here.seen {
		seen.at = time.Time{}
		s.here.seen[addr] = seen
	}
}

// Conditions says which sources this process should have and has not.
func (s *Set) Conditions() []queue.Condition {
	now := time.Now()
	var list []queue.Condition
	for _, src := range s.o.Sources {
		if !s.here.expects(src) {
			continue
		}
		var missing []string
		since := now
		for _, addr := range src.addrs() {
			if seen := s.here.has(addr, now); !seen.is {
				missing = append(missing, addr.String())
				since = earlier(since, seen.since)
			}
		}
		if len(missing) == 0 {
			continue
		}
		list = append(list, queue.Condition{Part: "delivery", Since: since,
			Text: fmt.Sprintf("source %s is not used here: this machine has no address %s", src.Name, strings.Join(missing, ", ")),
			Do:   "give the machine the address, or name the nodes that have it in delivery.sources[].nodes"})
	}
	return list
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
