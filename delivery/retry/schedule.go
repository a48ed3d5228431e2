// Package retry says when a job that could not be delivered is tried again, and when it is given up.
//
// A Schedule is written in one of three ways:
//
//	1m, 5m, 15m, 1h, 4h                 waits after the first, second, … try; the last one repeats
//	F,2h,15m; G,16h,1h,1.5; F,4d,6h     the retry rules of Exim: fixed and growing waits until an age
//	backoff 300s..4000s                 the back-off of Postfix: as long as the mail is old, within two bounds
//
// A Policy has the schedule for everything, rules for some mail or some kinds of failure, and the ages at which mail is
// given up. It answers for each recipient that has to wait:
//
//	p, err := retry.Policy{Schedule: s, MaxAge: 5 * 24 * time.Hour}.Complete()
//	plan := p.Plan(retry.Query{Domain: "example.com", Failure: retry.FailureOf(reply)})
//	if plan.IsOver(age) { … } else { wait := plan.Wait(tries, age) }
//
// All is reckoned from the age and the tries of a job, so nothing need be stored between two tries.
package retry

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Bounds of every wait. MinWait is the shortest delay class of the queue.
const (
	MinWait = 10 * time.Second
	MaxWait = 7 * 24 * time.Hour

	maxSteps  = 100
	maxCutoff = 60 * 24 * time.Hour
	// maxGrowth is the wait at which growing waits stop growing: Exim's default of retry_interval_max.
	maxGrowth = 24 * time.Hour
)

// Schedule is the waits between the tries of a job. The zero Schedule is none.
type Schedule struct {
	list      []time.Duration // after each try
	rules     []rule          // Exim's
	low, high time.Duration   // of a back-off
}

// rule is one retry rule of Exim: it holds for failures up to the age cutoff. A fixed rule (F) waits gap. A growing one (G) waits
// factor times as long as last time, and gap when that was less.
type rule struct {
	cutoff, gap time.Duration
	factor      int // thousandths; 0: fixed
}

// List is the schedule of these waits.
func List(waits ...time.Duration) Schedule { return Schedule{list: waits} }

// Default starts soon enough and settles above the 30 minutes of RFC 5321 §4.5.4.1.
func Default() Schedule {
	return List(time.Minute, 5*time.Minute, 15*time.Minute, time.Hour, 4*time.Hour)
}

// IsZero reports that there is no schedule.
func (s Schedule) IsZero() bool { return len(s.list) == 0 && len(s.rules) == 0 && s.high == 0 }

// Parse reads a schedule in one of the ways that the package comment shows. Its errors say what is wrong, for people.
func Parse(text string) (Schedule, error) {
	s, err := parse(strings.TrimSpace(text))
	if err == nil {
		err = s.Check()
	}
	if err != nil {
		return Schedule{}, fmt.Errorf("retry schedule %.200q: %w", text, err)
	}
	return s, nil
}

func parse(text string) (Schedule, error) {
	if bounds, is := strings.CutPrefix(text, "backoff "); is {
		return parseBackoff(bounds)
	}
	var s Schedule
	for part := range strings.SplitSeq(text, ";") {
		part = strings.TrimSpace(part)
		if part == "" && len(s.rules) > 0 {
			continue // Exim allows one at the end
		}
		if len(s.rules)+len(s.list) > maxSteps {
			break
		}
		if part != "" && part[0] >= 'A' && part[0] <= 'Z' {
			r, err := parseRule(part)
			if err != nil {
				return s, err
			}
			s.rules = append(s.rules, r)
			continue
		}
		for text := range strings.SplitSeq(part, ",") {
			wait, err := parseDuration(text)
			if err != nil {
				return s, err
			}
			s.list = append(s.list, wait)
		}
	}
	if len(s.rules) > 0 && len(s.list) > 0 {
		return s, errors.New("has rules (F, G) and single waits: write one or the other")
	}
	return s, nil
}

// parseBackoff reads the bounds of Postfix: minimal_backoff_time..maximal_backoff_time.
func parseBackoff(bounds string) (s Schedule, err error) {
	low, high, ok := strings.Cut(bounds, "..")
	if !ok {
		return s, fmt.Errorf("%.50q is not two bounds such as 300s..4000s", bounds)
	}
	if s.low, err = parseDuration(low); err != nil {
		return s, err
	}
	s.high, err = parseDuration(high)
	return s, err
}

// parseRule reads F,cutoff,wait or G,cutoff,wait,factor.
func parseRule(text string) (r rule, err error) {
	fields := strings.Split(text, ",")
	kind := strings.TrimSpace(fields[0])
	if want := map[string]int{"F": 3, "G": 4}[kind]; len(fields) != want {
		return r, fmt.Errorf("%.50q is no rule: write F,cutoff,wait or G,cutoff,wait,factor", text)
	}
	if r.cutoff, err = parseDuration(fields[1]); err != nil {
		return r, err
	}
	if r.gap, err = parseDuration(fields[2]); err != nil || kind == "F" {
		return r, err
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(fields[3]), 64)
	if err != nil || !(f > 1 && f <= 100) {
		return r, fmt.Errorf("%.50q is no factor above 1, such as 1.5", fields[3])
	}
	r.factor = int(f*1000 + .5)
	return r, nil
}

