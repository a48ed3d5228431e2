package retry

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postroad/queue/address"
)

// Defaults of a Policy.
const (
	DefaultMaxAge     = 5 * 24 * time.Hour
	DefaultNullMaxAge = 2 * 24 * time.Hour
	DefaultGreylist   = 6 * time.Minute // most receivers want 5 minutes
)

const (
	maxAgeLimit = 30 * 24 * time.Hour
	maxJitter   = 50
)

// Policy is how all mail is tried. Make a usable one with Complete; it is not changed afterwards, so it is safe for concurrent use.
type Policy struct {
	Schedule Schedule      // for what no rule has one for; default: Default
	Rules    []Rule        // each setting is that of the first rule that matches and has it
	MaxAge   time.Duration // mail is given up at this age; default 5 days (RFC 5321 §4.5.4.1: 4 to 5 days)
	// NullMaxAge is the same for mail with the null reverse-path, if it is less: notifications that nobody takes; 0: MaxAge.
	NullMaxAge time.Duration
	// Greylist is the first wait after a greylisting reply (RFC 6647); a receiver that names a longer time up to 15 min is given that. 0: what the
	// schedule says.
	Greylist time.Duration
	Jitter   int // each wait is up to so many percent longer, the same for each repetition of one job
}

// DefaultPolicy is a complete policy with every default.
func DefaultPolicy() Policy {
	return Policy{Schedule: Default(), MaxAge: DefaultMaxAge, NullMaxAge: DefaultNullMaxAge, Greylist: DefaultGreylist}
}

// Rule says otherwise for some mail. Conditions that are empty always hold; all others must.
type Rule struct {
	Domains  []string  // of recipients: example.com, .example.com (every domain below it), *
	Sites    []string  // names of sites, or .suffix of them
	Routes   []string  // as routes name themselves
	Classes  []string  // of clients
	Failures []Failure // of what failed last

	Schedule Schedule      // zero: as without this rule
	MaxAge   time.Duration // 0: as without this rule; at most that of the policy
}

// Query is what a plan is asked for.
type Query struct {
	Domain, Site, Route, Class string
	Failure                    Failure
	IsNull                     bool // the reverse-path is null
}

// Complete fills in defaults, brings domains into their canonical form and reports everything that is wrong.
func (p Policy) Complete() (Policy, error) {
	if p.Schedule.IsZero() {
		p.Schedule = Default()
	}
	if p.MaxAge == 0 {
		p.MaxAge = DefaultMaxAge
	}
	var wrong []error
	if err := p.Schedule.Check(); err != nil {
		wrong = append(wrong, fmt.Errorf("retry schedule %s: %w", p.Schedule, err))
	}
	if p.MaxAge < 0 || p.MaxAge > maxAgeLimit || p.NullMaxAge < 0 {
		wrong = append(wrong, fmt.Errorf("largest age %s: want above 0 and at most %s", formatDuration(p.MaxAge), formatDuration(maxAgeLimit)))
	}
	if p.Greylist != 0 && (p.Greylist < MinWait || p.Greylist > MaxWait) {
		wrong = append(wrong, fmt.Errorf("wait after greylisting %s: want %s to %s", formatDuration(p.Greylist), formatDuration(MinWait), formatDuration(MaxWait)))
	}
	if p.Jitter < 0 || p.Jitter > maxJitter {
		wrong = append(wrong, fmt.Errorf("jitter of %d percent: want 0 to %d", p.Jitter, maxJitter))
	}
	p.Rules = slices.Clone(p.Rules)
	for i := range p.Rules {
		if err := p.Rules[i].complete(p.MaxAge); err != nil {
			wrong = append(wrong, fmt.Errorf("retry rule %d: %w", i+1, err))
		}
	}
	if len(wrong) > 0 {
		return Policy{}, errors.Join(wrong...)
	}
	return p, nil
}

func (r *Rule) complete(most time.Duration) error {
	r.Domains = slices.Clone(r.Domains)
	for i, d := range r.Domains {
		clean, err := CleanDomain(d)
		if err != nil {
			return err
		}
		r.Domains[i] = clean
	}
	for _, f := range r.Failures {
		if !slices.Contains(Failures(), f) {
			return fmt.Errorf("%q is no kind of failure", f)
		}
	}
	switch {
	case r.Schedule.IsZero() && r.MaxAge == 0:
		return errors.New("says nothing: it needs a schedule or a largest age")
	case r.MaxAge < 0 || r.MaxAge > most:
		return fmt.Errorf("largest age %s is not within that of all mail, %s", formatDuration(r.MaxAge), formatDuration(most))
	case !r.Schedule.IsZero():
		return r.Schedule.Check()
	}
	return nil
}

