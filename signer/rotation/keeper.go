package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/signer/keyring"
)

// KeeperOptions configure a Keeper.
type KeeperOptions struct {
	Store       keyring.Store // required
	Publication Publication   // required
	Policy      Policy        // that of the Rotator
	// Rotator moves keys. Without one no key is ever changed: records are looked
	// up, and the metrics kept.
	Rotator *Rotator
	// CheckEvery is how often the records of the keys of a domain that sign are
	// looked up. Default: never.
	CheckEvery time.Duration
	// LookEvery is how often the keys of all domains are listed. Default: 1 h.
	LookEvery time.Duration
	// Workers is how many domains are worked on at a time. Default: 8.
	Workers int
	// InForce is called when a domain signs that did not before: mail waits for
	// that. It is called again after Policy.Settle, when signers know that did not
	// hear of it. Default: nothing.
	InForce func(ctx context.Context, domain string)
	// Beside runs beside the work on keys, from the beginning to the end of Run,
	// which waits for it. Default: nothing.
	Beside func(ctx context.Context)
	// Advise knows what to do about an error of the Store; "" when it does not.
	// Default: it never does.
	Advise func(error) string
	// Logger gets a line for each thing that somebody has to see to, once.
	// Default: discards.
	Logger *slog.Logger
	// Registerer gets the metrics relay_dkim_*. Default: none.
	Registerer prometheus.Registerer
}

const (
	defaultLookEvery = time.Hour
	defaultWorkers   = 8

	// maxDomains bounds the domains that are kept in mind; more are not looked
	// after, and a condition says so.
	maxDomains = 50_000
	// passLimit and listLimit bound the work on one domain and one listing of all.
	passLimit = 10 * time.Minute
	listLimit = 30 * time.Minute

	// How long until something is tried again that went wrong, and until a thing is
	// looked at again of which nobody knows when it will be.
	firstRetry, lastRetry = time.Minute, 30 * time.Minute
	firstPoll, lastPoll   = 5 * time.Second, 15 * time.Minute

	// When the store failed with storeFailures domains in a row, one is tried each
	// storePause until the store does what it is asked.
	storeFailures = 3
	storePause    = 10 * time.Second
)

// Keeper looks after the keys of all domains as long as it runs. At most one of a
// cluster should; more do no harm but ask twice.
type Keeper struct {
	o   KeeperOptions
	log *slog.Logger

	mu      sync.Mutex
	leads   bool
	began   time.Time
	domains map[string]*kept
	list    hindrance           // of the last listing
	store   hindrance           // of passes, when many failed in a row
	failing map[string]struct{} // domains with which the store failed in a row, at most storeFailures
	left    int                 // domains beyond maxDomains
	paused  time.Time
	wake    chan struct{} // full when something may have to be done earlier
}

// kept is what is in mind of one domain.
type kept struct {
	keys    []seenKey
	turn    time.Time // when its keys are to be replaced; zero: never
	next    time.Time // next pass; zero: at the next listing
	check   time.Time // next look at its records; zero: never
	force   time.Time // next InForce; zero: never
	urgent  bool      // somebody waits for its next pass
	busy    bool
	noticed bool // while busy
	fails   int  // passes in a row in which something went wrong
	waits   map[string]*wait
	records map[string]*recordState // by selector
	trouble hindrance
}

