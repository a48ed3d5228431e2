package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"postroad/cmd/internal/config"
	"postroad/delivery"
	"postroad/delivery/mx"
	"postroad/delivery/route"
	"postroad/delivery/smtpc"
	"postroad/delivery/source"
	"postroad/delivery/tlspolicy"
	"postroad/queue/address"
)

type checkPolicyCmd struct {
	Domain string `arg:"" help:"Recipients' domain."`
}

// policyTimeout bounds the look-ups of one domain; a policy may take a minute to be fetched.
const policyTimeout = 90 * time.Second

// explainedHost is a host that would be dialled, and how.
type explainedHost struct {
	Host       string     `json:"host"`
	Addr       netip.Addr `json:"addr"`
	Preference uint16     `json:"preference"`
	Proven     bool       `json:"proven"`          // DNSSEC proves MX record and address
	TLS        string     `json:"tls,omitempty"`   // the plan: may, dane 3 1 1, sts, …
	Fault      string     `json:"fault,omitempty"` // why no mail may go there
}

// explainedHosts is what the name service says of the hosts of a domain.
type explainedHosts struct {
	Domain  string          `json:"domain"`
	Site    string          `json:"site,omitempty"`
	STS     string          `json:"mta_sts,omitempty"` // the policy, or why there is none
	Trusted bool            `json:"trusted"`           // the name servers may prove something
	Hosts   []explainedHost `json:"hosts"`
	Fault   string          `json:"fault,omitempty"` // why there is no host
}

// isGood reports that there is a host that mail may go to.
func (x *explainedHosts) isGood() bool {
	for _, h := range x.Hosts {
		if h.Fault == "" {
			return true
		}
	}
	return false
}

// resolver is what hosts are found with; *mx.DNS is one.
type resolver interface {
	mx.Resolver
	tlspolicy.Names
	IsTrusted() bool
}

// openResolver takes the name servers of the configuration.
func openResolver(c *config.Config) (resolver, error) {
	o := mx.DNSOptions{Servers: c.Delivery.Resolvers}
	for _, text := range c.Delivery.TrustedResolvers {
		if addr, err := netip.ParseAddr(text); err == nil {
			o.Trusted = append(o.Trusted, addr.Unmap())
		}
	}
	return mx.NewDNS(o)
}

// lookHosts finds the hosts of a domain and plans how they would be dialled, as delivery does. It connects to none of them.
func lookHosts(ctx context.Context, c *config.Config, r resolver, domain string, found route.Route) *explainedHosts {
	ctx, cancel := context.WithTimeout(ctx, policyTimeout)
	defer cancel()
	x := &explainedHosts{Domain: cmp.Or(found.NextHop.MX, domain), Trusted: r.IsTrusted(), Hosts: []explainedHost{}}
	o, err := ownOptions(c, found)
	if err != nil {
		x.Fault = err.Error()
		return x
	}
	hosts, err := mx.Candidates(ctx, r, x.Domain, o)
	if err != nil {
		x.Fault = err.Error()
		return x
	}
	x.Site = mx.Site(hosts)
	policies := tlspolicy.New(tlspolicy.Options{Names: r, NoDANE: !c.Delivery.TLSPolicies.DANE, NoSTS: !c.Delivery.TLSPolicies.MTASTS,
		Ignore: c.Delivery.TLSPolicies.Ignore, Lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			answer, err := r.LookupHost(ctx, host)
			var addrs []netip.Addr
			for _, a := range answer.Addrs {
				addrs = append(addrs, a.Addr)
			}
			return addrs, err
		}})
	defer policies.Close()
	floor := smtpc.TLSMay
	if found.TLS != nil {
		floor = *found.TLS
	}
	d := policies.Domain(ctx, tlspolicy.Mail{Domain: x.Domain, Floor: floor, IsMX: true})
	x.STS = d.STSText()
	for _, h := range hosts {
		plan, err := policies.Host(ctx, d, tlspolicy.Host{Name: h.Name, Canonical: h.Canonical, Port: route.DefaultPort, SecureMX: h.SecureMX, Secure: h.Secure})
		out := explainedHost{Host: h.Name, Addr: h.Addr, Preference: h.Preference, Proven: h.SecureMX && h.Secure, TLS: plan.String()}
		if err != nil {
			out.TLS, out.Fault = "", err.Error()
			if f, is := errors.AsType[*tlspolicy.Failure](err); is {
				out.Fault = fmt.Sprintf("%d %s %s", f.Code(), f.Enhanced, f.Error())
			}
		}
		x.Hosts = append(x.Hosts, out)
	}
	return x
}

