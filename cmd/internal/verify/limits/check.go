package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"postroad/cmd/internal/cluster/process"
	"postroad/cmd/internal/sink"
	"postroad/cmd/internal/verify/stage"
)

const (
	domain     = "limited.example"
	surplus    = 1.4 // load, as a multiple of the limit
	head       = 10  // seconds of the limit that wait before the workers start
	publishers = 16
	down       = 1500 * time.Millisecond // between a kill and the next start
	inForce    = time.Second             // until a changed limit must be kept
	warm       = 5 * time.Second         // after the first message; utilisation counts from then on
	firstLimit = time.Minute             // until the first message
	askLimit   = 20 * time.Second        // of one command
)

// check is one run.
type check struct {
	f        flags
	launcher *process.Launcher
	sink     *sink.Sink
	meter    *meter
	url      string
	queue    *stage.Process
	workers  []*stage.Process

	begun  time.Time // the first message
	limits limits
	kills  int
	frozen []span        // while a worker is stopped, and as long as it takes to notice that it was
	late   time.Duration // the longest time that this program did not run: a message may seem as much later than it was
}

func newCheck(f flags) (*check, error) {
	c := &check{f: f, launcher: process.NewLauncher(), meter: newMeter()}
	var err error
	c.sink, err = sink.New(sink.Options{
		Hostname: "mx." + domain, RoundTrip: f.roundTrip, Opened: c.meter.opened, Closed: c.meter.closed,
		Message: func(m *sink.Message) sink.Reply {
			c.meter.message(m.Session, m.Helo, numberOf(m.Data))
			return ""
		},
	})
	if err != nil {
		return nil, err
	}
	c.sink.Start()
	ports, err := stage.FreePorts(1)
	if err != nil {
		return nil, err
	}
	c.url = "nats://" + ports[0]
	c.queue, err = stage.NewProcess(c.launcher, f.postroad, f.dir, "queue", stage.Settings{
		Hostname: "queue.sender.example", Roles: "queue, signer, ops", Queue: fmt.Sprintf("listen: %q", ports[0]),
		More: "signer: {missing_key: pass}\nlog: {format: json, level: warn}\n",
	})
	if err != nil {
		return nil, err
	}
	for i := range f.workers {
		name := fmt.Sprintf("worker-%d", i+1)
		w, err := stage.NewProcess(c.launcher, f.postroad, f.dir, name, stage.Settings{
			Hostname: hostname(name), Roles: "delivery", Queue: fmt.Sprintf("urls: [%q]", c.url), More: c.delivery(i < f.workers-f.planted),
		})
		if err != nil {
			return nil, err
		}
		c.workers = append(c.workers, w)
	}
	return c, nil
}

func hostname(worker string) string { return worker + ".sender.example" }

// numberOf is the number in the Message-ID.
func numberOf(data []byte) string {
	_, rest, _ := bytes.Cut(data, []byte("Message-ID: <"))
	number, _, _ := bytes.Cut(rest, []byte("@"))
	return string(number)
}

// delivery is the configuration of a worker.
func (c *check) delivery(hasRule bool) string {
	text := fmt.Sprintf(`delivery:
  routes: [{domains: [%s], via: "smtp:[127.0.0.1]:%s", tls: none, allow_private: true}]
`, domain, stage.PortOf(c.sink.Addr().String()))
	if hasRule {
		text += c.f.rule()
	}
	return text + "log: {format: json, level: warn}\n"
}

// rule is what a worker is told about the site.
func (f flags) rule() string {
	return fmt.Sprintf("  shaping:\n    - {domains: [%s], rate: %g/s, connections: %d}\n", domain, f.rate, f.connections)
}

func (c *check) close() {
	for _, p := range append(c.workers, c.queue) {
		_ = p.Kill()
	}
	c.launcher.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = c.sink.Stop(ctx)
}

func (c *check) lastWords() error {
	var list []error
	for _, p := range append(c.workers, c.queue) {
		list = append(list, p.LastWords())
	}
	return errors.Join(list...)
}

