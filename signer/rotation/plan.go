package rotation

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"postroad/signer/keyring"
)

// Do is what a step does with a key.
type Do string

// The kinds of steps.
const (
	Create   Do = "create"   // make a key
	Publish  Do = "publish"  // have its record published, and see it
	Activate Do = "activate" // let it sign
	Retire   Do = "retire"   // let it sign no more
	Revoke   Do = "revoke"   // empty its record, destroy its private half
	Remove   Do = "remove"   // have its record deleted, and burn its selector
)

// Step is one change of state of one key.
type Step struct {
	Do        Do                `json:"do"`
	Domain    string            `json:"domain"`
	Selector  string            `json:"selector"`
	Algorithm keyring.Algorithm `json:"algorithm"`
	From      keyring.State     `json:"from,omitempty"` // empty for Create
	To        keyring.State     `json:"to"`
	Gates     []Gate            `json:"gates,omitempty"` // all must be open
	// Earliest is when the step can be taken if all gates that have no known time
	// open at once.
	Earliest time.Time `json:"earliest"`
	Why      string    `json:"why,omitempty"`

	entry keyring.Entry
}

// String is the step in words, with its gates.
func (s Step) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s of %s", s.Do, s.Selector, s.Domain)
	if s.Why != "" {
		fmt.Fprintf(&b, " (%s)", s.Why)
	}
	for i, g := range s.Gates {
		b.WriteString([]string{", when ", " and "}[min(i, 1)] + g.String())
	}
	return b.String()
}

// Opens is what opens a gate.
type Opens string

// The kinds of gates.
const (
	WhenSeen   Opens = "seen"   // every server has the record
	WhenCached Opens = "cached" // no resolver remembers that there was none
	WhenFirst  Opens = "first"  // other keys have come so far
	WhenTime   Opens = "time"   // a time has come
	WhenSent   Opens = "sent"   // no queued mail bears a signature of the key
	Never      Opens = "never"  // nobody knows; somebody has to decide
)

// Gate is what must be true before a step.
type Gate struct {
	Opens  Opens     `json:"opens"`
	Until  time.Time `json:"until,omitzero"`   // WhenTime
	Others []string  `json:"others,omitempty"` // selectors; WhenFirst
	Text   string    `json:"text"`
}

func (g Gate) String() string { return g.Text }

func timeGate(until time.Time, why string) Gate {
	return Gate{Opens: WhenTime, Until: until, Text: fmt.Sprintf("it is %s (%s)", until.UTC().Format(time.DateTime+"Z"), why)}
}

// stepOf makes the step of a key that is there.
func stepOf(do Do, e *keyring.Entry, to keyring.State, why string, gates ...Gate) Step {
	return Step{Do: do, Domain: e.Domain, Selector: e.Selector, Algorithm: e.Algorithm, From: e.State, To: to, Why: why, Gates: gates, entry: *e}
}

func (p *Policy) seenGate() Gate {
	return Gate{Opens: WhenSeen, Text: fmt.Sprintf("all authoritative servers and %d resolvers have its record", p.Resolvers)}
}

func (p *Policy) publishStep(e *keyring.Entry) Step {
	return stepOf(Publish, e, keyring.Published, "", p.seenGate())
}

func (p *Policy) activateStep(e *keyring.Entry, why string, first []string) Step {
	s := stepOf(Activate, e, keyring.Active, why, p.seenGate(),
		Gate{Opens: WhenCached, Text: "no resolver remembers any more that there was no record"})
	if len(first) > 0 {
		s.Gates = append(s.Gates, Gate{Opens: WhenFirst, Others: first, Text: "it is done with " + strings.Join(first, " and ")})
	}
	return s
}

func (p *Policy) retireStep(e *keyring.Entry, successor time.Time) Step {
	return stepOf(Retire, e, keyring.Retiring, "its successor signs", timeGate(successor.Add(p.Settle), "all signers know the new key"))
}

func (p *Policy) revokeStep(e *keyring.Entry) Step {
	return stepOf(Revoke, e, keyring.Revoked, "", since(e, max(p.Overlap, p.Settle), "mail that it signed has arrived or expired"),
		Gate{Opens: WhenSent, Text: "no queued mail bears its signature"})
}

func (p *Policy) removeStep(e *keyring.Entry, why string, gates ...Gate) Step {
	return stepOf(Remove, e, keyring.Removed, why, gates...)
}

