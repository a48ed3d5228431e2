package delivery

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the role. Labels have few values, none of which an outsider chooses.
type metrics struct {
	recipients    *prometheus.CounterVec // by outcome
	deferrals     *prometheus.CounterVec // by cause
	connections   *prometheus.CounterVec // by result
	tls           *prometheus.CounterVec // by version
	tlsPolicy     *prometheus.CounterVec // by kind
	tlsFailures   *prometheus.CounterVec // by result
	notifications *prometheus.CounterVec // by action
	refusals      *prometheus.CounterVec // by class
	reactions     *prometheus.CounterVec // by action
	comebacks     *prometheus.CounterVec // by kind
	open          prometheus.Gauge
	inHand        prometheus.Gauge
	duration      prometheus.Histogram
	inDoubt       prometheus.Counter
	doubleBounces prometheus.Counter
	panics        prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, deadSites func() int) (*metrics, error) {
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "relay_delivery_" + name, Help: help}, []string{label})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "relay_delivery_" + name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "relay_delivery_" + name, Help: help})
	}
	m := &metrics{
		recipients:    vec("recipients_total", "Recipients settled, by outcome: delivered, deferred, bounced, expired or discarded.", "outcome"),
		deferrals:     vec("deferrals_total", "Jobs deferred, by cause: reply, connection, lookup, dead_site, busy_site, route, login or source.", "cause"),
		reactions:     vec("reactions_total", "Reactions to what hosts replied, by action: slow, suspend, switch_source, defer or bounce.", "action"),
		connections:   vec("connections_total", "Connections asked for, by result: opened, reused, stale or failed.", "result"),
		tls:           vec("connections_tls_total", "Connections opened, by TLS version, none, or fallback after a failed handshake.", "version"),
		tlsPolicy:     vec("connections_policy_total", "Connections opened, by what protects them: none, may, encrypt, verify, dane, dane-encrypt, sts, sts-testing.", "policy"),
		tlsFailures:   vec("tls_failures_total", "Sessions that failed or would have failed a TLS policy, by the result types of RFC 8460.", "result"),
		notifications: vec("notifications_total", "Recipients reported on to their senders, by action.", "action"),
		refusals:      vec("refusals_total", "Recipients that were deferred, bounced or given up, by class of the reply.", "class"),
		comebacks:     vec("comebacks_total", "What came back for mail of ours, by kind: failed, delayed, through, feedback, answer, automatic (reply) or foreign; and how many of them had a sender who could not be found (unattributed).", "kind"),
		open:          gauge("connections_open", "Connections open now, idle ones too."),
		inHand:        gauge("jobs_in_hand", "Jobs in hand now."),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "relay_delivery_attempt_duration_seconds", Help: "Time from the start of an attempt to its last reply.",
			Buckets: []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900},
		}),
		inDoubt:       counter("in_doubt_total", "Messages whose connection was lost after their content, before its reply: they may arrive twice."),
		doubleBounces: counter("double_bounces_total", "Failed recipients of mail with the null reverse-path: its sender cannot be told."),
		panics:        counter("panics_total", "Jobs dropped by a programming error; they are handed out again."),
	}
	if reg == nil {
		return m, nil
	}
	dead := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "relay_delivery_dead_sites", Help: "Sites, and domains at the name service, that are not tried for now.",
	}, func() float64 { return float64(deadSites()) })
	for _, c := range []prometheus.Collector{
		m.recipients, m.deferrals, m.connections, m.tls, m.tlsPolicy, m.tlsFailures, m.notifications, m.refusals, m.comebacks, m.reactions, m.open, m.inHand, m.duration,
		m.inDoubt, m.doubleBounces, m.panics, dead,
	} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register delivery metrics: %w", err)
		}
	}
	return m, nil
}
