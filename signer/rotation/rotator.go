package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"postroad/signer/keyring"
)

// Options configure a Rotator.
type Options struct {
	Store       keyring.Store // required
	Publication Publication   // required
	Sent        Sent          // required
	// Publisher publishes records. Without one, somebody does it by hand when a
	// pass asks for it.
	Publisher Publisher
	Policy    Policy
	// By is written into the keys that are made.
	By string
	// PublishAgain is how long a record that was published may stay unseen before
	// it is published again. Default: 10 min.
	PublishAgain time.Duration
	// AcceptDead are name servers, by host name or address, from which no answer is
	// taken for a good one, as long as others of the zone answer. For one step that
	// somebody watches, not for good: when such a server comes back it may not have
	// the record. Default: none.
	AcceptDead []string
	// Changed is called after each key that was made or changed, so that signers
	// can be told. Default: nothing.
	Changed func(ctx context.Context, domain string)
	// Make makes keys. Default: keyring.Make.
	Make func(domain, selector string, algorithm keyring.Algorithm) (keyring.Key, error)
	// Logger gets one line for each step. Default: discards.
	Logger *slog.Logger
}

const (
	defaultPublishAgain = 10 * time.Minute
	// pollPause is when to look again at what has no known time.
	pollPause = time.Minute
	// maxSteps and maxRaces bound one pass.
	maxSteps = 100
	maxRaces = 20
)

// Rotator moves keys. It is safe for concurrent use, and beside others over the
// same store.
type Rotator struct {
	o Options

	mu        sync.Mutex
	published map[string]time.Time // by name of a record that is not seen yet
}

