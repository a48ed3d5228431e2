package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"postroad/cmd/internal/bench"
	"postroad/cmd/internal/cluster/process"
	"postroad/cmd/internal/sink"
	"postroad/cmd/internal/verify/stage"
	"postroad/queue"
)

// The dead site: one host that never answers, and one that refuses connections until it is there again.
var (
	silentHost = netip.MustParseAddrPort("127.60.0.1:25")
	closedHost = netip.MustParseAddrPort("127.60.0.2:25")
)

const (
	waitClass   = queue.Class("4h") // longer than all of the check takes: no job comes due by itself
	pairPause   = time.Second
	firstLeaves = 8 * time.Minute  // from the return of the site to the first mail that leaves: the next probe is at most 5 minutes away
	backLimit   = 5 * time.Minute  // from the first mail on until the backlog moves: it is listed before it is pulled forward
	fewLeave    = 20               // mails more than the probe itself: the backlog moves
	limitSlack  = 1.15             // of the limit, in one second of the receiver's clock
	limitLeast  = 0.9              // of the limit, over all the time
	ownSettle   = 30 * time.Second // after that: it begins with few connections, before the pace is judged
)

// million is the check with two servers: one of them has the waiting jobs, the other nothing. Mail through both is timed in turns.
type million struct {
	f            flags
	names        *stage.Names
	silent       *stage.Silent
	loaded, bare *server
	live         map[*server]string // where mail to other domains arrives
	phases       []phase

	filled, waiting time.Duration
	found, moved    time.Duration   // from the return of the site to the first mail that it got, and until the backlog left
	memory          [2]stage.Memory // of the loaded server: empty, and with all jobs
	peak            int64

	mu    sync.Mutex
	left  []time.Time // mails that the returned site has taken
	moves time.Time   // when they began to leave
}

// phase is what others notice in one state of the dead site.
type phase struct {
	name         string
	loaded, bare []bench.Latency
	isJudged     bool
}

