package mx

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// zone answers questions like a recursive server does.
const zone = `
two.test.        300 IN MX 20 B.test.
two.test.        300 IN MX 10 a.test.
null.test.       300 IN MX 0 .
a.test.          300 IN A 192.0.2.1
a.test.           60 IN AAAA 2001:db8::1
b.test.          300 IN A 192.0.2.2
alias.test.      120 IN CNAME alias2.test.
alias2.test.     300 IN CNAME two.test.
halfalias.test.  300 IN CNAME a.test.
loop1.test.      300 IN CNAME loop2.test.
loop2.test.      300 IN CNAME loop1.test.
dangling.test.   300 IN CNAME missing.test.
big.test.        300 IN A 192.0.2.3
`

// testServer is a name server on loopback, UDP and TCP, that counts questions.
type testServer struct {
	addr   string
	asked  atomic.Int64
	tcp    atomic.Int64
	edns   atomic.Int64
	answer func(q *dns.Msg, overTCP bool) *dns.Msg
}

func newServer(t *testing.T, answer func(q *dns.Msg, overTCP bool) *dns.Msg) *testServer {
	t.Helper()
	l, pc := listenBoth(t)
	s := &testServer{answer: answer, addr: pc.LocalAddr().String()}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		s.asked.Add(1)
		overTCP := w.RemoteAddr().Network() == "tcp"
		if overTCP {
			s.tcp.Add(1)
		}
		if q.IsEdns0() != nil {
			s.edns.Add(1)
		}
		if reply := s.answer(q, overTCP); reply != nil {
			_ = w.WriteMsg(reply) // a lost answer is the client's business
		}
	})
	for _, d := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		started := make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		served := make(chan error, 1)
		go func() { served <- d.ActivateAndServe() }()
		select {
		case <-started:
		case err := <-served:
			t.Fatalf("name server: %v", err)
		}
		t.Cleanup(func() {
			if err := d.Shutdown(); err != nil {
				t.Error(err)
			}
			<-served
		})
	}
	return s
}

// listenBoth takes a port that is free for TCP and for UDP.
func listenBoth(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return l, pc
		}
		l.Close()
	}
	t.Fatal("no port is free for both TCP and UDP")
	return nil, nil
}

// fromZone answers from the zone text.
func fromZone(t testing.TB) func(q *dns.Msg, overTCP bool) *dns.Msg {
	var rrs []dns.RR
	p := dns.NewZoneParser(strings.NewReader(zone), ".", "")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		rrs = append(rrs, rr)
	}
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	soa, err := dns.NewRR("test. 3600 IN SOA ns.test. h.test. 1 2 3 4 60")
	if err != nil {
		t.Fatal(err)
	}
	return func(q *dns.Msg, overTCP bool) *dns.Msg {
		reply := new(dns.Msg).SetReply(q)
		name, qtype := q.Question[0].Name, q.Question[0].Qtype
		switch name {
		case "fails.test.":
			reply.Rcode = dns.RcodeServerFailure
			return reply
		case "silent.test.":
			return nil
		case "wrong.test.":
			reply.Question[0].Name = "a.test."
			return reply
		case "big.test.":
			if !overTCP {
				reply.Truncated = true
				return reply
			}
		}
		exists := false
		for range 10 {
			next := ""
			for _, rr := range rrs {
				if rr.Header().Name != name {
					continue
				}
				exists = true
				if rr.Header().Rrtype == qtype {
					reply.Answer = append(reply.Answer, rr)
				} else if cname, ok := rr.(*dns.CNAME); ok {
					reply.Answer = append(reply.Answer, rr)
					next = cname.Target
				}
			}
			if next == "" {
				break
			}
			if name == "halfalias.test." || strings.HasPrefix(name, "loop") {
				return reply // the rest is left to the client
			}
			name, exists = next, false
		}
		if !exists {
			reply.Rcode = dns.RcodeNameError
		}
		reply.Ns = append(reply.Ns, soa)
		return reply
	}
}

