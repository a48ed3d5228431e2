// Package route says by which next hop the mail for a domain leaves.
//
// A Route has conditions, all of which must hold: the recipient's domain, and, where it names any, senders, clients and
// classes. Of several that match, the winner is the one with
//
//  1. the more specific domain: the domain itself, then the longest suffix (".example.com" is every name below
//     example.com, not example.com itself), then /regexp/ in the order written, then "*";
//  2. more further conditions (senders, clients, classes: 0 to 3);
//  3. the more specific sender: an address or <>, then @domain, then the longest .domain;
//  4. the earlier place.
//
// Mail that nothing matches goes to the MX hosts of its domain. Two routes that only their place could tell apart though
// they ask for the same are refused, since one of them would never be used.
//
//	hop, err := route.ParseNextHop("smtp:[relay.example.net]:25,smtp:[192.0.2.7]:2525")
//	table, err := route.NewTable([]route.Route{{Match: "*", NextHop: hop, AllowPrivate: true}})
//	r := table.Lookup(route.Query{Domain: "example.com", Sender: from, Client: "web"})
package route

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"postroad/delivery/smtpc"
	"postroad/queue/address"
)

// Causes of a refused table; match them with errors.Is.
var (
	ErrMatch     = errors.New("not a match: want a domain, .suffix, /regexp/ or *")
	ErrPattern   = errors.New("not a pattern that can be used")
	ErrSender    = errors.New("not a sender: want user@domain, @domain, .domain for every domain below it, or <>")
	ErrWord      = errors.New("not a name: want no spaces, and 1 to 255 octets")
	ErrDuplicate = errors.New("two routes ask for the same")
)

// Query is what a route is chosen by.
type Query struct {
	Domain string       // of the recipients: A-label in lower case, or an address literal
	Sender address.Path // reverse-path
	Client string       // account, or trusted network
	Class  string       // of the client
}

// Route is how mail leaves that meets its conditions.
type Route struct {
	Name    string   // for people; empty: it is known by its conditions
	Match   string   // domain, ".suffix", "/regexp/" or "*"
	Senders []string // "user@domain", "@domain", ".domain" or "<>"; empty: any
	Clients []string // empty: any
	Classes []string // empty: any

	NextHop      NextHop        // zero: the MX hosts of the domain
	TLS          *smtpc.TLSMode // nil: the worker's default
	CA           *CA            // who may vouch for hosts; nil: the worker's default
	AllowPrivate bool           // next hops may have private, loopback or link-local addresses
	Auth         string         // smart host secret to log in with; empty: none
	AuthInsecure bool           // log in also where TLS has not proved who the host is
	ClientCert   string         // certificate to show; empty: none
	VERP         bool           // hosts see a reverse-path that names the message, so that what comes back is known; see Options.Bounces of package delivery
	Source       string         // pool of egress sources; empty: the default
}

// CA is a set of authorities.
type CA struct {
	File string         // that they were read from
	Pool *x509.CertPool // required
	Sum  string         // differs from that of other authorities
}

// String names the route for people: its name, or its conditions.
func (r Route) String() string {
	if r.Name != "" {
		return r.Name
	}
	return r.Conditions()
}

// Conditions prints what must hold.
func (r Route) Conditions() string {
	text := r.Match
	for _, c := range []struct {
		what string
		list []string
	}{{"from", r.Senders}, {"client", r.Clients}, {"class", r.Classes}} {
		if len(c.list) > 3 {
			text += fmt.Sprintf(" %s %s and %d more", c.what, strings.Join(c.list[:3], " or "), len(c.list)-3)
		} else if len(c.list) > 0 {
			text += " " + c.what + " " + strings.Join(c.list, " or ")
		}
	}
	return text
}

// Files are those that routes were made with, beside the one that they stand in: of authorities. Sorted.
func (t Table) Files() []string { return t.files }

// Table finds routes. The zero Table sends everything to its MX hosts. It is not changed after NewTable, so it is safe
// for concurrent use.
type Table struct {
	exact    map[string]*bucket // by domain, ".suffix" or "*"
	patterns []*bucket          // in the order written
	count    int
	files    []string
}

