// Package daemon puts the roles of a process together and takes them apart again.
//
//	err := daemon.Run(ctx, daemon.Options{Config: c, Logger: log, Version: version})
//
// New opens everything in the order of the road, store first, and binds every socket; Start lets mail in; Stop goes the other
// way round: no new mail, then what is in hand, then the store. Whatever one part cannot live without ends the whole process,
// with one error that says why: a supervisor starts it anew, and the queue loses nothing by that.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/ops"
	"postroad/cmd/internal/secrets"
	"postroad/cmd/internal/telemetry"
	"postroad/delivery/mx"
	"postroad/ingress"
	"postroad/queue"
	"postroad/queue/embedded"
	"postroad/queue/verp"
)

// Options configure a Daemon.
type Options struct {
	Config  *config.Config // checked; required
	Logger  *slog.Logger   // default: none
	Version string         // of the program

	Registry *prometheus.Registry // default: a new one
	Resolver mx.Resolver          // default: the name servers of the configuration
	AckWait  time.Duration        // of the queue; default the queue's own; tests shorten it

	// RecreateConsumers is queue.Options.RecreateConsumers: the operator's decision after an incident.
	RecreateConsumers bool

	// patience is how long each part may take to stop at the least; for tests, which a machine that stands still for some seconds must not fail.
	patience time.Duration
}

// Daemon is a process with its roles.
type Daemon struct {
	o        Options
	c        *config.Config
	log      *slog.Logger
	hostname string
	domain   string

	store   *embedded.Server // nil with a queue outside
	secrets *secrets.Secrets
	queue   *queue.Queue
	ingress *ingress.Server
	ops     *ops.Server
	names   mx.Resolver // nil until resolver is called

	announcer  *announcer
	self       func() queue.Node          // this process, now
	conditions []func() []queue.Condition // what is wrong with each part; complete when Start begins
	facts      []func(map[string]string)  // what others may want to know

	certificates []*certificates // of listeners
	ring         *verp.Ring      // makes bounce addresses; nil until somebody needs it

	starts []func()  // in order
	stops  []cleanup // highest stage first

	fatal     chan error // the first reason to end
	fatalOnce sync.Once
	broken    bool // the store failed: nothing in hand can be finished
}

// cleanup is one thing to be undone.
type cleanup struct {
	stage stage
	name  string
	limit time.Duration
	stop  func(context.Context) error
}

// stage orders the end: the highest is stopped first, and what is in the same stage at the same time.
type stage int

const (
	stageSecrets stage = iota
	stageStore
	stageQueue
	stageAnnounce
	stageOps // health is there to be asked until the work is done
	stageWork
	stageIngress
)

// brokenLimit is all the time that each part gets to stop when the store has failed.
const brokenLimit = time.Second

