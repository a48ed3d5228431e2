package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"postroad/cmd/internal/cluster"
	"postroad/cmd/internal/cluster/ledger"
	"postroad/cmd/internal/cluster/load"
	"postroad/cmd/internal/cluster/power"
	"postroad/cmd/internal/cluster/process"
	"postroad/cmd/internal/cluster/receiver"
)

const (
	workers     = 2 // delivery processes
	stopTimeout = 20 * time.Second
)

// harness is one run.
type harness struct {
	o        options
	dir      string
	began    time.Time
	book     *ledger.Book
	receiver *receiver.Receiver
	launcher *process.Launcher
	servers  *cluster.Servers // r3 only
	disk     *power.Disk      // power mode only
	roles    *cluster.Roles
	client   *load.Client
	steps    *steps

	watch sync.WaitGroup // of faults whose end is awaited
	back  sync.WaitGroup // of reports that are on their way back

	mu        sync.Mutex
	rng       *rand.Rand
	calm      bool // no more faults
	cutting   bool // the disk is without power
	done      int  // faults so far, of those that are planned
	loadBegan time.Time
	queueAway int            // faults of the queue that are not over
	crashed   []process.Exit // ends that nobody caused
	ended     bool           // we are stopping everything
}

// run goes through all phases and reports whether the result is as wanted.
func run(ctx context.Context, o options) (ok bool, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, o.limit(), fmt.Errorf("the run took more than %v", o.limit()))
	defer cancel()
	h := &harness{o: o, dir: o.dir, began: time.Now(), rng: rand.New(rand.NewPCG(o.seed, 1))}
	if h.dir == "" {
		if h.dir, err = os.MkdirTemp("", "postroad-chaos-"); err != nil {
			return false, fmt.Errorf("make a directory: %w", err)
		}
	} else if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return false, fmt.Errorf("make a directory: %w", err)
	}
	fmt.Printf("chaos: mode %s, seed %d, logs in %s\n", o.mode, o.seed, h.dir)
	defer func() {
		err = errors.Join(err, h.close())
		if ok && err == nil && !o.keep {
			err = os.RemoveAll(h.dir)
		}
	}()
	if err := h.open(ctx); err != nil {
		return false, err
	}
	if err := h.loadAndFaults(ctx); err != nil {
		if o.plant != "" && errors.Is(err, errNoStart) { // a store that is broken shows it, too
			fmt.Printf("CHAOS: mode %s, seed %d: planted %s caught: accepted %d: %v\n", o.mode, o.seed, o.plant, h.client.Accepted(), err)
			return true, nil
		}
		return false, err
	}
	if o.plant != "" { // it has shown after this
		h.drain(ctx, false, o.drain)
	} else {
		h.drain(ctx, false, o.drain/2) // what then waits for its next try is let through with the rest
		if err := h.endings(ctx); err != nil {
			return false, err
		}
	}
	report, err := h.account(ctx)
	if err != nil {
		return false, err
	}
	return h.print(report), nil
}

// releaseEvery is how often what waits is let through in the end.
const releaseEvery = 30 * time.Second

// endings kills the queue while mail waits in it, lets that mail through, and
// kills the empty queue.
func (h *harness) endings(ctx context.Context) error {
	if err := h.afterlife(ctx); err != nil {
		return err
	}
	h.back.Wait()
	// What is tried for the first time only now waits once more where its receiver greylists.
	for end := time.Now().Add(2 * h.o.drain); ; {
		h.note("release what waits", h.release(ctx))
		if h.drain(ctx, true, releaseEvery) || time.Now().After(end) {
			return h.afterlife(ctx)
		}
	}
}

// open builds and starts everything, the far end first.
func (h *harness) open(ctx context.Context) error {
	programs, err := h.programs(ctx)
	if err != nil {
		return err
	}
	if h.steps, err = findSteps(programs.Root, h.draw); err != nil {
		return err
	}
	if h.book, err = ledger.NewBook(filepath.Join(h.dir, "book.jsonl")); err != nil {
		return err
	}
	h.receiver = receiver.New(receiver.Options{Book: h.book, Pause: h.linger, Report: h.comeBack})
	hops := make(map[string]net.Addr)
	for i := range workers {
		name := fmt.Sprintf("delivery-%d", i+1)
		if hops[name], err = h.receiver.Listen(name); err != nil {
			return err
		}
	}
	h.launcher = process.NewLauncher()
	store := filepath.Join(h.dir, "store")
	switch h.o.mode {
	case modeR3:
		h.servers, err = cluster.NewServers(cluster.ServersOptions{Programs: programs, Launcher: h.launcher, Dir: h.dir, OnExit: h.serverEnded, Pause: h.pause})
		if err != nil {
			return err
		}
		if err := h.servers.Start(ctx); err != nil {
			return err
		}
	case modePower:
		if h.disk, err = power.New(ctx, h.dir, 8<<30); err != nil {
			return err
		}
		store = filepath.Join(h.disk.Dir(), "store")
	}
	h.roles, err = cluster.NewRoles(cluster.RolesOptions{
		Programs: programs, Launcher: h.launcher, Dir: h.dir, Store: store, Servers: h.servers,
		NextHops: hops, Env: h.env, OnExit: h.roleEnded, Pause: h.pause,
	})
	if err != nil {
		return err
	}
	start, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if err := h.roles.Start(start); err != nil {
		return err
	}
	h.note("all processes run", nil)
	return nil
}

