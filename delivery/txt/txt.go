// Package txt reads, writes and prints TXT records, such as those of DKIM keys.
//
// Look asks every name server of the zone itself, and some resolvers, what they
// say of a name; aliases (CNAME) are followed from zone to zone. Update writes a
// record to a primary server by dynamic update (RFC 2136) signed with a TSIG key
// (RFC 8945). Format prints a record for zone files and other tools.
//
//	client, err := txt.New(txt.Options{})
//	view, err := client.Look(ctx, "rsa._domainkey.example.com")
//	verdict := view.Judge(func(record string) bool { return record == want })
//	if len(verdict.Faults) == 0 && verdict.Resolvers >= 2 { everybody shows it }
//
//	err = txt.Update(ctx, txt.UpdateOptions{Server: "ns1.example.com", Zone: "example.com", KeyFile: path},
//		txt.Change{Op: txt.Replace, Name: "rsa._domainkey.example.com", Value: want})
//
// Values are octets as the DNS carries them, the strings of a record joined:
// splitting at 255 octets and escaping are done here.
package txt

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Options configure a Client.
type Options struct {
	// Resolvers are recursive servers. The zone and its name servers are found by
	// them, in turn; and all are asked for the record, as views independent of
	// each other. At most 16. Default: those of /etc/resolv.conf.
	Resolvers []netip.AddrPort
	// Timeout of one question to one server. Default: 5 s.
	Timeout time.Duration
	// Tries of a question that gets no answer. Default: 2.
	Tries int
	// Deadline of a whole Look. Default: 1 min.
	Deadline time.Duration
	// AuthoritativePort is where the name servers of zones listen. Default: 53.
	AuthoritativePort uint16
	// Logger gets a line at level debug for each server asked. Default: discards.
	Logger *slog.Logger
}

const (
	resolvConf = "/etc/resolv.conf"
	dnsPort    = 53

	defaultTimeout  = 5 * time.Second
	defaultTries    = 2
	defaultDeadline = time.Minute

	udpBytes     = 1232 // answer size that is safe from fragments
	maxResolvers = 16
	maxAliases   = 8  // CNAMEs from the name on
	maxAddresses = 32 // asked of the name servers of one zone
	maxOpen      = 64 // questions on the network at a time: each has a socket
)

var (
	// ErrLame says that a server listed for a zone does not serve it.
	ErrLame = errors.New("it is lame: the zone names it as its server, but it does not serve the zone")
	// ErrNoRoute says that this machine cannot reach the server's address at all,
	// as happens to IPv6 addresses where there is no IPv6.
	ErrNoRoute = errors.New("this machine has no route there")
	// ErrNoAnswer says that a server kept silent.
	ErrNoAnswer = errors.New("no answer")
	// ErrAliases says that CNAME records lead in a circle, or on and on.
	ErrAliases = errors.New("aliases lead nowhere")
	// ErrTooMany says that a zone has more servers than are asked.
	ErrTooMany = fmt.Errorf("not asked: only %d addresses of a zone are", maxAddresses)
	// ErrBadName says that a string is no name for a record.
	ErrBadName = errors.New("no domain name")
)

// Client asks the DNS. Safe for concurrent use. It keeps no answers.
type Client struct {
	resolvers []netip.AddrPort
	timeout   time.Duration
	tries     int
	deadline  time.Duration
	port      uint16
	log       *slog.Logger
	open      chan struct{}
	good      atomic.Int32 // index of the resolver that answered last: it is asked first
}

// New makes a Client.
func New(o Options) (*Client, error) {
	if o.Timeout < 0 || o.Tries < 0 || o.Deadline < 0 {
		return nil, errors.New("look-ups of TXT records: timeout, tries and deadline must not be negative")
	}
	if len(o.Resolvers) == 0 {
		var err error
		if o.Resolvers, err = systemResolvers(resolvConf); err != nil {
			return nil, err
		}
	}
	if len(o.Resolvers) > maxResolvers {
		return nil, fmt.Errorf("%d resolvers to ask: give at most %d", len(o.Resolvers), maxResolvers)
	}
	for _, r := range o.Resolvers {
		if !r.IsValid() || r.Port() == 0 {
			return nil, fmt.Errorf("resolver %q: want an address and a port", r)
		}
	}
	return &Client{
		resolvers: o.Resolvers,
		timeout:   cmp.Or(o.Timeout, defaultTimeout),
		tries:     cmp.Or(o.Tries, defaultTries),
		deadline:  cmp.Or(o.Deadline, defaultDeadline),
		port:      cmp.Or(o.AuthoritativePort, dnsPort),
		log:       cmp.Or(o.Logger, slog.New(slog.DiscardHandler)),
		open:      make(chan struct{}, maxOpen),
	}, nil
}

// systemResolvers reads a file in the form of resolv.conf.
func systemResolvers(path string) ([]netip.AddrPort, error) {
	conf, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var resolvers []netip.AddrPort
	for _, server := range conf.Servers {
		addr, err := netip.ParseAddrPort(net.JoinHostPort(server, conf.Port))
		if err != nil {
			return nil, fmt.Errorf("%s: name server %q is no address", path, server)
		}
		resolvers = append(resolvers, addr)
	}
	if len(resolvers) == 0 {
		return nil, fmt.Errorf("%s names no server: give the addresses of resolvers", path)
	}
	return resolvers, nil
}

// display shows an address, with its port only when that is not the usual one.
func display(addr netip.AddrPort) string {
	if addr.Port() == dnsPort {
		return addr.Addr().String()
	}
	return net.JoinHostPort(addr.Addr().String(), strconv.Itoa(int(addr.Port())))
}
