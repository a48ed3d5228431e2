package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"os/user"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"postroad/cmd/internal/ops"
	"postroad/delivery/throttle"
	"postroad/queue"
	"postroad/queue/address"
)

type limitCmd struct {
	List  limitListCmd  `cmd:"" help:"List the limits that operators set, and what the cluster uses of all limits."`
	Set   limitSetCmd   `cmd:"" help:"Set a limit for the whole cluster. It is in force within a second, before what the configuration says of the same."`
	Unset limitUnsetCmd `cmd:"" help:"Take away what was set, so that the configuration holds again."`
}

// matchFlags say what a limit is for.
type matchFlags struct {
	Domain string `arg:"" optional:"" help:"Domain of recipients; .DOMAIN for every domain below it. Without it, and without --site and --mx, everything."`
	Site   string `placeholder:"NAME" help:"Site, as site list and events name it."`
	MX     string `name:"mx" placeholder:"NAME" help:"MX host, or a domain that MX hosts lie below."`
	Source string `placeholder:"NAME" help:"Egress source."`
}

func (m matchFlags) rule() (throttle.Rule, error) {
	r := throttle.Rule{Site: m.Site, MX: m.MX, Source: m.Source}
	if m.Domain != "" {
		plain, err := address.Normalize(strings.TrimPrefix(m.Domain, "."))
		if err != nil {
			return r, usage("%q is no domain: %v", m.Domain, err)
		}
		if r.Domain = plain; strings.HasPrefix(m.Domain, ".") {
			r.Domain = "." + plain
		}
	}
	return r, nil
}

// orderedBy says who gives an order, and why.
type orderedBy struct {
	Reason string `placeholder:"TEXT" help:"Why, for those who find it."`
	Owner  string `placeholder:"NAME" help:"Who orders it. Default: the user."`
	DryRun bool   `help:"Only say what would change."`
}

func (o orderedBy) owner() string {
	if o.Owner != "" {
		return o.Owner
	}
	name := cmp.Or(os.Getenv("SUDO_USER"), os.Getenv("USER"))
	if u, err := user.Current(); name == "" && err == nil {
		name = u.Username
	}
	return cmp.Or(name, "operator")
}

type limitSetCmd struct {
	matchFlags
	orderedBy
	Connections    int           `placeholder:"N" help:"Connections at a time."`
	Rate           string        `placeholder:"RATE" help:"Messages in some time: 100/s, 6000/h, 30/5m."`
	Burst          int           `placeholder:"N" help:"Messages of the rate that may go at once after a rest."`
	ConnectionRate string        `placeholder:"RATE" help:"New connections in some time."`
	Messages       int           `placeholder:"N" help:"Messages over one connection."`
	PerSite        bool          `help:"Count all sources together."`
	For            time.Duration `placeholder:"TIME" help:"How long it holds. Default: until it is taken away."`
}

