package rewrite

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what is counted of rules; Rules by themselves keep theirs.
type metrics struct {
	fileErrors    prometheus.Gauge
	loads         *prometheus.CounterVec // result: loaded, refused
	ruleErrors    prometheus.Counter
	fieldsSkipped prometheus.Counter
}

func newMetrics() *metrics {
	const namespace, subsystem = "relay", "ingress_rewrite"
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}
	}
	return &metrics{
		fileErrors: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: "file_errors",
			Help: "Faults in the files of rules and aliases as they lie there now; above 0 an older state of them is in force."}),
		loads:         prometheus.NewCounterVec(counter("loads_total", "Changed files by what became of them."), []string{"result"}),
		ruleErrors:    prometheus.NewCounter(counter("rule_errors_total", "Addresses that stayed as they were because a rule made something of them that is no address.")),
		fieldsSkipped: prometheus.NewCounter(counter("fields_skipped_total", "Header fields with something in them that could not be read as an address.")),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.fileErrors, m.loads, m.ruleErrors, m.fieldsSkipped} {
		errs = append(errs, r.Register(c))
	}
	return errors.Join(errs...)
}
