// Package rotation moves DKIM keys through their lives, each step behind its
// gate, so that no signature is ever made that a verifier cannot check.
//
// Next is pure: from the keys of a domain and a Policy it tells what is to be
// done, in order, and what must be true before. A Rotator does it, as far as it
// can be done now, and says what it waits for. A pass may end between any two
// of its steps, by a kill too; another pass, of another process too, goes on
// from what the store holds.
//
//	steps, err := rotation.Next(domain, entries, policy, demand, time.Now()) // --dry-run
//	r, err := rotation.New(rotation.Options{Store: store, Publication: dns, Sent: queue, Publisher: hook, Policy: policy})
//	pass, err := r.Run(ctx, domain, demand) // again when pass.Again says
//	report := rotation.Check(ctx, dns, entry, 2)
//	pass, err := r.Compromise(ctx, domain, selector, false)
//
// A Keeper does it by itself for all domains, as long as it runs, and tells of
// records that are wrong:
//
//	k, err := rotation.NewKeeper(rotation.KeeperOptions{Store: store, Publication: dns, Rotator: r, Policy: policy, CheckEvery: time.Hour})
//	queue.Lead(ctx, "rotation", k.Run) // in one process at a time
//
// What the DNS says, what is queued and how a record is published come in
// through small interfaces.
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

// Policy says how the keys of a domain are to live. Zero fields take the
// defaults, but for MaxQueueAge.
type Policy struct {
	// Algorithms have one key each in a generation; its keys move together.
	// RSA must be among them, because some verifiers know nothing else.
	// Default: RSA, Ed25519.
	Algorithms []keyring.Algorithm
	// Selector is the template of new selectors; {algo} stands for rsa or
	// ed25519, {yyyymm} for the month in UTC. When a selector was ever used,
	// "-2", "-3" and so on follow. Default: "{algo}-{yyyymm}".
	Selector string
	// MaxQueueAge is how long mail may be queued here. Required.
	MaxQueueAge time.Duration
	// Overlap is how long the record of a key stays after its last signature:
	// other queues hold such mail too. Default: MaxQueueAge + 7 days; at least
	// MaxQueueAge.
	Overlap time.Duration
	// RemoveAfter is how long a record with an empty p= stays. Default: 30 days.
	RemoveAfter time.Duration
	// RotateEvery is the age at which an Active key is replaced. Default: never,
	// only on demand.
	RotateEvery time.Duration
	// KeepSpare keeps a Published generation ready while the domain signs.
	KeepSpare bool
	// Local lets keys be made in the store for a domain whose keys are in a transit
	// engine. Default: false, such keys are made by hand.
	Local bool
	// Settle is how long every signer has to see that a new key is Active before
	// the old one goes: more than their sources of keys need. Default: 2 min.
	Settle time.Duration
	// Resolvers is how many resolvers have to see a record, beside all
	// authoritative servers. Default: 2.
	Resolvers int
}

const (
	day = 24 * time.Hour

	defaultSelector    = "{algo}-{yyyymm}"
	defaultRemoteAge   = 7 * day
	defaultRemoveAfter = 30 * day
	defaultSettle      = 2 * time.Minute
	defaultResolvers   = 2

	// maxCache bounds the wait for caches; no resolver should keep a negative
	// answer longer, whatever the zone asks for.
	maxCache = day
	// unknownNegativeTTL is for a zone that does not tell.
	unknownNegativeTTL = time.Hour
)

// complete checks a policy and sets its defaults.
func (p Policy) complete() (Policy, error) {
	if len(p.Algorithms) == 0 {
		p.Algorithms = []keyring.Algorithm{keyring.RSA, keyring.Ed25519}
	}
	if p.Selector == "" {
		p.Selector = defaultSelector
	}
	if p.Overlap == 0 {
		p.Overlap = p.MaxQueueAge + defaultRemoteAge
	}
	if p.RemoveAfter == 0 {
		p.RemoveAfter = defaultRemoveAfter
	}
	if p.Settle == 0 {
		p.Settle = defaultSettle
	}
	if p.Resolvers == 0 {
		p.Resolvers = defaultResolvers
	}
	return p, p.check()
}

func (p *Policy) check() error {
	seen := make(map[keyring.Algorithm]bool)
	for _, a := range p.Algorithms {
		if algorithmName(a) == "" || seen[a] {
			return fmt.Errorf("rotation policy: algorithm %q is unknown or there twice: want %s and %s", a, keyring.RSA, keyring.Ed25519)
		}
		seen[a] = true
	}
	sample := p.selector(keyring.Ed25519, time.Unix(0, 0), 1000)
	clean, ok := keyring.CleanDomain(sample)
	switch {
	case !seen[keyring.RSA]:
		return fmt.Errorf("rotation policy: %s must not sign alone: add %s", keyring.Ed25519, keyring.RSA)
	case !ok || clean != sample || strings.ContainsAny(p.Selector, ".") || strings.Count(p.Selector, "{algo}") > 1 || strings.Count(p.Selector, "{yyyymm}") > 1:
		return fmt.Errorf("rotation policy: selector template %q: want lower-case letters, digits and hyphens, at most 63, with {algo} and {yyyymm} at most once", p.Selector)
	case len(p.Algorithms) > 1 && !strings.Contains(p.Selector, "{algo}"):
		return fmt.Errorf("rotation policy: selector template %q gives all keys of a generation one name: add {algo}", p.Selector)
	case p.MaxQueueAge <= 0:
		return errors.New("rotation policy: max queue age must be set, to know how long mail with an old signature may be on its way")
	case p.Overlap < p.MaxQueueAge:
		return fmt.Errorf("rotation policy: overlap of %v is shorter than the %v for which mail may be queued", p.Overlap, p.MaxQueueAge)
	case p.RemoveAfter < 0 || p.RotateEvery < 0 || p.Settle < 0 || p.Resolvers < 0:
		return errors.New("rotation policy: nothing in it may be negative")
	}
	return nil
}

// Sent counts the queued mail that bears a signature.
type Sent interface {
	// Queued is how many queued jobs carry a signature of this selector of this
	// domain. With an error nothing is known, and the caller waits.
	Queued(ctx context.Context, domain, selector string) (int, error)
}

// Name is the name of the TXT record of a key.
func Name(domain, selector string) string { return selector + "._domainkey." + domain }

// algorithmName is what stands for {algo}; empty for an unknown one.
func algorithmName(a keyring.Algorithm) string {
	switch a {
	case keyring.RSA:
		return "rsa"
	case keyring.Ed25519:
		return "ed25519"
	}
	return ""
}

// selector is the n-th one, from 1, of a month.
func (p *Policy) selector(a keyring.Algorithm, now time.Time, n int) string {
	return p.selectorOf(a, tail{month: now.UTC().Format("200601"), n: n})
}

func (p *Policy) selectorOf(a keyring.Algorithm, t tail) string {
	s := strings.NewReplacer("{algo}", algorithmName(a), "{yyyymm}", t.month).Replace(p.Selector)
	if t.n > 1 {
		s += fmt.Sprintf("-%d", t.n)
	}
	return s
}

// find returns the entry of a selector.
func find(entries []keyring.Entry, selector string) (keyring.Entry, bool) {
	n := slices.IndexFunc(entries, func(e keyring.Entry) bool { return e.Selector == selector })
	if n < 0 {
		return keyring.Entry{}, false
	}
	return entries[n], true
}
