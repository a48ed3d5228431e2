package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/ops"
	"postroad/delivery/mx"
	"postroad/delivery/source"
	"postroad/queue"
	"postroad/queue/address"
)

type sourceCmd struct {
	List  sourceListCmd  `cmd:"" help:"List the sources of the configuration: addresses, names, pools, whether this machine has them, and how new they are."`
	Check sourceCheckCmd `cmd:"" help:"Check sources as receivers do: reverse DNS that leads back, the name in EHLO, SPF and DMARC. Exit status 0: all is good."`
}

type sourceListCmd struct{}

// listedSource is a source as it is printed.
type listedSource struct {
	Name    string        `json:"name"`
	IPv4    string        `json:"ipv4,omitempty"`
	IPv6    string        `json:"ipv6,omitempty"`
	EHLO    string        `json:"ehlo"`
	Pools   []source.Part `json:"pools,omitempty"`
	Nodes   []string      `json:"nodes,omitempty"`
	Missing []string      `json:"missing,omitempty"` // addresses that this machine does not have
	Started string        `json:"started,omitempty"`
	Day     int           `json:"day,omitempty"`     // of warm_up, from 1; 0: it is not new
	PerDay  int           `json:"per_day,omitempty"` // recipients on that day
	Used    *int          `json:"used,omitempty"`    // of them within 24 hours; not there when no server tells
	state   string
}