// newDNS is patient, since each answer comes.
func newDNS(t *testing.T, o DNSOptions) *DNS {
	t.Helper()
	o.Timeout = time.Minute
	d, err := NewDNS(o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// hurry does not wait for long where no answer comes.
func (d *DNS) hurry(is func(q *dns.Msg, server string) bool) {
	patient := d.exchange
	d.exchange = func(ctx context.Context, q *dns.Msg, server string) (*dns.Msg, error) {
		if is(q, server) {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			if reply, err := patient(ctx, q, server); err == nil {
				return reply, nil
			}
			return nil, os.ErrDeadlineExceeded
		}
		return patient(ctx, q, server)
	}
}

func TestDNSLookups(t *testing.T) {
	s := newServer(t, fromZone(t))
	d := newDNS(t, DNSOptions{Servers: []string{s.addr}, Attempts: 1})
	d.hurry(func(q *dns.Msg, _ string) bool { return q.Question[0].Name == "silent.test." })
	two := []MX{{"a.test", 10}, {"b.test", 20}}
	for _, tt := range []struct {
		domain string
		want   []MX
		is     error
	}{
		{"two.test", two, nil},
		{"TWO.test.", two, nil},
		{"alias.test", two, nil},
		{"null.test", []MX{{"", 0}}, nil},
		{"a.test", nil, nil},
		{"missing.test", nil, ErrNoName},
		{"dangling.test", nil, ErrNoName},
		{"not a name..", nil, ErrNoName},
		{"bücher.test", nil, ErrNoName},
	} {
		answer, err := d.LookupMX(t.Context(), tt.domain)
		got := answer.Records
		slices.SortFunc(got, func(a, b MX) int { return int(a.Preference) - int(b.Preference) })
		if len(got) == 0 {
			got = nil
		}
		if diff := cmp.Diff(tt.want, got); diff != "" || !errors.Is(err, tt.is) {
			t.Errorf("%s: error %v (-want +got):\n%s", tt.domain, err, diff)
		}
	}
	for _, tt := range []struct{ host, want string }{
		{"a.test", "[2001:db8::1 192.0.2.1]"},
		{"b.test", "[192.0.2.2]"},
		{"halfalias.test", "[2001:db8::1 192.0.2.1]"},
		{"big.test", "[192.0.2.3]"},
		{"two.test", "[]"},
	} {
		got, err := d.LookupHost(t.Context(), tt.host)
		if addrsText(got) != tt.want || err != nil {
			t.Errorf("%s: got %v, %v", tt.host, got, err)
		}
	}
	for _, host := range []string{"fails.test", "silent.test", "wrong.test", "loop1.test"} {
		if got, err := d.LookupHost(t.Context(), host); err == nil || errors.Is(err, ErrNoName) {
			t.Errorf("%s: got %v, %v", host, got, err)
		}
	}
	if s.tcp.Load() == 0 || s.edns.Load() == 0 {
		t.Errorf("asked %d times, by TCP %d, with EDNS %d", s.asked.Load(), s.tcp.Load(), s.edns.Load())
	}
}

func addrsText(a HostAnswer) string {
	addrs := []netip.Addr{}
	for _, addr := range a.Addrs {
		addrs = append(addrs, addr.Addr)
	}
	return fmt.Sprint(addrs)
}

// The whole road from the wire to addresses.
func TestCandidatesOverDNS(t *testing.T) {
	s := newServer(t, fromZone(t))
	d := newDNS(t, DNSOptions{Servers: []string{s.addr}})
	hosts, err := Candidates(t.Context(), d, "alias.test", Options{})
	if err != nil || len(hosts) != 3 || Site(hosts) != "(a|b).test" || hosts[2].Name != "b.test" {
		t.Errorf("got %v, %v", hosts, err)
	}
}

// A server that fails or is silent is passed over for the next.
func TestDNSServersInTurn(t *testing.T) {
	good := newServer(t, fromZone(t))
	refusing := newServer(t, func(q *dns.Msg, _ bool) *dns.Msg { return new(dns.Msg).SetRcode(q, dns.RcodeRefused) })
	silent := newServer(t, func(*dns.Msg, bool) *dns.Msg { return nil })
	d := newDNS(t, DNSOptions{Servers: []string{silent.addr, refusing.addr, good.addr}})
	d.hurry(func(_ *dns.Msg, server string) bool { return server == silent.addr })
	if got, err := d.LookupMX(t.Context(), "two.test"); len(got.Records) != 2 || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	before := silent.asked.Load()
	if _, err := d.LookupMX(t.Context(), "null.test"); err != nil || silent.asked.Load() != before {
		t.Errorf("the server that answered was not asked first: %v", err)
	}
	d = newDNS(t, DNSOptions{Servers: []string{refusing.addr}, Attempts: 3})
	before = refusing.asked.Load()
	if _, err := d.LookupMX(t.Context(), "two.test"); err == nil || refusing.asked.Load()-before != 3 {
		t.Errorf("got %v after %d questions", err, refusing.asked.Load()-before)
	}
}

// A server that does not know EDNS is asked without (RFC 6891 §7).
func TestDNSWithoutEDNS(t *testing.T) {
	answer := fromZone(t)
	s := newServer(t, func(q *dns.Msg, tcp bool) *dns.Msg {
		if q.IsEdns0() != nil {
			return new(dns.Msg).SetRcode(q, dns.RcodeFormatError)
		}
		return answer(q, tcp)
	})
	d := newDNS(t, DNSOptions{Servers: []string{s.addr}})
	if got, err := d.LookupMX(t.Context(), "two.test"); len(got.Records) != 2 || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestDNSOptions(t *testing.T) {
	for _, server := range []string{"localhost", "192.0.2.1:x", "", "[::1"} {
		if _, err := NewDNS(DNSOptions{Servers: []string{server}}); err == nil {
			t.Errorf("server %q was taken", server)
		}
	}
	d := newDNS(t, DNSOptions{Servers: []string{"192.0.2.1", "2001:db8::1", "192.0.2.1:5353"}})
	var addrs []string
	for _, s := range d.servers {
		addrs = append(addrs, s.addr)
	}
	if diff := cmp.Diff([]string{"192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.1:5353"}, addrs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// counted is a DNS whose exchange answers from the zone and counts, without a network.
func counted(t *testing.T, size int) (*DNS, *atomic.Int64) {
	var n atomic.Int64
	answer := fromZone(t)
	d := &DNS{servers: []*server{{addr: "-"}}, attempts: 1, cache: newCache(size)}
	d.exchange = func(ctx context.Context, q *dns.Msg, _ string) (*dns.Msg, error) {
		n.Add(1)
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if reply := answer(q, true); reply != nil {
			return reply, nil
		}
		return nil, errors.New("timed out")
	}
	return d, &n
}

// Answers are kept for their time: the shortest of the chain, the SOA's for
// "no", a moment for failures.
func TestCacheTimes(t *testing.T) {
	tests := []struct {
		domain string
		ttl    time.Duration
		cost   int64
	}{
		{"two.test", 300 * time.Second, 1},
		{"alias.test", 120 * time.Second, 1},
		{"missing.test", 60 * time.Second, 1},
		{"a.test", 60 * time.Second, 1},
		{"fails.test", failureTTL, 1},
		{"silent.test", failureTTL, 1},
	}
	for _, tt := range tests {
		t.Run(tt.domain, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, n := counted(t, 100)
				look := func() int64 {
					before := n.Load()
					_, _ = d.LookupMX(t.Context(), tt.domain) // errors are kept as well
					return n.Load() - before
				}
				first := look()
				time.Sleep(tt.ttl - time.Millisecond)
				second := look()
				time.Sleep(2 * time.Millisecond)
				third := look()
				if first != tt.cost || second != 0 || third != tt.cost {
					t.Errorf("asked %d, %d, %d times", first, second, third)
				}
			})
		})
	}
}

// Who wants to know what is being asked waits for that answer.
func TestCacheAsksOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, n := counted(t, 100)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if got, err := d.LookupMX(t.Context(), "two.test"); len(got.Records) != 2 || err != nil {
					t.Errorf("got %v, %v", got, err)
				}
			})
		}
		wg.Wait()
		if n.Load() != 1 {
			t.Errorf("asked %d times", n.Load())
		}
	})
}

