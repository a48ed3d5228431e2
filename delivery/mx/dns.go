package mx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// DNSOptions say whom to ask, and how patiently.
type DNSOptions struct {
	Servers   []string      // recursive resolvers, "address" or "address:port"; default those of /etc/resolv.conf
	Trusted   []netip.Addr  // of those, the ones that validate and are reached by a way that nobody can tamper with; loopback in Servers is
	Timeout   time.Duration // of one question to one server; default 5 s
	Attempts  int           // rounds through the servers; default 2
	CacheSize int           // answers kept; default 10,000
}

// DNS is the Resolver on the network: recursive servers, asked in turn, and a
// cache in front of them. Safe for concurrent use.
type DNS struct {
	servers  []*server
	trusted  bool // what they say of DNSSEC is believed
	attempts int
	cache    *cache
	exchange exchange
}

var _ Resolver = (*DNS)(nil)

const (
	resolvConf = "/etc/resolv.conf"
	udpBytes   = 1232 // answer size that is safe from fragments (DNS flag day 2020)
	maxOpen    = 128  // questions on the network at a time: each has a socket
)

// forwarder is the name server of a container's network (Docker, Podman). It is on loopback, and passes on what others say.
var forwarder = netip.MustParseAddr("127.0.0.11")

// NewDNS makes a DNS.
func NewDNS(o DNSOptions) (*DNS, error) { return openDNS(o, resolvConf) }

func openDNS(o DNSOptions, file string) (*DNS, error) {
	isNamed := len(o.Servers) > 0 // else nobody has said that what is on loopback validates: often it only forwards
	if !isNamed {
		conf, err := dns.ClientConfigFromFile(file)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		for _, server := range conf.Servers {
			o.Servers = append(o.Servers, net.JoinHostPort(server, conf.Port))
		}
	}
	d := &DNS{
		trusted:  true,
		attempts: cmp.Or(o.Attempts, 2),
		cache:    newCache(cmp.Or(o.CacheSize, 10_000)),
		exchange: overNetwork(cmp.Or(o.Timeout, 5*time.Second)),
	}
	for _, text := range o.Servers {
		addr, err := netip.ParseAddrPort(text)
		if err != nil {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				return nil, fmt.Errorf("name server %q: must be an address, with or without port", text)
			}
			addr = netip.AddrPortFrom(ip, 53)
		}
		d.servers = append(d.servers, &server{addr: addr.String()})
		ip := addr.Addr().Unmap()
		d.trusted = d.trusted && (slices.Contains(o.Trusted, ip) || isNamed && ip.IsLoopback() && ip != forwarder)
	}
	if len(d.servers) == 0 {
		return nil, fmt.Errorf("%s names no server", file)
	}
	return d, nil
}

// IsTrusted reports that answers may be secure: every server is trusted. One that is not would take the place of those that are whenever
// somebody keeps them from answering, and with it the security.
func (d *DNS) IsTrusted() bool { return d.trusted }

// LookupMX implements Resolver.
func (d *DNS) LookupMX(ctx context.Context, domain string) (MXAnswer, error) {
	found := d.lookup(ctx, domain, dns.TypeMX)
	if found.err != nil {
		return MXAnswer{}, fmt.Errorf("look up MX of %s: %w", domain, found.err)
	}
	out := MXAnswer{Records: make([]MX, 0, len(found.rrs)), IsSecure: found.secure}
	for _, rr := range found.rrs {
		if m, ok := rr.(*dns.MX); ok {
			out.Records = append(out.Records, MX{Host: plain(m.Mx), Preference: m.Preference})
		}
	}
	return out, nil
}

// LookupHost implements Resolver. Both families are asked at once.
func (d *DNS) LookupHost(ctx context.Context, host string) (HostAnswer, error) {
	var six answer
	var wg sync.WaitGroup
	wg.Go(func() { six = d.lookup(ctx, host, dns.TypeAAAA) })
	four := d.lookup(ctx, host, dns.TypeA)
	wg.Wait()
	var out HostAnswer
	for _, found := range []answer{six, four} {
		for _, rr := range found.rrs {
			var ip net.IP
			switch rr := rr.(type) {
			case *dns.A:
				ip = rr.A
			case *dns.AAAA:
				ip = rr.AAAA
			}
			if addr, ok := netip.AddrFromSlice(ip); ok {
				out.Addrs = append(out.Addrs, Address{addr.Unmap(), found.secure})
				out.Canonical = plain(found.end)
			}
		}
	}
	err := either(four.err, six.err)
	if err != nil {
		err = fmt.Errorf("look up %s: %w", host, err)
	}
	if len(out.Addrs) == 0 {
		return HostAnswer{}, err
	}
	if err != nil && !errors.Is(err, ErrNoName) {
		out.Trouble = err
	}
	return out, nil
}

// LookupTXT gives the TXT records of a name, each with its strings joined. Errors are as those of Resolver.
func (d *DNS) LookupTXT(ctx context.Context, name string) ([]string, error) {
	found := d.lookup(ctx, name, dns.TypeTXT)
	if found.err != nil {
		return nil, fmt.Errorf("look up TXT of %s: %w", name, found.err)
	}
	var texts []string
	for _, rr := range found.rrs {
		if t, ok := rr.(*dns.TXT); ok {
			texts = append(texts, strings.Join(t.Txt, ""))
		}
	}
	return texts, nil
}

// LookupAddr gives the names that an address has in reverse (PTR). Errors are as those of Resolver.
func (d *DNS) LookupAddr(ctx context.Context, addr netip.Addr) ([]string, error) {
	name, err := dns.ReverseAddr(addr.Unmap().String())
	if err != nil {
		return nil, fmt.Errorf("look up the name of %s: %w", addr, err)
	}
	found := d.lookup(ctx, name, dns.TypePTR)
	if found.err != nil {
		return nil, fmt.Errorf("look up the name of %s: %w", addr, found.err)
	}
	var names []string
	for _, rr := range found.rrs {
		if p, ok := rr.(*dns.PTR); ok {
			names = append(names, plain(p.Ptr))
		}
	}
	return names, nil
}

// plain is a name as we write it.
func plain(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") }

// either gives the error that says less: trouble goes before proof.
func either(a, b error) error {
	if a == nil || b != nil && errors.Is(a, ErrNoName) {
		return b
	}
	return a
}

// lookup gives the records of a type, through aliases, from the cache or the servers.
func (d *DNS) lookup(ctx context.Context, name string, qtype uint16) answer {
	name = dns.CanonicalName(name)
	if _, ok := dns.IsDomainName(name); !ok || !isASCII(name) {
		return answer{err: fmt.Errorf("%q is no domain name: %w", name, ErrNoName)}
	}
	return d.cache.get(ctx, question{name, qtype}, func(ctx context.Context) answer {
		return d.resolve(ctx, name, qtype)
	})
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > 0x7f })
}
