package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"postroad/cmd/internal/bench"
	"postroad/cmd/internal/verify/stage"
)

// What must hold. Times are compared with those of the empty queue in the same run; the constants beside the ratios are
// for a machine that has other work.
const (
	mostRatio   = 2.0
	slackP50    = 20        // ms
	slackP99    = 250       // ms
	mostPerJob  = 2048      // octets of live heap
	fewJobs     = 128 << 20 // octets of live heap beside them: the cache of the store and buffers that grow with use
	mostRestart = 60 * time.Second
	mostBusy    = 5_000 // ms: p99 while the jobs of the dead domain are being tried
)

func (m moment) describe() string {
	text := m.latency.EndToEnd.String()
	if m.hasMem {
		text += fmt.Sprintf("; RSS %d MiB, live heap %d MiB, disk %d MiB", m.memory.RSS>>20, m.memory.Heap>>20, m.memory.Disk>>20)
	}
	return text
}

// verdict prints the table and says what does not hold.
func (c *check) verdict() error {
	c.table()
	before, with, restarted := c.moments[0], c.at(allWaiting), c.at(afterRestart)
	slack := bench.Millis(c.f.slack.Milliseconds())
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	for _, m := range c.moments[1:] {
		if strings.HasSuffix(m.name, suffixSame) && !c.f.strict {
			continue
		}
		if !m.hasMem { // the server has all hands full: what counts is that nobody waits for the dead domain
			if got := m.latency.EndToEnd.P99; got > mostBusy+slack {
				fault("%s: p99 to other domains is %.0f ms, at most %.0f", m.name, got, mostBusy+slack)
			}
			continue
		}
		if got, most := m.latency.EndToEnd.P50, mostRatio*before.latency.EndToEnd.P50+slackP50+slack; got > most {
			fault("%s: p50 to other domains is %.1f ms, at most %.1f", m.name, got, most)
		}
		if got, most := m.latency.EndToEnd.P99, mostRatio*before.latency.EndToEnd.P99+slackP99+slack; got > most {
			fault("%s: p99 to other domains is %.1f ms, at most %.1f", m.name, got, most)
		}
	}
	for _, m := range c.moments[1:] {
		if got, most := m.memory.Heap-before.memory.Heap, int64(mostPerJob*c.f.jobs+fewJobs); m.hasMem && got > most {
			fault("%s: the live heap has grown by %d MiB, at most %d octets a job and %d MiB", m.name, got>>20, mostPerJob, fewJobs>>20)
		}
	}
	if c.refused.Load() < int64(c.f.jobs) {
		fault("the dead host was asked only %d times about %d jobs", c.refused.Load(), c.f.jobs)
	}
	for name, r := range map[string]restart{"restart": c.restart, "restart after a kill": c.crash} {
		if r.first > mostRestart {
			fault("%s: the first mail was through after %s, at most %s", name, r.first.Round(time.Millisecond), mostRestart)
		}
	}
	if c.retryErr != nil {
		faults = append(faults, c.retryErr)
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	stage.Say("deadhost: %d jobs wait; mail to other domains p50 %.1f → %.1f ms, p99 %.1f → %.1f ms; %d octets of heap (%d after a restart) and %d of disk a job; restart %.1f s, after a kill %.1f s",
		c.f.jobs, before.latency.EndToEnd.P50, with.latency.EndToEnd.P50, before.latency.EndToEnd.P99, with.latency.EndToEnd.P99,
		c.perJob(with.memory.Heap-before.memory.Heap), c.perJob(restarted.memory.Heap-before.memory.Heap), c.perJob(with.memory.Disk-before.memory.Disk), c.restart.first.Seconds(), c.crash.first.Seconds())
	return nil
}

// at is the moment of that name.
func (c *check) at(name string) (found moment) {
	for _, m := range c.moments {
		if m.name == name {
			found = m
		}
	}
	return found
}

func (c *check) perJob(octets int64) int64 { return octets / int64(c.f.jobs) }

func (c *check) table() {
	if len(c.moments) == 0 {
		return
	}
	before := c.moments[0]
	stage.Say("\n%d jobs for %s; load of the machine now %s", c.f.jobs, deadDomain, stage.Load())
	stage.Say("accepted in %s (%.0f/s), each tried once (450) and waiting after %s (%.0f/s); the dead host was asked %d times",
		c.injected.Round(time.Second), float64(c.f.jobs)/c.injected.Seconds(), c.waiting.Round(time.Second),
		float64(c.f.jobs)/c.waiting.Seconds(), c.refused.Load())
	stage.Say("stopped in order within %.1f s; largest resident set in the whole run %d MiB\n", c.restart.stop.Seconds(), c.peak>>20)
	t := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(t, "\tp50 ms\tp99 ms\tmax ms\tRSS MiB\tlive heap MiB\tdisk MiB\theap/job\tRSS/job\tdisk/job\t")
	for i, m := range c.moments {
		l := m.latency.EndToEnd
		_, _ = fmt.Fprintf(t, "%s\t%.1f\t%.1f\t%.1f\t", m.name, l.P50, l.P99, l.Max)
		if m.hasMem {
			_, _ = fmt.Fprintf(t, "%d\t%d\t%d\t", m.memory.RSS>>20, m.memory.Heap>>20, m.memory.Disk>>20)
		} else {
			_, _ = fmt.Fprint(t, "\t\t\t")
		}
		if m.hasMem && i > 0 {
			_, _ = fmt.Fprintf(t, "%d\t%d\t%d\t", c.perJob(m.memory.Heap-before.memory.Heap), c.perJob(m.memory.RSS-before.memory.RSS), c.perJob(m.memory.Disk-before.memory.Disk))
		} else {
			_, _ = fmt.Fprint(t, "\t\t\t")
		}
		_, _ = fmt.Fprintln(t)
	}
	_ = t.Flush()
	for _, m := range c.moments {
		if m.note != "" {
			stage.Say("%s: %s", m.name, m.note)
		}
	}
	stage.Say("")
}
