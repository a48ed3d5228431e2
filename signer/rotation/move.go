package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postroad/signer/keyring"
)

// ErrClosed says that a gate before a step is closed.
var ErrClosed = errors.New("not yet")

// ErrTransit says that the keys of a domain are in a transit engine, and that new
// ones would not be.
var ErrTransit = errors.New("its keys are in the transit engine, and new ones are made there by hand")

// New makes a generation of keys for a domain, by the policy, whether one is due
// or not. An interrupted creation is completed. ErrTransit: see Policy.Local.
func (r *Rotator) New(ctx context.Context, domain string) (Pass, error) {
	name, ok := keyring.CleanDomain(domain)
	if !ok {
		return Pass{}, fmt.Errorf("make keys: %q is no domain name", domain)
	}
	entries, err := r.o.Store.Entries(ctx, name)
	if err != nil {
		return Pass{}, fmt.Errorf("make keys for %s: %w", name, err)
	}
	if InTransit(entries) && !r.o.Policy.Local {
		return Pass{}, fmt.Errorf("make keys for %s: %w", name, ErrTransit)
	}
	return r.makeKeys(ctx, sceneOf(&r.o.Policy, name, entries))
}

func (r *Rotator) makeKeys(ctx context.Context, s *scene) (Pass, error) {
	pass := Pass{}
	now := time.Now()
	for _, e := range s.missing(now) {
		action, wait, err := r.take(ctx, s.createStep(&e, now))
		switch {
		case err != nil:
			return pass, fmt.Errorf("make keys for %s: %w", s.domain, err)
		case wait.Do != "":
			pass.Waiting = append(pass.Waiting, wait)
		default:
			pass.Done = append(pass.Done, action)
		}
	}
	return pass, nil
}

// Move brings one key into another state, alone, through the gates of that
// step: Published and Active by its record, Retiring while another key signs,
// Revoked and Removed by time. Force does not wait for times and queued mail;
// it does not open the gates that keep a domain from signing wrongly or not at
// all: a key is Revoked when no signer can have it any more (Policy.Settle), and
// not before. With ErrClosed, what it waits for is in the Pass.
func (r *Rotator) Move(ctx context.Context, domain, selector string, to keyring.State, force bool) (Pass, error) {
	name, entries, e, err := r.locate(ctx, domain, selector)
	if err != nil {
		return Pass{}, err
	}
	if e.State == to {
		return Pass{}, nil
	}
	step, err := r.moving(entries, &e, to)
	if err != nil {
		return Pass{}, fmt.Errorf("%s of %s: %w", selector, name, err)
	}
	if force {
		step.Gates = slices.DeleteFunc(step.Gates, func(g Gate) bool { return g.Opens != WhenSeen })
		step.Why = "by force"
		if at := e.Since(); to == keyring.Revoked && !at.IsZero() {
			step.Gates = append(step.Gates, timeGate(at.Add(r.o.Policy.Settle), "no signer has it any more"))
		}
	}
	action, wait, err := r.take(ctx, step)
	if err != nil && action.Do != "" {
		return Pass{Done: []Action{action}}, err
	}
	if err != nil {
		return Pass{}, err
	}
	if wait.Do != "" {
		return Pass{Waiting: []Wait{wait}}, fmt.Errorf("%s %s of %s: %w: %s", step.Do, selector, name, errors.Join(wait.Err, ErrClosed), wait.Reason)
	}
	return Pass{Done: []Action{action}}, nil
}

func (r *Rotator) locate(ctx context.Context, domain, selector string) (string, []keyring.Entry, keyring.Entry, error) {
	name, ok := keyring.CleanDomain(domain)
	if !ok {
		return "", nil, keyring.Entry{}, fmt.Errorf("%q is no domain name", domain)
	}
	entries, err := r.o.Store.Entries(ctx, name)
	e, is := find(entries, selector)
	if !is && err == nil {
		err = keyring.ErrNoKey
	}
	if err != nil {
		return "", nil, keyring.Entry{}, fmt.Errorf("find key %s of %s: %w", selector, name, err)
	}
	return name, entries, e, nil
}

// moving is the step from the state of e to another one.
func (r *Rotator) moving(entries []keyring.Entry, e *keyring.Entry, to keyring.State) (Step, error) {
	p := &r.o.Policy
	switch {
	case to == keyring.Published && e.State == keyring.Generated:
		return p.publishStep(e), nil
	case to == keyring.Active && e.State == keyring.Published:
		return p.activateStep(e, "", nil), nil
	case to == keyring.Active && e.State == keyring.Retiring: // its record was never away
		return stepOf(Activate, e, to, "back again", p.seenGate()), nil
	case to == keyring.Retiring && e.State == keyring.Active:
		successor, ok := others(entries, e)
		if !ok {
			return Step{}, errors.New("no other RSA key of the domain is Active, and its mail would wait: activate one first")
		}
		return p.retireStep(e, successor), nil
	case to == keyring.Revoked && e.State == keyring.Retiring:
		return p.revokeStep(e), nil
	case to == keyring.Removed && e.State == keyring.Revoked:
		return p.removeStep(e, "", since(e, p.RemoveAfter, "nobody asks for it any more")), nil
	case to == keyring.Removed && (e.State == keyring.Generated || e.State == keyring.Published):
		return p.removeStep(e, "it never signed"), nil
	}
	return Step{}, fmt.Errorf("there is no way from %s to %s: %s", e.State, to, wayFrom(e.State))
}

