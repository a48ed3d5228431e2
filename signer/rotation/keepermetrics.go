package rotation

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/signer/keyring"
)

// maxKeysShown is how many keys may be there, without those that are revoked or
// removed, for each to have metrics of its own. When there are more, only totals
// are exported.
const maxKeysShown = 1000

// collector exports what a Keeper knows, while it runs: one process of a cluster.
type collector struct {
	k *Keeper

	keys, wrong, unknown, ageless, oldest *prometheus.Desc
	age, bits, due, ok                    *prometheus.Desc
}

func newCollector(k *Keeper) prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("relay_dkim_"+name, help, labels, nil)
	}
	const few = " Not exported when there are more than 1000 keys."
	return &collector{
		k:       k,
		keys:    desc("keys", "DKIM keys of all domains, by state.", "state"),
		wrong:   desc("records_wrong", "Keys that sign whose record in the DNS is wrong or missing."),
		unknown: desc("records_unknown", "Keys that sign whose record in the DNS is not known: never looked up, or not everybody answered."),
		ageless: desc("keys_without_age", "Keys that sign of which nobody wrote down when they were made."),
		oldest:  desc("oldest_key_age_seconds", "Age of the oldest key that signs."),
		age:     desc("key_age_seconds", "Time since a key was made."+few, "domain", "selector", "state"),
		bits:    desc("key_bits", "Size of a key, 256 for Ed25519."+few, "domain", "selector", "algorithm"),
		due:     desc("key_due_seconds", "Time until a key that signs is to be replaced, negative when it is overdue."+few, "domain", "selector"),
		ok:      desc("record_ok", "1 when all who were asked have the record of a key that signs, 0 when some have another one or none."+few, "domain", "selector"),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.keys, c.wrong, c.unknown, c.ageless, c.oldest, c.age, c.bits, c.due, c.ok} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	k := c.k
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.leads {
		return
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	now := time.Now()
	states := map[keyring.State]int{keyring.Generated: 0, keyring.Published: 0, keyring.Active: 0, keyring.Retiring: 0, keyring.Revoked: 0, keyring.Removed: 0}
	verdicts := make(map[verdict]int)
	live, ageless, oldest := 0, 0, time.Duration(0)
	for _, d := range k.domains {
		for _, s := range d.keys {
			states[s.state]++
			if !s.state.Gone() {
				live++
			}
			if s.state != keyring.Active {
				continue
			}
			verdicts[d.verdictOf(s.selector)]++
			if s.made.IsZero() {
				ageless++
			} else {
				oldest = max(oldest, now.Sub(s.made))
			}
		}
	}
	for state, n := range states {
		gauge(c.keys, float64(n), string(state))
	}
	gauge(c.ageless, float64(ageless))
	gauge(c.oldest, oldest.Seconds())
	if k.o.CheckEvery > 0 {
		gauge(c.wrong, float64(verdicts[wrong]))
		gauge(c.unknown, float64(verdicts[unknown]))
	}
	if live > maxKeysShown {
		return
	}
	for name, d := range k.domains {
		for _, s := range d.keys {
			if !s.state.Gone() {
				c.collectKey(gauge, name, d, &s, now)
			}
		}
	}
}

// collectKey exports one key.
func (c *collector) collectKey(gauge func(*prometheus.Desc, float64, ...string), domain string, d *kept, s *seenKey, now time.Time) {
	if !s.made.IsZero() {
		gauge(c.age, now.Sub(s.made).Seconds(), domain, s.selector, string(s.state))
	}
	gauge(c.bits, float64(s.bits), domain, s.selector, string(s.algorithm))
	if s.state != keyring.Active {
		return
	}
	if !d.turn.IsZero() {
		gauge(c.due, d.turn.Sub(now).Seconds(), domain, s.selector)
	}
	switch d.verdictOf(s.selector) {
	case right:
		gauge(c.ok, 1, domain, s.selector)
	case wrong:
		gauge(c.ok, 0, domain, s.selector)
	}
}

func (d *kept) verdictOf(selector string) verdict {
	if s := d.records[selector]; s != nil {
		return s.verdict
	}
	return unknown
}
