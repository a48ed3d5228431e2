package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"postroad/cmd/internal/verify/stage"
)

var windows = []time.Duration{time.Second, 10 * time.Second, time.Minute}

func sortEvents(list []event) {
	slices.SortStableFunc(list, func(a, b event) int { return int(a.at - b.at) })
}

// verdict prints what was measured and says what does not hold.
func (c *check) verdict() error {
	c.meter.mu.Lock()
	defer c.meter.mu.Unlock()
	from, to := c.begun.Add(warm), c.begun.Add(c.f.duration)
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

	c.table()
	// While this program did not run, each connection may have brought a message that seems later than it was.
	late := min(float64(c.f.connections), math.Ceil(c.f.rate*c.late.Seconds()))
	var overs []string
	for _, window := range windows {
		if window > c.f.duration {
			continue
		}
		w := c.meter.worstOf(window, c.limits)
		over := fmt.Sprintf("%s: %d messages from %.2f s on, %+.1f", window, w.count, w.at.Sub(c.begun).Seconds(), w.excess)
		overs = append(overs, over)
		if w.excess > c.f.block+late {
			fault("worst window of %s, more than a block of %g above the limit and %g that were seen late", over, c.f.block, late)
		}
	}
	most, at := c.meter.mostOpen(c.frozen)
	all, allAt := c.meter.mostOpen(nil)
	if most > c.f.connections {
		fault("%d connections were open at %.2f s, at most %d", most, at.Sub(c.begun).Seconds(), c.f.connections)
	}
	allowed := c.limits.allowed(from, to)
	used := float64(c.meter.between(from, to)) / allowed
	stage.Say("worst windows, beside what the limits allow: %s", strings.Join(overs, "; "))
	stage.Say("connections at a time: at most %d, at %.2f s (%d, at %.2f s, with those of the stopped worker while it was stopped); %.1f messages a connection",
		most, at.Sub(c.begun).Seconds(), all, allAt.Sub(c.begun).Seconds(), c.meter.perConnection())
	stage.Say("%d messages in %s, %.1f %% of the limit; %d kills; %d messages arrived twice; this program ran up to %s late",
		c.meter.between(from, to), to.Sub(from), 100*used, c.kills, c.meter.twice(), c.late.Round(time.Millisecond))
	if used < c.f.least {
		fault("only %.1f %% of the limit were used, want %.0f %%", 100*used, 100*c.f.least)
	}
	err := errors.Join(faults...)
	if c.f.planted > 0 {
		if err == nil {
			return fmt.Errorf("%d workers have no rule and the meter has nothing to say: it cannot be trusted", c.f.planted)
		}
		stage.Say("limits: %d of the workers have no rule, and the meter says: %s", c.f.planted, strings.ReplaceAll(err.Error(), "\n", "; "))
		return nil
	}
	if err == nil {
		stage.Say("limits: %d workers together keep %g messages/s (at most %+.0f in any window, a block is %g) and %d connections, at %.1f %% of the limit, with %d kills, a stopped worker and a limit changed twice",
			c.f.workers, c.f.rate, c.worstExcess(), c.f.block, most, 100*used, c.kills)
	}
	return err
}

func (c *check) worstExcess() (most float64) {
	for _, window := range windows {
		most = max(most, c.meter.worstOf(window, c.limits).excess)
	}
	return most
}

// table prints the messages of each second, ten in a line.
func (c *check) table() {
	counts := c.meter.perSecond(c.begun)
	for i := 0; i < len(counts); i += 10 {
		var line strings.Builder
		for _, n := range counts[i:min(i+10, len(counts))] {
			fmt.Fprintf(&line, "%6d", n)
		}
		stage.Say("%5d s %s", i, line.String())
	}
}