// New opens everything. What was opened is closed again when something later fails.
func New(ctx context.Context, o Options) (*Daemon, error) {
	if o.Config == nil {
		return nil, errors.New("daemon options need Config")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Registry == nil {
		o.Registry = telemetry.NewRegistry(o.Version)
	}
	d := &Daemon{o: o, c: o.Config, log: o.Logger, fatal: make(chan error, 1)}
	if err := d.open(ctx); err != nil {
		d.broken = true // nothing was started: there is nothing to wait for
		return nil, errors.Join(err, d.Stop(context.WithoutCancel(ctx)))
	}
	return d, nil
}

func (d *Daemon) open(ctx context.Context) error {
	if n := limitMemory(); n > 0 {
		d.log.Info("soft memory limit", "octets", n)
	}
	if d.c.HasRole(config.RoleSigner) { // before there is any key in memory
		if err := forbidCore(); err != nil {
			d.log.Warn("a core file of this process would hold private keys: forbid core files in what starts it", "err", err)
		}
	}
	if err := d.identify(); err != nil {
		return err
	}
	steps := []struct {
		role config.Role // "": always
		open func(context.Context) error
	}{
		{"", d.openSecrets},
		{"", d.openQueue},
		{"", d.openAnnouncer},
		{config.RoleOps, d.openOps},
		{config.RoleDelivery, d.openBackground},
		{config.RoleSigner, d.openSigner},
		{config.RoleDelivery, d.openDelivery},
		{config.RoleIngress, d.openIngress},
	}
	for _, s := range steps {
		if s.role != "" && !d.c.HasRole(s.role) {
			continue
		}
		if err := s.open(ctx); err != nil {
			return err
		}
	}
	return nil
}

// onStop adds something to be undone.
func (d *Daemon) onStop(s stage, name string, limit time.Duration, stop func(context.Context) error) {
	d.stops = append(d.stops, cleanup{s, name, limit, stop})
}

// watch adds something that may have conditions.
func (d *Daemon) watch(look func() []queue.Condition) { d.conditions = append(d.conditions, look) }

// onStart adds something that begins when everything is open.
func (d *Daemon) onStart(start func()) { d.starts = append(d.starts, start) }

// background runs fn from Start to Stop. When fn ends before, it is called again after a pause: the queue may have been away.
func (d *Daemon) background(name string, limit time.Duration, fn func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	d.onStart(func() {
		wg.Go(func() {
			for ctx.Err() == nil {
				err := fn(ctx)
				if ctx.Err() != nil {
					return
				}
				d.log.Warn("background work ended, it begins again", "part", name, "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
	})
	d.onStop(stageWork, name, limit, func(ctx context.Context) error {
		cancel()
		return wait(ctx, &wg)
	})
}

// wait waits for wg until ctx ends.
func wait(ctx context.Context, wg *sync.WaitGroup) error {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fail ends the process; the first reason counts.
func (d *Daemon) fail(err error) {
	d.fatalOnce.Do(func() { d.fatal <- err })
}

// Start lets work begin.
func (d *Daemon) Start() {
	for _, start := range d.starts {
		start()
	}
	d.log.Info("ready", "roles", d.c.Roles, "hostname", d.hostname, "version", d.o.Version)
}

// Wait returns nil when ctx ends, and otherwise why the process cannot go on.
func (d *Daemon) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-d.fatal:
		d.broken = true
		return err
	}
}

// Stop ends everything, last opened first. Each part has its own limit of time, about a minute together; ctx can cut it short.
func (d *Daemon) Stop(ctx context.Context) error {
	if d.ops != nil {
		d.ops.Drain()
	}
	if d.announcer != nil {
		d.announcer.drain()
	}
	var errs []error
	for s := stageIngress; s >= stageSecrets; s-- {
		errs = append(errs, d.stopStage(ctx, s))
	}
	d.stops = nil
	return errors.Join(errs...)
}

func (d *Daemon) stopStage(ctx context.Context, s stage) error {
	errs := make([]error, len(d.stops))
	var wg sync.WaitGroup
	for i, c := range d.stops {
		if c.stage != s {
			continue
		}
		limit := max(c.limit, d.o.patience)
		if d.broken {
			limit = min(limit, brokenLimit)
		}
		wg.Go(func() {
			bounded, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			began := time.Now()
			if err := c.stop(bounded); err != nil {
				errs[i] = fmt.Errorf("stop %s: %w", c.name, err)
			}
			d.log.Debug("stopped", "part", c.name, "took", time.Since(began))
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Run does everything until ctx ends: nil when it ended because of that and all parts stopped in time.
func Run(ctx context.Context, o Options) error {
	d, err := New(ctx, o)
	if err != nil {
		return err
	}
	d.Start()
	if err = d.Wait(ctx); err == nil {
		d.log.Info("stopping, what is in hand comes to its end first")
	}
	stopErr := d.Stop(context.WithoutCancel(ctx))
	if err != nil {
		return err // the reason; what did not stop properly follows from it
	}
	if stopErr == nil {
		d.log.Info("stopped")
	}
	return stopErr
}

// Addrs are the addresses of the SMTP listeners in the order of the configuration, nil for one that waits for its certificate; none
// without the role ingress.
func (d *Daemon) Addrs() []net.Addr {
	if d.ingress == nil {
		return nil
	}
	return d.ingress.Addrs()
}

// OpsAddr is the TCP address of health and metrics, nil when there is none.
func (d *Daemon) OpsAddr() net.Addr {
	if d.ops == nil {
		return nil
	}
	return d.ops.Addr()
}

// QueueURL is where other processes reach the embedded queue; empty when it has no port.
func (d *Daemon) QueueURL() string {
	if d.store == nil {
		return ""
	}
	return d.store.ClientURL()
}