// maxPatterns bounds what each lookup of a domain without a route of its own costs.
const maxPatterns = 200

// NewTable checks the routes and reports everything that is wrong with them, not only the first. Each error is an
// *Error.
func NewTable(routes []Route) (Table, error) {
	t := Table{exact: make(map[string]*bucket, len(routes)), count: len(routes)}
	var wrong []error
	for i, r := range routes {
		if r.CA != nil {
			t.files = append(t.files, r.CA.File)
		}
		e, err := newEntry(r)
		if err == nil {
			err = t.add(e)
		}
		if err != nil {
			wrong = append(wrong, &Error{Index: i, Route: r, Err: err})
		}
	}
	if len(wrong) > 0 {
		return Table{}, errors.Join(wrong...)
	}
	slices.Sort(t.files)
	t.files = slices.Compact(t.files)
	return t, nil
}

// Error says what is wrong with one route of a list.
type Error struct {
	Index int // in the list, from 0
	Route Route
	Err   error
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("route %.300q: %v", e.Route.String(), e.Err) }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Len is how many routes there are.
func (t Table) Len() int { return t.count }

// add files an entry under its match, or says which one it duplicates.
func (t *Table) add(e *entry) error {
	b := t.exact[e.route.Match]
	if e.pattern != nil {
		if i := slices.IndexFunc(t.patterns, func(b *bucket) bool { return b.match == e.route.Match }); i >= 0 {
			b = t.patterns[i]
		}
	}
	if b == nil {
		b = &bucket{match: e.route.Match, pattern: e.pattern, bySender: make(map[string][]*entry, 1)}
		if e.pattern == nil {
			t.exact[b.match] = b
		} else if t.patterns = append(t.patterns, b); len(t.patterns) > maxPatterns {
			return fmt.Errorf("%w: at most %d of them", ErrPattern, maxPatterns)
		}
	}
	return b.add(e)
}

// Lookup finds the route of mail. What nothing matches gets a Route with an empty Match.
func (t Table) Lookup(q Query) Route {
	var found *entry
	t.walk(q.Domain, func(b *bucket) bool {
		found = b.best(q)
		return found == nil
	})
	if found == nil {
		return Route{}
	}
	return found.route
}

// walk visits the buckets that match a domain, the most specific first, until visit returns false.
func (t Table) walk(domain string, visit func(*bucket) bool) {
	if b := t.exact[domain]; b != nil && domain != "*" && !visit(b) {
		return
	}
	if !address.IsLiteral(domain) {
		for rest := domain; ; {
			dot := strings.IndexByte(rest, '.')
			if dot < 0 {
				break
			}
			if b := t.exact[rest[dot:]]; b != nil && !visit(b) {
				return
			}
			rest = rest[dot+1:]
		}
		for _, b := range t.patterns {
			if b.pattern.MatchString(domain) && !visit(b) {
				return
			}
		}
	}
	if b := t.exact["*"]; b != nil {
		visit(b)
	}
}

// Candidate is a route whose domain matches, and why it won or lost.
type Candidate struct {
	Route Route
	Won   bool
	Why   string // for people
}

// Explain lists the routes whose domain matches: the winner first, then the others by precedence, at most limit of them;
// more counts the rest.
func (t Table) Explain(q Query, limit int) (list []Candidate, more int) {
	var won *entry
	var lost []Candidate
	t.walk(q.Domain, func(b *bucket) bool {
		if won == nil {
			won = b.best(q)
		}
		all := slices.Clone(b.entries)
		slices.SortStableFunc(all, func(x, y *entry) int { return cmp.Compare(y.conditions, x.conditions) })
		for _, e := range all {
			switch {
			case e == won:
			case len(lost) == limit:
				more++
			default:
				lost = append(lost, Candidate{Route: e.route, Why: e.whyNot(q, won)})
			}
		}
		return true
	})
	if won != nil {
		list = append(list, Candidate{Route: won.route, Won: true, Why: "matches " + won.route.Conditions()})
	}
	return append(list, lost...), more
}