// since is a gate that opens some time after the key came into its state.
func since(e *keyring.Entry, wait time.Duration, why string) Gate {
	at := e.Since()
	if at.IsZero() {
		return Gate{Opens: Never, Text: fmt.Sprintf("somebody decides: it is %s and nobody wrote down since when", e.State)}
	}
	return timeGate(at.Add(wait), why)
}

// steps are the next steps of all keys of a domain, each the next one of its
// key. Keys that became Active before demand are to be replaced.
func (p *Policy) steps(domain string, entries []keyring.Entry, demand, now time.Time) []Step {
	s := sceneOf(p, domain, entries)
	var steps []Step
	lost := make(map[string]bool)
	for _, g := range s.all {
		if !s.abandoned(g) {
			continue
		}
		for _, e := range g.all {
			if e.State == keyring.Generated || e.State == keyring.Published {
				lost[e.Selector] = true
				steps = append(steps, p.removeStep(e, "another key of its generation is gone, it will never sign"))
			}
		}
	}
	target, create := s.aim(demand, now)
	for _, e := range create {
		steps = append(steps, s.createStep(&e, now))
	}
	for i := range entries {
		if e := &entries[i]; e.State == keyring.Generated && !lost[e.Selector] {
			steps = append(steps, p.publishStep(e))
		}
	}
	steps = append(steps, s.activations(target)...)
	steps = append(steps, s.endings()...)
	for i := range steps {
		steps[i].Earliest = now
		for _, g := range steps[i].Gates {
			if g.Until.After(steps[i].Earliest) {
				steps[i].Earliest = g.Until
			}
		}
	}
	return steps
}

// createStep makes a key. A store would make it in itself, and the domain leave
// the transit engine for it: nobody but a person decides that.
func (s *scene) createStep(e *keyring.Entry, now time.Time) Step {
	step := Step{Do: Create, Domain: s.domain, Selector: e.Selector, Algorithm: e.Algorithm, To: keyring.Generated, Earliest: now}
	if InTransit(s.entries) && !s.p.Local {
		step.Gates = []Gate{{Opens: Never, Text: transitText}}
	}
	return step
}

const transitText = "somebody makes it in the transit engine, where the keys of the domain are"

// InTransit reports that a key of a domain that signs, or is to sign, is in a
// transit engine.
func InTransit(entries []keyring.Entry) bool {
	return slices.ContainsFunc(entries, func(e keyring.Entry) bool {
		return e.InTransit && (e.State == keyring.Generated || e.State == keyring.Published || e.State == keyring.Active)
	})
}

// aim decides which generation is to come into force now, and which keys are to
// be made.
func (s *scene) aim(demand, now time.Time) (target *generation, create []keyring.Entry) {
	if g := s.handover(); g != nil {
		return g, nil
	}
	spare, signing := s.spare(), len(s.signing()) > 0
	due := s.due(demand, now)
	switch {
	case due && spare != nil, !signing && spare != nil:
		return spare, nil
	case due && spare == nil, signing && s.p.KeepSpare && spare == nil:
		return nil, s.missing(now)
	}
	return nil, nil
}

// due reports that the keys that sign are to be replaced.
func (s *scene) due(demand, now time.Time) bool {
	began, ok := s.since()
	if !demand.IsZero() && (!ok || began.Before(demand)) {
		return true
	}
	return s.p.RotateEvery > 0 && len(s.signing()) > 0 && (!ok || !now.Before(began.Add(s.p.RotateEvery)))
}

// since is when the keys that sign came into force; false when nobody knows or
// no key signs. A generation that is not full is as old as its oldest key.
func (s *scene) since() (time.Time, bool) {
	if g := s.current(); g != nil {
		first, _ := g.active()
		return first, !first.IsZero()
	}
	var oldest time.Time
	for i, e := range s.signing() {
		if at := e.Since(); i == 0 || at.Before(oldest) {
			oldest = at
		}
	}
	return oldest, !oldest.IsZero()
}

// activations brings a generation into force, RSA first.
func (s *scene) activations(g *generation) []Step {
	if g == nil {
		return nil
	}
	keys := slices.Clone(g.all)
	slices.SortStableFunc(keys, func(a, b *keyring.Entry) int { return cmp.Compare(rank(a), rank(b)) })
	var steps []Step
	for i, e := range keys {
		if e.State != keyring.Published {
			continue
		}
		var first []string
		for j, other := range keys {
			if other.State == keyring.Generated || j < i && other.State == keyring.Published {
				first = append(first, other.Selector)
			}
		}
		steps = append(steps, s.p.activateStep(e, "", first))
	}
	return steps
}

