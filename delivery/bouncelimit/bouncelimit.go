// Package bouncelimit watches how much of a sender's mail hosts refuse for good. Who goes on writing to mailboxes that are not there ruins the
// reputation of the relay for everybody: a list that was bought, a stolen password, a program gone wild.
//
// Workers count what ends, and every fifteen seconds add it to the counts of the cluster. A sender above the limit is shown by the status; with the
// policy hold, the mail of his that comes to a worker is held until an operator has looked.
//
//	w, err := bouncelimit.New(bouncelimit.Options{Store: q, Share: 20, Least: 100, Policy: bouncelimit.Hold})
//	w.Start()
//	o.Senders = w // of delivery.Options
//	…
//	err = w.Stop(ctx)
package bouncelimit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/delivery"
	"postroad/queue"
)

// Policy is what happens to the mail of a sender above the limit.
type Policy string

// The policies.
const (
	Off  Policy = "off"  // nothing is counted
	Warn Policy = "warn" // the status says so
	Hold Policy = "hold" // and his mail is held
)

// By is who counts as a sender.
type By string

// The senders.
const (
	ByClient By = "client" // account or network
	ByDomain By = "domain" // of the reverse-path
)

// Store is what a Watch needs of the queue; *queue.Queue is one.
type Store interface {
	CountBounced(ctx context.Context, sender string, add queue.Bounced, window time.Duration) (queue.Bounced, error)
}

var _ Store = (*queue.Queue)(nil)

// Options say what is too much. Store is required.
type Options struct {
	Store  Store
	Policy Policy // default: Warn
	By     By     // default: ByClient

	Window time.Duration // of the counts; default 1 h
	Share  int           // refused of 100 recipients that came to an end; 0: no such limit
	Least  int           // recipients before a share says anything; default 100
	Count  int           // refused recipients, whatever their share; 0: no such limit
	Exempt []string      // senders who may

	Logger     *slog.Logger          // default: none
	Registerer prometheus.Registerer // default: none
}

// Defaults of Options.
const (
	DefaultWindow = time.Hour
	DefaultLeast  = 100
)

const (
	flushEvery = 15 * time.Second
	flushLimit = 5 * time.Second // for one sender
	maxSenders = 10_000          // that are counted between two flushes, and that are above the limit
	maxShown   = 10              // conditions
)

// Watch counts. Make it with New.
type Watch struct {
	o    Options
	held prometheus.Counter

	life context.Context
	end  context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex
	counts map[string]queue.Bounced // since the last flush
	over   map[string]excess
}

// excess is a sender above the limit.
type excess struct {
	since time.Time
	text  string
}

var _ delivery.Senders = (*Watch)(nil)

// New makes a watch that has seen nothing yet.
func New(o Options) (*Watch, error) {
	o.Policy, o.By = cmp.Or(o.Policy, Warn), cmp.Or(o.By, ByClient)
	o.Window, o.Least = cmp.Or(o.Window, DefaultWindow), cmp.Or(o.Least, DefaultLeast)
	switch {
	case o.Store == nil:
		return nil, errors.New("bounce limit options need a store")
	case !slices.Contains([]Policy{Off, Warn, Hold}, o.Policy), !slices.Contains([]By{ByClient, ByDomain}, o.By):
		return nil, fmt.Errorf("bounce limit: unknown policy %q or sender %q", o.Policy, o.By)
	case o.Window < time.Minute, o.Share < 0, o.Share > 100, o.Least < 0, o.Count < 0:
		return nil, errors.New("bounce limit: a number is out of range")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Watch{o: o, counts: make(map[string]queue.Bounced), over: make(map[string]excess)}
	w.life, w.end = context.WithCancel(context.Background())
	w.held = prometheus.NewCounter(prometheus.CounterOpts{Name: "relay_delivery_bounce_limit_held_total", Help: "Jobs held because hosts refuse too much of their sender's mail."})
	if o.Registerer == nil {
		return w, nil
	}
	over := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "relay_delivery_bounce_limit_senders", Help: "Senders of whose mail hosts refuse too much, as this process knows."},
		func() float64 { return float64(w.len()) })
	for _, c := range []prometheus.Collector{w.held, over} {
		if err := o.Registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register bounce limit metrics: %w", err)
		}
	}
	return w, nil
}

