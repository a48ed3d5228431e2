package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"postroad/cmd/internal/cluster/process"
	"postroad/cmd/internal/sink"
	"postroad/cmd/internal/verify/stage"
)

var workerCounts = []int{1, 2, 4}

const (
	shares     = 7   // of all mail: one worker gets one, two get two, four get four
	publishers = 64  // that put mail into the queue
	first      = 0.1 // of the arrivals, before which nothing is timed: the start is no steady state
	last       = 0.6 // after which nothing is: some mails are put off for 10 s and more when a site is busy, and the end waits for them
)

// check is one run.
type check struct {
	f        flags
	launcher *process.Launcher
	names    *stage.Names
	sinks    []*sink.Sink
	queue    *stage.Process
	workers  []*stage.Process
	mouth    *stage.Mouth
	url      string

	opened atomic.Int64 // connections
	mu     sync.Mutex
	came   []time.Time
	by     map[string]int // since the last part began, by worker
	seen   map[int]int    // arrivals of each message

	parts []part
}

// part is what one number of workers came to.
type part struct {
	workers     int
	mails       int
	rate        float64 // messages a second in the middle
	messages    float64 // a connection
	least       float64 // of all mail, what the worker with the least sent
	took        time.Duration
	worker      float64 // cores in use, of the workers together
	queue, self float64
	machine     float64 // of all cores, the share in use by anybody
}

func newCheck(f flags) (*check, error) {
	c := &check{f: f, launcher: process.NewLauncher(), by: make(map[string]int), seen: make(map[int]int)}
	if err := c.receivers(); err != nil {
		return c, err
	}
	ports, err := stage.FreePorts(1)
	if err != nil {
		return c, err
	}
	c.url = "nats://" + ports[0]
	c.queue, err = stage.NewProcess(c.launcher, f.postroad, f.dir, "queue", stage.Settings{
		Hostname: "queue.sender.example", Roles: "queue, signer, ops", Queue: fmt.Sprintf("listen: %q", ports[0]),
		More: "signer: {missing_key: pass}\nlog: {format: json, level: warn}\n",
	})
	if err != nil {
		return c, err
	}
	for i := range slices.Max(workerCounts) {
		name := fmt.Sprintf("worker-%d", i+1)
		w, err := stage.NewProcess(c.launcher, f.postroad, f.dir, name, stage.Settings{
			Hostname: name + ".sender.example", Roles: "delivery", Queue: fmt.Sprintf("urls: [%q]", c.url),
			More: fmt.Sprintf(`delivery:
  resolvers: [%q]
  site_connections: %d
  window: %d
  routes: [{domains: ["*"], via: mx, tls: none, allow_private: true}]
log: {format: json, level: warn}
`, c.names.Addr(), f.connections, f.window()),
		})
		if err != nil {
			return c, err
		}
		c.workers = append(c.workers, w)
	}
	return c, nil
}

// window is what a worker has in hand: five seconds' worth. With more, the first one to start has all of a small backlog; with less, sites
// are called busy before they are.
func (f flags) window() int {
	return f.sites * f.connections * int(5*time.Second/(2*f.roundTrip)+1)
}

// receivers starts a host for each site, and the name server that tells of them.
func (c *check) receivers() error {
	var err error
	if c.names, err = stage.NewNames(); err != nil {
		return err
	}
	for i := range c.f.sites {
		addr := netip.AddrFrom4([4]byte{127, 50, 0, byte(i + 1)})
		s, err := sink.New(sink.Options{
			Address: netip.AddrPortFrom(addr, 25).String(), Hostname: host(i), RoundTrip: c.f.roundTrip,
			Opened: func(uint64) { c.opened.Add(1) },
			Message: func(m *sink.Message) sink.Reply {
				c.arrived(m.Helo, m.Data)
				return ""
			},
		})
		if err != nil {
			return err
		}
		s.Start()
		c.sinks = append(c.sinks, s)
		c.names.Host(host(i), addr)
	}
	for i := range c.f.domains {
		c.names.MX(domain(i), host(i%c.f.sites))
	}
	return nil
}

func host(site int) string     { return fmt.Sprintf("mx.site%d.example", site) }
func domain(number int) string { return fmt.Sprintf("d%d.example", number) }

