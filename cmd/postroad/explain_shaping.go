package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/ops"
	"postroad/delivery/source"
	"postroad/delivery/throttle"
)

// explainedShaping is what limits the mail for a recipient, and what keeps it away.
type explainedShaping struct {
	Site   string            `json:"site,omitempty"` // not there: it is found with --hosts only
	Limits []explainedLimits `json:"limits"`
	States []ops.Site        `json:"states,omitempty"` // of the domain, the site and its paths
}

// explainedLimits are the limits that sources have.
type explainedLimits struct {
	Sources []string         `json:"sources,omitempty"` // of the pool; not there: the system's choice
	Paths   []string         `json:"paths,omitempty"`   // each is counted by itself; not there without a site
	Each    []explainedLimit `json:"each"`
}

// explainedLimit is one limit, and where it comes from.
type explainedLimit struct {
	Limit  string `json:"limit"` // as a setting of delivery.shaping
	Value  string `json:"value"` // 20, 6000/h; none
	Origin string `json:"origin"`

	text string
}

const (
	originDefault = "built-in default"
	askTimeout    = 10 * time.Second // for the server's answer
)

// explainShaping says what limits the mail, as the configuration and the running server have it.
func (x *explanation) explainShaping(a *app, c *config.Config) error {
	if !slices.ContainsFunc(x.Recipients, func(r explainedRecipient) bool { return !r.isAnswered() }) {
		return nil
	}
	live, err := askServer(a, func(ctx context.Context, client *ops.Client) (ops.Limits, error) { return client.Limits(ctx) })
	if err != nil {
		x.Unasked = err.Error()
	}
	list := c.Delivery.ShapingRules()
	for _, l := range live.Live {
		l.Rule.Live, l.Rule.Origin = true, limitOrigin(l)
		if l.Rule.Check() == nil { // as delivery does: it may be of another version
			list = append(list, l.Rule)
		}
	}
	rules, err := throttle.NewRules(list...)
	if err != nil {
		return usage("delivery.shaping: %w", err)
	}
	for i := range x.Recipients {
		if r := &x.Recipients[i]; !r.isAnswered() {
			r.Shaping = r.shaping(rules, poolSources(c, r.Source), live.Paths)
		}
	}
	return nil
}

// askServer asks the running server for what a command can do without.
func askServer[T any](a *app, ask func(context.Context, *ops.Client) (T, error)) (T, error) {
	var none T
	client, err := a.client()
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(a.ctx, askTimeout)
	defer cancel()
	answer, err := ask(ctx, client)
	if err != nil && a.ctx.Err() == nil && ctx.Err() != nil {
		err = fmt.Errorf("the server has not answered within %s: ask where a process has the role ops", askTimeout)
	}
	return answer, err
}

func limitOrigin(l ops.LiveLimit) string {
	text := fmt.Sprintf("limit set %s by %s", l.Match, l.Owner)
	if !l.Until.IsZero() {
		text += ", until " + l.Until.Local().Format(time.DateTime)
	}
	if l.Reason != "" {
		text += ": " + l.Reason
	}
	return text
}

// poolSources are the sources of a pool; one without a name where the system chooses.
func poolSources(c *config.Config, pool string) []string {
	pool = cmp.Or(pool, c.Delivery.Pool, source.SystemPool)
	for _, p := range c.Delivery.Pools {
		if p.Name != pool {
			continue
		}
		names := make([]string, len(p.Members))
		for i, m := range p.Members {
			names[i] = m.Source
		}
		return names
	}
	return []string{""}
}

