package source

import (
	"net/netip"
	"time"
)

// State is what is known of a source here, for people.
type State struct {
	Source
	Pools      []Part       // the pools that it is in
	IsExpected bool         // this process should have its addresses
	Missing    []netip.Addr // of its addresses this machine does not have
	IsWarm     bool
	Day        int // of the plan for new ones, from 0; less: it has not begun
	PerDay     int // recipients on that day
}

// Part is what a source has of a pool.
type Part struct {
	Pool   string `json:"pool"`
	Weight int    `json:"weight"`
}

// States lists the sources in the order of the configuration.
func (s *Set) States(now time.Time) []State {
	list := make([]State, 0, len(s.o.Sources))
	for _, given := range s.o.Sources {
		st := State{Source: s.sources[given.Name], IsExpected: s.here.expects(given)}
		for _, addr := range st.addrs() {
			if !s.here.has(addr, now).is {
				st.Missing = append(st.Missing, addr)
			}
		}
		for _, p := range s.o.Pools {
			for _, m := range p.Members {
				if m.Source == given.Name {
					st.Pools = append(st.Pools, Part{p.Name, m.Weight})
				}
			}
		}
		if st.Day, st.IsWarm = s.o.WarmUp.Day(given.Started, now); !st.IsWarm {
			st.PerDay = s.o.WarmUp.PerDay(st.Day)
		}
		list = append(list, st)
	}
	return list
}