// ownOptions say which hosts are tried, as the role delivery of this machine has it: those that are ourselves, and of families that the
// sources do not have, are not.
func ownOptions(c *config.Config, found route.Route) (mx.Options, error) {
	name := c.Hostname
	if name == "" {
		name, _ = os.Hostname() // without it nothing is known to be ourselves
	}
	set, err := source.New(c.Delivery.SourceOptions(name))
	if err != nil {
		return mx.Options{}, fmt.Errorf("delivery.sources: %w", err)
	}
	names, addrs := c.Delivery.OwnNamesAndAddrs()
	machine, err := delivery.MachineAddrs()
	if err != nil {
		return mx.Options{}, err
	}
	has4, has6 := set.Families(found.Source)
	return mx.Options{Self: slices.Concat([]string{name}, set.Hostnames(), names), SelfAddrs: slices.Concat(addrs, set.Addrs(), machine),
		NoIPv4: !has4, NoIPv6: !has6, AllowPrivate: found.AllowPrivate, AllowLiteral: c.Delivery.AllowLiterals}, nil
}

// explainHosts asks the name service about the recipients' domains.
func (x *explanation) explainHosts(a *app, c *config.Config) error {
	r, err := openResolver(c)
	if err != nil {
		return fmt.Errorf("name servers: %w", err)
	}
	for i := range x.Recipients {
		if rcpt := &x.Recipients[i]; rcpt.hop.IsMX() {
			rcpt.Hosts = lookHosts(a.ctx, c, r, rcpt.domain(), rcpt.found)
		}
	}
	return nil
}

// show prints the hosts, one a line.
func (x *explainedHosts) show(line func(format string, args ...any)) {
	if x.Fault != "" {
		line("no host: %s", clean(x.Fault, 500))
		return
	}
	line("site %s", clean(x.Site, 200))
	if x.STS != "" {
		line("mta-sts: %s", clean(x.STS, 1000))
	}
	for _, h := range x.Hosts {
		text := fmt.Sprintf("host %d %s[%s]", h.Preference, clean(h.Host, 255), h.Addr)
		if h.Proven {
			text += " (DNSSEC)"
		}
		if h.Fault != "" {
			line("%s no mail: %s", text, clean(h.Fault, 500))
		} else {
			line("%s tls: %s", text, h.TLS)
		}
	}
	if !x.Trusted {
		line("no DANE: the name servers are neither on this machine nor trusted")
	}
}

// Run looks the policy of a domain up; no host that mail may go to makes it fail.
func (p checkPolicyCmd) Run(a *app) error {
	c, _, err := a.load()
	if err != nil {
		return err
	}
	domain, err := mailDomain(p.Domain)
	if err != nil {
		return err
	}
	r, err := openResolver(c)
	if err != nil {
		return fmt.Errorf("name servers: %w", err)
	}
	routes, err := c.Delivery.LoadRoutes()
	if err != nil {
		return err
	}
	found := routes.Lookup(route.Query{Domain: domain})
	if !found.NextHop.IsMX() {
		a.tell("postroad: mail for %s does not go to its MX hosts, but by the route for %s: %s\n", domain, found, found.NextHop)
		found.NextHop = route.NextHop{}
	}
	x := lookHosts(a.ctx, c, r, domain, found)
	if a.flags.JSON {
		err = a.print(x)
	} else {
		x.show(func(format string, args ...any) { a.say(format+"\n", args...) })
	}
	if err == nil && !x.isGood() {
		return errSaid
	}
	return err
}

func mailDomain(s string) (string, error) {
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		s = s[i+1:]
	}
	domain, err := address.Normalize(s)
	if err != nil || address.IsLiteral(domain) {
		return "", usage("%q is no domain name", s)
	}
	return domain, nil
}
