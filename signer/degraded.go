package signer

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/queue"
	"postroad/signer/keyring"
)

// Reasons for which mail of a domain is not signed as it should be, the label of relay_signer_degraded.
const (
	reasonUnreachable = "unreachable" // the source of keys does not answer
	reasonNoKey       = "no_key"
	reasonBadKey      = "bad_key"
	reasonStale       = "stale" // signed, with keys that the source did not confirm lately
)

const (
	maxDegraded = 10_000 // domains remembered; further ones are not counted
	// degradedFor is how long a domain counts after its last mail: mail that waits for a key comes again every five minutes.
	degradedFor = 15 * time.Minute
	sweepEvery  = 5 * time.Second
	// maxDegradedNamed is how many domains Conditions names.
	maxDegradedNamed = 10
)

// staleness is what a source of keys knows that keeps keys in memory.
type staleness interface {
	// Stale is for how many domains keys are in use that the source did not confirm lately, and since when that is so.
	Stale() (domains int, since time.Time)
}

// degraded remembers for which domains no signature can be made at the moment.
type degraded struct {
	keys keyring.Source

	mu    sync.Mutex
	m     map[string]trouble
	swept time.Time
	lost  time.Time // since when no mail is taken
	why   error
}

// trouble is what a domain's mail waits for.
type trouble struct {
	reason      string
	text        string
	since, last time.Time
}

// note remembers how the last lookup of a domain ended; "": well.
func (d *degraded) note(domain, reason, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if reason == "" {
		delete(d.m, domain)
		return
	}
	now := time.Now()
	d.forget(now)
	t, known := d.m[domain]
	switch {
	case !known && len(d.m) >= maxDegraded:
		return
	case !known && d.m == nil:
		d.m = make(map[string]trouble)
	}
	if t.reason != reason {
		t = trouble{reason: reason, text: text, since: now}
	}
	t.last = now
	d.m[domain] = t
}

// found notes that there are usable keys of a domain. Whether they sign shows when they do.
func (d *degraded) found(domain string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.m[domain].reason; r == reasonNoKey || r == reasonBadKey {
		delete(d.m, domain)
	}
}

// forget drops domains of which no mail came for a while. While no mail is taken that says nothing. The caller holds the lock.
func (d *degraded) forget(now time.Time) {
	if !d.lost.IsZero() || now.Sub(d.swept) < sweepEvery {
		return
	}
	d.swept = now
	for name, t := range d.m {
		if now.Sub(t.last) > degradedFor {
			delete(d.m, name)
		}
	}
}

// lose says that keys are out of reach; nil, that they are back.
func (d *degraded) lose(cause error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.why = cause
	now := time.Now()
	if d.lost = now; cause == nil {
		d.lost = time.Time{}
		for name, t := range d.m { // its mail is looked at again now
			t.last = now
			d.m[name] = t
		}
	}
}

// counts are the domains by reason.
func (d *degraded) counts() map[string]int {
	n := map[string]int{reasonUnreachable: 0, reasonNoKey: 0, reasonBadKey: 0, reasonStale: 0}
	d.mu.Lock()
	d.forget(time.Now())
	for _, t := range d.m {
		n[t.reason]++
	}
	d.mu.Unlock()
	if s, is := d.keys.(staleness); is {
		n[reasonStale], _ = s.Stale()
	}
	return n
}

var degradedDesc = prometheus.NewDesc("relay_signer_degraded",
	"Domains whose mail is not signed as it should be at the moment: its keys are out of reach, missing or unusable, and it waits; or it is signed with keys that were not confirmed lately (stale).",
	[]string{"reason"}, nil)

// Describe implements prometheus.Collector.
func (d *degraded) Describe(ch chan<- *prometheus.Desc) { ch <- degradedDesc }

// Collect implements prometheus.Collector.
func (d *degraded) Collect(ch chan<- prometheus.Metric) {
	for reason, n := range d.counts() {
		ch <- prometheus.MustNewConstMetric(degradedDesc, prometheus.GaugeValue, float64(n), reason)
	}
}

