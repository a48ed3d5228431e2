package main

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"sync/atomic"
	"time"

	"postroad/cmd/internal/bench"
	"postroad/cmd/internal/cluster/process"
	"postroad/cmd/internal/ops"
	"postroad/cmd/internal/sink"
	"postroad/cmd/internal/verify/stage"
	"postroad/queue"
)

const (
	deadDomain   = "dead.example"
	liveDomains  = 16 // enough to meet the dead domain's lane
	anybody      = "you@d%d.live.example"
	sessions     = 8
	drain        = 15 * time.Minute // without an arrival
	backlog      = 2000             // jobs that must be ready for the first tries to be worth a look
	allWaiting   = "all waiting"
	afterRestart = "restarted"
	suffixOther  = ", others"
	suffixSame   = ", same lane"
)

// moment is what was seen at one point of the check.
type moment struct {
	name    string
	latency bench.Report
	hasMem  bool
	memory  stage.Memory
	note    string
}

// check is one run.
type check struct {
	f       flags
	dead    *sink.Sink
	refused atomic.Int64 // recipients that the dead host has answered 450
	server  *server
	live    string // address on which mail to the other domains arrives
	moments []moment

	injected, waiting time.Duration // until all were in the queue; until all had been tried and waited
	restart, crash    restart
	retryErr          error // of the order that makes all jobs due
	peak              int64 // largest resident set of any of the server's runs
}

func newCheck(f flags) (*check, error) {
	c := &check{f: f}
	var err error
	c.dead, err = sink.New(sink.Options{Hostname: "mx." + deadDomain, Recipient: func(*sink.Message, string) sink.Reply {
		c.refused.Add(1)
		return "450 4.2.0 nobody is at home"
	}})
	if err != nil {
		return nil, err
	}
	c.dead.Start()
	ports, err := stage.FreePorts(4)
	if err != nil {
		return nil, err
	}
	c.live = ports[3]
	c.server = &server{launcher: process.NewLauncher(), queue: ports[0], health: ports[1], smtp: ports[2]}
	return c, c.configure()
}

// configure writes the server's configuration. The first wait is long, so that jobs stay where they are while others
// are timed.
func (c *check) configure() error {
	s := c.server
	more := fmt.Sprintf(`ingress: {listeners: [{address: "%s"}]}
signer: {missing_key: pass}
delivery:
  retry: [1h, 4h]
  routes:
    - {domains: [%s], via: "smtp:[127.0.0.1]:%s", tls: none, allow_private: true}
    - {domains: [.live.example], via: "smtp:[127.0.0.1]:%s", tls: none, allow_private: true}
log: {format: json, level: warn}
`, s.smtp, deadDomain, stage.PortOf(c.dead.Addr().String()), stage.PortOf(c.live))
	var err error
	s.Process, err = stage.NewProcess(s.launcher, c.f.postroad, c.f.dir, "postroad", stage.Settings{
		Hostname: "relay.sender.example", Queue: fmt.Sprintf("listen: %q", s.queue), Metrics: s.health, More: more,
	})
	return err
}

func (c *check) close() {
	c.server.close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = c.dead.Stop(ctx)
}

// run goes through the moments.
func (c *check) run(ctx context.Context) error {
	stage.Say("%d jobs for a dead domain; load of the machine %s", c.f.jobs, stage.Load())
	if _, err := c.server.Start(ctx); err != nil {
		return err
	}
	if err := c.look(ctx, "empty queue", anybody, true); err != nil {
		return err
	}
	if err := c.fill(ctx); err != nil {
		return err
	}
	if err := c.look(ctx, allWaiting, anybody, true); err != nil {
		return err
	}
	c.notePeak()
	var err error
	if c.restart, err = c.server.restart(ctx, false); err != nil {
		return err
	}
	if err := c.after(ctx, afterRestart, &c.restart); err != nil {
		return err
	}
	if c.crash, err = c.server.restart(ctx, true); err != nil {
		return err
	}
	if err := c.after(ctx, "killed, restarted", &c.crash); err != nil {
		return err
	}
	if !c.f.storm {
		return nil
	}
	return c.comeDue(ctx)
}

