package rotation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"postroad/signer/keyring"
)

// patience is how long a record may stay unseen before that is a condition.
const patience = 30 * time.Minute

// wait is a step that waits, as long as it does.
type wait struct {
	since time.Time
	text  string // what somebody has to see to; empty: nothing
	do    string // about it
	said  string // in the log
	late  bool   // it is a condition only after some time
}

// pass makes one pass over the keys of a domain and plans the next.
func (k *Keeper) pass(ctx context.Context, domain string) {
	k.with(domain, func(d *kept) { d.next = time.Time{} })
	entries, err := k.o.Store.Entries(ctx, domain)
	if err != nil {
		k.failed(ctx, domain, err)
		return
	}
	pass := Pass{}
	if k.o.Rotator != nil {
		pass, err = k.o.Rotator.Run(ctx, domain, time.Time{})
		k.tellDone(ctx, domain, entries, pass)
		if err == nil && len(pass.Done) > 0 {
			entries, err = k.o.Store.Entries(ctx, domain)
		}
		if err != nil {
			k.failed(ctx, domain, err)
			return
		}
	}
	k.settle(domain, entries, pass)
}

// tellDone says what somebody has to do after steps that were taken.
func (k *Keeper) tellDone(ctx context.Context, domain string, before []keyring.Entry, pass Pass) {
	signed := signs(before)
	for _, a := range pass.Done {
		if a.ByHand != nil {
			k.log.Warn("publish this record", "op", string(a.ByHand.Op), "name", a.ByHand.Name, "value", a.ByHand.Value)
		}
		if a.To == keyring.Active && a.Algorithm == keyring.RSA && !signed {
			signed = true
			k.with(domain, func(d *kept) { d.force = time.Now().Add(k.o.Policy.Settle) })
			k.o.InForce(ctx, domain)
		}
	}
}

func signs(entries []keyring.Entry) bool {
	d := kept{}
	d.note(entries)
	return d.signs()
}

// failed notes that the work on a domain came to no end. If it was the store that
// failed, others may fare the same.
func (k *Keeper) failed(ctx context.Context, domain string, err error) {
	cause := context.Cause(ctx)
	if errors.Is(cause, context.Canceled) {
		return // somebody else goes on
	}
	if cause != nil {
		err = cause
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.domain(domain)
	if d == nil {
		return
	}
	now := time.Now()
	d.fails++
	d.next = now.Add(around(backOff(d.fails)))
	if errors.Is(err, keyring.ErrChanged) || errors.Is(err, keyring.ErrExists) {
		return // others are at work
	}
	log := k.log
	if cause == nil && !errors.Is(err, keyring.ErrBadKey) { // or it is the domain's own trouble
		if len(k.failing) < storeFailures {
			k.failing[domain] = struct{}{}
		}
		if len(k.failing) >= storeFailures {
			log, k.paused = nil, now.Add(storePause)
			k.store.begin(k.log, now, "keys cannot be looked after", err, k.o.Advise(err))
		}
	}
	d.trouble.begin(log, now, "keys of "+domain+" cannot be looked after", err, k.o.Advise(err))
}

// answered notes that the store did what it was asked. Keeper.mu is held.
func (k *Keeper) answered() {
	clear(k.failing)
	k.store.end(k.log, "keys can be looked after again")
}

// briefly is the first of errors that were joined.
func briefly(err error) string {
	const octets = 400
	text, more, _ := strings.Cut(err.Error(), "\n")
	if len(text) > octets {
		text = strings.ToValidUTF8(text[:octets], "") + "…"
	}
	if more != "" {
		text += fmt.Sprintf(" (and %d more)", strings.Count(more, "\n")+1)
	}
	return text
}

// settle takes in what a pass has left.
func (k *Keeper) settle(domain string, entries []keyring.Entry, pass Pass) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	k.answered()
	d := k.domain(domain)
	if d == nil {
		return
	}
	if len(entries) == 0 {
		delete(k.domains, domain)
		return
	}
	d.trouble.end(k.log, "keys of "+domain+" can be looked after again")
	k.note(d, entries, now)
	if pass.Err() == nil {
		d.fails = 0
	} else {
		d.fails++
	}
	waits := make(map[string]*wait)
	for i := range pass.Waiting {
		w := &pass.Waiting[i]
		if len(w.others()) > 0 {
			continue
		}
		id := string(w.Do) + " " + w.Selector
		state := d.waits[id]
		if state == nil {
			state = &wait{since: now}
		}
		waits[id] = state
		state.take(w)
		k.say(w, state)
		if at := k.again(w, state, d.fails, now); d.next.IsZero() || at.Before(d.next) {
			d.next = at
		}
	}
	d.waits = waits
	if k.o.Rotator != nil && d.turn.After(now) && (d.next.IsZero() || d.turn.Before(d.next)) {
		d.next = d.turn
	}
	k.spreadChecks(now)
}

// take puts into words what somebody has to see to.
func (s *wait) take(w *Wait) {
	s.text, s.do, s.late = "", "", false
	step := fmt.Sprintf("%s %s of %s", w.Do, w.Selector, w.Domain)
	switch {
	case w.Err != nil:
		s.text, s.do = step+": "+briefly(w.Err), "it is tried again by itself"
	case w.ByHand != nil:
		s.text = fmt.Sprintf("the record of key %s of %s is not published", w.Selector, w.Domain)
		s.do = fmt.Sprintf("publish what postroad dkim dns %s %s prints; the rest comes by itself", w.Domain, w.Selector)
	case w.Report != nil:
		text, do := w.Report.sum()
		s.text, s.do, s.late = step+" waits until its record is everywhere: "+text, do, true
	case w.Do == Create:
		s.text = fmt.Sprintf("the next key of %s, %s, waits %s", w.Domain, w.Selector, w.Reason)
		s.do = fmt.Sprintf("make it there as docs/vault.md says; or have it made outside: postroad dkim rotate %s --local", w.Domain)
	case w.isStuck():
		s.text, s.do = step+" waits "+w.Reason, fmt.Sprintf("postroad dkim %s %s %s --force", w.Do, w.Domain, w.Selector)
	}
}

// isStuck reports that time will not help.
func (w *Wait) isStuck() bool {
	for _, g := range w.Gates {
		if g.Opens == Never {
			return true
		}
	}
	return w.Report == nil && w.Until.IsZero() && w.Do == Activate
}

// say logs what somebody has to see to, once.
func (k *Keeper) say(w *Wait, s *wait) {
	if s.text == "" || s.text == s.said {
		return
	}
	s.said = s.text
	at := []any{"domain", w.Domain, "selector", w.Selector, "step", string(w.Do)}
	switch {
	case w.Err != nil:
		k.log.Warn("a step with a key went wrong, it is tried again", append(at, "err", w.Err)...)
	case w.ByHand != nil:
		k.log.Warn("publish this record", append(at, "op", string(w.ByHand.Op), "name", w.ByHand.Name, "value", w.ByHand.Value)...)
	case s.late:
		k.log.Info("a key waits for its record", append(at, "reason", w.Reason)...)
	default:
		k.log.Warn("a key waits for somebody to decide", append(at, "reason", w.Reason)...)
	}
}

// again is when to look at a step again.
func (k *Keeper) again(w *Wait, s *wait, fails int, now time.Time) time.Time {
	switch {
	case w.Err != nil:
		return now.Add(around(backOff(fails)))
	case w.Until.After(now):
		return w.Until
	}
	return now.Add(around(min(max(now.Sub(s.since)/4, firstPoll), lastPoll)))
}