// Run lists. A running server is asked what new sources have used.
func (sourceListCmd) Run(a *app) error {
	c, hostname, err := a.sources()
	if err != nil {
		return err
	}
	set, err := source.New(c.SourceOptions(hostname))
	if err != nil {
		return usage("delivery.sources: %w", err)
	}
	states := set.States(time.Now())
	used, err := a.warmUpUsed(states)
	if err != nil {
		a.tell("postroad: it is not known what new sources have used: %v\n", err)
	}
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	for i, st := range states {
		one := listedAs(st, used)
		if a.flags.JSON {
			if err := a.print(one); err != nil {
				return err
			}
			continue
		}
		if i == 0 {
			_, _ = fmt.Fprintln(t, "NAME\tIPV4\tIPV6\tEHLO\tPOOLS\tSTATE")
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", one.Name, cmp.Or(one.IPv4, "-"), cmp.Or(one.IPv6, "-"), one.EHLO, poolsText(one.Pools), one.state)
	}
	if len(c.Sources) == 0 && !a.flags.JSON {
		a.say("no sources are configured: the operating system chooses the address, EHLO says %s\n", hostname)
	}
	return t.Flush()
}

// sources are the settings of delivery and the name of this machine.
func (a *app) sources() (*config.Delivery, string, error) {
	c, _, err := a.load()
	if err != nil {
		return nil, "", err
	}
	hostname := c.Hostname
	if hostname == "" {
		if hostname, err = os.Hostname(); err != nil {
			return nil, "", fmt.Errorf("find the name of this machine: %w: set hostname", err)
		}
	}
	clean, err := address.Normalize(hostname)
	if err != nil || address.IsLiteral(clean) {
		return nil, "", usage("%q is no name of a host: set hostname", hostname)
	}
	return &c.Delivery, clean, nil
}

// warmUpUsed is how many recipients each new source has used of its plan within 24 hours; nil when that is not known.
func (a *app) warmUpUsed(states []source.State) (map[string]int, error) {
	if !slices.ContainsFunc(states, func(st source.State) bool { return st.PerDay > 0 }) {
		return nil, nil
	}
	list, err := askServer(a, func(ctx context.Context, client *ops.Client) ([]queue.Spending, error) {
		return client.Spendings(ctx, source.SpendPrefix)
	})
	if err != nil {
		return nil, err
	}
	used := make(map[string]int)
	for _, x := range list {
		used[strings.TrimPrefix(x.Key, source.SpendPrefix)] = x.Used
	}
	return used, nil
}

func listedAs(st source.State, used map[string]int) listedSource {
	one := listedSource{Name: st.Name, EHLO: st.Hostname, Pools: st.Pools, Nodes: st.Nodes}
	var state []string
	if st.IPv4.IsValid() {
		one.IPv4 = st.IPv4.String()
	}
	if st.IPv6.IsValid() {
		one.IPv6 = st.IPv6.String()
	}
	for _, addr := range st.Missing {
		one.Missing = append(one.Missing, addr.String())
	}
	if !st.Started.IsZero() {
		one.Started = st.Started.Format(time.DateOnly)
	}
	switch {
	case st.IsWarm:
	case st.Day < 0:
		state = append(state, "begins "+one.Started)
	default:
		one.Day, one.PerDay = st.Day+1, st.PerDay
		text := fmt.Sprintf("new: day %d, %d recipients a day", one.Day, one.PerDay)
		if used != nil {
			n := used[st.Name]
			one.Used, text = &n, fmt.Sprintf("%s, %d of them used", text, n)
		}
		state = append(state, text)
	}
	if len(one.Missing) > 0 {
		state = append(state, "not on this machine: "+strings.Join(one.Missing, ", "))
	}
	if len(one.Nodes) > 0 {
		state = append(state, "of "+clean(strings.Join(one.Nodes, ", "), 200))
	}
	one.state = cmp.Or(strings.Join(state, "; "), "good")
	return one
}

func poolsText(parts []source.Part) string {
	var texts []string
	for _, p := range parts {
		texts = append(texts, fmt.Sprintf("%s*%d", p.Pool, p.Weight))
	}
	return cmp.Or(strings.Join(texts, ","), "-")
}

type sourceCheckCmd struct {
	Names    []string `arg:"" optional:"" name:"name" help:"Only these sources. Default: all; without any, the address that the system would choose for the host name."`
	Domain   []string `placeholder:"DOMAIN" help:"Check SPF and DMARC of this domain; again for more. Default: the configured domain."`
	Resolver []string `placeholder:"ADDRESS" help:"Ask these name servers. Default: delivery.resolvers."`
}

// Run checks; whatever is not good makes it fail.
func (cmd sourceCheckCmd) Run(a *app) error {
	c, _, err := a.load()
	if err != nil {
		return err
	}
	d, hostname, err := a.sources()
	if err != nil {
		return err
	}
	domains, err := cmd.domains(c)
	if err != nil {
		return err
	}
	set, err := source.New(d.SourceOptions(hostname))
	if err != nil {
		return usage("delivery.sources: %w", err)
	}
	servers := cmd.Resolver
	if len(servers) == 0 {
		servers = d.Resolvers
	}
	names, err := mx.NewDNS(mx.DNSOptions{Servers: servers})
	if err != nil {
		return usage("%w", err)
	}
	found, err := cmd.look(a, set, d, names, hostname, domains)
	if err != nil {
		return err
	}
	for _, domain := range domains {
		found = append(found, source.CheckDMARC(a.ctx, names, domain))
	}
	if err := a.ctx.Err(); err != nil {
		return err
	}
	return showFindings(a, found)
}

// domains are those that SPF and DMARC are for.
func (cmd sourceCheckCmd) domains(c *config.Config) ([]string, error) {
	if len(cmd.Domain) == 0 {
		own, err := ownDomain(c)
		return []string{own}, err
	}
	var domains []string
	for _, d := range cmd.Domain {
		name, err := address.Normalize(d)
		if err != nil || address.IsLiteral(name) {
			return nil, usage("--domain: %q is no domain", d)
		}
		domains = append(domains, name)
	}
	return domains, nil
}

// look checks the sources that are asked for.
func (cmd sourceCheckCmd) look(a *app, set *source.Set, d *config.Delivery, names *mx.DNS, hostname string, domains []string) ([]source.Finding, error) {
	states := set.States(time.Now())
	for _, name := range cmd.Names {
		if !slices.ContainsFunc(states, func(st source.State) bool { return st.Name == name }) {
			return nil, usage("there is no source %q: postroad source list shows what there is", name)
		}
	}
	if len(states) == 0 {
		addrs, err := systemAddrs(a, d, names, hostname)
		if err != nil {
			return nil, err
		}
		return source.Check(a.ctx, names, source.Source{Hostname: hostname}, domains, addrs...), nil
	}
	var found []source.Finding
	for _, st := range states {
		if len(cmd.Names) == 0 || slices.Contains(cmd.Names, st.Name) {
			found = append(found, source.Check(a.ctx, names, st.Source, domains)...)
		}
	}
	return found, nil
}

// systemAddrs are the addresses that mail leaves from when no source is configured: local_address, else those of the host's name.
func systemAddrs(a *app, d *config.Delivery, names *mx.DNS, hostname string) ([]netip.Addr, error) {
	if d.LocalAddress != "" {
		addr, err := netip.ParseAddr(d.LocalAddress)
		return []netip.Addr{addr.Unmap()}, err
	}
	answer, err := names.LookupHost(a.ctx, hostname)
	if err != nil {
		return nil, fmt.Errorf("no sources are configured, and the address of this host is not known: %w", err)
	}
	var addrs []netip.Addr
	for _, addr := range answer.Addrs {
		addrs = append(addrs, addr.Addr)
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("no sources are configured, and %s has no address in the DNS: configure delivery.sources", hostname)
	}
	return addrs, nil
}

func showFindings(a *app, found []source.Finding) error {
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	wrong := 0
	for i, f := range found {
		if f.Verdict != source.Good {
			wrong++
		}
		if a.flags.JSON {
			if err := a.print(f); err != nil {
				return err
			}
			continue
		}
		if i == 0 {
			_, _ = fmt.Fprintln(t, "SOURCE\tADDRESS\tCHECK\tVERDICT\tFOUND")
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", cmp.Or(f.Source, "-"), cmp.Or(f.Address, "-"), f.Check, f.Verdict, clean(f.Text, 500))
	}
	if err := t.Flush(); err != nil || wrong == 0 {
		return err
	}
	if !a.flags.JSON {
		for _, f := range found {
			if f.Do != "" {
				a.tell("postroad: %s: %s\n", strings.TrimSpace(f.Source+" "+f.Address+" "+f.Check), clean(f.Do, 500))
			}
		}
	}
	return errSaid
}