// New makes a Rotator. The error tells what is wrong with the options.
func New(o Options) (*Rotator, error) {
	if o.Store == nil || o.Publication == nil || o.Sent == nil {
		return nil, errors.New("rotation: a store, the DNS and the queue are needed")
	}
	p, err := o.Policy.complete()
	if err != nil {
		return nil, err
	}
	o.Policy = p
	if o.PublishAgain <= 0 {
		o.PublishAgain = defaultPublishAgain
	}
	if o.Make == nil {
		o.Make = keyring.Make
	}
	if o.Changed == nil {
		o.Changed = func(context.Context, string) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Rotator{o: o, published: make(map[string]time.Time)}, nil
}

// Pass is what one pass did and what it left.
type Pass struct {
	Done    []Action `json:"done"`
	Waiting []Wait   `json:"waiting"`
}

// Action is a step that was taken.
type Action struct {
	Step
	Entry keyring.Entry `json:"entry"` // as it is now
	// ByHand is what somebody has to publish now; nil when nothing, or when the
	// Publisher has done it.
	ByHand *Record `json:"by_hand,omitempty"`
}

// Wait is a step that could not be taken yet.
type Wait struct {
	Step
	Reason string    `json:"reason"`
	Until  time.Time `json:"until,omitzero"` // when to look again; zero: nobody knows
	// ByHand is what somebody has to publish for it to go on.
	ByHand *Record `json:"by_hand,omitempty"`
	Report *Report `json:"report,omitempty"` // of its record, if that is the reason
	// Err is set when something went wrong, rather than is not ready.
	Err error `json:"-"`
}

// Again is when another pass may find something to do; zero when all keys are at
// rest.
func (p *Pass) Again(now time.Time) time.Time {
	var again time.Time
	for _, w := range p.Waiting {
		if len(w.others()) > 0 {
			continue // those others are waited for
		}
		at := w.Until
		if !at.After(now) {
			at = now.Add(pollPause)
		}
		if again.IsZero() || at.Before(again) {
			again = at
		}
	}
	return again
}

// Err joins what went wrong with steps that were not taken.
func (p *Pass) Err() error {
	var errs []error
	for _, w := range p.Waiting {
		if w.Err != nil {
			errs = append(errs, fmt.Errorf("%s %s of %s: %w", w.Do, w.Selector, w.Domain, w.Err))
		}
	}
	return errors.Join(errs...)
}

// Run makes one pass over the keys of a domain: it takes all steps whose gates
// are open, and those that this opens. Keys that became Active before demand are
// replaced; zero leaves that to the policy, and goes on with what is under way.
// An error says that the store, or ctx, ended the pass; the Pass is true even
// then.
func (r *Rotator) Run(ctx context.Context, domain string, demand time.Time) (Pass, error) {
	name, ok := keyring.CleanDomain(domain)
	if !ok {
		return Pass{}, fmt.Errorf("rotate: %q is no domain name", domain)
	}
	pass := Pass{}
	tried := make(map[string]Wait) // what was asked for once in a pass
	races := 0
	for len(pass.Done) < maxSteps {
		entries, err := r.o.Store.Entries(ctx, name)
		if err != nil {
			return pass, fmt.Errorf("rotate keys of %s: %w", name, err)
		}
		progress := false
		pass.Waiting = nil
		for _, step := range r.o.Policy.steps(name, entries, demand, time.Now()) {
			id := string(step.Do) + " " + step.Selector
			wait, waits := tried[id]
			if !waits {
				var action Action
				var err error
				action, wait, err = r.take(ctx, step)
				switch {
				case errors.Is(err, keyring.ErrChanged) || errors.Is(err, keyring.ErrExists):
					if races++; races > maxRaces {
						return pass, fmt.Errorf("rotate keys of %s: %w", name, err)
					}
					progress = true // somebody else's
				case err != nil:
					if action.Do != "" {
						pass.Done = append(pass.Done, action)
					}
					return pass, fmt.Errorf("rotate keys of %s: %w", name, err)
				case wait.Do == "":
					pass.Done = append(pass.Done, action)
					progress = true
				}
			}
			if progress {
				break // the plan may be another one now
			}
			if len(wait.others()) == 0 {
				tried[id] = wait
			}
			pass.Waiting = append(pass.Waiting, wait)
		}
		if !progress {
			return pass, nil
		}
	}
	return pass, nil
}

// others are the keys that a step waits for, which may move in the same pass.
func (w *Wait) others() []string {
	for _, g := range w.Gates {
		if g.Opens == WhenFirst {
			return g.Others
		}
	}
	return nil
}

// take takes a step, or returns what it waits for. An error is the store's.
func (r *Rotator) take(ctx context.Context, s Step) (Action, Wait, error) {
	if s.Do == Create {
		if _, wait := r.gates(ctx, &s); wait.Do != "" {
			return Action{}, wait, nil
		}
		return r.create(ctx, s)
	}
	if s.Do == Publish || s.Do == Activate {
		key, err := r.o.Store.Load(ctx, s.Domain, s.Selector)
		if errors.Is(err, keyring.ErrNoKey) {
			return r.giveUp(ctx, s)
		}
		if err == nil {
			err = verifies(key, s.entry.Record) // every server must have the same key
		}
		if err != nil {
			return Action{}, failed(s, err), ctx.Err()
		}
	}
	report, wait := r.gates(ctx, &s)
	if wait.Do != "" {
		return Action{}, wait, ctx.Err()
	}
	why := s.Why
	switch s.Do {
	case Publish, Activate:
		if report.OK() && report.Name != "" {
			why = fmt.Sprintf("record seen at %d authoritative servers and %d resolvers", report.Authoritative-len(report.Accepted), report.Resolvers)
			if len(report.Accepted) > 0 {
				why += "; accepted that nobody answers at " + strings.Join(report.Accepted, ", ")
			}
		}
	case Revoke, Remove:
		if err := r.publish(ctx, recordFor(&s)); err != nil {
			return Action{}, failed(s, err), ctx.Err()
		}
	}
	return r.change(ctx, s, why)
}

// recordFor is what the DNS is to say after a step.
func recordFor(s *Step) Record {
	record := Record{Name: Name(s.Domain, s.Selector)}
	switch s.Do {
	case Revoke:
		record.Op, record.Value = OpRevoke, revokedValue
	case Remove:
		record.Op = OpDelete
	default:
		record.Op, record.Value = OpAdd, s.entry.Record
	}
	return record
}

func (r *Rotator) create(ctx context.Context, s Step) (Action, Wait, error) {
	key, err := r.o.Make(s.Domain, s.Selector, s.Algorithm)
	if err != nil {
		return Action{}, failed(s, err), ctx.Err()
	}
	e, err := r.o.Store.Create(ctx, key, r.o.By)
	if err != nil {
		return Action{}, Wait{}, err
	}
	r.o.Changed(ctx, s.Domain)
	r.o.Logger.Info("key made", "domain", s.Domain, "selector", s.Selector, "algorithm", string(s.Algorithm))
	return Action{Step: s, Entry: e}, Wait{}, nil
}

// giveUp burns the selector of a key whose private half was never stored, or was
// lost before it signed.
func (r *Rotator) giveUp(ctx context.Context, s Step) (Action, Wait, error) {
	s = r.o.Policy.removeStep(&s.entry, "its private half is not there")
	if err := r.publish(ctx, recordFor(&s)); err != nil {
		return Action{}, failed(s, err), ctx.Err()
	}
	return r.change(ctx, s, s.Why)
}

// change writes the state that a step leads to. An error beside an action tells
// of a private half that was left.
func (r *Rotator) change(ctx context.Context, s Step, why string) (Action, Wait, error) {
	e, err := r.o.Store.Change(ctx, s.entry, s.To, why)
	if err != nil && e.State != s.To {
		return Action{}, Wait{}, err
	}
	r.o.Changed(ctx, s.Domain)
	r.o.Logger.Info("key changed", "domain", s.Domain, "selector", s.Selector, "from", string(s.From), "to", string(s.To), "why", why)
	a := Action{Step: s, Entry: e}
	switch s.Do {
	case Publish:
		r.forget(Name(s.Domain, s.Selector))
	case Revoke, Remove:
		if record := recordFor(&s); r.o.Publisher == nil {
			a.ByHand = &record
		}
	}
	return a, Wait{}, err
}

func failed(s Step, err error) Wait { return Wait{Step: s, Reason: err.Error(), Err: err} }

// publish has a record published, if somebody does that for us.
func (r *Rotator) publish(ctx context.Context, record Record) error {
	if r.o.Publisher == nil {
		return nil
	}
	if err := r.o.Publisher.Publish(ctx, record); err != nil {
		return fmt.Errorf("%s record %s: %w", record.Op, record.Name, err)
	}
	r.o.Logger.Info("record handed over to be published", "op", string(record.Op), "name", record.Name)
	return nil
}
