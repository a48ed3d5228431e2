package config

import (
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"postroad/delivery/retry"
)

// Schedule is when mail is tried again, in the language of package retry. It may be written as a list too.
type Schedule string

// RetryRule says otherwise for some mail. What is not given holds always; of several rules that match, the first that has a setting gives it.
type RetryRule struct {
	// Domains are those of recipients: example.com, .example.com (every domain below it) or *.
	Domains []string `yaml:"domains"`

	// Sites are names of sites as the log and the status show them, or .example.com for every one below it.
	Sites []string `yaml:"sites"`

	// Routes are routes by their names; those without a name by the domain that they match.
	Routes []string `yaml:"routes"`

	// Classes are classes of clients.
	Classes []string `yaml:"classes"`

	// Failures are kinds of the failure: connection, timeout, greylisted, quota (mailbox full), tls, dns, other.
	Failures []Failure `yaml:"failures"`

	// Schedule is written as delivery.retry.
	Schedule Schedule `yaml:"schedule"`

	// MaxAge is how long this mail is tried, at most delivery.max_age.
	MaxAge time.Duration `yaml:"max_age"`
}

// Failure is a kind of failure.
type Failure string

func (Failure) choices() []string { return words(retry.Failures()) }

// scheduleOf takes a list of waits or rules for one text.
func scheduleOf(n *yaml.Node) *yaml.Node {
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		return n
	}
	parts := make([]string, 0, len(n.Content))
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode {
			return n
		}
		parts = append(parts, strings.TrimSpace(item.Value))
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: strings.Join(parts, "; "), Line: n.Line}
}

func (c *Config) checkRetry(f *faults) {
	d := &c.Delivery
	if _, err := retry.Parse(string(d.Retry)); err != nil {
		f.add("delivery.retry", "%v", err)
	}
	between(f, "delivery.max_age", d.MaxAge, time.Minute, 30*24*time.Hour)
	between(f, "delivery.bounce_max_age", d.BounceMaxAge, time.Minute, 30*24*time.Hour)
	if d.GreylistRetry != 0 {
		between(f, "delivery.greylist_retry", d.GreylistRetry, retry.MinWait, time.Hour)
	}
	if d.RetryJitter < 0 || d.RetryJitter > 50 {
		f.add("delivery.retry_jitter", "%d is not within 0 and 50 percent", d.RetryJitter)
	}
	for i, r := range d.RetryRules {
		setting := "delivery.retry_rules[" + strconv.Itoa(i) + "]"
		for j, domain := range r.Domains {
			if _, err := retry.CleanDomain(domain); err != nil {
				f.add(setting+".domains["+strconv.Itoa(j)+"]", "%v", err)
			}
		}
		if r.Schedule != "" {
			if _, err := retry.Parse(string(r.Schedule)); err != nil {
				f.add(setting+".schedule", "%v", err)
			}
		}
		switch {
		case r.Schedule == "" && r.MaxAge == 0:
			f.add(setting, "says nothing: give a schedule or a max_age")
		case r.MaxAge > d.MaxAge:
			f.add(setting+".max_age", "%s is more than delivery.max_age (%s): raise that, or lower this", formatDuration(r.MaxAge), formatDuration(d.MaxAge))
		case r.MaxAge != 0:
			between(f, setting+".max_age", r.MaxAge, time.Minute, 30*24*time.Hour)
		}
	}
}

// RetryPolicy is the policy of delivery in its own words. The configuration must have passed its checks.
func (c *Config) RetryPolicy() (retry.Policy, error) {
	d := &c.Delivery
	p := retry.Policy{MaxAge: d.MaxAge, NullMaxAge: d.BounceMaxAge, Greylist: d.GreylistRetry, Jitter: d.RetryJitter}
	var err error
	if p.Schedule, err = retry.Parse(string(d.Retry)); err != nil {
		return p, err
	}
	for _, r := range d.RetryRules {
		rule := retry.Rule{Domains: r.Domains, Sites: r.Sites, Routes: r.Routes, Classes: r.Classes, MaxAge: r.MaxAge}
		for _, kind := range r.Failures {
			rule.Failures = append(rule.Failures, retry.Failure(kind))
		}
		if r.Schedule != "" {
			if rule.Schedule, err = retry.Parse(string(r.Schedule)); err != nil {
				return p, err
			}
		}
		p.Rules = append(p.Rules, rule)
	}
	return p.Complete()
}

// ParseDuration reads a duration as settings have it: 90s, 4h, 5d, 1d12h.
func ParseDuration(s string) (time.Duration, error) { return parseDuration(s) }

// FormatDuration prints a duration as ParseDuration reads it.
func FormatDuration(d time.Duration) string { return formatDuration(d) }