// look times mail to other domains, and reads memory when everything has come to rest.
func (c *check) look(ctx context.Context, name, recipient string, withMemory bool) error {
	m := moment{name: name}
	var err error
	if m.latency, err = c.send(ctx, c.f.mails, recipient); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if withMemory {
		if err := c.server.Settle(ctx, c.f.settle); err != nil {
			return err
		}
		if m.memory, err = c.server.Memory(ctx); err != nil {
			return err
		}
		m.hasMem = true
	}
	c.moments = append(c.moments, m)
	stage.Say("%-18s %s", name, m.describe())
	return nil
}

// send sends mails to other domains and waits until they have arrived.
func (c *check) send(ctx context.Context, mails int, recipient string) (bench.Report, error) {
	return sendTo(ctx, c.f, c.server.smtp, c.live, mails, recipient)
}

// sendTo sends mails through the server at an address, and waits until they have arrived at live.
func sendTo(ctx context.Context, f flags, server, live string, mails int, recipient string) (bench.Report, error) {
	r, err := bench.Run(ctx, bench.Options{
		Address: server, Sink: live, Messages: mails, Rate: f.rate, Sessions: sessions, Size: 4 << 10,
		Sender: "rider@sender.example", Recipient: recipient, Domains: liveDomains, Drain: drain,
	})
	if err != nil {
		return r, err
	}
	if r.Accepted != mails || r.Missing > 0 || r.Duplicates > 0 || r.Strange > 0 {
		return r, fmt.Errorf("of %d mails to other domains %d were accepted, %d did not arrive, %d arrived twice, and %d of earlier times; refusals: %v",
			mails, r.Accepted, r.Missing, r.Duplicates, r.Strange, r.Errors)
	}
	return r, nil
}

// fill puts the jobs into the queue and waits until each has been tried and waits.
func (c *check) fill(ctx context.Context) error {
	began := time.Now()
	if err := c.inject(ctx); err != nil {
		return err
	}
	c.injected = time.Since(began)
	stage.Say("accepted %d mails in %s (%.0f/s)", c.f.jobs, c.injected.Round(time.Second), float64(c.f.jobs)/c.injected.Seconds())
	ready, err := c.untilSigned(ctx)
	if err != nil {
		return err
	}
	if ready > backlog {
		if err := c.lookBoth(ctx, "first tries", fmt.Sprintf("%d jobs for the dead domain were ready then", ready)); err != nil {
			return err
		}
	}
	if err := c.untilTried(ctx); err != nil {
		return err
	}
	c.waiting = time.Since(began)
	stage.Say("each of them was tried and waits, %s after the first was accepted", c.waiting.Round(time.Second))
	_, err = c.allWait(ctx, false)
	return err
}

// inject puts the jobs' mails into the queue.
func (c *check) inject(ctx context.Context) error {
	m, err := stage.OpenMouth(ctx, "nats://"+c.server.queue, "deadhost-check")
	if err != nil {
		return err
	}
	err = m.Fill(ctx, c.f.jobs, c.f.publishers, func(i int) stage.Mail {
		return stage.Mail{Number: i, Recipients: []string{"you@" + deadDomain}}
	})
	return errors.Join(err, m.Close())
}