// When the one who asks has to leave, another one asks; his end is nobody else's error and is not kept.
func TestCacheAskerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, n := counted(t, 100)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := d.LookupMX(ctx, "two.test"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("asker: got %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if got, err := d.LookupMX(t.Context(), "two.test"); len(got.Records) != 2 || err != nil {
				t.Errorf("waiter: got %v, %v", got, err)
			}
		})
		wg.Go(func() {
			if _, err := d.LookupMX(ctx, "two.test"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("waiter who leaves: got %v", err)
			}
		})
		wg.Wait()
		if n.Load() != 2 {
			t.Errorf("asked %d times", n.Load())
		}
	})
}

func TestCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, _ := counted(t, 50)
		for i := range 500 {
			_, _ = d.LookupMX(t.Context(), fmt.Sprintf("missing%d.test", i))
			if n := len(d.cache.entries); n > 50 {
				t.Fatalf("%d entries", n)
			}
		}
		time.Sleep(time.Hour)
		_, _ = d.LookupMX(t.Context(), "two.test")
		if n := len(d.cache.entries); n > 45 {
			t.Errorf("%d entries, none of the expired ones went", n)
		}
	})
}

// Records of other names in an answer are nobody's business.
func TestFollowIgnoresStrangers(t *testing.T) {
	reply := new(dns.Msg)
	for _, s := range []string{"victim.test. 300 IN A 203.0.113.1", "a.test. 300 IN A 192.0.2.1", "other.test. 300 IN CNAME victim.test."} {
		rr, err := dns.NewRR(s)
		if err != nil {
			t.Fatal(err)
		}
		reply.Answer = append(reply.Answer, rr)
	}
	got := follow(reply, "a.test.", dns.TypeA)
	if len(got.rrs) != 1 || got.rrs[0].(*dns.A).A.String() != "192.0.2.1" {
		t.Errorf("got %v", got.rrs)
	}
}