func (c *check) arrived(worker string, data []byte) {
	_, rest, _ := bytes.Cut(data, []byte("Message-ID: <"))
	text, _, _ := bytes.Cut(rest, []byte("@"))
	number, err := strconv.Atoi(string(text))
	if err != nil {
		number = -1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.came = append(c.came, time.Now())
	c.by[worker]++
	c.seen[number]++
}

func (c *check) arrivals() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.seen)
}

func (c *check) close() {
	if c.mouth != nil {
		_ = c.mouth.Close()
	}
	for _, p := range c.workers {
		_ = p.Kill()
	}
	if c.queue != nil {
		_ = c.queue.Kill()
	}
	c.launcher.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, s := range c.sinks {
		_ = s.Stop(ctx)
	}
	if c.names != nil {
		c.names.Close()
	}
}

func (c *check) run(ctx context.Context) error {
	stage.Say("%d mails for %d domains on %d sites that are %s away, %d connections of a worker to a site; load of the machine %s",
		c.f.mails, c.f.domains, c.f.sites, c.f.roundTrip, c.f.connections, stage.Load())
	if _, err := c.queue.Start(ctx); err != nil {
		return err
	}
	var err error
	if c.mouth, err = stage.OpenMouth(ctx, c.url, "scale-check"); err != nil {
		return err
	}
	for _, n := range workerCounts {
		if err := c.part(ctx, n); err != nil {
			return fmt.Errorf("with %d workers: %w", n, err)
		}
	}
	return nil
}

// part lets n workers deliver their share, which waits for them.
func (c *check) part(ctx context.Context, n int) error {
	p := part{workers: n, mails: c.f.mails * n / shares}
	before, already := c.arrivals(), c.opened.Load()
	err := c.mouth.Fill(ctx, p.mails, publishers, func(i int) stage.Mail {
		number := before + i
		return stage.Mail{Number: number, Recipients: []string{"you@" + domain(number%c.f.domains)}}
	})
	if err != nil {
		return err
	}
	err = stage.Until(ctx, c.f.patience, 200*time.Millisecond, "all mail signed", func() (bool, error) {
		counts, err := c.queue.Counts(ctx)
		return err == nil && counts.Ready == uint64(p.mails), err
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.came, c.by = nil, make(map[string]int)
	c.mu.Unlock()
	for _, w := range c.workers[:n] {
		if _, err := w.Start(ctx); err != nil {
			return err
		}
	}
	watch := c.watch(c.workers[:n])
	err = stage.Until(ctx, c.f.patience, 20*time.Millisecond, "all mail delivered", func() (bool, error) {
		got := c.arrivals() - before
		watch.look(float64(got) / float64(p.mails))
		return got >= p.mails, c.fault(n)
	})
	if err != nil {
		return errors.Join(err, c.fault(n), c.workers[0].LastWords())
	}
	watch.into(&p)
	c.timed(&p)
	for _, w := range c.workers[:n] {
		if err := w.Stop(); err != nil {
			return err
		}
	}
	p.least = float64(slices.Min(slices.Collect(maps.Values(c.by)))) / float64(len(c.came))
	p.messages = float64(len(c.came)) / float64(max(1, c.opened.Load()-already))
	c.parts = append(c.parts, p)
	stage.Say("%d workers: %s; the smallest part of one of them %.0f %%", n, p, 100*p.least)
	return nil
}

func (c *check) fault(n int) error {
	for _, w := range c.workers[:n] {
		if err := w.Fault(); err != nil {
			return err
		}
	}
	return c.queue.Fault()
}

// timed reckons the throughput in the middle.
func (c *check) timed(p *part) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := float64(len(c.came))
	from, to := int(first*n), int(last*n)
	p.took = c.came[len(c.came)-1].Sub(c.came[0])
	p.rate = float64(to-from) / c.came[to].Sub(c.came[from]).Seconds()
}

// String tells the figures.
func (p part) String() string {
	return fmt.Sprintf("%d mails in %.0f s, %.0f/s in the middle; %.1f messages a connection; cores: workers %.2f, queue %.2f, receivers %.2f; machine %.0f %% busy",
		p.mails, p.took.Seconds(), p.rate, p.messages, p.worker, p.queue, p.self, 100*p.machine)
}
