package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postroad/queue"
)

const (
	lookEvery     = time.Second     // for a change of conditions
	announceRest  = 5 * time.Second // after an announcement that failed
	announceLimit = 3 * time.Second // to take leave
)

// announcer tells the cluster what this process is and what is wrong with it: every ten seconds, and at once when something changes.
type announcer struct {
	queue announced
	self  func() queue.Node
	log   *slog.Logger

	draining  atomic.Bool
	kick      chan struct{}
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	announced bool // of the goroutine, and after its end
}

// announced is what the announcer needs of the queue.
type announced interface {
	Announce(ctx context.Context, n queue.Node) error
	Leave(ctx context.Context, name string) error
}

var _ announced = (*queue.Queue)(nil)

// openAnnouncer makes this process known from Start to Stop.
func (d *Daemon) openAnnouncer(context.Context) error {
	started, roles := time.Now(), []string{}
	for _, r := range d.c.Roles {
		roles = append(roles, string(r))
	}
	version := d.configVersion()
	d.announcer = &announcer{queue: d.queue, log: d.log.With("part", "announcer"), kick: make(chan struct{}, 1)}
	d.self = func() queue.Node {
		n := queue.Node{Name: d.node(), Roles: roles, Version: d.o.Version, Host: d.hostname, Started: started, Seen: time.Now(),
			Draining: d.announcer.draining.Load(), Facts: map[string]string{"config": version}}
		for _, look := range d.conditions {
			n.Conditions = append(n.Conditions, look()...)
		}
		for _, tell := range d.facts {
			tell(n.Facts)
		}
		return n
	}
	d.announcer.self = d.self
	d.onStart(d.announcer.start)
	d.onStop(stageAnnounce, "announcer", announceLimit, d.announcer.stop)
	return nil
}

// configVersion tells configurations apart: the same in every process that has the same settings.
func (d *Daemon) configVersion() string {
	text, err := json.Marshal(d.c)
	if err != nil {
		return "unknown"
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(text))[:len("sha256:")+12]
}

func (a *announcer) start() {
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	a.wg.Go(func() { a.run(ctx) })
}

// drain says that this process is about to end.
func (a *announcer) drain() {
	a.draining.Store(true)
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// stop takes this process off the list. Whether the cluster hears of it is no reason to wait: it forgets by itself.
func (a *announcer) stop(ctx context.Context) error {
	if a.cancel == nil {
		return nil
	}
	a.cancel()
	if err := wait(ctx, &a.wg); err != nil {
		return err
	}
	if a.announced {
		if err := a.queue.Leave(ctx, a.self().Name); err != nil {
			a.log.Debug("the cluster was not told that this process ends", "err", err)
		}
	}
	return nil
}

func (a *announcer) run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var said string
	var due time.Time
	failing := false
	for ctx.Err() == nil {
		n := a.self()
		now, key := time.Now(), whatMatters(n)
		if !now.Before(due) || key != said && !failing {
			err := a.queue.Announce(ctx, n)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil && !failing:
				a.log.Warn("the cluster was not told of this process, `postroad status` does not show it; it is tried again", "err", err)
			case err == nil && failing:
				a.log.Info("the cluster knows of this process again")
			}
			failing = err != nil
			if due = now.Add(queue.AnnounceEvery); failing {
				due = now.Add(announceRest)
			} else {
				said, a.announced = key, true
			}
		}
		select {
		case <-ctx.Done():
		case <-a.kick:
			due = time.Time{}
		case <-tick.C:
		}
	}
}

// whatMatters is what of a node is told at once when it changes.
func whatMatters(n queue.Node) string {
	var b strings.Builder
	fmt.Fprintln(&b, n.Draining)
	for _, c := range n.Conditions {
		fmt.Fprintf(&b, "%q %q\n", c.Part, c.Text)
	}
	for _, k := range slices.Sorted(maps.Keys(n.Facts)) {
		fmt.Fprintf(&b, "%q %q\n", k, n.Facts[k])
	}
	return b.String()
}
