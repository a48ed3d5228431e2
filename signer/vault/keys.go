package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/signer/keyring"
)

// KeysOptions configure Keys.
type KeysOptions struct {
	// Transit is the mount of the transit engine, for keys that never leave
	// Vault. Default: transit.
	Transit string
	// Poll is how often Vault is asked what has changed for the domains in use. A
	// change shows within twice that. It costs one request for each domain and one
	// for each of its keys. Default: 15 s.
	Poll time.Duration
	// Soft is how long after its last mail a domain is in use; others are looked
	// at that often. Default: 5 min.
	Soft time.Duration
	// Hard is how long keys that were read once go on signing while Vault is out
	// of reach. Default: 24 h.
	Hard time.Duration
	// Missing is how long it is remembered that a domain has no key. Default: 15 s.
	Missing time.Duration
	// Logger gets one line for each key that appears, goes, or cannot be used.
	// Default: discards.
	Logger *slog.Logger
	// Registerer gets the metrics relay_vault_keys_*. Default: none.
	Registerer prometheus.Registerer
}

const (
	// directory holds the keys below the Prefix: dkim/<domain>/<selector>.
	directory = "dkim"

	// maxKnown and maxMissing bound the domains that are remembered; names come
	// from outside. A domain beyond them is read again each time.
	maxKnown   = 20_000
	maxMissing = 10_000
	// maxKeys bounds the signatures that one domain can cause, maxSelectors what
	// is read of one domain.
	maxKeys      = 8
	maxSelectors = 4000
	// maxLooks bounds the domains that are looked at at the same time, maxWaiting
	// those that wait for that.
	maxLooks   = 32
	maxWaiting = 1000
	// atOnce is how many of them a round of the poll takes.
	atOnce = 8

	// lookTimeout bounds one look at a domain.
	lookTimeout = 20 * time.Second
	// patience is how long somebody waits for news when there are keys in memory.
	patience = time.Second
	// grace is how long a key that was dropped may finish signatures.
	grace = 30 * time.Second
)

// Keys is a keyring.Store over the secrets dkim/<domain>/<selector>. Such a
// secret has the fields
//
//	private_key                     PEM, PKCS #8 or PKCS #1; RSA or Ed25519
//	transit_key, transit_version    or, instead, name and version of a transit key
//	state, algorithm, bits, record, history, by
//
// Of these only the key is needed: without a state it is Active. Its custom
// metadata repeats the entry, so that keys can be listed, and found to be none
// that signs, without reading private halves.
//
// Keys are in memory only. When they are dropped they are overwritten, as far
// as Go lets us.
type Keys struct {
	client  *Client
	o       KeysOptions
	log     *slog.Logger
	transit *transit
	looks   *prometheus.CounterVec

	mu      sync.Mutex
	started bool
	stopped bool
	known   map[string]*shelf
	missing map[string]time.Time // domains without keys, and when that was seen
	looking map[string]*look
	dropped []drop
	failed  time.Time // last look that found nothing out
	cut     bool      // Vault was out of reach at the last look

	slots  chan struct{} // one for each look that runs
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

var _ keyring.Store = (*Keys)(nil)

// NewKeys makes Keys. The client must be started before they are used.
func NewKeys(c *Client, o KeysOptions) (*Keys, error) {
	if c == nil {
		return nil, errors.New("keys in Vault: no client given")
	}
	if o.Transit == "" {
		o.Transit = "transit"
	}
	if err := checkPath(o.Transit); err != nil {
		return nil, fmt.Errorf("keys in Vault: mount of transit %w", err)
	}
	for _, d := range []struct {
		value    *time.Duration
		standard time.Duration
	}{{&o.Poll, 15 * time.Second}, {&o.Soft, 5 * time.Minute}, {&o.Hard, 24 * time.Hour}, {&o.Missing, 15 * time.Second}} {
		if *d.value < 0 {
			return nil, errors.New("keys in Vault: durations must not be negative")
		}
		if *d.value == 0 {
			*d.value = d.standard
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	k := &Keys{
		client: c, o: o, log: o.Logger, transit: &transit{client: c, mount: o.Transit, batches: newBatcher(c)},
		known: make(map[string]*shelf), missing: make(map[string]time.Time), looking: make(map[string]*look),
		slots: make(chan struct{}, maxLooks),
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	if err := k.register(o.Registerer); err != nil {
		return nil, fmt.Errorf("register metrics of keys: %w", err)
	}
	return k, nil
}

func (k *Keys) register(r prometheus.Registerer) error {
	k.looks = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "relay_vault_keys_looks_total",
		Help: "Looks at the keys of a domain, by how they ended.",
	}, []string{"result"})
	for _, result := range []string{"ok", "none", "bad", "out_of_reach"} {
		k.looks.WithLabelValues(result)
	}
	gauge := func(name, help string, counts func(*shelf, time.Time) bool) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			k.mu.Lock()
			defer k.mu.Unlock()
			n, now := 0, time.Now()
			for _, s := range k.known {
				if counts(s, now) {
					n++
				}
			}
			return float64(n)
		})
	}
	return register(r, k.looks, k.transit.batches.sizes,
		gauge("relay_vault_keys_domains", "Domains whose keys are in memory.", func(s *shelf, _ time.Time) bool { return len(s.keys) > 0 }),
		gauge("relay_vault_keys_stale_domains", "Domains that sign with keys that Vault did not confirm lately.",
			func(s *shelf, now time.Time) bool {
				return s.isStale(now, k.o.Poll)
			}),
	)
}

