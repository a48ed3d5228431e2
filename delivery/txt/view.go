package txt

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// View is what the DNS says of a name.
type View struct {
	Name string // that was asked for, without the final dot
	// Zone holds the record: that of Name or, behind aliases, that of the last target.
	Zone    string
	Answers []Answer // of the zones' servers in the order of the aliases, then of the resolvers
	// NegativeTTL is how long resolvers may remember that there was no record: the
	// longest of the zones on the way.
	NegativeTTL time.Duration
}

// Answer is what one server says, or why it says nothing.
type Answer struct {
	// Server is a host name and an address with a space between; of a resolver the
	// address only. Ports are shown that are not 53.
	Server string
	// Zone is the one whose name server this is; "" for a resolver.
	Zone string
	// Name that was asked for: that of the View, or the target of an alias.
	Name string
	// IsAuthoritative reports that the server said so. Resolvers do not.
	IsAuthoritative bool
	// Records there are, each with its strings joined, sorted. None and no Err:
	// the server says that there is no record.
	Records []string
	// CNAME is the chain of aliases that the server gave. When it leads out of the
	// zone, Records is empty, and further Answers have its end as Name.
	CNAME []string
	// TTL is how long this answer may be kept, also one without records.
	TTL time.Duration
	// Serial of the zone at this server, 0 if it did not say: servers with a lower
	// one than others lag behind.
	Serial uint32
	// Err says why the answer does not count: ErrLame, ErrNoRoute, ErrNoAnswer,
	// ErrAliases, ErrTooMany, or what the server complained of.
	Err error
}

// IsResolver tells a resolver's answer from a name server's.
func (a Answer) IsResolver() bool { return a.Zone == "" }

// Verdict sums a View up for one expected record.
type Verdict struct {
	Servers        int     // name servers' addresses that show the record, or the alias to it
	Resolvers      int     // resolvers that show it
	Faults         []error // one for each name server that does not, worded for people
	ResolverFaults []error // one for each resolver that does not
}

// Judge tells who shows exactly one record, for which is reports true. An
// address without a route from here is no fault if the same host showed the
// record at another of its addresses. A View without any name server's answer
// has a fault.
func (v View) Judge(is func(record string) bool) Verdict {
	var verdict Verdict
	asked := make(map[string]bool) // names put to name servers: targets of aliases are judged there
	shows := make(map[string]bool) // by host name
	for _, a := range v.Answers {
		if !a.IsResolver() {
			asked[a.Name] = true
		}
	}
	for _, a := range v.Answers {
		err := a.judge(is, asked)
		switch {
		case a.IsResolver() && err == nil:
			verdict.Resolvers++
		case a.IsResolver():
			verdict.ResolverFaults = append(verdict.ResolverFaults, err)
		case err == nil:
			verdict.Servers++
			shows[a.host()+" "+a.Name] = true
		}
	}
	for _, a := range v.Answers {
		if a.IsResolver() || errors.Is(a.Err, ErrNoRoute) && shows[a.host()+" "+a.Name] {
			continue
		}
		if err := a.judge(is, asked); err != nil {
			verdict.Faults = append(verdict.Faults, err)
		}
	}
	if verdict.Servers == 0 && len(verdict.Faults) == 0 {
		verdict.Faults = append(verdict.Faults, fmt.Errorf("no name server of %s was asked", v.Name))
	}
	return verdict
}

// judge says what is wrong with one answer.
func (a Answer) judge(is func(record string) bool, asked map[string]bool) error {
	switch {
	case a.Err != nil:
		return fmt.Errorf("%s: %s: %w", a.Server, a.Name, a.Err)
	case len(a.Records) == 0 && len(a.CNAME) > 0 && asked[a.CNAME[len(a.CNAME)-1]] && !a.IsResolver():
		return nil
	case len(a.Records) == 0 && a.IsResolver():
		return fmt.Errorf("%s: %s has no TXT record, and it may say so for %s more", a.Server, a.Name, a.TTL)
	case len(a.Records) == 0:
		return fmt.Errorf("%s: %s has no TXT record", a.Server, a.Name)
	case len(a.Records) > 1:
		return fmt.Errorf("%s: %s has %d TXT records, want one: delete the others", a.Server, a.Name, len(a.Records))
	case !is(a.Records[0]) && a.IsResolver():
		return fmt.Errorf("%s: %s has another value, and it may keep it for %s more", a.Server, a.Name, a.TTL)
	case !is(a.Records[0]):
		return fmt.Errorf("%s: %s has another value", a.Server, a.Name)
	}
	return nil
}

// host is the name of a name server.
func (a Answer) host() string {
	host, _, _ := strings.Cut(a.Server, " ")
	return host
}