func (h *harness) programs(ctx context.Context) (cluster.Programs, error) {
	p, err := cluster.Build(ctx, h.dir, h.o.postroad == "", h.o.mode == modeR3 && h.o.nats == "")
	if h.o.postroad != "" {
		p.Postroad = h.o.postroad
	}
	if h.o.nats != "" {
		p.NATS = h.o.nats
	}
	return p, err
}

// loadAndFaults sends all messages while things break.
func (h *harness) loadAndFaults(ctx context.Context) error {
	h.client = load.New(load.Options{
		Targets: h.roles.Ingress(), Book: h.book, Messages: h.o.messages, Waiting: h.o.waiting,
		Rate: float64(h.o.messages) / h.o.duration.Seconds(), Seed: h.o.seed, Enough: h.enough,
	})
	bounded, cancel := context.WithTimeoutCause(ctx, 8*h.o.duration, errors.New("the load took eight times as long as it should"))
	defer cancel()
	h.mu.Lock()
	h.loadBegan = time.Now()
	h.mu.Unlock()
	faults, calm := context.WithCancel(bounded)
	var wg sync.WaitGroup
	var faultErr error
	wg.Go(func() {
		if faultErr = h.faults(faults); faultErr != nil {
			cancel() // nothing more can be accepted
		}
	})
	begin := time.Now()
	err := h.client.Run(bounded)
	took := time.Since(begin)
	calm()
	wg.Wait()
	h.mu.Lock()
	h.calm = true
	h.mu.Unlock()
	stats := h.client.Stats()
	h.note(fmt.Sprintf("accepted %d in %.1f s (%.0f/s), refused %v, broken %d", h.client.Accepted(), took.Seconds(),
		float64(h.client.Accepted())/took.Seconds(), stats.Refused, stats.Broken), nil)
	if faultErr != nil {
		return faultErr
	}
	return err
}

// drain waits until every accepted recipient is accounted for, or the time is
// over, and reports which; what waits counts only when waiting says so.
func (h *harness) drain(ctx context.Context, waiting bool, most time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	begin, last := time.Now(), -1
	for {
		open := h.book.Open(waiting)
		if open == 0 {
			h.note(fmt.Sprintf("drained in %.1f s", time.Since(begin).Seconds()), nil)
			return true
		}
		if h.o.verbose && open != last {
			h.note(fmt.Sprintf("%d recipients open", open), nil)
			last = open
		}
		select {
		case <-ctx.Done():
			h.note(fmt.Sprintf("%d recipients are open after %.0f s", open, time.Since(begin).Seconds()), nil)
			return false
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// close ends everything that was opened.
func (h *harness) close() error {
	h.mu.Lock()
	h.ended = true
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if h.roles != nil {
		if err := h.roles.Stop(ctx); err != nil && h.o.verbose {
			h.note("stop the roles", err) // without a queue they wait for it
		}
	}
	var err error
	if h.servers != nil {
		err = errors.Join(err, h.servers.Stop(ctx))
	}
	if h.launcher != nil {
		h.launcher.Close()
	}
	if h.receiver != nil {
		err = errors.Join(err, h.receiver.Close())
	}
	if h.book != nil {
		err = errors.Join(err, h.book.Close())
	}
	if h.disk != nil {
		unmount, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		err = errors.Join(err, h.disk.Close(unmount))
	}
	return err
}

// note tells people how the run goes.
func (h *harness) note(what string, err error) {
	if err != nil {
		what = fmt.Sprintf("%s: %v", what, err)
	}
	fmt.Printf("%7.1f s  %s\n", time.Since(h.began).Seconds(), what)
}

// isCalm reports whether breaking things is over.
func (h *harness) isCalm() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calm
}

// draw is a random number below n, from the run's seed.
func (h *harness) draw(n int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rng.IntN(n)
}

// linger is how long the receiver thinks about a message, so that kills catch
// dialogues at every point.
func (h *harness) linger() time.Duration { return time.Duration(h.draw(8000)) * time.Microsecond }

// pause is how long a process stays dead.
func (h *harness) pause() time.Duration { return time.Duration(20+h.draw(600)) * time.Millisecond }