// parseDuration reads the units of Go, and d and w.
func parseDuration(text string) (time.Duration, error) {
	text = strings.TrimSpace(text)
	rest, total := text, time.Duration(0)
	for _, unit := range []struct {
		name string
		long time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		if before, after, ok := strings.Cut(rest, unit.name); ok {
			n, err := strconv.ParseUint(before, 10, 10)
			if err != nil {
				return 0, fmt.Errorf("%.50q is not a duration such as 15m", text)
			}
			total, rest = total+time.Duration(n)*unit.long, after
		}
	}
	if rest == "" && text != "" {
		return total, nil
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d > maxCutoff {
		return 0, fmt.Errorf("%.50q is not a duration such as 15m", text)
	}
	return total + d, nil
}

// Check says what is wrong with a schedule.
func (s Schedule) Check() error {
	if n := len(s.list) + len(s.rules); n > maxSteps || n == 0 && s.high == 0 {
		return fmt.Errorf("has %d waits, want 1 to %d", n, maxSteps)
	}
	waits := append([]time.Duration{}, s.list...)
	last := time.Duration(0)
	for _, r := range s.rules {
		waits = append(waits, r.gap)
		if r.cutoff <= last || r.cutoff > maxCutoff {
			return fmt.Errorf("the cutoff %s is not after that of the rule before it, and at most %s", formatDuration(r.cutoff), formatDuration(maxCutoff))
		}
		last = r.cutoff
	}
	if s.high > 0 || s.low > 0 {
		if waits = append(waits, s.low, s.high); s.high < s.low {
			return fmt.Errorf("the bounds %s..%s are the wrong way round", formatDuration(s.low), formatDuration(s.high))
		}
	}
	for _, w := range waits {
		if w < MinWait || w > MaxWait {
			return fmt.Errorf("the wait %s is not within %s to %s", formatDuration(w), formatDuration(MinWait), formatDuration(MaxWait))
		}
	}
	return nil
}

// String prints the schedule so that Parse reads it.
func (s Schedule) String() string {
	if s.high > 0 {
		return "backoff " + formatDuration(s.low) + ".." + formatDuration(s.high)
	}
	var parts []string
	for _, d := range s.list {
		parts = append(parts, formatDuration(d))
	}
	if len(parts) > 0 {
		return strings.Join(parts, ", ")
	}
	for _, r := range s.rules {
		text := "F," + formatDuration(r.cutoff) + "," + formatDuration(r.gap)
		if r.factor > 0 {
			text = "G" + text[1:] + "," + strconv.FormatFloat(float64(r.factor)/1000, 'f', -1, 64)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

// formatDuration leaves out what is zero: 15m, not 15m0s.
func formatDuration(d time.Duration) string {
	var b strings.Builder
	if days := d / (24 * time.Hour); days > 0 {
		fmt.Fprintf(&b, "%dd", days)
		d -= days * 24 * time.Hour
	}
	text := d.String()
	text = strings.Replace(text, "m0s", "m", 1)
	text = strings.Replace(text, "h0m", "h", 1)
	if d > 0 || b.Len() == 0 {
		b.WriteString(text)
	}
	return b.String()
}

// wait is how long a job waits that failed at this age, after so many tries.
func (s Schedule) wait(tries int, age time.Duration) time.Duration {
	switch {
	case len(s.list) > 0:
		return s.list[min(max(tries-1, 0), len(s.list)-1)]
	case len(s.rules) > 0:
		_, gap := s.walk(age)
		return gap
	}
	return min(max(age, s.low), s.high) // Postfix qmgr_active.c: its age, within the bounds
}

// untried is how long a job waits that could not be tried, because its site is known to be dead. Its tries do not rise, so it backs off by
// its age: never less than the step that it would have come to by now.
func (s Schedule) untried(tries int, age time.Duration) time.Duration {
	if len(s.list) == 0 {
		return s.wait(tries, age)
	}
	step, passed := min(max(tries-1, 0), len(s.list)-1), time.Duration(0)
	for i := range len(s.list) - 1 {
		if passed += s.list[i]; passed > age {
			break
		}
		step = max(step, i+1)
	}
	return s.list[step]
}

// walk follows the tries of a job that is tried on time, up to an age: the instant of the last one of them, and the wait after it.
func (s Schedule) walk(age time.Duration) (at, gap time.Duration) {
	for {
		r := s.ruleAt(at)
		gap = r.next(gap)
		if r.factor == 0 { // many at once
			end := age
			if r.cutoff < age && at <= r.cutoff {
				end = r.cutoff
			}
			at += max(0, end-at) / gap * gap
		}
		if at+gap > age {
			return at, gap
		}
		at += gap
	}
}

// ruleAt is the rule for a failure at an age. The last one holds beyond its cutoff.
func (s Schedule) ruleAt(age time.Duration) rule {
	for _, r := range s.rules {
		if age <= r.cutoff {
			return r
		}
	}
	return s.rules[len(s.rules)-1]
}

// next is the wait after one of length last (Exim retry.c: whole seconds, factor in thousandths).
func (r rule) next(last time.Duration) time.Duration {
	if r.factor == 0 || last < r.gap {
		return r.gap
	}
	return min(time.Duration(int64(last/time.Second)*int64(r.factor)/1000)*time.Second, max(maxGrowth, r.gap))
}

// isOver reports that a failure at this age is the last one: it comes after the cutoff of the last rule. Other schedules have no end.
func (s Schedule) isOver(age time.Duration) bool {
	n := len(s.rules)
	return n > 0 && age > s.rules[n-1].cutoff
}

// end is the age at which a job that is tried on time has its last try; 0: there is no end.
func (s Schedule) end() time.Duration {
	if len(s.rules) == 0 {
		return 0
	}
	at, gap := s.walk(s.rules[len(s.rules)-1].cutoff)
	return at + gap
}
