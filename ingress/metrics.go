package ingress

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what ingress counts; every label has a few values only.
type metrics struct {
	connections      prometheus.Gauge
	connectionsTotal *prometheus.CounterVec // result: admitted, refused, no proxy header
	handshakes       *prometheus.CounterVec // result: done, failed
	messages         *prometheus.CounterVec // result: see outcome, and accepted, repeated
	recipients       prometheus.Counter
	bytes            prometheus.Counter
	duration         prometheus.Histogram
	rejections       *prometheus.CounterVec // code: of our replies
	limited          *prometheus.CounterVec // class: as configured, or other
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	const namespace, subsystem = "relay", "ingress"
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}
	}
	m := &metrics{
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "connections", Help: "Open SMTP connections."}),
		connectionsTotal: prometheus.NewCounterVec(counter("connections_total", "Connections by what became of them."), []string{"result"}),
		handshakes:       prometheus.NewCounterVec(counter("tls_handshakes_total", "TLS handshakes."), []string{"result"}),
		messages:         prometheus.NewCounterVec(counter("messages_total", "Messages by what became of them."), []string{"result"}),
		recipients:       prometheus.NewCounter(counter("recipients_total", "Recipients of accepted messages.")),
		bytes:            prometheus.NewCounter(counter("message_bytes_total", "Octets of accepted messages.")),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Subsystem: subsystem,
			Name: "message_seconds", Help: "Time from the begin of the content to the queue's confirmation.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}),
		limited:    prometheus.NewCounterVec(counter("limited_total", "Messages that were over a client's limit."), []string{"class"}),
		rejections: prometheus.NewCounterVec(counter("rejections_total", "Replies of 4xx and 5xx."), []string{"code"}),
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.connections, m.connectionsTotal, m.handshakes, m.messages,
		m.recipients, m.bytes, m.duration, m.rejections, m.limited} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

// outcome is the metrics label of a message that was not accepted.
func outcome(r *refusal) string {
	switch {
	case r == errFull:
		return "full"
	case r == errUnavailable:
		return "unavailable"
	case r == errVanished, r == errStalled, r == errAborted, r == errShutdown:
		return "broken"
	default:
		return "refused"
	}
}
