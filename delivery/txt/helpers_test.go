package txt

import (
	"flag"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

var rewrite = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answerer answers a question, or not: nil.
type answerer func(q *dns.Msg, overTCP bool) *dns.Msg

// network is loopback addresses with name servers, all on the same port, and a
// resolver on another.
type network struct {
	port     uint16
	resolver netip.AddrPort

	mu    sync.Mutex
	asked map[string][]*dns.Msg // by address
}

// newNetwork runs a server for each address and a resolver.
func newNetwork(t *testing.T, servers map[string]answerer, resolver answerer) *network {
	t.Helper()
	n := &network{asked: make(map[string][]*dns.Msg)}
	addrs := []string{"127.0.0.1"}
	for addr := range servers {
		if addr != "127.0.0.1" {
			addrs = append(addrs, addr)
		}
	}
	n.port = n.listen(t, addrs, servers)
	n.resolver = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), n.listen(t, addrs[:1], map[string]answerer{"127.0.0.1": resolver}))
	return n
}

// listen serves at the addresses on a port that is free at all of them, and returns it.
func (n *network) listen(t *testing.T, addrs []string, servers map[string]answerer) uint16 {
	t.Helper()
	for range 50 {
		var closers []func()
		var listeners []net.Listener
		var packets []net.PacketConn
		port, ok := "0", true
		for _, addr := range addrs {
			l, err := net.Listen("tcp", net.JoinHostPort(addr, port))
			if err != nil {
				ok = false
				break
			}
			closers = append(closers, func() { l.Close() })
			_, port, _ = net.SplitHostPort(l.Addr().String())
			pc, err := net.ListenPacket("udp", l.Addr().String())
			if err != nil {
				ok = false
				break
			}
			closers = append(closers, func() { pc.Close() })
			listeners, packets = append(listeners, l), append(packets, pc)
		}
		if !ok {
			for _, c := range closers {
				c()
			}
			continue
		}
		for i, addr := range addrs {
			if servers[addr] == nil {
				listeners[i].Close()
				packets[i].Close()
				continue
			}
			h := n.handler(listeners[i].Addr().String(), servers[addr])
			serve(t, &dns.Server{Listener: listeners[i], Handler: h})
			serve(t, &dns.Server{PacketConn: packets[i], Handler: h})
		}
		return netip.MustParseAddrPort(listeners[0].Addr().String()).Port()
	}
	t.Fatal("no port is free at all addresses")
	return 0
}

func (n *network) handler(addr string, answer answerer) dns.Handler {
	return dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		n.mu.Lock()
		n.asked[addr] = append(n.asked[addr], q.Copy())
		n.mu.Unlock()
		if reply := answer(q, w.RemoteAddr().Network() == "tcp"); reply != nil {
			_ = w.WriteMsg(reply) // a lost answer is the client's business
		}
	})
}

func serve(t *testing.T, s *dns.Server) {
	t.Helper()
	started, served := make(chan struct{}), make(chan error, 1)
	s.NotifyStartedFunc = func() { close(started) }
	go func() { served <- s.ActivateAndServe() }()
	select {
	case <-started:
	case err := <-served:
		t.Fatalf("name server: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
		<-served
	})
}

