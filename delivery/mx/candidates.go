package mx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"postroad/queue/address"
)

const (
	defaultAddresses = 5
	maxHosts         = 20 // of an MX set that are looked up at all
)

// Candidates gives the addresses to try for a domain (A-label), best first:
// hosts by preference, equal ones shuffled, of each host both families in turn.
// The error is an *Error, or that of ctx.
func Candidates(ctx context.Context, r Resolver, domain string, o Options) ([]Host, error) {
	o.MaxAddresses = cmp.Or(o.MaxAddresses, defaultAddresses)
	if o.Shuffle == nil {
		o.Shuffle = rand.Shuffle
	}
	if address.IsLiteral(domain) {
		return literal(domain, o)
	}
	answer, err := r.LookupMX(ctx, domain)
	if err != nil {
		return nil, lookupError(ctx, domain, err)
	}
	s := search{ctx: ctx, r: r, o: o, domain: domain, isSecure: answer.IsSecure}
	if len(answer.Records) == 0 { // the domain itself is its host (RFC 5321 §5.1)
		return s.run([]MX{{Host: domain}}, domain)
	}
	if answer.IsNull() {
		return nil, &Error{Code: 556, Enhanced: "5.1.10", Domain: domain, Err: ErrNullMX} // RFC 7505 §4
	}
	records := slices.DeleteFunc(slices.Clone(answer.Records), func(m MX) bool { return m.Host == "" })
	return s.run(records, siteName(records))
}

// search is one run of Candidates over the records of a domain.
type search struct {
	ctx      context.Context
	r        Resolver
	o        Options
	domain   string
	isSecure bool // the MX set is

	hosts      []Host
	temporary  error // of a host that could not be looked up, or not all of its addresses
	isExcluded bool  // there are hosts, of a family that we have no address of
}

// run walks the records from the best preference on, until there are enough
// addresses, of both families if there are both, or it meets ourselves: mail
// only goes to better hosts than we are.
func (s *search) run(records []MX, site string) ([]Host, error) {
	s.o.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	slices.SortStableFunc(records, func(a, b MX) int { return cmp.Compare(a.Preference, b.Preference) })
	looped := false
	if i := slices.IndexFunc(records, func(m MX) bool { return s.isSelf(m.Host) }); i >= 0 {
		looped = true
		records = records[:firstOf(records, records[i].Preference)]
	}
	records = records[:min(len(records), maxHosts)]
	for len(records) > 0 && (len(s.hosts) < s.o.MaxAddresses || oneFamily(s.hosts)) {
		n := 1
		for n < len(records) && records[n].Preference == records[0].Preference {
			n++
		}
		group, self := s.resolve(records[:n], site)
		if self {
			looped = true
			break
		}
		s.hosts = append(s.hosts, group...)
		records = records[n:]
	}
	if err := s.ctx.Err(); err != nil {
		return nil, context.Cause(s.ctx)
	}
	if len(s.hosts) > 0 {
		return balance(s.hosts, s.o.MaxAddresses), nil
	}
	return nil, s.nothing(looped)
}

// resolve gives the addresses of hosts of one preference; self reports that one of them is ours.
func (s *search) resolve(records []MX, site string) (hosts []Host, self bool) {
	answers, errs := make([]HostAnswer, len(records)), make([]error, len(records))
	var wg sync.WaitGroup
	for i, m := range records {
		wg.Go(func() { answers[i], errs[i] = s.r.LookupHost(s.ctx, m.Host) })
	}
	wg.Wait()
	for i, m := range records {
		if err := errs[i]; err != nil && !errors.Is(err, ErrNoName) {
			s.temporary = err
		} else if answers[i].Trouble != nil {
			s.temporary = answers[i].Trouble
		}
		for _, addr := range s.alternate(answers[i].Addrs) {
			switch {
			case slices.Contains(s.o.SelfAddrs, addr.Addr):
				self = true
			case !s.o.AllowPrivate && !Dialable(addr.Addr):
			case s.o.excludes(addr.Addr):
				s.isExcluded = true
			default:
				hosts = append(hosts, Host{
					Name: m.Host, Canonical: cmp.Or(answers[i].Canonical, m.Host), Addr: addr.Addr, Preference: m.Preference, Site: site,
					SecureMX: s.isSecure, Secure: s.isSecure && addr.IsSecure,
				})
			}
		}
	}
	return hosts, self
}

