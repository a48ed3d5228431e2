// Package tlspolicy says how a connection to a mail host has to be protected, and whether it is.
//
// Three voices are heard, and the strictest counts: the route (its TLS mode is a floor), the recipient's domain (DANE, RFC 7672, which goes
// before MTA-STS, RFC 8461), and the message (REQUIRETLS and TLS-Required, RFC 8689).
//
//	p := tlspolicy.New(tlspolicy.Options{Names: dns})
//	d := p.Domain(ctx, tlspolicy.Mail{Domain: "example.net", IsMX: true, Floor: smtpc.TLSMay})
//	plan, err := p.Host(ctx, d, tlspolicy.Host{Name: "mx.example.net", Port: 25, SecureMX: true, Secure: true})
//	plan.Apply(&options) // of smtpc.Dial
//	results := plan.Results(conn.TLSState(), err) // for reports
//	p.Close()
//
// What a policy refuses waits: a mismatch may be an attack or a slip, and both end. A *Failure says in public words what was wrong.
package tlspolicy

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"postroad/delivery/mx"
	"postroad/delivery/smtpc"
	"postroad/delivery/tlsrpt"
	"postroad/delivery/web"
)

// Options say which policies are looked for. The zero Options look for none.
type Options struct {
	Names  Names // nil: no policy is looked up
	NoDANE bool
	NoSTS  bool
	Ignore []string // domains whose own policies are not looked at: the operator knows that they are broken

	// Lookup finds the hosts of policies. Required for MTA-STS.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	Store  Store          // of MTA-STS policies; default: they are kept in memory only
	Roots  *x509.CertPool // authorities; default: those of the system

	// For tests: policies come from private addresses, or by another way.
	AllowPrivate bool
	Dial         func(ctx context.Context, network, addr string) (net.Conn, error)
}

// sessionsKept bounds the TLS sessions that are kept for resumption.
const sessionsKept = 4096

// Policies finds policies and holds connections against them. Safe for concurrent use.
type Policies struct {
	o        Options
	ignore   map[string]bool
	shelf    *shelf // nil: no MTA-STS
	web      *http.Client
	sessions tls.ClientSessionCache
	end      context.CancelFunc
}

// New makes a Policies. It runs nothing until it is asked.
func New(o Options) *Policies {
	p := &Policies{o: o, ignore: make(map[string]bool), sessions: tls.NewLRUClientSessionCache(sessionsKept)}
	for _, domain := range o.Ignore {
		p.ignore[strings.ToLower(domain)] = true
	}
	life, end := context.WithCancel(context.Background())
	p.end = end
	if o.Names != nil && o.Lookup != nil && !o.NoSTS {
		p.web = web.NewClient(web.Options{Lookup: o.Lookup, Dialable: mx.Dialable, Roots: o.Roots, AllowPrivate: o.AllowPrivate, Dial: o.Dial})
		p.shelf = newShelf(life, o.Names, o.Store, p.fetch)
	}
	return p
}

// Close ends fetches that are under way.
func (p *Policies) Close() {
	p.end()
	if p.shelf != nil {
		p.shelf.close()
	}
}

// Mail is what a message and its route say.
type Mail struct {
	Domain     string         // of the recipients, A-label in lower case
	Floor      smtpc.TLSMode  // of the route
	Roots      *x509.CertPool // authorities of the route; nil: those of Options
	IsMX       bool           // the hosts come from MX records, not from the route
	RequireTLS bool           // REQUIRETLS was given (RFC 8689 §2)
	Optional   bool           // TLS-Required: No (RFC 8689 §3): what the recipient's domain wants does not count
}

// Domain is what holds for all hosts of a domain.
type Domain struct {
	Mail
	isIgnored bool
	sts       *STS
	trouble   *Failure // an MTA-STS policy is promised, and there is none
	isUnknown bool     // whether there is one could not be found out
}

