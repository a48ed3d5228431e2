package rotation

import (
	"context"
	"time"

	"postroad/signer/keyring"
)

// verdict is what is known of a record.
type verdict int

const (
	unknown verdict = iota // nobody who was asked could tell, or not everybody
	right
	wrong
)

// recordState is what the DNS said of the record of a key that signs.
type recordState struct {
	verdict verdict
	text    string // what is wrong, or why it is unknown
	do      string // about it
	since   time.Time
	misses  int // looks in a row that told nothing
}

// unknownLooks is how many looks in a row may tell nothing before that is a
// condition: networks have their moments.
const unknownLooks = 2

// checkRecords looks up the records of the keys of a domain that sign. Whatever
// it finds, no key changes by it.
func (k *Keeper) checkRecords(ctx context.Context, domain string) {
	k.with(domain, func(d *kept) { d.check = time.Time{} })
	defer k.with(domain, func(d *kept) {
		if d.isAnyActive() {
			d.check = time.Now().Add(around(k.o.CheckEvery))
		}
	})
	entries, err := k.o.Store.Entries(ctx, domain)
	if err != nil {
		k.failed(ctx, domain, err)
		return
	}
	k.with(domain, func(d *kept) { k.answered(); k.note(d, entries, time.Now()) })
	for _, e := range entries {
		if e.State != keyring.Active {
			continue
		}
		report := Check(ctx, k.o.Publication, e, k.o.Policy.Resolvers)
		if ctx.Err() != nil {
			return
		}
		k.with(domain, func(d *kept) { k.judge(d, &e, &report) })
	}
}

// judge takes in what the DNS says of a record, and logs what is new. Keeper.mu
// is held.
func (k *Keeper) judge(d *kept, e *keyring.Entry, report *Report) {
	s := d.records[e.Selector]
	if s == nil {
		s = &recordState{}
		d.records[e.Selector] = s
	}
	now := time.Now()
	text, do := report.sum()
	become := func(v verdict) {
		if s.verdict != v || s.since.IsZero() {
			s.since = now
		}
		s.verdict, s.text, s.do = v, text, do
	}
	at := []any{"domain", e.Domain, "selector", e.Selector, "name", report.Name}
	switch {
	case report.OK():
		if s.verdict == wrong || s.misses >= unknownLooks {
			k.log.Info("the record of a key that signs is as it should be again", at...)
		}
		become(right)
		s.misses = 0
	case report.known():
		if s.misses++; s.misses == unknownLooks {
			k.log.Warn("not all who should know the record of a key that signs answer", append(at, "problems", text, "do", do)...)
		}
		if s.verdict != wrong { // that is known until somebody says otherwise
			become(unknown)
		}
	default:
		if s.verdict != wrong || s.text != text {
			k.log.Error("the record of a key that signs is wrong: verifiers may refuse its mail", append(at, "problems", text, "do", do)...)
		}
		become(wrong)
		s.misses = 0
	}
}

// complaint is what somebody has to see to; empty: nothing.
func (s *recordState) complaint() string {
	switch {
	case s.verdict == wrong:
		return "verifiers may refuse its mail: " + s.text
	case s.verdict == unknown && s.misses >= unknownLooks:
		return "not all who should know it answer: " + s.text
	}
	return ""
}
