// Package suppress keeps mail from recipients who are not to be written to: those whom an operator named, and, if the policy says so, those
// whom hosts refused as unknown and those who complained.
//
// The list lies in the queue. A worker holds eight octets of each entry in memory, which answer for nearly every recipient; only where they
// say "perhaps" is the entry itself read. They follow the list within seconds.
//
//	l, err := suppress.New(suppress.Options{Store: q, Reasons: []string{"invalid_recipient"}, After: 2})
//	l.Start()
//	o.Suppressor = l // of delivery.Options
//	…
//	err = l.Stop(ctx)
package suppress

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/delivery"
	"postroad/queue"
)

// Store is what a List needs of the queue; *queue.Queue is one. Its methods are described there.
type Store interface {
	Suppression(ctx context.Context, key string) (*queue.Suppression, error)
	SuppressionChanges(ctx context.Context, after queue.SuppressionPosition, fn func(queue.SuppressionChange)) (queue.SuppressionPosition, error)
	NoteRefusal(ctx context.Context, s queue.Suppression, after int, within, keep time.Duration) error
	OnNotice(topic string, fn func(name string)) (stop func(), err error)
}

var _ Store = (*queue.Queue)(nil)

// Options say how a List works. Store is required.
type Options struct {
	Store Store

	Reasons []string      // classes of refusals that suppress, delivery.ClassComplaint too; empty: none, only operators do
	After   int           // so many refusals; default 2. A complaint is enough
	Within  time.Duration // of each other; default 30 days
	Keep    time.Duration // how long the policy suppresses; default 90 days

	Logger     *slog.Logger          // default: none
	Registerer prometheus.Registerer // default: none
}

// Defaults of Options.
const (
	DefaultAfter  = 2
	DefaultWithin = 30 * 24 * time.Hour
	DefaultKeep   = 90 * 24 * time.Hour
)

const (
	followEvery  = 10 * time.Second
	readTimeout  = 2 * time.Second // of one entry
	noteTimeout  = 5 * time.Second // of one refusal
	maxRefusals  = 1000            // that wait to be noted
	openAfter    = time.Minute     // without a list mail flows again after this time
	policysOwner = "policy"
)

// List is the list as one worker sees it. Make it with New.
type List struct {
	o        Options
	seed     maphash.Seed
	kick     chan struct{}
	refusals chan delivery.HardBounce
	dropped  prometheus.Counter

	life context.Context
	end  context.CancelFunc
	done sync.WaitGroup

	mu      sync.RWMutex
	keys    map[uint64]struct{} // hashes of keys; one too many costs a look, none is missing
	isKnown bool                // keys has all of the list
	since   time.Time           // of the start, or of the list that was made anew
	failure error
}

var _ delivery.Suppressor = (*List)(nil)

// New makes a list that knows nothing yet.
func New(o Options) (*List, error) {
	if o.Store == nil {
		return nil, errors.New("suppression options need a store")
	}
	if o.After < 0 || o.Within < 0 || o.Keep < 0 {
		return nil, errors.New("suppression options: numbers and times cannot be below zero")
	}
	if o.After == 0 {
		o.After = DefaultAfter
	}
	if o.Within == 0 {
		o.Within = DefaultWithin
	}
	if o.Keep == 0 {
		o.Keep = DefaultKeep
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l := &List{o: o, seed: maphash.MakeSeed(), kick: make(chan struct{}, 1), refusals: make(chan delivery.HardBounce, maxRefusals),
		keys: make(map[uint64]struct{})}
	l.dropped = prometheus.NewCounter(prometheus.CounterOpts{Name: "relay_delivery_suppress_dropped_total",
		Help: "Refusals that the policy did not hear of: too many at once, or the queue did not take them."})
	l.life, l.end = context.WithCancel(context.Background())
	if o.Registerer == nil {
		return l, nil
	}
	size := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "relay_delivery_suppressions", Help: "Entries of the list of suppressions, those that are pending too."},
		func() float64 { return float64(l.len()) })
	for _, c := range []prometheus.Collector{l.dropped, size} {
		if err := o.Registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register suppression metrics: %w", err)
		}
	}
	return l, nil
}

// Start begins to follow the list and to note refusals.
func (l *List) Start() {
	l.mu.Lock()
	l.since = time.Now()
	l.mu.Unlock()
	l.done.Go(l.follow)
	l.done.Go(l.noteAll)
}

// Stop ends both. Refusals that were not noted yet are lost, and count the next time. It returns an error when they did not end before ctx.
func (l *List) Stop(ctx context.Context) error {
	l.end()
	ended := make(chan struct{})
	go func() { l.done.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop following suppressions: %w", ctx.Err())
	}
}

func (l *List) len() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return len(l.keys)
}

// Blocked says why recipients are not to be written to: for each of them, nil for those who may be; nil when all may be. What reports on
// mail goes to everybody.
func (l *List) Blocked(ctx context.Context, job *queue.Job) ([]*queue.Suppression, error) {
	if job.ReversePath.IsNull() {
		return nil, nil
	}
	var blocked []*queue.Suppression
	now := time.Now()
	for i := range job.Recipients {
		s, err := l.find(ctx, job.Class, &job.Recipients[i], now)
		if err != nil {
			return nil, err
		}
		if s == nil {
			continue
		}
		if blocked == nil {
			blocked = make([]*queue.Suppression, len(job.Recipients))
		}
		blocked[i] = s
	}
	return blocked, nil
}