// Domain finds out what a domain wants. It may fetch a policy, which takes up to a minute; without one when ctx ends.
func (p *Policies) Domain(ctx context.Context, m Mail) Domain {
	m.Optional = m.Optional && !m.RequireTLS
	d := Domain{Mail: m, isIgnored: m.Optional || p.ignore[m.Domain] || strings.HasPrefix(m.Domain, "[")}
	if p.shelf != nil && m.IsMX && !d.isIgnored {
		d.sts, d.trouble, d.isUnknown = p.shelf.get(ctx, m.Domain)
		if d.sts != nil && d.sts.Mode == NoMode {
			d.sts = nil
		}
	}
	return d
}

// Key tells domains with the same hosts apart whose policies are not the same: a connection that was made for one is of no use for
// another then. secureMX as in Host.
func (d Domain) Key(secureMX bool) string {
	var b strings.Builder
	if d.RequireTLS {
		b.WriteString("requiretls;")
	}
	if d.isIgnored {
		return b.String()
	}
	if secureMX {
		b.WriteString("secure;")
	}
	if d.sts != nil {
		patterns := slices.Clone(d.sts.MX)
		slices.Sort(patterns)
		b.WriteString(string(d.sts.Mode) + ";" + strings.Join(patterns, ";"))
	}
	return b.String()
}

// Host is one host to dial.
type Host struct {
	Name        string // in the MX record, or in the route
	Canonical   string // at the end of the aliases of Name; empty: Name
	Port        uint16
	ImplicitTLS bool // TLS is there from the first octet (RFC 8314 §3.3): nothing less will do
	SecureMX    bool // DNSSEC proves that this is a host of the domain; also a host that the route names
	Secure      bool // DNSSEC proves its address, aliases included
}

// Host makes the plan for a host. The error is a *Failure: no mail may go there.
func (p *Policies) Host(ctx context.Context, d Domain, h Host) (Plan, error) {
	h.Name = strings.ToLower(strings.TrimSuffix(h.Name, "."))
	plan := Plan{
		Kind: kindOf(d.Floor), Mode: d.Floor, ServerName: h.Name, Need: d.RequireTLS,
		domain: d.Mail.Domain, mx: h.Name, isSilent: d.Optional || !d.IsMX, // what becomes of our own next hops is nobody else's business

		policy: tlsrpt.Policy{Type: tlsrpt.NoPolicy, Domain: d.Mail.Domain},
		roots:  cmp.Or(d.Roots, p.o.Roots), sessions: p.sessions, seen: &verdict{},
	}
	if h.ImplicitTLS {
		plan.isImplicit = true
		plan.demand(smtpc.TLSEncrypt)
	}
	if d.trouble != nil {
		plan.also = append(plan.also, tlsrpt.Result{Domain: plan.domain,
			Policy:  tlsrpt.Policy{Type: tlsrpt.STS, Domain: plan.domain},
			Failure: tlsrpt.Failure{Result: d.trouble.Result, Reason: d.trouble.Error()}})
	}
	isDANE, err := p.dane(ctx, d, h, &plan)
	switch {
	case err != nil:
		return plan, err
	case isDANE:
	case d.sts != nil:
		if err := plan.holdSTS(d.sts); err != nil {
			return plan, err
		}
	}
	if d.RequireTLS {
		if !h.SecureMX && (d.sts == nil || !d.sts.Matches(h.Name)) {
			f := &Failure{Result: tlsrpt.ValidationFailure, Enhanced: "5.7.30", Permanent: true,
				Text: "the message needs REQUIRETLS, and neither DNSSEC nor MTA-STS proves that " + h.Name + " is a host of " + d.Mail.Domain}
			if d.trouble != nil || d.isUnknown { // a policy may prove it yet
				f.Enhanced, f.Permanent = "4.7.0", false
			}
			return plan, f
		}
		plan.demand(smtpc.TLSVerify)
	}
	plan.finish()
	return plan, nil
}

// STSText is the domain's MTA-STS policy for people: "enforce mx.example.net, *.example.org", why there is none although the domain promises
// one, or "".
func (d Domain) STSText() string {
	switch {
	case d.trouble != nil:
		return "promised, but " + d.trouble.Error()
	case d.sts != nil:
		return string(d.sts.Mode) + " " + strings.Join(d.sts.MX, ", ")
	}
	return ""
}
