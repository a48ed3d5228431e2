package vault

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of a Client; the label result has the few values of resultOf.
type metrics struct {
	ttl      prometheus.GaugeFunc
	logins   *prometheus.CounterVec
	renewals *prometheus.CounterVec
	requests *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, remaining func() float64) (*metrics, error) {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"result"})
	}
	m := &metrics{
		ttl: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "relay_vault_token_ttl_seconds",
			Help: "How long the token for Vault is good: 0 without one, +Inf for one that never ends.",
		}, remaining),
		logins:   counter("relay_vault_logins_total", "Logins to Vault, by how they ended."),
		renewals: counter("relay_vault_renewals_total", "Renewals of the token, by how they ended."),
		requests: counter("relay_vault_requests_total", "Requests with the token, by how they ended."),
	}
	for _, result := range []string{"ok", "denied", "unavailable", "refused"} {
		m.logins.WithLabelValues(result)
		m.renewals.WithLabelValues(result)
		m.requests.WithLabelValues(result)
	}
	return m, register(r, m.ttl, m.logins, m.renewals, m.requests)
}

func register(r prometheus.Registerer, collectors ...prometheus.Collector) error {
	if r == nil {
		return nil
	}
	var errs []error
	for _, c := range collectors {
		errs = append(errs, r.Register(c))
	}
	return errors.Join(errs...)
}

func resultOf(err error) string {
	switch {
	case err == nil, errors.Is(err, ErrNotFound):
		return "ok"
	case errors.Is(err, ErrDenied):
		return "denied"
	case errors.Is(err, ErrUnavailable):
		return "unavailable"
	}
	return "refused"
}

func (m *metrics) login(err error)   { m.logins.WithLabelValues(resultOf(err)).Inc() }
func (m *metrics) renewal(err error) { m.renewals.WithLabelValues(resultOf(err)).Inc() }
func (m *metrics) request(err error) { m.requests.WithLabelValues(resultOf(err)).Inc() }
