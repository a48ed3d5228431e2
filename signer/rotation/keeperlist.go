package rotation

import (
	"context"
	"math/rand/v2"
	"time"

	"postroad/signer/keyring"
)

// seenKey is what is kept in mind of one key, for metrics.
type seenKey struct {
	selector  string
	algorithm keyring.Algorithm
	bits      int
	state     keyring.State
	made      time.Time // zero: nobody knows
}

// listAll lists the keys of all domains, again and again.
func (k *Keeper) listAll(ctx context.Context) {
	fails := 0
	for ctx.Err() == nil {
		bounded, cancel := context.WithTimeout(ctx, listLimit)
		entries, err := k.o.Store.Entries(bounded, "")
		cancel()
		if ctx.Err() != nil {
			return
		}
		k.take(entries, err, time.Now())
		pause := around(k.o.LookEvery)
		if err == nil {
			fails = 0
		} else {
			fails++
			pause = min(pause, around(backOff(fails)))
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// backOff is how long to wait after so many failures in a row.
func backOff(fails int) time.Duration {
	d := firstRetry
	for range fails - 1 {
		if d *= 2; d >= lastRetry {
			return lastRetry
		}
	}
	return d
}

// take takes a listing: each domain gets its next pass, and its next check. After
// a listing with an error only what it has is known.
func (k *Keeper) take(entries []keyring.Entry, err error, now time.Time) {
	byDomain := make(map[string][]keyring.Entry)
	for _, e := range entries {
		byDomain[e.Domain] = append(byDomain[e.Domain], e)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		k.answered()
		k.list.end(k.log, "the keys of all domains can be read again")
	} else {
		k.list.begin(k.log, now, "not all keys can be read", err, k.o.Advise(err))
	}
	k.left = 0
	for name, some := range byDomain {
		d := k.domain(name)
		if d == nil {
			k.left++
			continue
		}
		if !d.busy {
			k.plan(name, d, some, now)
		}
	}
	if k.left > 0 {
		k.log.Error("there are more domains than are looked after", "most", maxDomains, "left", k.left)
	}
	for name, d := range k.domains {
		if _, is := byDomain[name]; !is && err == nil && !d.busy && d.next.IsZero() {
			delete(k.domains, name)
		}
	}
	k.spreadChecks(now)
	k.stir()
}

// plan notes the keys of a domain, and when the next pass may find something to
// do. Keeper.mu is held.
func (k *Keeper) plan(name string, d *kept, entries []keyring.Entry, now time.Time) {
	k.note(d, entries, now)
	if k.o.Rotator == nil || d.fails > 0 && !d.next.IsZero() {
		return
	}
	earlier := func(at time.Time) {
		if d.next.IsZero() || at.Before(d.next) {
			d.next = at
		}
	}
	for _, s := range k.o.Policy.steps(name, entries, time.Time{}, now) {
		w := Wait{Step: s}
		if len(w.others()) == 0 {
			earlier(s.Earliest)
		}
	}
	if d.turn.After(now) {
		earlier(d.turn)
	}
}

// note keeps in mind what keys there are.
func (k *Keeper) note(d *kept, entries []keyring.Entry, now time.Time) {
	d.note(entries)
	d.turn, _ = Due(entries, k.o.Policy, now)
}

func (d *kept) note(entries []keyring.Entry) {
	d.keys = d.keys[:0]
	active := make(map[string]bool)
	for _, e := range entries {
		s := seenKey{selector: e.Selector, algorithm: e.Algorithm, bits: e.Bits, state: e.State}
		if len(e.History) > 0 {
			s.made = e.History[0].At
		}
		d.keys = append(d.keys, s)
		active[e.Selector] = e.State == keyring.Active
	}
	for selector := range d.records {
		if !active[selector] {
			delete(d.records, selector)
		}
	}
}

// signs reports that the domain has an RSA key that is Active.
func (d *kept) signs() bool {
	for _, s := range d.keys {
		if s.state == keyring.Active && s.algorithm == keyring.RSA {
			return true
		}
	}
	return false
}

// perDomain is how long after each other the first checks of many domains begin.
const perDomain = 200 * time.Millisecond

// spreadChecks gives a time to domains whose records were never looked up, all
// within CheckEvery. Keeper.mu is held.
func (k *Keeper) spreadChecks(now time.Time) {
	if k.o.CheckEvery == 0 {
		return
	}
	within := min(k.o.CheckEvery, time.Duration(len(k.domains))*perDomain)
	for _, d := range k.domains {
		if d.check.IsZero() && !d.busy && d.isAnyActive() {
			d.check = now.Add(rand.N(within + 1))
		}
	}
}

func (d *kept) isAnyActive() bool {
	for _, s := range d.keys {
		if s.state == keyring.Active {
			return true
		}
	}
	return false
}