// Start reads the keys of all domains, as far as they may be listed, and looks
// for changes from now on, both in the background. Commands that work on keys
// and end need no Start.
func (k *Keys) Start() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.started || k.stopped {
		return errors.New("keys in Vault: they were started before")
	}
	k.started = true
	k.wg.Go(func() { k.poll(k.ctx) })
	return nil
}

// Stop waits for all that runs, and overwrites the keys. More calls do nothing.
func (k *Keys) Stop(ctx context.Context) error {
	k.mu.Lock()
	first := !k.stopped
	k.stopped = true
	k.mu.Unlock()
	if !first {
		return nil
	}
	k.cancel()
	ended := make(chan struct{})
	go func() { k.wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
		return fmt.Errorf("stop keys in Vault: %w", ctx.Err())
	}
	k.mu.Lock()
	for name, s := range k.known {
		k.retire(s, nil)
		delete(k.known, name)
	}
	k.mu.Unlock()
	k.wipe(time.Time{})
	return nil
}

// Changed says that somebody has changed the keys of a domain: the next question
// looks at them. After Start those of a domain that somebody has asked for are
// looked at at once.
func (k *Keys) Changed(domain string) {
	name, ok := keyring.CleanDomain(domain)
	if !ok {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	_, asked := k.missing[name]
	delete(k.missing, name)
	if l := k.looking[name]; l != nil {
		l.outdated = true
		return
	}
	if s := k.known[name]; s != nil {
		s.looked, asked = time.Time{}, true
	}
	if asked && k.started {
		_, _ = k.begin(name) // when that many others wait, the next question looks
	}
}

// Keys implements keyring.Source.
func (k *Keys) Keys(ctx context.Context, domain string) ([]keyring.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("look up keys of %s: %w", brief(domain), err)
	}
	name, ok := keyring.CleanDomain(domain)
	if !ok {
		return nil, fmt.Errorf("%q is no domain name: %w", brief(domain), keyring.ErrNoKey)
	}
	now := time.Now()
	k.mu.Lock()
	if seen, is := k.missing[name]; is && now.Sub(seen) < k.o.Missing {
		k.mu.Unlock()
		return nil, noKey(name)
	}
	s := k.known[name]
	var last []keyring.Key
	var lastErr error
	if s != nil {
		s.asked = now
		last, lastErr = k.answer(name, s, now)
		if now.Sub(s.looked) < 2*k.o.Poll {
			k.mu.Unlock()
			return last, lastErr
		}
	}
	l, err := k.begin(name)
	wait := patience
	if now.Sub(k.failed) < k.o.Poll {
		wait = 0
	}
	k.mu.Unlock()
	if err != nil && len(last) > 0 {
		return last, nil
	}
	if err != nil {
		return nil, err
	}
	var enough <-chan time.Time
	if len(last) > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		enough = timer.C
	}
	select {
	case <-l.done:
		return l.keys, l.err
	case <-enough:
		return last, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("look up keys of %s: %w", name, ctx.Err())
	}
}