func (c *check) run(ctx context.Context) error {
	stage.Say("%d workers, limit %g messages/s and %d connections, %s; load of the machine %s", c.f.workers, c.f.rate, c.f.connections, c.f.duration, stage.Load())
	if _, err := c.queue.Start(ctx); err != nil {
		return err
	}
	mouth, err := stage.OpenMouth(ctx, c.url, "limits-check")
	if err != nil {
		return err
	}
	number := 0
	var mu sync.Mutex
	mail := func(int) stage.Mail {
		mu.Lock()
		defer mu.Unlock()
		number++
		return stage.Mail{Number: number, Recipients: []string{"you@" + domain}}
	}
	if err := mouth.Fill(ctx, int(head*c.f.rate), publishers, mail); err != nil {
		return errors.Join(err, mouth.Close())
	}
	for _, w := range c.workers {
		if _, err := w.Start(ctx); err != nil {
			return errors.Join(err, mouth.Close())
		}
	}
	ctx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	fed := make(chan error, 1)
	pace := rate.NewLimiter(rate.Limit(surplus*c.f.rate), 10)
	wg.Go(func() {
		fed <- mouth.Fill(ctx, 1<<30, publishers, func(i int) stage.Mail {
			_ = pace.Wait(ctx) // ends with ctx
			return mail(i)
		})
	})
	wg.Go(func() { c.watchClock(ctx) })
	err = c.measure(ctx)
	select {
	case e := <-fed:
		err = errors.Join(err, fmt.Errorf("the load has ended: %w", e))
	default:
	}
	stop()
	wg.Wait()
	return errors.Join(err, mouth.Close())
}

// watchClock notes how late this program gets to run.
func (c *check) watchClock(ctx context.Context) {
	const beat = 5 * time.Millisecond
	for last := time.Now(); stage.Pause(ctx, beat) == nil; last = time.Now() {
		c.late = max(c.late, time.Since(last)-beat)
	}
}

// event is something that happens to the cluster during the measurement.
type event struct {
	at   time.Duration
	what func(context.Context) error
}

// measure lets things happen from the first message on.
func (c *check) measure(ctx context.Context) error {
	if err := stage.Until(ctx, firstLimit, 5*time.Millisecond, "a first message", func() (bool, error) { return c.meter.count() > 0, nil }); err != nil {
		return err
	}
	c.begun = time.Now()
	c.limits = limits{{time.Time{}, c.f.rate}}
	for _, e := range c.events() {
		if err := stage.Pause(ctx, e.at-time.Since(c.begun)); err != nil {
			return err
		}
		if err := e.what(ctx); err != nil {
			return err
		}
		for _, p := range append(c.workers, c.queue) {
			if err := p.Fault(); err != nil {
				return err
			}
		}
	}
	return nil
}

// events are in the order of time, the last one at the end.
func (c *check) events() (list []event) {
	d := c.f.duration
	add := func(at time.Duration, what func(context.Context) error) { list = append(list, event{at, what}) }
	defer func() {
		add(d, func(context.Context) error { return nil })
		sortEvents(list)
	}()
	if c.f.planted > 0 {
		return list
	}
	last := c.workers[len(c.workers)-1] // is stopped, the others are killed
	freeze := d / 8
	var thaw time.Duration
	add(freeze, func(context.Context) error {
		c.event("%s is stopped", last.Name)
		c.frozen = append(c.frozen, span{worker: hostname(last.Name), from: time.Now(), to: time.Now().Add(d)})
		return last.Signal(syscall.SIGSTOP)
	})
	thaw = freeze + c.f.ttl + 3*time.Second
	add(thaw, func(context.Context) error {
		c.event("%s goes on", last.Name)
		c.frozen[0].to = time.Now().Add(inForce)
		return last.Signal(syscall.SIGCONT)
	})
	each := max(7*time.Second, min(20*time.Second, d/5))
	for i, at := 0, each; at < d-2*down; i, at = i+1, at+each {
		w := c.workers[i%(len(c.workers)-1)]
		add(at, func(context.Context) error {
			c.event("%s is killed", w.Name)
			c.kills++
			return w.Kill()
		})
		add(at+down, func(ctx context.Context) error {
			_, err := w.Start(ctx)
			return err
		})
	}
	if c.f.changed == 0 {
		return list
	}
	set := max(thaw+2*time.Second, d*55/100)
	add(set, func(ctx context.Context) error {
		return c.change(ctx, c.f.changed, "set", domain, "--rate", fmt.Sprintf("%g/s", c.f.changed))
	})
	add(set+(d-set)*6/10, func(ctx context.Context) error { return c.change(ctx, c.f.rate, "unset", domain) })
	return list
}

// change runs a limit command. The new limit counts from a second after its end on, or from its beginning when it is more.
func (c *check) change(ctx context.Context, limit float64, args ...string) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.f.postroad, append([]string{"-c", c.queue.Config(), "limit"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("postroad limit %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	from := began
	if limit < c.limits[len(c.limits)-1].limit {
		from = time.Now().Add(inForce)
	}
	c.limits = append(c.limits, step{from, limit})
	c.event("postroad limit %s: %s (%s)", strings.Join(args, " "), firstLine(out), time.Since(began).Round(time.Millisecond))
	return nil
}

func firstLine(out []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

func (c *check) event(format string, args ...any) {
	stage.Say("%5.1f s  %6d messages  %s", time.Since(c.begun).Seconds(), c.meter.count(), fmt.Sprintf(format, args...))
}
