package signer

import "github.com/prometheus/client_golang/prometheus"

// Results of one mail in hand, the label of relay_signer_messages_total.
const (
	resultSigned   = "signed"
	resultUnsigned = "unsigned" // passed on without a signature
	resultHeld     = "held"     // put aside, comes again
	resultExpired  = "expired"  // its time was over
	resultLeft     = "left"     // nothing was done, the queue hands it out again
)

// Whose signature it is, a label of relay_signer_signatures_total.
const (
	kindAuthor = "author" // of the author's domain; ours on notifications
	kindRelay  = "relay"  // of our own domain, on mail of others
)

// Why a mail went without the signature of our own domain that it should have
// had beside its author's, the label of relay_signer_relay_missing_total.
const (
	causeNoKey      = "no_key"
	causeBadKey     = "bad_key"
	causeOutOfReach = "out_of_reach"
	causeFailed     = "failed" // the key did not sign, or not in time
)

type metrics struct {
	messages   *prometheus.CounterVec
	signatures *prometheus.CounterVec
	refused    *prometheus.CounterVec
	noRelay    *prometheus.CounterVec
	seconds    prometheus.Histogram
	inHand     prometheus.Gauge
	outOfReach prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relay_signer_messages_total",
			Help: "Mails that left the signer's hand, by what became of them.",
		}, []string{"result"}),
		signatures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relay_signer_signatures_total",
			Help: "DKIM signatures made, by algorithm and by whose they are: the author's domain's, or our own's on mail of others.",
		}, []string{"algorithm", "kind"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relay_signer_refused_total",
			Help: "Mails in hand whose client may not have them signed by their author's domain, by what is done with them. One that is held counts each time.",
		}, []string{"action"}),
		noRelay: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relay_signer_relay_missing_total",
			Help: "Mails that went without the signature of our own domain beside their author's, by why.",
		}, []string{"cause"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "relay_signer_signing_seconds",
			Help:    "Time to read one content and make all its signatures.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}),
		inHand: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "relay_signer_in_hand_messages",
			Help: "Mails in the signer's hand.",
		}),
		outOfReach: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "relay_signer_keys_out_of_reach",
			Help: "1 while the source of keys does not answer and no mail is taken.",
		}),
	}
	for _, result := range []string{resultSigned, resultUnsigned, resultHeld, resultExpired, resultLeft} {
		m.messages.WithLabelValues(result)
	}
	for _, action := range []Policy{Hold, Pass, Relay} {
		m.refused.WithLabelValues(string(action))
	}
	for _, cause := range []string{causeNoKey, causeBadKey, causeOutOfReach, causeFailed} {
		m.noRelay.WithLabelValues(cause)
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.messages, m.signatures, m.refused, m.noRelay, m.seconds, m.inHand, m.outOfReach} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
