package signer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"postroad/signer/keyring"
)

// choice is what signs one mail.
type choice struct {
	domain string        // of keys, or the one that the mail waits for
	kind   string        // of keys: kindAuthor or kindRelay
	keys   []keyring.Key // all of them sign, or none
	relay  []keyring.Key // of our own domain, beside them: no mail waits for these
	reason string        // why nobody else signs; may be empty
}

// kindOf tells whose signature one of k is.
func (c choice) kindOf(k keyring.Key) string {
	if len(c.relay) > 0 && k.Domain == c.relay[0].Domain {
		return kindRelay
	}
	return c.kind
}

// verdict says that the rules want a mail unsigned or held.
type verdict struct {
	do     Policy // Hold or Pass
	reason string
	cause  error // ErrNoKey if the source has said so
}

func (v *verdict) Error() string { return v.reason }
func (v *verdict) Unwrap() error { return v.cause }

// signs tells whether the mail may bear a signature of ours in the end.
func (d Decision) signs() bool { return len(d.Domains) > 0 || d.Otherwise == Relay }

// choose finds the keys that a decision wants. Without an error there are some.
// The error is a verdict, or that of the source for the keys of domain.
func (s *Signer) choose(ctx context.Context, d Decision) (choice, error) {
	for _, domain := range d.Domains {
		keys, err := s.keys(ctx, domain)
		if errors.Is(err, keyring.ErrNoKey) {
			continue
		}
		c := choice{domain: domain, kind: kindAuthor, keys: keys}
		if err == nil && d.Beside && domain != d.Relay {
			c.relay = s.relayKeys(ctx, d.Relay)
		}
		return c, err
	}
	v := &verdict{do: d.Otherwise, reason: d.Reason}
	if v.reason == "" {
		v.reason = "no DKIM key for " + d.Author
	}
	if len(d.Domains) > 0 {
		v.cause = keyring.ErrNoKey
	}
	c := choice{domain: d.Author, reason: v.reason}
	if d.Otherwise != Relay {
		return c, v
	}
	var err error
	c.domain, c.kind = d.Relay, kindRelay
	if c.keys, err = s.keys(ctx, d.Relay); errors.Is(err, keyring.ErrNoKey) {
		v.do, v.cause = s.rules.ownMissing(), err
		v.reason += ", and no DKIM key for " + d.Relay
		err = v
	}
	return c, err
}

// keys asks for the keys of a domain; without an error there is an RSA key among
// them, and all are of that very domain.
func (s *Signer) keys(ctx context.Context, domain string) ([]keyring.Key, error) {
	keys, err := s.o.Keys.Keys(ctx, domain)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(keys, func(k keyring.Key) bool { return k.Domain != domain }); i >= 0 {
		return nil, fmt.Errorf("asked for keys of %s and got one of %s: %w", domain, keys[i].Domain, keyring.ErrBadKey)
	}
	if !slices.ContainsFunc(keys, func(k keyring.Key) bool { return k.Algorithm == keyring.RSA }) {
		// Receivers that do not know Ed25519 would see an unsigned message.
		return nil, fmt.Errorf("%s has no RSA key, and Ed25519 must not sign alone: add an RSA key: %w", domain, keyring.ErrBadKey)
	}
	return keys, nil
}

const (
	// relayPatience bounds how long a mail that its author's domain can sign waits
	// for a key of ours, or for its signature: the latter is worth less.
	relayPatience = 2 * time.Second
	// relayPause is how long nobody asks again after that.
	relayPause = 10 * time.Second
)

// relayKeys are the keys of our own domain that sign beside the author's; none
// if they cannot be had now.
func (s *Signer) relayKeys(ctx context.Context, domain string) []keyring.Key {
	if cause := s.rest.lasts(); cause != "" {
		s.metrics.noRelay.WithLabelValues(cause).Inc()
		return nil
	}
	patient, cancel := context.WithTimeout(ctx, relayPatience)
	defer cancel()
	keys, err := s.keys(patient, domain)
	switch {
	case err == nil:
		return keys
	case ctx.Err() != nil: // the author's do not sign either
	case errors.Is(err, keyring.ErrNoKey):
		s.withoutRelay(domain, causeNoKey, err)
	case errors.Is(err, keyring.ErrBadKey):
		s.withoutRelay(domain, causeBadKey, err)
	default:
		s.rest.begin(relayPause, causeOutOfReach)
		s.withoutRelay(domain, causeOutOfReach, err)
	}
	return nil
}

// withoutRelay notes that a mail goes without the signature of our own domain;
// one line a minute tells of it.
func (s *Signer) withoutRelay(domain, cause string, err error) {
	s.metrics.noRelay.WithLabelValues(cause).Inc()
	if s.notices.due("relay\x00" + cause) {
		s.o.Logger.Warn("mail goes without the signature of our own domain", "domain", domain, "err", err)
	}
}

// pause is a time in which something is not tried. The zero value is over.
type pause struct {
	mu    sync.Mutex
	until time.Time
	cause string
}

func (p *pause) begin(d time.Duration, cause string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until, p.cause = time.Now().Add(d), cause
}

// lasts returns why the pause was begun, or "" when it is over.
func (p *pause) lasts() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().Before(p.until) {
		return p.cause
	}
	return ""
}
