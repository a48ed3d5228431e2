package delivery

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// register gives metrics of the limits to reg. None has a label that an outsider chooses.
func (s *shaping) register(reg prometheus.Registerer) error {
	if reg == nil {
		return nil
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "relay_delivery_" + name, Help: help}, value)
	}
	counter := func(name, help string, value func() uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "relay_delivery_" + name, Help: help}, func() float64 { return float64(value()) })
	}
	all := []prometheus.Collector{
		gauge("suspensions", "Sites, domains and paths that are suspended in the cluster.", func() float64 { return float64(s.sites.Counts().Suspensions) }),
		gauge("circuits_open", "Paths that are dead for the whole cluster.", func() float64 { return float64(s.sites.Counts().Circuits) }),
		gauge("slowed_paths", "Paths that get half, because the receiver asked for less.", func() float64 { return float64(s.sites.Counts().Slow) }),
		counter("rate_reservations_total", "Reservations of turns by a rate limit; each is one or more messages.", func() uint64 { return s.pacer.Reservations() }),
		counter("rate_turns_total", "Turns that were reserved.", func() uint64 { return s.pacer.Turns() }),
	}
	if s.slots != nil {
		all = append(all,
			gauge("leased_connections", "Connections that this process has leased of those of the cluster.", func() float64 { return float64(s.slots.Leased()) }),
			counter("lease_claims_total", "Claims of connections, each one change of a lease.", func() uint64 { return s.slots.Claims() }),
			counter("lease_claims_failed_total", "Claims without an answer of the queue.", func() uint64 { return s.slots.Failures() }))
	}
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("register metrics of limits: %w", err)
		}
	}
	return nil
}