func newMillion(f flags) (*million, error) {
	c := &million{f: f, live: make(map[*server]string)}
	var err error
	if c.names, err = stage.NewNames(); err != nil {
		return c, err
	}
	for i, host := range []netip.AddrPort{silentHost, closedHost} {
		c.names.Host(fmt.Sprintf("mx%d.%s", i+1, deadDomain), host.Addr())
	}
	c.names.MX(deadDomain, "mx1."+deadDomain, "mx2."+deadDomain)
	if c.silent, err = stage.NewSilent(silentHost); err != nil {
		return c, err
	}
	launcher := process.NewLauncher()
	for _, s := range []struct {
		name  string
		field **server
	}{{"loaded", &c.loaded}, {"bare", &c.bare}} {
		ports, err := stage.FreePorts(4)
		if err != nil {
			return c, err
		}
		*s.field = &server{launcher: launcher, queue: ports[0], health: ports[1], smtp: ports[2]}
		c.live[*s.field] = ports[3]
		if err := c.configure(*s.field, s.name, ports[3]); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (c *million) configure(s *server, name, live string) (err error) {
	more := fmt.Sprintf(`ingress: {listeners: [{address: %q}]}
signer: {missing_key: pass}
delivery:
  resolvers: [%q]
  retry: [4h]
  shaping: [{domains: [%s], rate: %d/s}]
  routes:
    - {domains: [%s], via: mx, tls: none, allow_private: true}
    - {domains: [.live.example], via: "smtp:[127.0.0.1]:%s", tls: none, allow_private: true}
log: {format: json, level: warn}
`, s.smtp, c.names.Addr(), deadDomain, c.f.limit, deadDomain, stage.PortOf(live))
	s.Process, err = stage.NewProcess(s.launcher, c.f.postroad, c.f.dir, name, stage.Settings{
		Hostname: "relay.sender.example", Queue: fmt.Sprintf("listen: %q", s.queue), Metrics: s.health, More: more,
	})
	return err
}

func (c *million) close() {
	for _, s := range []*server{c.loaded, c.bare} {
		if s != nil && s.Process != nil {
			_ = s.Kill()
		}
	}
	if c.loaded != nil {
		c.loaded.launcher.Close()
	}
	if c.silent != nil {
		c.silent.Close()
	}
	if c.names != nil {
		c.names.Close()
	}
}

func (c *million) run(ctx context.Context) error {
	stage.Say("%d jobs for a site with two MX hosts, one silent, one closed; a second server has none of them; load of the machine %s", c.f.jobs, stage.Load())
	for _, s := range []*server{c.loaded, c.bare} {
		if _, err := s.Start(ctx); err != nil {
			return err
		}
	}
	if err := c.compare(ctx, "both empty", c.f.rounds, true); err != nil {
		return err
	}
	if err := c.remember(ctx, 0); err != nil {
		return err
	}
	if err := c.fill(ctx); err != nil {
		return err
	}
	if err := c.remember(ctx, 1); err != nil {
		return err
	}
	if err := c.compare(ctx, allWaiting, c.f.rounds, true); err != nil {
		return err
	}
	return c.comeBack(ctx)
}

func (c *million) remember(ctx context.Context, i int) (err error) {
	if err := c.loaded.Settle(ctx, c.f.settle); err != nil {
		return err
	}
	c.memory[i], err = c.loaded.Memory(ctx)
	c.peak = c.loaded.Peak()
	return err
}

// compare times mail to other domains through both servers, in turns.
func (c *million) compare(ctx context.Context, name string, rounds int, isJudged bool) error {
	p := phase{name: name, isJudged: isJudged}
	for i := range rounds {
		turn := []*server{c.loaded, c.bare}
		if i%2 == 1 {
			slices.Reverse(turn)
		}
		for _, s := range turn {
			r, err := sendTo(ctx, c.f, s.smtp, c.live[s], c.f.mails, anybody)
			if err != nil {
				return fmt.Errorf("%s, %s server: %w", name, s.Name, err)
			}
			if s == c.loaded {
				p.loaded = append(p.loaded, r.EndToEnd)
			} else {
				p.bare = append(p.bare, r.EndToEnd)
			}
			if err := stage.Pause(ctx, pairPause); err != nil {
				return err
			}
		}
	}
	c.phases = append(c.phases, p)
	stage.Say("%s", p)
	return nil
}

// fill puts the jobs into the queue, and waits until all of them wait, most of them for as long as the schedule says.
func (c *million) fill(ctx context.Context) error {
	began := time.Now()
	mouth, err := stage.OpenMouth(ctx, "nats://"+c.loaded.queue, "million-check")
	if err != nil {
		return err
	}
	err = mouth.Fill(ctx, c.f.jobs, c.f.publishers, func(i int) stage.Mail {
		return stage.Mail{Number: i, Recipients: []string{"you@" + deadDomain}}
	})
	if err := errors.Join(err, mouth.Close()); err != nil {
		return err
	}
	c.filled = time.Since(began)
	stage.Say("accepted %d mails in %s (%.0f/s)", c.f.jobs, c.filled.Round(time.Second), float64(c.f.jobs)/c.filled.Seconds())
	err = stage.Until(ctx, c.f.patience, time.Second, "all mail signed", func() (bool, error) {
		counts, err := c.loaded.Counts(ctx)
		return err == nil && counts.Incoming == 0, err
	})
	if err != nil {
		return err
	}
	if err := c.compare(ctx, "first tries", 1, false); err != nil {
		return err
	}
	said := time.Now()
	err = stage.Until(ctx, c.f.patience, time.Second, "all jobs waiting", func() (bool, error) {
		counts, err := c.loaded.Counts(ctx)
		if err == nil && time.Since(said) > 30*time.Second {
			said = time.Now()
			stage.Say("  %d wait, %d ready, %d put off for a moment, %d with the signer", counts.Later[waitClass], counts.Ready,
				counts.Later["10s"]+counts.Later["1m"]+counts.Later["5m"]+counts.Later["15m"], counts.Incoming)
		}
		return err == nil && float64(counts.Later[waitClass]) >= c.f.tried*float64(c.f.jobs) && sum(counts.Later) >= uint64(c.f.jobs), err
	})
	c.waiting = time.Since(began)
	stage.Say("all of them wait, %s after the first was accepted", c.waiting.Round(time.Second))
	return err
}

// comeBack opens the closed host, waits until the server has found that out, and watches the backlog leave at the limit while mail to others is timed.
func (c *million) comeBack(ctx context.Context) error {
	s, err := sink.New(sink.Options{Address: closedHost.String(), Hostname: "mx2." + deadDomain, Message: func(*sink.Message) sink.Reply {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.left = append(c.left, time.Now())
		return ""
	}})
	if err != nil {
		return err
	}
	s.Start()
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = s.Stop(ctx)
	}()
	opened := time.Now()
	stage.Say("the site is there again, and nobody says so; the limit is %d/s; the server has it as: %s", c.f.limit, c.site(ctx))
	untilGone := func(n int, limit time.Duration, what string) error {
		return stage.Until(ctx, limit, 100*time.Millisecond, what, func() (bool, error) { return c.gone() >= n, c.loaded.Fault() })
	}
	if err := untilGone(1, firstLeaves, "a probe of the site that is there again"); err != nil {
		return err
	}
	c.found = time.Since(opened)
	stage.Say("the server has found out after %s", c.found.Round(time.Second))
	if err := untilGone(min(1+fewLeave, c.f.jobs), backLimit, "the backlog leaves"); err != nil {
		return err
	}
	c.mu.Lock()
	c.moves = time.Now()
	c.mu.Unlock()
	c.moved = time.Since(opened)
	for end := time.Now().Add(c.f.returning); ; {
		if err := c.compare(ctx, "leaving", 2, true); err != nil {
			return err
		}
		if time.Now().After(end) || c.gone() >= c.f.jobs {
			break
		}
	}
	c.peak = max(c.peak, c.loaded.Peak())
	return c.loaded.Fault()
}

// site is what the server says of the dead site.
func (c *million) site(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, c.f.postroad, "-c", c.loaded.Config(), "site", "list").CombinedOutput()
	if err != nil {
		return fmt.Sprintf("(site list: %v) %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func (c *million) gone() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.left)
}

// pace tells how fast the backlog left, apart from the beginning and the last second: the mean, and the fullest second.
func (c *million) pace() (mean float64, most int, seconds int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	from, end := c.moves.Add(ownSettle), c.left[len(c.left)-1]
	n, first := 0, 0
	for i, at := range c.left {
		for at.Sub(c.left[first]) >= time.Second {
			first++
		}
		most = max(most, i-first+1)
		if at.After(from) {
			n++
		}
	}
	if d := end.Sub(from).Seconds(); d > 0 {
		mean = float64(n) / d
	}
	return mean, most, int(end.Sub(from).Seconds())
}

// table prints the mails of each ten seconds.
func (c *million) table() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var counts []string
	n, end := 0, c.left[0].Add(10*time.Second)
	for _, at := range c.left {
		for ; at.After(end); end = end.Add(10 * time.Second) {
			counts = append(counts, strconv.Itoa(n))
			n = 0
		}
		n++
	}
	stage.Say("mails that left, in each 10 s: %s", strings.Join(append(counts, strconv.Itoa(n)), " "))
}

// String tells the medians and their ratios.
func (p phase) String() string {
	return fmt.Sprintf("%-12s p50 %.1f ms, p99 %.1f ms; beside it the empty queue: p50 %.1f ms, p99 %.1f ms; ratios %.2f and %.2f",
		p.name, median(p.loaded, p50), median(p.loaded, p99), median(p.bare, p50), median(p.bare, p99), p.ratio(p50), p.ratio(p99))
}

func p50(l bench.Latency) bench.Millis { return l.P50 }
func p99(l bench.Latency) bench.Millis { return l.P99 }

func (p phase) ratio(of func(bench.Latency) bench.Millis) float64 {
	return float64(median(p.loaded, of) / median(p.bare, of))
}

func median(list []bench.Latency, of func(bench.Latency) bench.Millis) bench.Millis {
	values := make([]bench.Millis, 0, len(list))
	for _, l := range list {
		values = append(values, of(l))
	}
	slices.SortFunc(values, cmp.Compare)
	return values[len(values)/2]
}

// merged puts the phases of one name together.
func (c *million) merged() (list []phase) {
	for _, p := range c.phases {
		if i := slices.IndexFunc(list, func(q phase) bool { return q.name == p.name }); i >= 0 {
			list[i].loaded, list[i].bare = append(list[i].loaded, p.loaded...), append(list[i].bare, p.bare...)
			continue
		}
		list = append(list, p)
	}
	return list
}

// verdict prints all and says what does not hold.
func (c *million) verdict() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	stage.Say("\n%d jobs; accepted in %s, all waiting after %s; load of the machine %s", c.f.jobs, c.filled.Round(time.Second), c.waiting.Round(time.Second), stage.Load())
	phases := c.merged()
	for _, p := range phases {
		stage.Say("%s", p)
		if !p.isJudged {
			continue
		}
		for _, of := range []struct {
			name  string
			of    func(bench.Latency) bench.Millis
			slack bench.Millis
		}{{"p50", p50, slackP50}, {"p99", p99, slackP99}} {
			if got, most := median(p.loaded, of.of), mostRatio*median(p.bare, of.of)+of.slack; got > most {
				fault("%s: %s to other domains is %.1f ms, at most %.1f", p.name, of.name, got, most)
			}
		}
	}
	perJob := func(octets int64) int64 { return octets / int64(c.f.jobs) }
	heap, disk := c.memory[1].Heap-c.memory[0].Heap, c.memory[1].Disk-c.memory[0].Disk
	stage.Say("memory: live heap %d MiB (%d octets a job), resident %d MiB, at most %d MiB; disk %d MiB (%d octets a job)",
		c.memory[1].Heap>>20, perJob(heap), c.memory[1].RSS>>20, c.peak>>20, c.memory[1].Disk>>20, perJob(disk))
	if most := int64(mostPerJob*c.f.jobs + fewJobs); heap > most {
		fault("the live heap has grown by %d MiB, at most %d octets a job and %d MiB", heap>>20, mostPerJob, fewJobs>>20)
	}
	c.table()
	mean, most, seconds := c.pace()
	stage.Say("the backlog left at %.1f/s over %d s, at most %d in one second; the limit is %d/s", mean, seconds, most, c.f.limit)
	if mean < limitLeast*float64(c.f.limit) && c.gone() < c.f.jobs {
		fault("the backlog leaves at %.1f/s, want %.0f at least", mean, limitLeast*float64(c.f.limit))
	}
	if float64(most) > limitSlack*float64(c.f.limit) {
		fault("%d mails left in one second, the limit is %d", most, c.f.limit)
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	stage.Say("the server found out by itself that the site was there again: after %s the first mail left, after %s the backlog", c.found.Round(time.Second), c.moved.Round(time.Second))
	with, leaving := phases[slices.IndexFunc(phases, func(p phase) bool { return p.name == allWaiting })], phases[len(phases)-1]
	stage.Say("million: %d jobs wait, and mail to others takes %.2f (p50) and %.2f (p99) times what it takes beside an empty queue; %d octets of heap and %d of disk a job; the site back, they leave at %.0f/s of %d/s, others %.2f and %.2f",
		c.f.jobs, with.ratio(p50), with.ratio(p99), perJob(heap), perJob(disk), mean, c.f.limit, leaving.ratio(p50), leaving.ratio(p99))
	return nil
}

// runMillion is the whole check.
func runMillion(ctx context.Context, f flags) error {
	for _, name := range []string{"loaded", "bare"} {
		if err := os.MkdirAll(filepath.Join(f.dir, name), 0o700); err != nil {
			return err
		}
	}
	c, err := newMillion(f)
	defer c.close()
	if err != nil {
		return err
	}
	if err := c.run(ctx); err != nil {
		return errors.Join(err, c.loaded.LastWords(), c.bare.LastWords())
	}
	return c.verdict()
}