// endings lets the predecessors of the current generation go, step by step.
func (s *scene) endings() []Step {
	var steps []Step
	if g := s.current(); g != nil {
		_, last := g.active()
		for _, e := range s.signing() {
			// Of keys made by hand nobody knows which one came first.
			if !last.IsZero() && !slices.Contains(g.all, e) && !e.Since().After(last) {
				steps = append(steps, s.p.retireStep(e, last))
			}
		}
	}
	for i := range s.entries {
		switch e := &s.entries[i]; e.State {
		case keyring.Retiring:
			steps = append(steps, s.p.revokeStep(e))
		case keyring.Revoked:
			steps = append(steps, s.p.removeStep(e, "", since(e, s.p.RemoveAfter, "nobody asks for it any more")))
		}
	}
	return steps
}

// Begin turns a wish to rotate now into a demand for Next and Run. It is zero
// when a rotation is under way, which Run goes on with: asking again, after an
// interruption too, starts no second one. A rotation is under way until its old
// keys are Revoked.
func Begin(entries []keyring.Entry, p Policy, now time.Time) (time.Time, error) {
	p, err := p.complete()
	if err != nil {
		return time.Time{}, err
	}
	s := sceneOf(&p, "", entries)
	underWay := s.handover() != nil || slices.ContainsFunc(entries, func(e keyring.Entry) bool { return e.State == keyring.Retiring }) ||
		slices.ContainsFunc(s.endings(), func(step Step) bool { return step.Do == Retire })
	if underWay {
		return time.Time{}, nil
	}
	return now, nil
}

// Due is when the keys of a domain that sign are to be replaced; false for
// never.
func Due(entries []keyring.Entry, p Policy, now time.Time) (time.Time, bool) {
	p, err := p.complete()
	s := sceneOf(&p, "", entries)
	if err != nil || p.RotateEvery == 0 || len(s.signing()) == 0 {
		return time.Time{}, false
	}
	began, ok := s.since()
	if !ok {
		return now, true // an unknown age is too old
	}
	return began.Add(p.RotateEvery), true
}

// maxPlan bounds a plan; a rotation of a pair has 14 steps.
const maxPlan = 200

// Next is the plan for a domain: all steps until its keys are at rest, in the
// order in which they become possible if everything goes well. Keys that became
// Active before demand are to be replaced; zero leaves that to RotateEvery.
func Next(domain string, entries []keyring.Entry, p Policy, demand, now time.Time) ([]Step, error) {
	p, err := p.complete()
	if err != nil {
		return nil, err
	}
	if s := sceneOf(&p, domain, entries); s.due(demand, now) && demand.IsZero() {
		demand = now
	}
	p.RotateEvery = 0 // one rotation is enough to see
	entries = slices.Clone(entries)
	var plan []Step
	for len(plan) < maxPlan {
		steps := slices.DeleteFunc(p.steps(domain, entries, demand, now), func(s Step) bool { return s.blocked() })
		if len(steps) == 0 {
			break
		}
		step := slices.MinFunc(steps, func(a, b Step) int { return a.Earliest.Compare(b.Earliest) })
		now = step.Earliest
		entries = apply(entries, step)
		plan = append(plan, step)
	}
	return plan, nil
}

// blocked reports that a step waits for another one, or for ever.
func (s *Step) blocked() bool {
	return slices.ContainsFunc(s.Gates, func(g Gate) bool { return g.Opens == WhenFirst || g.Opens == Never })
}

// apply is what a step leaves of entries.
func apply(entries []keyring.Entry, s Step) []keyring.Entry {
	e := keyring.Entry{Domain: s.Domain, Selector: s.Selector, Algorithm: s.Algorithm}
	n := slices.IndexFunc(entries, func(e keyring.Entry) bool { return e.Selector == s.Selector })
	if n >= 0 {
		e = entries[n]
	} else {
		n = len(entries)
		entries = append(entries, e)
	}
	e.State = s.To
	e.History = append(slices.Clone(e.History), keyring.Step{State: s.To, At: s.Earliest})
	entries[n] = e
	return entries
}