// NewKeeper makes a Keeper.
func NewKeeper(o KeeperOptions) (*Keeper, error) {
	if o.Store == nil || o.Publication == nil {
		return nil, errors.New("rotation: a store and the DNS are needed")
	}
	if o.CheckEvery < 0 || o.LookEvery < 0 || o.Workers < 0 {
		return nil, errors.New("rotation: nothing may be negative")
	}
	var err error
	if o.Policy, err = o.Policy.complete(); err != nil {
		return nil, err
	}
	if o.LookEvery == 0 {
		o.LookEvery = defaultLookEvery
	}
	if o.Workers == 0 {
		o.Workers = defaultWorkers
	}
	if o.InForce == nil {
		o.InForce = func(context.Context, string) {}
	}
	if o.Beside == nil {
		o.Beside = func(context.Context) {}
	}
	if o.Advise == nil {
		o.Advise = func(error) string { return "" }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{o: o, log: o.Logger, domains: make(map[string]*kept), failing: make(map[string]struct{}), wake: make(chan struct{}, 1)}
	if o.Registerer != nil {
		if err := o.Registerer.Register(newCollector(k)); err != nil {
			return nil, fmt.Errorf("register metrics of keys: %w", err)
		}
	}
	return k, nil
}

// Run looks after the keys until ctx ends, and returns when nothing of it runs
// any more. One Run at a time.
func (k *Keeper) Run(ctx context.Context) {
	k.begin()
	defer k.end()
	var wg sync.WaitGroup
	defer wg.Wait()
	work := make(chan task)
	defer close(work)
	for range k.o.Workers {
		wg.Go(func() {
			for t := range work {
				k.do(ctx, t)
			}
		})
	}
	wg.Go(func() { k.listAll(ctx) })
	wg.Go(func() { k.o.Beside(ctx) })
	for {
		tasks, wait := k.due(time.Now())
		for _, t := range tasks {
			select {
			case work <- t:
			case <-ctx.Done():
				return
			}
		}
		if len(tasks) > 0 {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-k.wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

func (k *Keeper) begin() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.leads, k.began = true, time.Now()
	k.log.Info("this process looks after the DKIM keys", "automatic", k.o.Rotator != nil, "check_every", k.o.CheckEvery)
}

// end forgets everything: who looks after the keys next may be another process.
func (k *Keeper) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.leads, k.domains = false, make(map[string]*kept)
	k.left, k.store, k.list, k.paused = 0, hindrance{}, hindrance{}, time.Time{}
	clear(k.failing)
	k.log.Info("this process looks after the DKIM keys no more")
}

// Notice says that the keys of a domain have changed: they are looked at now.
// Without a Run nothing happens.
func (k *Keeper) Notice(domain string) {
	name, ok := keyring.CleanDomain(domain)
	if !ok {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.leads {
		return
	}
	if d := k.domain(name); d != nil {
		now := time.Now()
		d.next, d.urgent, d.noticed = now, true, d.busy
		if k.o.CheckEvery > 0 {
			d.check = now
		}
		k.stir()
	}
}

// domain finds what is kept of a domain, or begins to keep it; nil when there are
// too many. Keeper.mu is held.
func (k *Keeper) domain(name string) *kept {
	d := k.domains[name]
	if d == nil && len(k.domains) < maxDomains {
		d = &kept{waits: make(map[string]*wait), records: make(map[string]*recordState)}
		k.domains[name] = d
	}
	return d
}

// stir makes Run look whether something is due.
func (k *Keeper) stir() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// task is work on one domain.
type task struct {
	domain string
	kind   func(*Keeper, context.Context, string)
}

const (
	maxTasks = 64 // picked at once: what is noticed meanwhile comes next
	maxRest  = time.Minute
)

// due picks what is to be done now, and says how long nothing else is.
func (k *Keeper) due(now time.Time) ([]task, time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	rest := maxRest
	isDue := func(at time.Time) bool {
		if at.IsZero() {
			return false
		}
		if wait := at.Sub(now); wait > 0 {
			rest = min(rest, wait)
			return false
		}
		return true
	}
	most := maxTasks
	if len(k.failing) >= storeFailures {
		if most = 1; now.Before(k.paused) {
			return nil, k.paused.Sub(now)
		}
		k.paused = now.Add(storePause)
	}
	var urgent, others []task
	for name, d := range k.domains {
		switch {
		case d.busy:
		case isDue(d.force):
			urgent = append(urgent, task{name, (*Keeper).inForce})
		case isDue(d.next) && d.urgent:
			urgent = append(urgent, task{name, (*Keeper).pass})
		case isDue(d.next) && len(others) < most:
			others = append(others, task{name, (*Keeper).pass})
		case isDue(d.check) && len(others) < most:
			others = append(others, task{name, (*Keeper).checkRecords})
		}
	}
	tasks := append(urgent, others...)
	tasks = tasks[:min(most, len(tasks))]
	for _, t := range tasks {
		k.domains[t.domain].busy = true
	}
	return tasks, rest
}

// do works on one domain. What panics is one domain's trouble, not the process's.
func (k *Keeper) do(ctx context.Context, t task) {
	bounded, cancel := context.WithTimeoutCause(ctx, passLimit, fmt.Errorf("it took longer than %v", passLimit))
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			k.log.Error("the look at the keys of a domain panicked, it is tried again", "domain", t.domain, "panic", p, "stack", string(debug.Stack()))
			k.failed(ctx, t.domain, fmt.Errorf("panic: %v", p))
		}
		k.rest(t.domain)
	}()
	t.kind(k, bounded, t.domain)
}

// inForce says once more that a domain signs.
func (k *Keeper) inForce(ctx context.Context, domain string) {
	k.with(domain, func(d *kept) { d.force = time.Time{} })
	k.o.InForce(ctx, domain)
}

// with calls fn with what is kept of a domain, if it is.
func (k *Keeper) with(domain string, fn func(*kept)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.domains[domain]; d != nil {
		fn(d)
	}
}

// rest ends the work on a domain.
func (k *Keeper) rest(domain string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.domains[domain]
	if d == nil {
		return
	}
	d.busy, d.urgent = false, d.noticed
	if d.noticed {
		d.noticed, d.next = false, time.Now()
	}
	k.stir()
}

// around spreads what many processes and domains do.
func around(d time.Duration) time.Duration { return d*9/10 + rand.N(d/5+1) }