// what a domain's mail waits for, and what to do, by reason.
var advice = map[string]string{
	reasonUnreachable: "it is tried again every minute; if that does not help, see what is said of secrets",
	reasonNoKey:       "make one with `postroad dkim new` and publish its record, then `postroad queue retry --unsigned --author DOMAIN`",
	reasonBadKey:      "put the key right as the text says, then `postroad queue retry --unsigned --author DOMAIN`",
}

// Conditions are what is wrong with signing at the moment. Of the domains whose mail waits the first ten are named.
func (s *Signer) Conditions() []queue.Condition {
	d := &s.degraded
	d.mu.Lock()
	d.forget(time.Now())
	troubles, lost, why := maps.Clone(d.m), d.lost, d.why
	d.mu.Unlock()
	var list []queue.Condition
	add := func(about string, since time.Time, do, format string, args ...any) {
		list = append(list, queue.Condition{Part: "signer", About: about, Text: fmt.Sprintf(format, args...), Do: do, Since: since})
	}
	if !lost.IsZero() {
		add(queue.EveryDomain, lost, "see what is said of secrets; mail is signed and sent by itself when keys are back", "keys are out of reach: %v", why)
	}
	names := slices.SortedFunc(maps.Keys(troubles), func(a, b string) int {
		return cmp.Or(troubles[a].since.Compare(troubles[b].since), cmp.Compare(a, b))
	})
	named := 0
	for _, name := range names {
		t := troubles[name]
		if t.reason == reasonUnreachable && !lost.IsZero() {
			continue // that is said
		}
		if named++; named > maxDegradedNamed {
			add("", t.since, "relay_signer_degraded counts them; the log names them", "mail of more domains waits for keys")
			break
		}
		add(name, t.since, strings.ReplaceAll(advice[t.reason], "DOMAIN", name), "mail of %s waits for its signature: %s", name, t.text)
	}
	if k, is := s.o.Keys.(staleness); is {
		if n, since := k.Stale(); n > 0 {
			add("", since, "see what is said of secrets: keys that were read once go on signing for a day", "mail is signed with keys in memory, for Vault does not confirm them")
		}
	}
	return list
}

// noteLookup notes how the search for keys of a domain ended for a mail.
func (s *Signer) noteLookup(domain string, err error) {
	unsigned, isUnsigned := errors.AsType[*verdict](err)
	switch {
	case isUnsigned && unsigned.do != Hold: // as the rules want it
		if errors.Is(err, keyring.ErrNoKey) {
			s.degraded.note(domain, "", "")
		}
	case errors.Is(err, keyring.ErrNoKey):
		s.degraded.note(domain, reasonNoKey, "there is no DKIM key for it")
	case isUnsigned: // its client may not use the domain, and what becomes of it is the rules' will
	case err == nil: // mail that bears signatures already gets no others
		s.degraded.found(domain)
	case errors.Is(err, keyring.ErrBadKey):
		s.degraded.note(domain, reasonBadKey, err.Error())
	default:
		s.degraded.note(domain, reasonUnreachable, "its keys are out of reach")
	}
}

// noteSigned notes that mail of an author was signed with keys of domain.
func (s *Signer) noteSigned(domain, author string) {
	s.degraded.note(domain, "", "")
	if name, ok := cleanDomain(author); ok && name != domain {
		s.degraded.note(name, "", "")
	}
}

// memory is what a source of keys says that keeps them in memory.
type memory interface {
	// Domains is how many domains there are keys in memory for.
	Domains() int
}

// Summary says in a few words how the keys are.
func (s *Signer) Summary() string {
	var parts []string
	if m, is := s.o.Keys.(memory); is {
		parts = append(parts, "keys in memory: "+domains(m.Domains()))
	}
	n := s.degraded.counts()
	for _, r := range []struct{ reason, text string }{
		{reasonUnreachable, "out of reach"}, {reasonNoKey, "missing"}, {reasonBadKey, "unusable"}, {reasonStale, "not confirmed lately"},
	} {
		if n[r.reason] > 0 {
			parts = append(parts, r.text+": "+domains(n[r.reason]))
		}
	}
	if len(parts) == 0 {
		return "no mail waits for a key"
	}
	return strings.Join(parts, ", ")
}

func domains(n int) string {
	if n == 1 {
		return "1 domain"
	}
	return fmt.Sprintf("%d domains", n)
}
