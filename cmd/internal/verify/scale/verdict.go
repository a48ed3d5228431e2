package main

import (
	"errors"
	"fmt"
	"strings"

	"postroad/cmd/internal/verify/stage"
)

// verdict compares each number of workers with one.
func (c *check) verdict() error {
	var faults []error
	twice := 0
	for number, n := range c.seen {
		twice += n - 1
		if number < 0 {
			faults = append(faults, fmt.Errorf("%d messages came that were not sent", n))
		}
	}
	if twice > 0 {
		faults = append(faults, fmt.Errorf("%d messages arrived twice", twice))
	}
	one := c.parts[0]
	bound := float64(c.f.sites*c.f.connections) / (2 * c.f.roundTrip.Seconds())
	stage.Say("latency lets one worker send %.0f/s: %d connections, two round trips a message; it sends %.0f %% of that",
		bound, c.f.sites*c.f.connections, 100*one.rate/bound)
	var ratios []string
	for _, p := range c.parts[1:] {
		ratio := p.rate / one.rate
		text := fmt.Sprintf("%d workers %.2f times one", p.workers, ratio)
		if ratio < c.f.linear*float64(p.workers) {
			if p.machine < c.f.busy {
				faults = append(faults, fmt.Errorf("%s, want %.2f, and the machine is only %.0f %% busy", text, c.f.linear*float64(p.workers), 100*p.machine))
			}
			text += fmt.Sprintf(" (the CPU bounds: %.0f %% busy)", 100*p.machine)
		}
		ratios = append(ratios, text)
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	stage.Say("scale: %s; one worker %.0f/s, %.0f %% of what latency allows, %.1f messages a connection",
		strings.Join(ratios, ", "), one.rate, 100*one.rate/bound, one.messages)
	return nil
}
