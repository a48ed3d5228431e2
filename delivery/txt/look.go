package txt

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Look asks everybody for the TXT records of a name: every address of every
// name server of its zone, those of the zones that aliases lead to, and every
// resolver. Servers are asked in parallel; one that is dead or wrong is an
// Answer with Err. The error is for names that are none (ErrBadName), zones that
// cannot be found, and a context that ends; the View has then what is known.
func (c *Client) Look(ctx context.Context, name string) (View, error) {
	clean, err := cleanName(name)
	if err != nil {
		return View{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.deadline, fmt.Errorf("%w within %s, the limit of the whole look-up", ErrNoAnswer, c.deadline))
	defer cancel()
	v := View{Name: clean}
	var resolvers []Answer
	var wg sync.WaitGroup
	wg.Go(func() { resolvers = c.askResolvers(ctx, dns.Fqdn(clean)) })
	err = c.walk(ctx, &v)
	wg.Wait()
	v.Answers = append(v.Answers, resolvers...)
	return v, err
}

// step is a name to be put to the servers of its zone.
type step struct {
	name string
	path []string // names that led here, this one included
}

// walk goes from the name along the aliases, also where servers disagree about them.
func (c *Client) walk(ctx context.Context, v *View) error {
	first := dns.Fqdn(v.Name)
	steps := []step{{first, []string{first}}}
	seen := map[string]bool{first: true}
	for len(steps) > 0 {
		s := steps[0]
		steps = steps[1:]
		z, err := c.findZone(ctx, s.name)
		if err != nil && len(s.path) == 1 {
			return err
		}
		if err != nil {
			v.Answers = append(v.Answers, Answer{Server: "zone of " + bare(s.name), Zone: bare(s.name), Name: bare(s.name), Err: err})
			continue
		}
		answers := c.askServers(ctx, z, s.name)
		v.Zone = bare(z.name)
		v.NegativeTTL = max(v.NegativeTTL, z.negativeTTL(answers))
		for i := range answers {
			a, next := &answers[i], answers[i].next
			switch {
			case next == "" || a.Err != nil:
			case slices.Contains(s.path, next):
				a.Err = fmt.Errorf("%w: %s comes back to %s", ErrAliases, bare(s.name), bare(next))
			case seen[next]:
			case len(seen) > maxAliases:
				a.Err = fmt.Errorf("%w: there are more than %d", ErrAliases, maxAliases)
			default:
				seen[next] = true
				steps = append(steps, step{next, append(slices.Clone(s.path), next)})
			}
		}
		for _, a := range answers {
			v.Answers = append(v.Answers, a.Answer)
		}
		v.Answers = append(v.Answers, z.errs...)
	}
	return nil
}

// serverAnswer is an Answer with what else its server says.
type serverAnswer struct {
	Answer
	next     string        // target of an alias that others must be asked for, with the final dot
	negative time.Duration // 0 if it does not say
}

// negativeTTL is how long it may be remembered that a name is not in the zone.
// The servers know; resolvers count the TTL of the SOA down, so that only its
// minimum field can be used.
func (z zone) negativeTTL(answers []serverAnswer) time.Duration {
	ttl := time.Duration(0)
	for _, a := range answers {
		ttl = max(ttl, a.negative)
	}
	if ttl == 0 {
		return z.minimum
	}
	return ttl
}

// askServers asks all servers of a zone at once, without recursion.
func (c *Client) askServers(ctx context.Context, z zone, name string) []serverAnswer {
	answers := make([]serverAnswer, len(z.servers))
	var wg sync.WaitGroup
	for i, s := range z.servers {
		wg.Go(func() { answers[i] = c.askServer(ctx, z, s, name) })
	}
	wg.Wait()
	return answers
}

func (c *Client) askServer(ctx context.Context, z zone, s server, name string) serverAnswer {
	a := serverAnswer{Answer: Answer{Server: bare(s.host) + " " + display(s.addr), Zone: bare(z.name), Name: bare(name)}}
	reply, err := c.ask(ctx, s.addr, question{name, dns.TypeTXT, false}, c.tries)
	if err != nil {
		a.Err = err
	} else {
		a.IsAuthoritative = reply.Authoritative
		a.next = a.read(reply, name, z.name)
		a.Err = cmp.Or(isLame(reply), a.Err)
	}
	if a.IsAuthoritative {
		a.negative, a.Serial = c.askSOA(ctx, z, s.addr)
	}
	c.log.Debug("name server asked", "server", a.Server, "name", a.Name, "records", len(a.Records), "err", a.Err)
	return a
}

// isLame tells an answer of a server that does not serve the zone.
func isLame(reply *dns.Msg) error {
	err := complaint(reply)
	switch {
	case reply.Rcode == dns.RcodeRefused || reply.Rcode == dns.RcodeNotAuth:
		return fmt.Errorf("%w (%w)", ErrLame, err)
	case err != nil:
		return err
	case !reply.Authoritative:
		return fmt.Errorf("%w (its answer is not authoritative)", ErrLame)
	}
	return nil
}

// askSOA gives what a server says of its zone: zeros if it says nothing.
func (c *Client) askSOA(ctx context.Context, z zone, addr netip.AddrPort) (negative time.Duration, serial uint32) {
	reply, err := c.ask(ctx, addr, question{z.name, dns.TypeSOA, false}, c.tries)
	if err != nil || !reply.Authoritative {
		return 0, 0
	}
	for _, rr := range reply.Answer {
		if soa, ok := rr.(*dns.SOA); ok {
			return negativeTTL(soa), soa.Serial
		}
	}
	return 0, 0
}

// negativeTTL is how long "no" may be kept (RFC 2308 §5).
func negativeTTL(soa *dns.SOA) time.Duration {
	return time.Duration(min(soa.Hdr.Ttl, soa.Minttl)) * time.Second
}

// askResolvers asks all resolvers at once.
func (c *Client) askResolvers(ctx context.Context, name string) []Answer {
	answers := make([]Answer, len(c.resolvers))
	var wg sync.WaitGroup
	for i, addr := range c.resolvers {
		wg.Go(func() {
			a := &answers[i]
			a.Server, a.Name = display(addr), bare(name)
			reply, err := c.ask(ctx, addr, question{name, dns.TypeTXT, true}, c.tries)
			if err != nil {
				a.Err = err
			} else {
				a.read(reply, name, ".")
				a.Err = cmp.Or(complaint(reply), a.Err)
			}
			c.log.Debug("resolver asked", "server", a.Server, "name", a.Name, "records", len(a.Records), "err", a.Err)
		})
	}
	wg.Wait()
	return answers
}

// read takes the aliases and records out of a reply, as far as they are in the
// zone: of names beyond it the server is no witness. It returns the end of the
// chain of aliases when somebody else must be asked for it.
func (a *Answer) read(reply *dns.Msg, name, zone string) (next string) {
	end, ttl := dns.CanonicalName(name), uint32(1<<31-1)
	visited := []string{end}
	for dns.IsSubDomain(zone, end) {
		alias := ""
		for _, rr := range reply.Answer {
			h := rr.Header()
			if dns.CanonicalName(h.Name) != end || h.Class != dns.ClassINET {
				continue
			}
			switch rr := rr.(type) {
			case *dns.TXT:
				a.Records = append(a.Records, valueOf(rr))
				ttl = min(ttl, h.Ttl)
			case *dns.CNAME:
				alias = dns.CanonicalName(rr.Target)
				ttl = min(ttl, h.Ttl)
			}
		}
		if len(a.Records) > 0 || alias == "" {
			break
		}
		a.CNAME = append(a.CNAME, bare(alias))
		if slices.Contains(visited, alias) || len(visited) > maxAliases {
			a.Err = fmt.Errorf("%w: %s is an alias of %s", ErrAliases, bare(end), bare(alias))
			break
		}
		visited = append(visited, alias)
		end = alias
	}
	slices.Sort(a.Records)
	if len(a.Records) == 0 {
		soa := soaIn(reply)
		switch {
		case soa != nil && dns.IsSubDomain(zone, end):
			ttl = min(ttl, uint32(negativeTTL(soa)/time.Second))
		case len(a.CNAME) > 0 && a.Err == nil:
			next = end // the server did not go to the end of the chain
		case len(a.CNAME) == 0:
			ttl = 0
		}
	}
	a.TTL = time.Duration(ttl) * time.Second
	return next
}

func soaIn(reply *dns.Msg) *dns.SOA {
	for _, rr := range reply.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return soa
		}
	}
	return nil
}