// untilSigned waits until the signer has nothing in line, which it takes in the order of arrival whatever the domain,
// and returns how many jobs are ready then.
func (c *check) untilSigned(ctx context.Context) (ready uint64, err error) {
	deadline := time.Now().Add(c.f.patience)
	for {
		counts, err := c.server.Counts(ctx)
		if err == nil && counts.Incoming == 0 {
			return counts.Ready, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("the signer has not come to its end after %s: %+v (%v)", c.f.patience, counts, err)
		}
		if err := stage.Pause(ctx, 200*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// untilTried waits until all jobs are in the class of an hour: what was only put off for a moment is in a shorter one.
func (c *check) untilTried(ctx context.Context) error {
	deadline := time.Now().Add(c.f.patience)
	said := time.Now()
	for {
		counts, err := c.server.Counts(ctx)
		if err == nil && counts.Later["1h"] >= uint64(c.f.jobs) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the jobs do not all wait after %s: %+v (%v)", c.f.patience, counts, err)
		}
		if time.Since(said) > 30*time.Second {
			said = time.Now()
			if err != nil {
				stage.Say("  the server does not say how many: %v", err)
				continue
			}
			stage.Say("  %d wait, %d ready, %d put off for a moment, %d with the signer", counts.Later["1h"], counts.Ready,
				counts.Later["10s"]+counts.Later["1m"]+counts.Later["5m"], counts.Incoming)
		}
		if err := stage.Pause(ctx, time.Second); err != nil {
			return err
		}
	}
}

// allWait makes sure that every job is there, and returns how many stored messages there are beside their mails: none,
// but after a kill the store may bring some back that were deleted. They are known to be dead and never sent; arrivals
// that nobody expects would tell.
func (c *check) allWait(ctx context.Context, isUnclean bool) (returned int64, err error) {
	counts, err := c.server.Counts(ctx)
	if err != nil {
		return 0, err
	}
	returned = int64(counts.Mails) - int64(c.f.jobs)
	if sum(counts.Later) != uint64(c.f.jobs) || counts.Incoming+counts.Sign+counts.Ready+counts.Held > 0 || returned < 0 || returned > 0 && !isUnclean {
		return 0, fmt.Errorf("want %d jobs that wait, as many stored mails and nothing else, got %+v", c.f.jobs, counts)
	}
	return returned, nil
}

// after looks at a server that has just been started again.
func (c *check) after(ctx context.Context, name string, r *restart) error {
	if _, err := c.send(ctx, 1, anybody); err != nil {
		return fmt.Errorf("%s: the first mail: %w", name, err)
	}
	r.first = time.Since(r.began)
	if err := c.look(ctx, name, anybody, true); err != nil {
		return err
	}
	c.notePeak()
	returned, err := c.allWait(ctx, r.isKill)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	m := &c.moments[len(c.moments)-1]
	m.note = fmt.Sprintf("ready after %.1f s, first mail through after %.1f s; all jobs are there", r.ready.Seconds(), r.first.Seconds())
	if returned > 0 {
		m.note += fmt.Sprintf("; the store had brought back %d deleted messages, none was sent again", returned)
	}
	stage.Say("  %s", m.note)
	return nil
}

// comeDue makes every waiting job due at once and times mail to other domains while they are tried again.
func (c *check) comeDue(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	done := make(chan error, 1)
	client := c.server.Ops()
	wg.Go(func() {
		_, err := client.Do(ctx, ops.ActionRetry, ops.Order{Selection: ops.Selection{Domain: deadDomain}})
		done <- err
	})
	if err := stage.Pause(ctx, 3*time.Second); err != nil {
		return err
	}
	if err := c.lookBoth(ctx, "all due", ""); err != nil {
		return err
	}
	m := &c.moments[len(c.moments)-1]
	select {
	case err := <-done:
		if err != nil {
			c.retryErr = fmt.Errorf("queue retry of all jobs: %w", err)
			return nil
		}
		m.note = "queue retry had ended when the last mail was through"
	default:
		counts, err := c.server.Counts(ctx)
		if err != nil {
			return err
		}
		m.note = fmt.Sprintf("queue retry was still at work; %d jobs were waiting then and %d ready", sum(counts.Later), counts.Ready)
	}
	return nil
}

// lookBoth times mail to a domain in another lane of the queue than the dead one, then to one in the same lane.
func (c *check) lookBoth(ctx context.Context, name, note string) error {
	for _, part := range []struct {
		suffix string
		same   bool
	}{{suffixOther, false}, {suffixSame, true}} {
		if err := c.look(ctx, name+part.suffix, "you@"+c.domainOf(part.same), false); err != nil {
			return err
		}
		c.moments[len(c.moments)-1].note = note
		c.notePeak()
	}
	return nil
}

// domainOf is a domain whose jobs share the dead domain's lane in the queue, or one whose jobs do not.
func (c *check) domainOf(sameLane bool) string {
	for i := 0; ; i++ {
		if d := fmt.Sprintf("d%d.live.example", i); (lane(d) == lane(deadDomain)) == sameLane {
			return d
		}
	}
}

// lane is the queue's: a hash of the domain.
func lane(domain string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(domain))
	return h.Sum32() % 8
}

func sum(later map[queue.Class]uint64) (n uint64) {
	for _, k := range later {
		n += k
	}
	return n
}

func (c *check) notePeak() { c.peak = max(c.peak, c.server.Peak()) }
