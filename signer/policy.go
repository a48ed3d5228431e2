package signer

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/net/publicsuffix"

	"postroad/queue"
	"postroad/queue/address"
	"postroad/signer/keyring"
)

// Policy says what becomes of mail that is not signed for its author.
type Policy string

// The policies.
const (
	Hold  Policy = "hold"  // it waits and is looked at again every five minutes
	Pass  Policy = "pass"  // it goes out without a signature
	Relay Policy = "relay" // it is signed by our own domain only
)

// Domain says how mail of some domains of authors is signed.
type Domain struct {
	// Names are example.com for that domain, .example.com for every domain below
	// it; the most specific name of all Domains holds. At least one.
	Names []string
	// Clients are those whose mail may be signed by these domains: see
	// CheckClient. Empty: everybody from whom ingress takes it.
	Clients []string
	// Others is what becomes of the mail of other clients. Default: Pass.
	Others Policy
	// MissingKey is what becomes of mail for which there is no key. Default:
	// that of the Options.
	MissingKey Policy
	// AllowParent lets a domain above sign, if the client may use that too.
	AllowParent bool
	// RelaySignature adds a signature of our own domain to that of the author's.
	RelaySignature bool
	// OnlyUnsigned lets mail that bears a DKIM-Signature pass as it is.
	OnlyUnsigned bool
}

// Rules decide who signs a mail. They are not changed after Options.Rules, so
// they are safe for concurrent use.
type Rules struct {
	own    string
	byName map[string]*rule
	rest   *rule // of domains that nothing names
}

type rule struct {
	Domain
	name    string // as in the map
	clients clients
}

// Decision is what becomes of one mail.
type Decision struct {
	Author       string   // its domain as an A-label; empty: none to sign for
	Rule         string   // name of the Domain that holds; empty: none, the Options do
	Refused      bool     // the client is not one of its Clients
	OnlyUnsigned bool     // mail that bears a signature passes as it is
	Domains      []string // the first of them that has keys signs
	Beside       bool     // Relay signs beside it
	Otherwise    Policy   // what becomes of the mail when none of Domains has keys
	Relay        string   // our own domain, if it is to sign beside the author's or alone
	Reason       string   // why nobody, or not everybody, may sign; for people, may be empty
}

// Rules checks the policies among the options and reports all that is wrong.
// Queue and Keys need not be given.
func (o Options) Rules() (*Rules, error) {
	r := &Rules{byName: make(map[string]*rule)}
	var wrong []error
	if o.OwnDomain != "" {
		var ok bool
		if r.own, ok = cleanDomain(o.OwnDomain); !ok {
			wrong = append(wrong, fmt.Errorf("own domain %q: not a domain name", o.OwnDomain))
		}
	}
	rest, err := r.parse(Domain{MissingKey: o.MissingKey, AllowParent: o.AllowParent, RelaySignature: o.RelaySignature}, Hold)
	if err != nil {
		wrong = append(wrong, err)
	}
	r.rest = rest
	for i, d := range o.Domains {
		parsed, err := r.parse(d, rest.MissingKey)
		if len(d.Names) == 0 {
			err = errors.Join(err, errors.New("it has no names"))
		}
		for _, given := range d.Names {
			name, nameErr := CleanName(given)
			if _, exists := r.byName[name]; nameErr == nil && exists {
				nameErr = fmt.Errorf("%q is there twice", given)
			}
			err = errors.Join(err, nameErr)
			named := *parsed
			named.name = name
			r.byName[name] = &named
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("domain %d: %w", i, err))
		}
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	return r, nil
}

// parse checks all of d but its names.
func (r *Rules) parse(d Domain, missing Policy) (*rule, error) {
	out := &rule{Domain: d}
	if out.MissingKey == "" {
		out.MissingKey = missing
	}
	if out.Others == "" {
		out.Others = Pass
	}
	var wrong []error
	for _, policy := range []Policy{out.MissingKey, out.Others} {
		if policy != Hold && policy != Pass && policy != Relay {
			wrong = append(wrong, fmt.Errorf("policy %q: want %q, %q or %q", policy, Hold, Pass, Relay))
		}
	}
	if r.own == "" && (out.MissingKey == Relay || out.Others == Relay || d.RelaySignature) {
		wrong = append(wrong, errors.New("a signature of our own domain is wanted, and there is no own domain"))
	}
	var err error
	if out.clients, err = parseClients(d.Clients); err != nil {
		wrong = append(wrong, err)
	}
	return out, errors.Join(wrong...)
}

