// Package signer puts DKIM signatures (RFC 6376) on the mail of the queue.
//
// It takes one mail after the other from the queue, many at once, streams its
// content once through all keys of the signing domain, and hands the signature
// fields back to the queue, which keeps them in the jobs: the content itself is
// never rewritten. The keys come from a keyring.Source.
//
//	s, err := signer.New(signer.Options{Queue: q, Keys: dir, OwnDomain: "relay.example.net"})
//	...
//	s.Start()
//	defer s.Stop(ctx)
//
// What it signs for is the domain of the author (From:), exactly or, when
// allowed, the nearest parent that has keys; for notifications of our own making
// it is our own domain and nothing else. Rules say which clients' mail a domain
// signs, whether our own domain signs beside it, and what becomes of mail without
// a key. When the source of keys is out of reach the signer stops taking mail,
// which then waits in the queue.
package signer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/queue"
	"postroad/signer/keyring"
)

// Queue is what the signer needs of the queue.
type Queue interface {
	// Sign hands out mails until ctx ends, at most window at a time, each on
	// its own goroutine, and returns when all handlers have returned. A mail
	// that its handler neither signed nor put aside is handed out again.
	Sign(ctx context.Context, window int, handle func(context.Context, *queue.Signing)) error
	// Record notes a fact for people; it never blocks for long.
	Record(queue.Event)
}

var _ Queue = (*queue.Queue)(nil)

// Options of a Signer.
type Options struct {
	Queue Queue          // where the mail is; required
	Keys  keyring.Source // where the keys are; required

	// MissingKey is the policy for a domain without any key, unless Domains say
	// otherwise. Default: Hold.
	MissingKey Policy
	// RelaySignature adds a signature of OwnDomain to those of authors' domains
	// that are not in Domains.
	RelaySignature bool
	// Domains are those of authors for which other rules hold.
	Domains []Domain
	// OwnDomain signs the notifications that we make, and nothing else of
	// theirs is ever used: not even what their From: says. Empty: they go out
	// unsigned. It is the one that Relay and RelaySignature mean.
	OwnDomain string
	// Window is the most mails in hand at once. Default: 64.
	Window int
	// Expiry sets x= to this long after t=. It must be longer than mail may stay
	// in our queue and in the next ones: 7 to 9 days. Default: 0, no x=.
	Expiry time.Duration
	// MaxAge is how old mail may become that cannot be signed; then its sender is
	// told. It is delivery's. Default: 0, it waits for ever.
	MaxAge time.Duration
	// AllowParent lets mail from news.example.com be signed by example.com when
	// news.example.com has no key of its own; not for Domains. Default: false.
	AllowParent bool

	Logger     *slog.Logger          // default: discards
	Registerer prometheus.Registerer // default: metrics are kept but not exported
}

const (
	defaultWindow = 64
	// minExpiry keeps a slip in the configuration (90m for 90h) from making
	// signatures that end while the mail is still on its way.
	minExpiry = 24 * time.Hour
)