func (r *explainedRecipient) shaping(rules *throttle.Rules, sources []string, known []ops.PathUse) *explainedShaping {
	q := throttle.Query{Domain: r.domain()}
	switch {
	case !r.hop.IsMX():
		q.Site = r.hop.Site()
		for _, e := range r.hop.Endpoints {
			q.Hosts = append(q.Hosts, e.Name())
		}
	case r.Hosts != nil:
		q.Site = r.Hosts.Site
		for _, h := range r.Hosts.Hosts {
			q.Hosts = append(q.Hosts, h.Host)
		}
	}
	s := &explainedShaping{Site: q.Site}
	names := []string{q.Domain, q.Site}
	for _, q.Source = range sources {
		limits, from := rules.Explain(q)
		each := explainLimits(limits, from)
		i := slices.IndexFunc(s.Limits, func(l explainedLimits) bool { return slices.Equal(l.Each, each) })
		if i < 0 {
			i = len(s.Limits)
			s.Limits = append(s.Limits, explainedLimits{Each: each})
		}
		l := &s.Limits[i]
		if q.Source != "" {
			l.Sources = append(l.Sources, q.Source)
		}
		if q.Site != "" && !slices.Contains(l.Paths, limits.Path) {
			l.Paths = append(l.Paths, limits.Path)
			names = append(names, limits.Path)
		}
	}
	for _, p := range known {
		if slices.Contains(names, p.Path) && !p.SiteState.IsOK() {
			s.States = append(s.States, ops.Site{Name: p.Path, SiteState: p.SiteState})
		}
	}
	return s
}

// explainLimits names each limit with its origin.
func explainLimits(l throttle.Limits, from throttle.Origins) []explainedLimit {
	connections := fmt.Sprintf("%d connections", l.Connections)
	byWhom := from.Connections
	if from.IsByRate {
		connections, byWhom = connections+" (the rate has no use for more)", from.Rate
	}
	rate, rateText := "none", "no rate of messages"
	if !l.Rate.IsZero() {
		rate = throttle.RateText(l.Rate)
		rateText = rate + " messages"
	}
	if l.Rate.Burst > 0 {
		rateText += fmt.Sprintf(" in bursts of %d", l.Rate.Burst)
	}
	connects, connectsText := "none", "no rate of new connections"
	if !l.ConnectionRate.IsZero() {
		connects = throttle.RateText(l.ConnectionRate)
		connectsText = connects + " new connections"
	}
	return []explainedLimit{
		{"connections", strconv.Itoa(l.Connections), originOf(byWhom), connections},
		{"rate", rate, originOf(from.Rate), rateText},
		{"connection_rate", connects, originOf(from.ConnectionRate), connectsText},
		{"messages_per_connection", strconv.Itoa(l.Messages), originOf(from.Messages), fmt.Sprintf("%d messages a connection", l.Messages)},
	}
}

func originOf(r *throttle.Rule) string {
	switch {
	case r == nil:
		return originDefault
	case r.Live || r.Match() == "*":
		return r.Origin
	}
	return fmt.Sprintf("%s (%s)", r.Origin, r.Match())
}

// show prints limits by their origins, and what keeps the mail away.
func (s *explainedShaping) show(line func(format string, args ...any)) {
	for _, l := range s.Limits {
		line("%s", s.heading(l))
		var origins []string
		texts := make(map[string][]string)
		for _, one := range l.Each {
			if texts[one.Origin] == nil {
				origins = append(origins, one.Origin)
			}
			texts[one.Origin] = append(texts[one.Origin], one.text)
		}
		for _, origin := range origins {
			line("  %s: %s", strings.Join(texts[origin], ", "), clean(origin, 1000))
		}
	}
	for _, state := range s.States {
		line("now %s: %s", clean(state.Name, 253), stateText(state.SiteState, time.Now()))
	}
}

func (s *explainedShaping) heading(l explainedLimits) string {
	text := "limits"
	if len(l.Sources) > 0 {
		text += " from " + strings.Join(l.Sources, ", ")
	}
	switch {
	case s.Site == "":
		return text + ", without those of its site and hosts: --hosts finds them"
	case len(l.Paths) == 1 && l.Paths[0] == s.Site:
		return text + " of the site " + clean(s.Site, 253)
	}
	return text + fmt.Sprintf(" of the site %s, counted by %s", clean(s.Site, 253), clean(strings.Join(l.Paths, ", "), 2000))
}
