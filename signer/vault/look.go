package vault

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"postroad/signer/keyring"
)

// shelf is what is known of one domain that has secrets. Its times change under
// Keys.mu, the rest does not once it is in the map.
type shelf struct {
	items  map[string]*item // by selector
	keys   []keyring.Key
	err    error     // not nil exactly when there are no keys
	whole  time.Time // last look that left nothing out
	read   time.Time // last look that succeeded
	looked time.Time // last look
	fault  error     // of the last look
	asked  time.Time // last question
}

// item is one secret, as last seen. It is not changed.
type item struct {
	version int
	created time.Time
	state   keyring.State
	key     keyring.Key // of an Active one only: others are not kept in memory
	err     error       // wraps keyring.ErrBadKey: what is wrong and what to do
	advice  string      // for a key that can be used but should be replaced
	passing bool        // what is wrong may be put right elsewhere, and the secret stays as it is
}

// signs reports that the key may be used.
func (i *item) signs() bool { return i.err == nil && i.state == keyring.Active }

// look is one look at a domain; whoever else asks waits for it.
type look struct {
	done     chan struct{}
	outdated bool // something has changed since it began; under Keys.mu
	keys     []keyring.Key
	err      error
	fault    error // why nothing could be seen, though there may be keys in memory
}

// begin begins a look, or joins the one that runs. Keys.mu is held.
func (k *Keys) begin(name string) (*look, error) {
	if l := k.looking[name]; l != nil {
		return l, nil
	}
	if k.stopped {
		return nil, fmt.Errorf("look up keys of %s: %w: keys were stopped", name, ErrUnavailable)
	}
	if len(k.looking) >= maxWaiting {
		return nil, fmt.Errorf("look up keys of %s: %w: %d other domains wait for it", name, ErrUnavailable, maxWaiting)
	}
	l := &look{done: make(chan struct{})}
	k.looking[name] = l
	old := k.known[name]
	k.wg.Go(func() {
		defer close(l.done)
		fresh, err := k.lookAt(name, old)
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.looking, name)
		l.keys, l.err = k.settle(name, l, fresh, err)
	})
	return l, nil
}