func (o *Options) excludes(addr netip.Addr) bool {
	return addr.Is4() && o.NoIPv4 || addr.Is6() && o.NoIPv6
}

// nothing says why there is no address: ourselves, then trouble, then proof.
func (s *search) nothing(looped bool) error {
	switch {
	case s.temporary != nil:
		return lookupError(s.ctx, s.domain, s.temporary)
	case s.isExcluded:
		return noFamily(s.domain)
	case looped:
		return &Error{Code: 554, Enhanced: "5.4.6", Domain: s.domain, Err: ErrLoop}
	}
	return &Error{Code: 550, Enhanced: "5.4.4", Domain: s.domain, Err: ErrNoAddress}
}

func noFamily(domain string) error {
	return &Error{Code: 451, Enhanced: "4.4.1", Domain: domain, Err: ErrNoFamily}
}

func (s *search) isSelf(host string) bool {
	return slices.ContainsFunc(s.o.Self, func(name string) bool {
		return strings.EqualFold(strings.TrimSuffix(name, "."), host)
	})
}

func firstOf(records []MX, preference uint16) int {
	return slices.IndexFunc(records, func(m MX) bool { return m.Preference == preference })
}

// alternate shuffles the addresses of each family and takes from both in turn, so that
// neither is left out when the number of tries is small.
func (s *search) alternate(addrs []Address) []Address {
	var six, four []Address
	for _, addr := range addrs {
		if addr.Addr = addr.Unmap(); addr.Is4() {
			four = append(four, addr)
		} else {
			six = append(six, addr)
		}
	}
	s.o.Shuffle(len(six), func(i, j int) { six[i], six[j] = six[j], six[i] })
	s.o.Shuffle(len(four), func(i, j int) { four[i], four[j] = four[j], four[i] })
	out := make([]Address, 0, len(addrs))
	for i := range max(len(six), len(four)) {
		if i < len(six) {
			out = append(out, six[i])
		}
		if i < len(four) {
			out = append(out, four[i])
		}
	}
	return out
}

// balance cuts hosts to n; when that would leave one family out, the last
// place is for its best address.
func balance(hosts []Host, n int) []Host {
	if len(hosts) <= n {
		return hosts
	}
	kept, rest := slices.Clone(hosts[:n]), hosts[n:]
	other := func(h Host) bool { return h.Addr.Is4() != kept[0].Addr.Is4() }
	if i := slices.IndexFunc(rest, other); i >= 0 && n > 1 && oneFamily(kept) {
		kept[n-1] = rest[i]
	}
	return kept
}

func oneFamily(hosts []Host) bool {
	return !slices.ContainsFunc(hosts, func(h Host) bool { return h.Addr.Is4() != hosts[0].Addr.Is4() })
}

// literal is the host of a domain like [192.0.2.1] (RFC 5321 §4.1.3).
func literal(domain string, o Options) ([]Host, error) {
	refused := &Error{Code: 550, Enhanced: "5.1.2", Domain: domain, Err: ErrLiteral}
	if !o.AllowLiteral {
		return nil, refused
	}
	addr, err := address.Literal(domain)
	if err != nil {
		refused.Err = fmt.Errorf("%w: %w", ErrLiteral, err)
		return nil, refused
	}
	addr = addr.Unmap()
	switch {
	case slices.Contains(o.SelfAddrs, addr):
		return nil, &Error{Code: 554, Enhanced: "5.4.6", Domain: domain, Err: ErrLoop}
	case !o.AllowPrivate && !Dialable(addr):
		return nil, &Error{Code: 550, Enhanced: "5.4.4", Domain: domain, Err: ErrNoAddress}
	case o.excludes(addr):
		return nil, noFamily(domain)
	}
	return []Host{{Name: addr.String(), Canonical: addr.String(), Addr: addr, Site: domain}}, nil
}

// lookupError files the error of a Resolver: permanent only when the name does not exist.
func lookupError(ctx context.Context, domain string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, ErrNoName) {
		return &Error{Code: 550, Enhanced: "5.1.2", Domain: domain, Err: err}
	}
	return &Error{Code: 451, Enhanced: "4.4.3", Domain: domain, Err: fmt.Errorf("%w: %w", ErrLookup, err)}
}