func (l *List) find(ctx context.Context, class string, rcpt *queue.Recipient, now time.Time) (*queue.Suppression, error) {
	classes := []string{"", class}
	if class == "" {
		classes = classes[:1]
	}
	for _, target := range []string{queue.SuppressionAddress(rcpt.Path), rcpt.Path.Domain} {
		for _, c := range classes {
			key := queue.SuppressionKey(c, target)
			if !l.mayHave(key) {
				continue
			}
			s, err := l.read(ctx, key)
			if err != nil {
				return nil, err
			}
			if s != nil && !s.Pending && !s.IsOver(now) {
				return s, nil
			}
		}
	}
	return nil, nil
}

// mayHave is certain when it says no. As long as the list is not known it says yes.
func (l *List) mayHave(key string) bool {
	h := maphash.String(l.seed, key)
	l.mu.RLock()
	defer l.mu.RUnlock()
	_, has := l.keys[h]
	return has || !l.isKnown
}

// read gets an entry. While it cannot be told whether a recipient is on the list, mail waits, but not for ever: a list that has not been had
// for a minute since the start stops nothing, and the status says so.
func (l *List) read(ctx context.Context, key string) (*queue.Suppression, error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	s, err := l.o.Store.Suppression(ctx, key)
	if err == nil {
		return s, nil
	}
	if _, isOpen := l.isOpen(time.Now()); isOpen {
		return nil, nil
	}
	return nil, fmt.Errorf("look for a suppression: %w", err)
}

// isOpen reports that the list has not been had for so long that mail flows without it, and since when it has not been.
func (l *List) isOpen(now time.Time) (time.Time, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.since, !l.isKnown && l.failure != nil && now.Sub(l.since) > openAfter
}

// Conditions are what operators should know.
func (l *List) Conditions() []queue.Condition {
	since, isOpen := l.isOpen(time.Now())
	if !isOpen {
		return nil
	}
	return []queue.Condition{{Part: "delivery", Since: since, Text: "the list of suppressions cannot be read: mail goes to everybody",
		Do: "see that a process of this version with queue.manage: true runs, and that delivery's login may read KV_suppressions (deploy/nats)"}}
}

// follow keeps the keys up to date.
func (l *List) follow() {
	stop, err := l.o.Store.OnNotice(queue.SuppressionNotice, func(string) {
		select {
		case l.kick <- struct{}{}:
		default:
		}
	})
	if err == nil {
		defer stop()
	}
	var at queue.SuppressionPosition
	for {
		at = l.catchUp(at)
		select {
		case <-l.life.Done():
			return
		case <-l.kick:
		case <-time.After(followEvery):
		}
	}
}

// catchUp takes in what has changed since a position and returns the next one.
func (l *List) catchUp(at queue.SuppressionPosition) queue.SuppressionPosition {
	start := queue.SuppressionPosition{}
	next, err := l.o.Store.SuppressionChanges(l.life, at, l.apply)
	if err == nil && next == start && at != start {
		l.forget()
		next, err = l.o.Store.SuppressionChanges(l.life, start, l.apply)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.isKnown = true
	} else if l.life.Err() == nil && l.failure == nil {
		l.o.Logger.Warn("suppressions cannot be followed, it is tried again", "error", err)
	}
	l.failure = err
	return next
}

// forget is for a list that was made anew: until it has been read, each recipient is looked up, as after a start.
func (l *List) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keys, l.isKnown, l.since = make(map[uint64]struct{}), false, time.Now()
	l.o.Logger.Warn("the list of suppressions was made anew, it is read from its start")
}

func (l *List) apply(c queue.SuppressionChange) {
	h := maphash.String(l.seed, c.Key)
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.Gone {
		delete(l.keys, h)
		return
	}
	l.keys[h] = struct{}{}
}

// HardBounced implements delivery.Suppressor.
func (l *List) HardBounced(b delivery.HardBounce) {
	if !slices.Contains(l.o.Reasons, b.Class) {
		return
	}
	select {
	case l.refusals <- b:
	default:
		l.dropped.Inc()
	}
}

func (l *List) noteAll() {
	for {
		select {
		case <-l.life.Done():
			return
		case b := <-l.refusals:
			l.note(b)
		}
	}
}

// note counts one refusal. Who does not exist, exists for nobody; who complained did so about one class of mail.
func (l *List) note(b delivery.HardBounce) {
	s := queue.Suppression{Address: queue.SuppressionAddress(b.Recipient), Reason: b.Class, Text: b.Text, Owner: policysOwner, Source: string(b.ID)}
	after := l.o.After
	if b.Class == delivery.ClassComplaint {
		s.Class, after = b.MailClass, 1
	}
	ctx, cancel := context.WithTimeout(l.life, noteTimeout)
	defer cancel()
	if err := l.o.Store.NoteRefusal(ctx, s, after, l.o.Within, l.o.Keep); err != nil && l.life.Err() == nil {
		l.dropped.Inc()
		l.o.Logger.Warn("a refusal was not noted", "rcpt", s.Address, "error", err)
	}
}