func wayFrom(s keyring.State) string {
	switch s {
	case keyring.Generated:
		return "its record has to be published and checked first"
	case keyring.Published:
		return "activate it, or remove it"
	case keyring.Active:
		return "retire it first; if somebody else has its private half, it is compromised"
	case keyring.Retiring:
		return "revoke it first, or activate it again"
	}
	return "its private half is destroyed, make a new key"
}

// others tells when the newest other key came into force, if the domain goes on
// signing, with RSA, without e.
func others(entries []keyring.Entry, e *keyring.Entry) (successor time.Time, ok bool) {
	for _, other := range entries {
		if other.State != keyring.Active || other.Selector == e.Selector {
			continue
		}
		ok = ok || other.Algorithm == keyring.RSA
		if at := other.Since(); at.After(successor) {
			successor = at
		}
	}
	return successor, ok
}

// ErrNoSpare says that nothing could sign in the place of a compromised key.
var ErrNoSpare = errors.New("no other key can sign at once")

// Compromise takes a key out of use whose private half somebody else may have:
// the spare generation becomes Active, then the key is Revoked and its private
// half destroyed, and its record is emptied. What is queued with its signature
// is the caller's. It may be repeated.
//
// ErrNoSpare: no spare is Published, or its record is wrong, and no other RSA
// key is Active; nothing has happened. Force goes on even so: it makes new keys
// and the mail of the domain waits until the DNS has them, with Run. With any
// other error the Pass tells how far it came.
func (r *Rotator) Compromise(ctx context.Context, domain, selector string, force bool) (Pass, error) {
	name, entries, e, err := r.locate(ctx, domain, selector)
	if err != nil {
		return Pass{}, err
	}
	fail := func(pass Pass, err error) (Pass, error) {
		return pass, fmt.Errorf("replace compromised key %s of %s: %w", selector, name, err)
	}
	pass := Pass{}
	if e.State == keyring.Active {
		pass, err = r.replace(ctx, name, entries, &e, force)
		if err != nil {
			return fail(pass, err)
		}
	}
	step := stepOf(Revoke, &e, keyring.Revoked, "compromised")
	if e.State == keyring.Removed {
		return pass, nil
	}
	var left error
	if e.State != keyring.Revoked {
		action, _, err := r.change(ctx, step, step.Why)
		if action.Do == "" {
			return fail(pass, err)
		}
		pass.Done = append(pass.Done, action)
		left = err
	}
	record := recordFor(&step)
	if err := r.publish(ctx, record); err != nil {
		w := failed(step, err)
		w.ByHand = &record
		pass.Waiting = append(pass.Waiting, w)
		left = errors.Join(left, fmt.Errorf("it signs no more, but its record still stands; publish it by hand as %q: %w", record.Value, err))
	}
	if left != nil {
		return fail(pass, left)
	}
	return pass, nil
}

// replace sees to it that the domain signs without e.
func (r *Rotator) replace(ctx context.Context, domain string, entries []keyring.Entry, e *keyring.Entry, force bool) (Pass, error) {
	p := &r.o.Policy
	s := sceneOf(p, domain, entries)
	pass := Pass{}
	for _, key := range s.ready(e) {
		// It was seen everywhere when it became Published. A server that is silent
		// now must not keep a stolen key in use; one that has another record must.
		step := stepOf(Activate, key, keyring.Active, "spare for "+e.Selector)
		report := Check(ctx, r.o.Publication, step.entry, p.Resolvers)
		if !report.known() {
			pass.Waiting = append(pass.Waiting, Wait{Step: step, Report: &report, Reason: firstLines(&report)})
			break // RSA comes first, and Ed25519 must not sign alone
		}
		action, wait, err := r.take(ctx, step)
		if err != nil {
			return pass, err
		}
		if wait.Do != "" {
			pass.Waiting = append(pass.Waiting, wait)
			break
		}
		pass.Done = append(pass.Done, action)
		if action.To == keyring.Active {
			key.State = keyring.Active // in entries too
		}
	}
	if _, ok := others(entries, e); ok {
		return pass, nil
	}
	if !force {
		why := "none is published: make one and wait until the DNS has it (postroad dkim rotate), or force it, and mail waits for as long"
		if len(pass.Waiting) > 0 {
			why = "the spare cannot: " + pass.Waiting[0].Reason
		}
		return pass, fmt.Errorf("%w: %s", ErrNoSpare, why)
	}
	if g := s.spare(); g != nil && !slices.Contains(g.all, e) {
		return pass, nil // it is on its way, and Run brings it into force
	}
	made, err := r.makeKeys(ctx, s)
	return Pass{append(pass.Done, made.Done...), append(pass.Waiting, made.Waiting...)}, err
}

// ready are the keys that can sign in the place of e, RSA first: the rest of a
// generation that comes into force anyway, or a generation that is Published.
func (s *scene) ready(e *keyring.Entry) []*keyring.Entry {
	g := s.handover()
	if g == nil || slices.Contains(g.all, e) {
		g = s.spare()
	}
	var keys []*keyring.Entry
	if g != nil && (g.keys[keyring.RSA] == nil || g.keys[keyring.RSA].State != keyring.Generated) {
		for _, key := range g.all {
			if key.State == keyring.Published {
				keys = append(keys, key)
			}
		}
	}
	if len(keys) == 0 { // perhaps one made by hand
		for i := range s.entries {
			key := &s.entries[i]
			if key.State == keyring.Published && key.Algorithm == keyring.RSA && key.Selector != e.Selector {
				return append(keys, key)
			}
		}
	}
	slices.SortStableFunc(keys, func(a, b *keyring.Entry) int {
		if d := rank(a) - rank(b); d != 0 {
			return d
		}
		return strings.Compare(a.Selector, b.Selector)
	})
	return keys
}
