package mx

import (
	"context"
	"errors"
	"time"

	"github.com/miekg/dns"
)

const (
	maxAliases = 10   // CNAMEs in a row
	maxRecords = 2000 // of one answer that are kept
)

// maxAsk bounds one resolve, so that the caller is still there to hear that it failed.
const maxAsk = 12 * time.Second

// resolve asks until the end of the chain of aliases.
func (d *DNS) resolve(ctx context.Context, name string, qtype uint16) answer {
	ctx, cancel := context.WithTimeout(ctx, maxAsk)
	defer cancel()
	ttl, secure := maxTTL, true
	for aliases := 0; aliases <= maxAliases; {
		reply, err := d.ask(ctx, name, qtype)
		if err != nil {
			return answer{err: err, ttl: failureTTL}
		}
		secure = secure && reply.AuthenticatedData
		chain := follow(reply, name, qtype)
		ttl = min(ttl, chain.ttl)
		switch {
		case len(chain.rrs) > 0:
			return answer{rrs: chain.rrs, end: chain.end, secure: secure, ttl: ttl}
		case reply.Rcode == dns.RcodeNameError:
			return answer{err: ErrNoName, secure: secure, ttl: min(ttl, negativeTTL(reply))}
		case chain.aliases == 0 || hasSOA(reply):
			return answer{end: chain.end, secure: secure, ttl: min(ttl, negativeTTL(reply))}
		}
		name = chain.end // the server did not follow the alias to its end
		aliases += chain.aliases
	}
	return answer{err: errors.New("too many aliases"), ttl: failureTTL}
}

// chain is what a reply holds for a name: its aliases, and the records at their end.
type chain struct {
	end     string
	aliases int
	rrs     []dns.RR
	ttl     time.Duration
}

// follow walks the aliases in a reply. Records of other names are left alone, and so is what lies beside the answer.
func follow(reply *dns.Msg, name string, qtype uint16) chain {
	c := chain{end: name, ttl: maxTTL}
	for c.aliases <= maxAliases {
		alias := ""
		for _, rr := range reply.Answer {
			h := rr.Header()
			if dns.CanonicalName(h.Name) != c.end || h.Class != dns.ClassINET {
				continue
			}
			ttl := time.Duration(h.Ttl) * time.Second
			if h.Rrtype == qtype {
				if len(c.rrs) < maxRecords {
					c.rrs = append(c.rrs, rr)
				}
				c.ttl = min(c.ttl, ttl)
			} else if cname, ok := rr.(*dns.CNAME); ok {
				alias = dns.CanonicalName(cname.Target)
				c.ttl = min(c.ttl, ttl)
			}
		}
		if len(c.rrs) > 0 || alias == "" {
			return c
		}
		c.end = alias
		c.aliases++
	}
	return c
}

// hasSOA reports that a reply says "no such records" with authority.
func hasSOA(reply *dns.Msg) bool {
	for _, rr := range reply.Ns {
		if rr.Header().Rrtype == dns.TypeSOA {
			return true
		}
	}
	return false
}

// negativeTTL is how long "no" holds (RFC 2308 §5); without SOA it is not for keeping.
func negativeTTL(reply *dns.Msg) time.Duration {
	for _, rr := range reply.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			ttl := time.Duration(min(soa.Hdr.Ttl, soa.Minttl)) * time.Second
			return min(ttl, maxNegativeTTL)
		}
	}
	return 0
}