// CleanDomain brings a domain of a rule into the form in which domains are compared: example.com, .example.com or *.
func CleanDomain(text string) (string, error) {
	if text == "*" {
		return text, nil
	}
	domain, below := strings.CutPrefix(text, ".")
	clean, err := address.Normalize(domain)
	if err != nil {
		return "", fmt.Errorf("%.300q is not a domain, .domain or *: %w", text, err)
	}
	if below {
		clean = "." + clean
	}
	return clean, nil
}

func (r *Rule) matches(q *Query) bool {
	return matchesDomain(r.Domains, q.Domain) &&
		matchesDomain(r.Sites, q.Site) &&
		(len(r.Routes) == 0 || slices.Contains(r.Routes, q.Route)) &&
		(len(r.Classes) == 0 || slices.Contains(r.Classes, q.Class)) &&
		(len(r.Failures) == 0 || slices.Contains(r.Failures, q.Failure))
}

func matchesDomain(patterns []string, name string) bool {
	for _, p := range patterns {
		if p == "*" || p == name || p != "" && p[0] == '.' && strings.HasSuffix(name, p) {
			return true
		}
	}
	return len(patterns) == 0
}

// Plan is how one recipient is tried on.
type Plan struct {
	Schedule Schedule
	MaxAge   time.Duration
	greylist time.Duration // the first wait after greylisting; 0: not that
	jitter   int
}

// Plan finds the plan.
func (p *Policy) Plan(q Query) Plan {
	plan := Plan{Schedule: p.Schedule, MaxAge: p.MaxAge, jitter: p.Jitter}
	hasSchedule, hasAge := false, false
	for i := range p.Rules {
		r := &p.Rules[i]
		if !r.matches(&q) {
			continue
		}
		if !hasSchedule && !r.Schedule.IsZero() {
			plan.Schedule, hasSchedule = r.Schedule, true
		}
		if !hasAge && r.MaxAge > 0 {
			plan.MaxAge, hasAge = r.MaxAge, true
		}
	}
	if q.IsNull && p.NullMaxAge > 0 {
		plan.MaxAge = min(plan.MaxAge, p.NullMaxAge)
	}
	if q.Failure == Greylisted {
		plan.greylist = p.Greylist
	}
	return plan
}

// IsOver reports that a recipient that failed at this age is given up.
func (p Plan) IsOver(age time.Duration) bool { return age >= p.MaxAge || p.Schedule.isOver(age) }

// Lifetime is the age at which the last try is made, when all are made on time.
func (p Plan) Lifetime() time.Duration {
	if end := p.Schedule.end(); end > 0 {
		return min(end, p.MaxAge)
	}
	return p.MaxAge
}

// Tried says how often and for how long a job has been tried.
type Tried struct {
	Tries     int           // with the one that failed just now
	Age       time.Duration // at that failure
	NotNow    bool          // it was not tried, because its site is known to be dead
	Text      string        // of the reply
	Greylists bool          // the failure before this one was a greylisting already
	Seed      uint64        // of the jitter: the same for the same try of the same job
}

// Wait is how long a recipient waits now. The last try comes when its lifetime ends, not long before or after.
func (p Plan) Wait(t Tried) time.Duration {
	var wait time.Duration
	switch {
	case t.NotNow:
		wait = p.Schedule.untried(t.Tries, t.Age)
	case p.greylist > 0 && !t.Greylists:
		wait = max(p.greylist, askedWait(t.Text))
	default:
		wait = p.Schedule.wait(t.Tries, t.Age)
	}
	return max(MinWait, min(p.spread(wait, t.Seed), p.MaxAge-t.Age))
}

// spread makes a wait longer by the job's share of the jitter, in steps that cost few moves in the queue: 15 min above 4 h, 5 min above 1 h,
// 1 min above 15 min, else 10 s.
func (p Plan) spread(wait time.Duration, seed uint64) time.Duration {
	step := MinWait
	switch {
	case wait >= 4*time.Hour:
		step = 15 * time.Minute
	case wait >= time.Hour:
		step = 5 * time.Minute
	case wait >= 15*time.Minute:
		step = time.Minute
	}
	steps := wait * time.Duration(p.jitter) / 100 / step
	return wait + time.Duration(seed%uint64(steps+1))*step
}