// client asks this network.
func (n *network) client(t *testing.T, change ...func(*Options)) *Client {
	t.Helper()
	o := Options{Resolvers: []netip.AddrPort{n.resolver}, Timeout: time.Minute, AuthoritativePort: n.port}
	for _, f := range change {
		f(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// at is how a server shows in an Answer.
func (n *network) at(host, addr string) string { return fmt.Sprintf("%s %s:%d", host, addr, n.port) }

// zones is a server that serves zone files.
type zones [][]dns.RR

// parse reads zone files, each with its SOA first.
func parse(t testing.TB, texts ...string) zones {
	t.Helper()
	var z zones
	for _, text := range texts {
		var rrs []dns.RR
		p := dns.NewZoneParser(strings.NewReader(text), ".", "")
		for rr, ok := p.Next(); ok; rr, ok = p.Next() {
			rrs = append(rrs, rr)
		}
		if err := p.Err(); err != nil {
			t.Fatal(err)
		}
		z = append(z, rrs)
	}
	return z
}

// of finds the zone of a name.
func (z zones) of(name string) []dns.RR {
	var best []dns.RR
	for _, rrs := range z {
		if apex := rrs[0].Header().Name; dns.IsSubDomain(apex, name) && (best == nil || len(apex) > len(best[0].Header().Name)) {
			best = rrs
		}
	}
	return best
}

// serve answers like an authoritative server.
func (z zones) serve(q *dns.Msg, _ bool) *dns.Msg { return z.answer(q, false) }

// resolve answers like a resolver.
func (z zones) resolve(q *dns.Msg, _ bool) *dns.Msg { return z.answer(q, true) }

func (z zones) answer(q *dns.Msg, recursive bool) *dns.Msg {
	reply := new(dns.Msg).SetReply(q)
	reply.RecursionAvailable, reply.Authoritative = recursive, !recursive
	name := strings.ToLower(q.Question[0].Name)
	for range 20 {
		zone := z.of(name)
		if zone == nil && len(reply.Answer) == 0 {
			reply.Rcode, reply.Authoritative = dns.RcodeRefused, false
			if recursive {
				reply.Rcode = dns.RcodeServerFailure
			}
		}
		if zone == nil {
			return reply
		}
		alias, exists := "", false
		for _, rr := range zone {
			h := rr.Header()
			exists = exists || dns.IsSubDomain(name, h.Name)
			if h.Name != name {
				continue
			}
			if h.Rrtype == q.Question[0].Qtype {
				reply.Answer = append(reply.Answer, rr)
			} else if cname, ok := rr.(*dns.CNAME); ok {
				reply.Answer = append(reply.Answer, rr)
				alias = cname.Target
			}
		}
		if alias == "" {
			if !slices.ContainsFunc(reply.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == q.Question[0].Qtype }) {
				reply.Ns = append(reply.Ns, zone[0])
			}
			if !exists {
				reply.Rcode = dns.RcodeNameError
			}
			return reply
		}
		if name = alias; !recursive && !dns.IsSubDomain(zone[0].Header().Name, name) {
			return reply
		}
	}
	reply.Answer, reply.Rcode = nil, dns.RcodeServerFailure // a loop
	return reply
}

const customer = `
customer.test. 3600 IN SOA ns1.customer.test. h.customer.test. 7 2 3 4 900
customer.test. 3600 IN NS ns1.customer.test.
customer.test. 3600 IN NS ns2.customer.test.
ns1.customer.test. 3600 IN A 127.0.0.2
ns2.customer.test. 3600 IN A 127.0.0.3
rsa._domainkey.customer.test. 600 IN TXT "v=DKIM1; " "p=AAAA"
near._domainkey.customer.test. 600 IN CNAME rsa._domainkey.customer.test.
far._domainkey.customer.test. 120 IN CNAME far.customer.dkim.relay.test.
loop._domainkey.customer.test. 120 IN CNAME loop.customer.dkim.relay.test.
gone._domainkey.customer.test. 120 IN CNAME gone.customer.dkim.relay.test.
nowhere._domainkey.customer.test. 120 IN CNAME sel.nowhere.example.
odd._domainkey.customer.test. 60 IN TXT "say \"x\" \\ \200"
two._domainkey.customer.test. 60 IN TXT "p=one"
two._domainkey.customer.test. 60 IN TXT "p=two"
`

const relay = `
relay.test. 3600 IN SOA ns.relay.test. h.relay.test. 9 2 3 4 60
relay.test. 3600 IN NS ns.relay.test.
ns.relay.test. 3600 IN A 127.0.0.4
far.customer.dkim.relay.test. 300 IN TXT "v=DKIM1; p=FAR"
loop.customer.dkim.relay.test. 120 IN CNAME loop._domainkey.customer.test.
`

// usual is customer.test on two servers and relay.test on one; change puts others in their places.
func usual(t *testing.T, change map[string]answerer) *network {
	t.Helper()
	both := parse(t, customer, relay)
	servers := map[string]answerer{"127.0.0.2": both[:1].serve, "127.0.0.3": both[:1].serve, "127.0.0.4": both[1:].serve}
	for addr, answer := range change {
		servers[addr] = answer
	}
	return newNetwork(t, servers, both.resolve)
}