func noKey(domain string) error { return fmt.Errorf("%s: %w", domain, keyring.ErrNoKey) }

// answer gives the keys of a shelf, while they are not too old.
func (k *Keys) answer(domain string, s *shelf, now time.Time) ([]keyring.Key, error) {
	if now.Sub(s.read) > k.o.Hard {
		return nil, fmt.Errorf("keys of %s were read %s ago, and not since; they sign no more: %w", domain, now.Sub(s.read).Round(time.Second), s.fault)
	}
	return s.keys, s.err
}

// poll looks for changes until ctx ends.
func (k *Keys) poll(ctx context.Context) {
	preloaded := false
	for {
		if !preloaded {
			preloaded = k.preload(ctx)
		}
		timer := time.NewTimer(k.o.Poll*4/5 + rand.N(k.o.Poll*2/5+1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		began := time.Now()
		looked := k.lookAll(ctx, k.due(began))
		if took := time.Since(began); took > k.o.Poll {
			k.log.Warn("the keys take long to look at, changes show late", "domains", looked, "took", took.Round(time.Millisecond))
		}
		k.wipe(time.Now().Add(-grace))
	}
}

// preload reads the keys of all domains. It reports false when that is to be
// tried again.
func (k *Keys) preload(ctx context.Context) bool {
	names, err := k.domains(ctx)
	switch {
	case errors.Is(err, ErrDenied):
		k.log.Warn("domains may not be listed: keys are read when the first mail needs them", "err", err)
		return true
	case err != nil:
		k.log.Warn("keys were not read in advance, it is tried again", "err", err)
		return false
	}
	names = names[:min(len(names), maxKnown)]
	return k.lookAll(ctx, names) == len(names)
}

// due are the domains to be looked at now. What is too old to sign is dropped.
func (k *Keys) due(now time.Time) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for name, s := range k.known {
		age := now.Sub(s.looked)
		switch {
		case now.Sub(s.read) > k.o.Hard:
			k.retire(s, nil)
			delete(k.known, name)
		case age >= k.o.Poll/2 && now.Sub(s.asked) < k.o.Soft, age >= k.o.Soft*4/5:
			names = append(names, name)
		}
	}
	return names
}

// lookAll looks at domains, some at once, and returns how many it has looked at.
// It stops early when Vault is out of reach.
func (k *Keys) lookAll(ctx context.Context, names []string) int {
	next := make(chan string)
	var wg sync.WaitGroup
	var mu sync.Mutex
	looked, failed := 0, 0
	for range min(atOnce, len(names)) {
		wg.Go(func() {
			for name := range next {
				err := k.lookNow(ctx, name)
				mu.Lock()
				looked++
				if errors.Is(err, ErrUnavailable) {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	for _, name := range names {
		mu.Lock()
		enough := failed >= 3
		mu.Unlock()
		if enough || ctx.Err() != nil {
			break
		}
		next <- name
	}
	close(next)
	wg.Wait()
	return looked
}

// lookNow looks at one domain and waits for it.
func (k *Keys) lookNow(ctx context.Context, name string) error {
	k.mu.Lock()
	l, err := k.begin(name)
	k.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-l.done:
		return l.fault
	case <-ctx.Done():
		return ctx.Err()
	}
}