// Decide says who signs a mail: of that kind, with that domain in its From
// field, from that client of that class, as the envelope has them.
//
// Whatever the rules are, no domain signs for a client that may not use it: not
// as a parent, and not as the relay. Our own domain does not sign alone either
// where a receiver that compares organisations (DMARC) would take its signature
// for one of the very domain that the client may not use.
func (r *Rules) Decide(kind queue.Kind, author, client, class string) Decision {
	if kind == queue.KindDSN {
		return r.notification()
	}
	name, ok := cleanDomain(author)
	if !ok {
		return Decision{Otherwise: Pass, Reason: fmt.Sprintf("the author has no domain to sign for (%.300q)", author)}
	}
	in := r.lookup(name)
	d := Decision{Author: name, Rule: in.name, OnlyUnsigned: in.OnlyUnsigned}
	if !in.clients.have(client, class) {
		d.Refused, d.Otherwise = true, in.Others
		d.Reason = fmt.Sprintf("%s may not have mail signed by %s", calling(client), name)
		switch {
		case d.Otherwise != Relay:
		case Aligned(name, r.own):
			d.Otherwise = Pass
			d.Reason += ", nor by " + r.own + ", which receivers take for the same organisation"
		default:
			r.fallBack(&d, client, class)
		}
		return d
	}
	for _, candidate := range candidates(name, in.AllowParent) {
		if r.may(candidate, client, class) {
			d.Domains = append(d.Domains, candidate)
		}
	}
	if d.Otherwise = in.MissingKey; d.Otherwise == Relay {
		d.Reason = "no DKIM key for " + name
		r.fallBack(&d, client, class)
	}
	if in.RelaySignature && name != r.own && r.may(r.own, client, class) {
		d.Beside, d.Relay = true, r.own
	}
	return d
}

// fallBack lets our own domain sign alone, if it may.
func (r *Rules) fallBack(d *Decision, client, class string) {
	for _, domain := range d.Domains {
		if domain == r.own { // without a key, then
			d.Otherwise = Hold
			return
		}
	}
	if !r.may(r.own, client, class) {
		d.Otherwise = Pass
		if d.Refused {
			d.Reason += ", nor by " + r.own
			return
		}
		d.Reason += fmt.Sprintf(", and %s may not have mail signed by %s", calling(client), r.own)
		return
	}
	d.Relay = r.own
}

// notification is made by a role that may not speak for customers: our own
// domain signs it, exactly, and nobody else, whatever its From says.
func (r *Rules) notification() Decision {
	if r.own == "" {
		return Decision{Otherwise: Pass, Reason: "no own domain is configured to sign notifications"}
	}
	return Decision{Author: r.own, Rule: r.lookup(r.own).name, Domains: []string{r.own}, Otherwise: r.ownMissing()}
}

// ownMissing is what becomes of mail that our own domain was to sign alone.
func (r *Rules) ownMissing() Policy {
	if p := r.lookup(r.own).MissingKey; p != Relay {
		return p
	}
	return Hold
}

// may tells whether a client's mail may bear a signature of a domain.
func (r *Rules) may(domain, client, class string) bool {
	return r.lookup(domain).clients.have(client, class)
}

// lookup finds the rule of a clean domain.
func (r *Rules) lookup(domain string) *rule {
	if in, ok := r.byName[domain]; ok {
		return in
	}
	for rest := domain; ; {
		dot := strings.IndexByte(rest, '.')
		if dot < 0 {
			return r.rest
		}
		if in, ok := r.byName[rest[dot:]]; ok {
			return in
		}
		rest = rest[dot+1:]
	}
}

// CleanName returns example.com or .example.com in the form in which it is
// compared: A-labels in lower case, no final dot.
func CleanName(name string) (string, error) {
	domain, isSuffix := strings.CutPrefix(name, ".")
	clean, ok := cleanDomain(domain)
	switch {
	case !ok:
		return "", fmt.Errorf("%.300q is neither a domain, such as example.com, nor .example.com for every domain below it", name)
	case isSuffix:
		return "." + clean, nil
	}
	return clean, nil
}

// cleanDomain brings every spelling of a domain to one: A-labels, lower case,
// no final dot. It reports false for what nobody can sign for.
func cleanDomain(domain string) (string, bool) {
	name, err := address.Normalize(strings.TrimSuffix(domain, "."))
	if err != nil || address.IsLiteral(name) {
		return "", false
	}
	return keyring.CleanDomain(name)
}

// Aligned tells whether two domains, clean ones, belong to one organisation as
// DMARC compares them by default: a signature of one of them then vouches for an
// author in the other. When in doubt they do: what hosters let their customers
// choose (customer.github.io) counts as the hoster's.
func Aligned(a, b string) bool {
	return a == b || a != "" && b != "" && organisation(a) == organisation(b)
}

// organisation is the domain that somebody has registered.
func organisation(domain string) string {
	suffix, isICANN := publicsuffix.PublicSuffix(domain)
	for !isICANN {
		_, above, found := strings.Cut(suffix, ".")
		if !found {
			break
		}
		suffix, isICANN = publicsuffix.PublicSuffix(above)
	}
	label := strings.TrimSuffix(strings.TrimSuffix(domain, suffix), ".")
	if i := strings.LastIndexByte(label, '.'); i >= 0 {
		label = label[i+1:]
	}
	return label + "." + suffix
}

// candidates are the domains whose keys may sign for author, best first.
func candidates(author string, allowParent bool) []string {
	domain, ok := cleanDomain(author)
	if !ok {
		return nil
	}
	list := []string{domain}
	for allowParent {
		_, parent, found := strings.Cut(domain, ".")
		// A name of one label is a top-level domain: nobody's to sign for.
		if !found || !strings.Contains(parent, ".") || len(list) == maxCandidates {
			break
		}
		list = append(list, parent)
		domain = parent
	}
	return list
}

// maxCandidates bounds the lookups that one author's name can cause.
const maxCandidates = 6
