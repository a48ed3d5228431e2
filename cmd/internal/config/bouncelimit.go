package config

import (
	"time"

	"postroad/delivery/bouncelimit"
)

// BounceLimit is how much of a sender's mail hosts may refuse for good, counted over the whole cluster. Above it the status says so.
type BounceLimit struct {
	// Policy is what happens above the limit: warn shows it in the status and the log, hold also holds the mail of the sender that comes to a
	// worker until an operator releases it (postroad queue list, release, return), off counts nothing.
	//
	// Change it to hold where a stolen password must not ruin the reputation of everybody overnight.
	Policy BouncePolicy `yaml:"policy"`

	// By is who counts as a sender: client (account or network) or domain (of the reverse-path).
	By BounceBy `yaml:"by"`

	// Window is the time that is counted.
	Window time.Duration `yaml:"window"`

	// Share is the limit in refused of 100 recipients that came to an end. 0 is no such limit.
	Share int `yaml:"share"`

	// Least is how many recipients must have come to an end before the share says anything.
	Least int `yaml:"least"`

	// Count is a limit of refused recipients, whatever their share. 0 is no such limit.
	Count int `yaml:"count"`

	// Exempt are senders that may: those that look after lists, say.
	Exempt []string `yaml:"exempt"`
}

// BouncePolicy is what happens to a sender above the limit.
type BouncePolicy string

func (BouncePolicy) choices() []string {
	return words([]bouncelimit.Policy{bouncelimit.Off, bouncelimit.Warn, bouncelimit.Hold})
}

// BounceBy is who counts as a sender.
type BounceBy string

func (BounceBy) choices() []string {
	return words([]bouncelimit.By{bouncelimit.ByClient, bouncelimit.ByDomain})
}

func defaultBounceLimit() BounceLimit {
	return BounceLimit{Policy: BouncePolicy(bouncelimit.Warn), By: BounceBy(bouncelimit.ByClient), Window: bouncelimit.DefaultWindow,
		Share: 20, Least: bouncelimit.DefaultLeast, Exempt: []string{}}
}

func (c *Config) checkBounceLimit(f *faults) {
	l := &c.Delivery.BounceLimit
	between(f, "delivery.bounce_limit.window", l.Window, time.Minute, 24*time.Hour)
	if l.Share < 0 || l.Share > 100 {
		f.add("delivery.bounce_limit.share", "%d is not within 0 and 100 percent", l.Share)
	}
	atLeastOne(f, "delivery.bounce_limit.least", l.Least)
	if l.Count < 0 {
		f.add("delivery.bounce_limit.count", "%d is less than 0: write 0 for no such limit", l.Count)
	}
	if c.Delivery.HeldMaxAge != 0 {
		between(f, "delivery.held_max_age", c.Delivery.HeldMaxAge, time.Hour, 365*24*time.Hour)
	}
}