func (o Options) withDefaults() (Options, error) {
	if o.Queue == nil {
		return o, errors.New("no queue given")
	}
	if o.Keys == nil {
		return o, errors.New("no source of keys given")
	}
	if o.Window < 0 {
		return o, fmt.Errorf("window %d: want 1 or more", o.Window)
	}
	if o.Window == 0 {
		o.Window = defaultWindow
	}
	if o.Expiry != 0 && o.Expiry < minExpiry {
		return o, fmt.Errorf("signature expiry %s: want at least %s, or 0 for none", o.Expiry, minExpiry)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// Signer takes mail from the queue and signs it.
type Signer struct {
	o       Options
	rules   *Rules
	metrics *metrics
	fields  []signedField
	pool    bufferPool
	notices notices
	reach   reach
	rest    pause // of our own domain's keys, beside those of authors

	degraded degraded

	cancel context.CancelFunc
	ctx    context.Context
	wg     sync.WaitGroup
	once   sync.Once
}

// New makes a signer. It touches neither the queue nor the keys until Start.
func New(o Options) (*Signer, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("signer options: %w", err)
	}
	rules, err := o.Rules()
	if err != nil {
		return nil, fmt.Errorf("signer options: %w", err)
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("register signer metrics: %w", err)
	}
	s := &Signer{o: o, rules: rules, metrics: m, fields: signedFields()}
	s.degraded.keys = o.Keys
	if o.Registerer != nil {
		if err := o.Registerer.Register(&s.degraded); err != nil {
			return nil, fmt.Errorf("register signer metrics: %w", err)
		}
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Start begins to take mail. It may be called once.
func (s *Signer) Start() {
	s.once.Do(func() { s.wg.Go(func() { s.run(s.ctx) }) })
}

// Stop takes no more mail and waits for what is in hand, at most until ctx
// ends. It may be called again.
func (s *Signer) Stop(ctx context.Context) error {
	s.once.Do(func() {}) // a Start after Stop does nothing
	s.cancel()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop signer: mail still in hand: %w", ctx.Err())
	}
}

const (
	firstPause   = time.Second
	longestPause = 30 * time.Second
	probeTimeout = 10 * time.Second
)

// run takes mail until ctx ends; when the queue or the keys are away it pauses.
func (s *Signer) run(ctx context.Context) {
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := s.take(ctx)
		if ctx.Err() != nil {
			return
		}
		if domain, cause := s.reach.lost(); cause != nil {
			s.awaitKeys(ctx, domain, cause)
			continue
		}
		if time.Since(began) > longestPause {
			pause = firstPause
		}
		s.o.Logger.Warn("taking mail from the queue ended, trying again", "err", err, "pause", pause)
		sleep(ctx, pause)
		pause = min(2*pause, longestPause)
	}
}

// take takes mail until ctx ends, the queue fails, or the keys are out of reach.
func (s *Signer) take(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s.reach.begin(stop)
	return s.o.Queue.Sign(ctx, s.o.Window, s.handle)
}

// awaitKeys asks for the keys of domain until the source answers, whatever it
// answers, or has keys for others.
func (s *Signer) awaitKeys(ctx context.Context, domain string, cause error) {
	s.o.Logger.Error("keys are out of reach, taking no mail until they are back", "domain", domain, "err", cause)
	s.metrics.outOfReach.Set(1)
	defer s.metrics.outOfReach.Set(0)
	s.degraded.lose(cause)
	defer s.degraded.lose(nil)
	began := time.Now()
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		if sleep(ctx, pause) != nil {
			return
		}
		probe, cancel := context.WithTimeout(ctx, probeTimeout)
		_, err := s.o.Keys.Keys(probe, domain)
		cancel()
		if answered(err) || !s.isCut() {
			s.o.Logger.Info("keys are within reach again", "after", time.Since(began))
			return
		}
	}
}

// reachability is what a source of keys knows that can tell its own trouble from
// that of one domain.
type reachability interface {
	// Reachable says why no keys can be had for any domain: the source is out of
	// reach and has none in memory. nil: some can, or nobody knows.
	Reachable() error
}

// isCut reports that no domain's mail can be signed. A source that cannot tell is
// judged by its lookups alone.
func (s *Signer) isCut() bool {
	r, is := s.o.Keys.(reachability)
	return !is || r.Reachable() != nil
}

// reach remembers whether the source of keys answers. One lookup that fails
// means little, and its mail is put aside; a row of them with no answer in
// between, while the source as a whole is out of reach, means that taking mail
// only to put it aside would be churn.
type reach struct {
	mu       sync.Mutex
	failures int
	domain   string
	cause    error // not nil: out of reach
	stop     context.CancelFunc
}

// outageAfter is how many lookups in a row must fail.
const outageAfter = 8

func (r *reach) begin(stop context.CancelFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures, r.domain, r.cause, r.stop = 0, "", nil, stop
}

// answer notes that the source spoke.
func (r *reach) answer() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cause == nil {
		r.failures = 0
	}
}

// fail notes a lookup without an answer, and reports whether that makes the
// source out of reach: then nothing more is taken. isCut is asked when it may.
func (r *reach) fail(domain string, err error, isCut func() bool) bool {
	r.mu.Lock()
	r.failures++
	isRow := r.failures >= outageAfter
	r.mu.Unlock()
	if !isRow || !isCut() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cause == nil {
		r.domain, r.cause = domain, err
		if r.stop != nil {
			r.stop()
		}
	}
	return true
}

func (r *reach) lost() (domain string, cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.domain, r.cause
}

// answered tells the answers of a source from its silence.
func answered(err error) bool {
	return err == nil || errors.Is(err, keyring.ErrNoKey) || errors.Is(err, keyring.ErrBadKey)
}

// sleep waits for d, a fifth more or less, so that the signers of a cluster do
// not come back all at once.
func sleep(ctx context.Context, d time.Duration) error {
	d += time.Duration((rand.Float64() - 0.5) * 0.4 * float64(d))
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