// Start begins to add up.
func (w *Watch) Start() {
	if w.o.Policy != Off {
		w.done.Go(w.run)
	}
}

// Stop ends it; what was not added up yet is lost. It returns an error when it did not end before ctx.
func (w *Watch) Stop(ctx context.Context) error {
	w.end()
	ended := make(chan struct{})
	go func() { w.done.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop counting bounces: %w", ctx.Err())
	}
}

func (w *Watch) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.over)
}

// sender is who counts; empty: nobody.
func (w *Watch) sender(job *queue.Job) string {
	name := job.Client
	if w.o.By == ByDomain {
		name = job.ReversePath.Domain
	}
	if w.o.Policy == Off || job.ReversePath.IsNull() || slices.Contains(w.o.Exempt, name) {
		return ""
	}
	return name
}

// Ended implements delivery.Senders.
func (w *Watch) Ended(job *queue.Job, ended, refused int) {
	name := w.sender(job)
	if name == "" || ended == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c, known := w.counts[name]
	if !known && len(w.counts) >= maxSenders {
		return
	}
	w.counts[name] = queue.Bounced{Ended: c.Ended + ended, Refused: c.Refused + refused}
}

// HoldFor implements delivery.Senders.
func (w *Watch) HoldFor(job *queue.Job) string {
	if w.o.Policy != Hold || job.Released {
		return ""
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	e, is := w.over[w.sender(job)]
	if !is {
		return ""
	}
	w.held.Inc()
	return e.text
}

// Conditions are the senders above the limit.
func (w *Watch) Conditions() []queue.Condition {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []queue.Condition
	for name, e := range w.over {
		c := queue.Condition{Part: "delivery", Since: e.since, Text: e.text, Do: "find out what it sends, and to whom (postroad trace --client " + name + ")"}
		if w.o.By == ByDomain {
			c.Do = "find out who sends it, and to whom (postroad queue list, postroad trace)"
		}
		if w.o.Policy == Hold {
			c.Do += "; then postroad queue release, or queue return"
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b queue.Condition) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Text, b.Text)) })
	return list[:min(len(list), maxShown)]
}

func (w *Watch) run() {
	for {
		select {
		case <-w.life.Done():
			return
		case <-time.After(flushEvery):
			w.flush()
		}
	}
}

// flush adds what was counted to the counts of the cluster and looks again at those above the limit, whose mail may no longer come.
func (w *Watch) flush() {
	w.mu.Lock()
	counts := w.counts
	w.counts = make(map[string]queue.Bounced)
	for name := range w.over {
		if _, has := counts[name]; !has {
			counts[name] = queue.Bounced{}
		}
	}
	w.mu.Unlock()
	for name, add := range counts {
		ctx, cancel := context.WithTimeout(w.life, flushLimit)
		total, err := w.o.Store.CountBounced(ctx, name, add, w.o.Window)
		cancel()
		if w.life.Err() != nil {
			return
		}
		if err != nil {
			w.o.Logger.Debug("bounces were not counted", "sender", name, "error", err)
			continue
		}
		w.judge(name, total, time.Now())
	}
}

// judge takes note whether a sender is above the limit.
func (w *Watch) judge(name string, total queue.Bounced, now time.Time) {
	isOver := w.o.Count > 0 && total.Refused >= w.o.Count ||
		w.o.Share > 0 && total.Ended >= w.o.Least && total.Refused*100 >= w.o.Share*total.Ended
	w.mu.Lock()
	defer w.mu.Unlock()
	_, was := w.over[name]
	switch {
	case isOver && !was && len(w.over) < maxSenders:
		w.over[name] = excess{since: now, text: fmt.Sprintf("hosts refuse too much of the mail of %s %s", w.o.By, name)}
		w.o.Logger.Warn("hosts refuse too much of a sender's mail", "sender", name, "policy", string(w.o.Policy), "refused", total.Refused, "ended", total.Ended)
	case was && !isOver:
		delete(w.over, name)
		w.o.Logger.Info("a sender is below the bounce limit again", "sender", name, "refused", total.Refused, "ended", total.Ended)
	}
}
