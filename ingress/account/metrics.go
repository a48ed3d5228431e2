package account

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what logins count; every label has a few values only.
type metrics struct {
	logins  *prometheus.CounterVec // mechanism, result
	hashes  prometheus.Counter
	proven  prometheus.Counter
	waiting prometheus.Gauge
	wait    prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	const namespace, subsystem = "relay", "ingress"
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}
	}
	m := &metrics{
		logins:  prometheus.NewCounterVec(counter("auth_total", "Logins by what became of them."), []string{"mechanism", "result"}),
		hashes:  prometheus.NewCounter(counter("auth_hashes_total", "Passwords that had to be hashed.")),
		proven:  prometheus.NewCounter(counter("auth_proven_total", "Passwords that were recognised without a hash.")),
		waiting: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: "auth_hashes_waiting", Help: "Logins that wait for their turn to be hashed."}),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "auth_hash_wait_seconds", Help: "Time from the password to the begin of its hash.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9)}),
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.logins, m.hashes, m.proven, m.waiting, m.wait} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}