// Run sets.
func (l limitSetCmd) Run(a *app) error {
	r, err := l.rule()
	if err != nil {
		return err
	}
	r.Connections, r.Messages, r.PerSite = l.Connections, l.Messages, l.PerSite
	for _, rate := range []struct {
		text string
		into *queue.Rate
	}{{l.Rate, &r.Rate}, {l.ConnectionRate, &r.ConnectionRate}} {
		if rate.text == "" {
			continue
		}
		if *rate.into, err = throttle.ParseRate(rate.text); err != nil {
			return usage("%v", err)
		}
	}
	r.Rate.Burst = l.Burst
	if err := r.Check(); err != nil {
		return usage("%v", err)
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	change, err := c.SetLimit(a.ctx, ops.LimitOrder{Rule: r, Owner: l.owner(), Reason: l.Reason, For: l.For, DryRun: l.DryRun})
	if err != nil {
		return err
	}
	return sayChange(a, change, "set: "+ruleText(r))
}

// sayChange prints what an order came to.
func sayChange(a *app, c ops.Change, what string) error {
	if a.flags.JSON {
		return a.print(c)
	}
	if c.DryRun {
		what = "would be " + what
	}
	until := ""
	if !c.Until.IsZero() {
		until = ", until " + c.Until.Local().Format(time.DateTime)
	}
	a.say("%s %s%s\n", clean(c.Name, 253), what, until)
	return nil
}

type limitUnsetCmd struct {
	matchFlags
	orderedBy
}

// Run takes away.
func (l limitUnsetCmd) Run(a *app) error {
	r, err := l.rule()
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	change, err := c.UnsetLimit(a.ctx, ops.LimitOrder{Rule: r, Owner: l.owner(), DryRun: l.DryRun})
	if err != nil {
		return err
	}
	return sayChange(a, change, "taken away")
}

type limitListCmd struct{}

// Run lists.
func (limitListCmd) Run(a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	l, err := c.Limits(a.ctx)
	if err != nil {
		return err
	}
	if a.flags.JSON {
		return a.print(l)
	}
	return showLimits(a.out, l, time.Now())
}

func showLimits(w io.Writer, l ops.Limits, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if len(l.Live) > 0 {
		_, _ = fmt.Fprintln(t, "SET BY OPERATORS\tLIMITS\tBY\tSINCE\tENDS\tREASON")
		for _, x := range l.Live {
			_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", clean(x.Match, 253), ruleText(x.Rule), clean(x.Owner, 50), ageOf(x.Since, now), endOf(x.Until, now), clean(x.Reason, maxReason))
		}
		_, _ = fmt.Fprintln(t)
	}
	if len(l.Paths) == 0 {
		_, _ = fmt.Fprintln(t, "no limit is in use")
		return t.Flush()
	}
	_, _ = fmt.Fprintln(t, "PATH\tCONNECTIONS\tRATE\tWAITING\tSTATE")
	for _, p := range l.Paths {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", clean(p.Path, 253), connectionsText(p), cmp.Or(throttle.RateText(p.Rate), "-"), countText(p.Waiting), stateText(p.SiteState, now))
	}
	return t.Flush()
}

func countText(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

// connectionsText is 7/10 (a 4, b 3).
func connectionsText(p ops.PathUse) string {
	sum := 0
	var nodes []string
	for _, node := range slices.Sorted(maps.Keys(p.Nodes)) {
		sum += p.Nodes[node]
		nodes = append(nodes, fmt.Sprintf("%s %d", clean(node, 50), p.Nodes[node]))
	}
	if p.Connections == 0 {
		return "-"
	}
	return fmt.Sprintf("%d/%d (%s)", sum, p.Connections, strings.Join(nodes, ", "))
}

// ruleText is what a rule limits, in words.
func ruleText(r throttle.Rule) string {
	var parts []string
	add := func(is bool, format string, args ...any) {
		if is {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(r.Connections > 0, "%d connections", r.Connections)
	add(!r.Rate.IsZero(), "%s messages", throttle.RateText(r.Rate))
	add(r.Rate.Burst > 0, "bursts of %d", r.Rate.Burst)
	add(!r.ConnectionRate.IsZero(), "%s new connections", throttle.RateText(r.ConnectionRate))
	add(r.Messages > 0, "%d messages a connection", r.Messages)
	add(r.PerSite, "over all sources")
	return strings.Join(parts, ", ")
}

// stateText is what keeps mail from a site, the worst first.
func stateText(s ops.SiteState, now time.Time) string {
	var parts []string
	if x := s.Suspension; x != nil {
		parts = append(parts, fmt.Sprintf("suspended by %s, ends %s: %s", clean(x.Owner, 50), endOf(x.Until, now), clean(x.Reason, maxReason)))
	}
	if x := s.Circuit; x != nil {
		next := "next probe " + endOf(x.Until, now)
		if x.ProbeUntil.After(now) {
			next = "being probed"
		}
		parts = append(parts, fmt.Sprintf("dead for %s, %s: %s", ageOf(x.Since, now), next, clean(x.Text, maxReason)))
	}
	if x := s.Slow; x != nil {
		parts = append(parts, fmt.Sprintf("half of the limits, ends %s: %s", endOf(x.Until, now), clean(x.Reason, maxReason)))
	}
	for _, x := range s.Marks {
		parts = append(parts, fmt.Sprintf("not from %s, ends %s: %s", clean(x.Source, 50), endOf(x.Until, now), clean(x.Reason, maxReason)))
	}
	return cmp.Or(strings.Join(parts, "; "), "ok")
}