// lookAt waits for a slot and looks at a domain.
func (k *Keys) lookAt(name string, old *shelf) (*shelf, error) {
	ctx, cancel := context.WithTimeout(k.ctx, lookTimeout)
	defer cancel()
	select {
	case k.slots <- struct{}{}:
		defer func() { <-k.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("look up keys of %s: %w: %w", name, ErrUnavailable, ctx.Err())
	}
	fresh, err := k.look(ctx, name, old)
	if err == nil && errors.Is(fresh.err, keyring.ErrNoKey) && (old == nil || old.err == nil) {
		// The secrets were looked at one after the other, perhaps while one key took
		// over from another. By now the new one is Active.
		return k.look(ctx, name, fresh)
	}
	return fresh, err
}

// settle remembers what a look has seen. Keys.mu is held.
func (k *Keys) settle(name string, l *look, fresh *shelf, err error) ([]keyring.Key, error) {
	now := time.Now()
	old := k.known[name]
	switch {
	case errors.Is(err, keyring.ErrNoKey):
		k.looks.WithLabelValues("none").Inc()
		if old != nil {
			k.report(name, old, &shelf{})
			k.retire(old, nil)
			delete(k.known, name)
		}
		if !l.outdated {
			k.missing[name] = now
			evict(k.missing, maxMissing, name, func(time.Time) {})
		}
		return nil, err
	case err != nil:
		k.looks.WithLabelValues("out_of_reach").Inc()
		l.fault, k.failed = err, now
		switch unavailable := errors.Is(err, ErrUnavailable); {
		case unavailable && !k.cut && k.ctx.Err() == nil:
			// One line for all domains.
			k.log.Error("keys cannot be read, signing goes on with those in memory", "hours", k.o.Hard.Hours(), "err", err)
			k.cut = true
		case !unavailable && (old == nil || old.fault == nil):
			k.log.Error("keys of a domain cannot be read", "domain", name, "err", err)
		}
		if old == nil {
			return nil, err
		}
		old.looked, old.fault = now, err
		return k.answer(name, old, now)
	}
	result := "ok"
	if fresh.err != nil {
		result = "bad"
	}
	k.looks.WithLabelValues(result).Inc()
	fresh.read, fresh.looked = now, now
	if l.outdated {
		fresh.looked = time.Time{}
	}
	if old != nil {
		fresh.asked = old.asked
	}
	if k.cut {
		k.log.Info("keys can be read again")
		k.cut = false
	}
	k.report(name, old, fresh)
	k.retire(old, fresh)
	delete(k.missing, name)
	k.known[name] = fresh
	evict(k.known, maxKnown, name, func(s *shelf) { k.retire(s, nil) })
	return fresh.keys, fresh.err
}

// evict brings m back to its bound; any entry but the newest may go.
func evict[V any](m map[string]V, bound int, newest string, gone func(V)) {
	for name, v := range m {
		if len(m) <= bound {
			return
		}
		if name != newest {
			delete(m, name)
			gone(v)
		}
	}
}

// look reads what has changed of a domain. An error that wraps ErrNoKey says
// that nothing is there; with others nothing is known.
func (k *Keys) look(ctx context.Context, domain string, old *shelf) (*shelf, error) {
	now := time.Now()
	names, err := k.client.List(ctx, directory+"/"+domain)
	if err != nil {
		return nil, err
	}
	if len(names) > maxSelectors {
		return &shelf{err: fmt.Errorf("%s has %d keys in Vault, at most %d are read: delete the metadata of the oldest that are removed, "+
			"and never use their selectors again: %w", domain, len(names), maxSelectors, keyring.ErrBadKey), whole: now}, nil
	}
	fresh := &shelf{items: make(map[string]*item), whole: now}
	leaveOut := old != nil && now.Sub(old.whole) < k.o.Soft
	if leaveOut {
		fresh.whole = old.whole
	}
	for _, selector := range names {
		var before *item
		if old != nil {
			before = old.items[selector]
		}
		if before != nil && leaveOut && before.err == nil && before.state.Gone() {
			fresh.items[selector] = before // it does not come back
			continue
		}
		i, err := k.lookKey(ctx, domain, selector, before)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		fresh.items[selector] = i
	}
	if len(fresh.items) == 0 {
		return nil, noKey(domain)
	}
	fresh.keys, fresh.err = usable(domain, fresh.items)
	return fresh, nil
}

// lookKey reads one secret when it is not as it was before. ErrNotFound: it is
// deleted. What is wrong with the secret itself is in item.err.
func (k *Keys) lookKey(ctx context.Context, domain, selector string, before *item) (*item, error) {
	if strings.HasSuffix(selector, "/") {
		return nil, ErrNotFound
	}
	if !isSelector(selector) {
		return &item{err: fmt.Errorf("secret %s of %s is not named after a selector: want lower-case letters, digits and hyphens: %w",
			brief(selector), domain, keyring.ErrBadKey)}, nil
	}
	path := secretPath(domain, selector)
	m, err := k.client.Metadata(ctx, path)
	if err != nil {
		return nil, err
	}
	if m.Deleted {
		return nil, fmt.Errorf("%s: %w", path, ErrNotFound)
	}
	if before != nil && !before.passing && before.version == m.Version && before.created.Equal(m.Created) {
		return before, nil
	}
	if e, ok := reflected(m, domain, selector); ok && e.State != keyring.Active {
		return &item{version: m.Version, created: m.Created, state: e.State}, nil
	}
	secret, err := k.client.Read(ctx, path)
	if err != nil {
		return nil, err
	}
	i := &item{version: secret.Version, created: secret.Created}
	e, signer, err := k.open(ctx, domain, selector, secret)
	switch {
	case errors.Is(err, keyring.ErrBadKey):
		i.err = err
		_, i.passing = secret.Data["transit_key"]
		return i, nil
	case err != nil:
		return nil, err
	}
	i.state = e.State
	if e.State == keyring.Active {
		i.key = keyring.Key{Domain: domain, Selector: selector, Algorithm: e.Algorithm, Signer: hold(signer)}
		i.advice = advice(e)
	}
	return i, nil
}

// usable picks the keys that can be used and are Active. As long as there is
// one, the others cost a line in the log but stop no mail.
func usable(domain string, items map[string]*item) ([]keyring.Key, error) {
	var keys []keyring.Key
	var errs []error
	for _, selector := range slices.Sorted(maps.Keys(items)) {
		if i := items[selector]; i.err != nil {
			errs = append(errs, i.err)
		} else if i.signs() {
			keys = append(keys, i.key)
		}
	}
	switch {
	case len(keys) > maxKeys:
		return nil, fmt.Errorf("%s has %d active keys, and each mail would bear as many signatures; leave at most %d: %w",
			domain, len(keys), maxKeys, keyring.ErrBadKey)
	case len(keys) == 0 && len(errs) > 1:
		return nil, fmt.Errorf("%w (and %d more keys of %s)", errs[0], len(errs)-1, domain)
	case len(keys) == 0 && len(errs) == 1:
		return nil, errs[0]
	case len(keys) == 0:
		return nil, fmt.Errorf("%w that signs: keys of %s are there but none is active: postroad dkim activate", keyring.ErrNoKey, domain)
	}
	// RSA first: some verifiers look at the first signature only.
	slices.SortFunc(keys, func(a, b keyring.Key) int {
		return cmp.Or(-cmp.Compare(a.Algorithm, b.Algorithm), cmp.Compare(a.Selector, b.Selector))
	})
	return keys, nil
}

// report logs what has changed for a domain.
func (k *Keys) report(domain string, old, fresh *shelf) {
	if old == nil {
		old = &shelf{}
	}
	if fresh.err != nil && fresh.items == nil && (old.err == nil || old.err.Error() != fresh.err.Error()) {
		k.log.Error("keys cannot be used", "domain", domain, "err", fresh.err)
	}
	for selector, i := range fresh.items {
		before := old.items[selector]
		if i == before {
			continue
		}
		switch {
		case i.err != nil && before != nil && before.err != nil && before.err.Error() == i.err.Error():
		case i.err != nil:
			k.log.Error("key cannot be used", "domain", domain, "selector", selector, "err", i.err)
		case i.signs():
			k.log.Info("key read", "domain", domain, "selector", selector, "algorithm", i.key.Algorithm, "version", i.version)
			if i.advice != "" {
				k.log.Warn("key is weak", "domain", domain, "selector", selector, "advice", i.advice)
			}
		case before == nil || before.err != nil || before.state != i.state:
			k.log.Info("key does not sign", "domain", domain, "selector", selector, "state", string(i.state))
		}
	}
	for selector := range old.items {
		if fresh.items[selector] == nil {
			k.log.Info("key gone", "domain", domain, "selector", selector)
		}
	}
}
