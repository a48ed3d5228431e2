package delivery

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
	"postroad/delivery/route"
	"postroad/delivery/smtpc"
	"postroad/delivery/source"
	"postroad/queue"
)

// caller is what a receiver sees of who calls it.
type caller struct{ addr, name string }

// receiver is a mail server on loopback that takes everything and notes who calls.
type receiver struct {
	l       net.Listener
	wg      sync.WaitGroup
	mu      sync.Mutex
	callers []caller
}

func startReceiver(t *testing.T, addr string) *receiver {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{l: l}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.wg.Go(func() { r.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.wg.Wait()
	})
	return r
}

func (r *receiver) serve(c net.Conn) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return
	}
	in := bufio.NewScanner(c)
	fmt.Fprint(c, "220 receiver.test\r\n")
	for inData := false; in.Scan(); {
		line := in.Text()
		verb, rest, _ := strings.Cut(line, " ")
		switch {
		case inData && line != ".":
			continue
		case inData:
			inData = false
		case verb == "EHLO":
			r.mu.Lock()
			r.callers = append(r.callers, caller{c.RemoteAddr().(*net.TCPAddr).IP.String(), rest})
			r.mu.Unlock()
		case verb == "DATA":
			inData = true
			fmt.Fprint(c, "354 go on\r\n")
			continue
		case verb == "QUIT":
			fmt.Fprint(c, "221 bye\r\n")
			return
		}
		fmt.Fprint(c, "250 2.0.0 ok\r\n")
	}
}

// port is where it listens.
func (r *receiver) port() int { return r.l.Addr().(*net.TCPAddr).Port }

func (r *receiver) seen() []caller {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.callers)
}

// twoSources is a pool of two sources on loopback, and what else is to be changed.
func twoSources(t *testing.T, change func(*source.Options)) *source.Set {
	t.Helper()
	o := source.Options{
		Sources: []source.Source{
			{Name: "out2", IPv4: netip.MustParseAddr("127.0.0.2"), Hostname: "out2.example.org"},
			{Name: "out3", IPv4: netip.MustParseAddr("127.0.0.3"), Hostname: "out3.example.org"},
		},
		Pools:   []source.Pool{{Name: "both", Members: []source.Member{{Source: "out2", Weight: 1}, {Source: "out3", Weight: 1}}}},
		Default: "both",
		System:  source.Source{Hostname: "relay.example.org"},
	}
	if change != nil {
		change(&o)
	}
	s, err := source.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func toPort(t *testing.T, host string, port int) route.Table {
	t.Helper()
	hop, err := route.ParseNextHop(fmt.Sprintf("smtp:[%s]:%d", host, port))
	if err != nil {
		t.Fatal(err)
	}
	table, err := route.NewTable([]route.Route{{Match: "*", NextHop: hop}})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// S2.2, S2.3: the receiver sees the address and the EHLO name of the source that the events tell, and a connection serves only the jobs of
// its own source. E6-75: the next try of a job comes from the same.
func TestS2_2_S2_3_SourcesAreSeen(t *testing.T) {
	r := startReceiver(t, "127.0.0.1:0")
	w := workerWith(t, nil, func(o *Options) {
		o.Sources, o.Routes = twoSources(t, nil), toPort(t, "127.0.0.1", r.port())
	})
	names := map[string]string{"out2": "127.0.0.2", "out3": "127.0.0.3"}
	used := make(map[string]bool)
	for i := range 30 {
		job := testJob("bob@example.net")
		if i%3 == 0 {
			job.Source, job.LastTry, job.Tries = "out3", time.Now().Add(-5*time.Minute), 1
		}
		s := handleOne(t, w, job, &fakeMail{})
		e := s.Facts[0]
		if e.Type != queue.Delivered || names[e.Egress] == "" || s.Source != e.Egress {
			t.Fatalf("got %+v of %q", e, s.Source)
		}
		if job.Source != "" && e.Egress != job.Source {
			t.Errorf("E6-75: tried from %s, then from %s", job.Source, e.Egress)
		}
		used[e.Egress] = true
	}
	callers := r.seen()
	for _, c := range callers {
		if names[strings.TrimSuffix(c.name, ".example.org")] != c.addr {
			t.Errorf("%s called itself %s", c.addr, c.name)
		}
	}
	if len(used) != 2 || len(callers) != 2 { // one connection each
		t.Errorf("got sources %v, callers %v", used, callers)
	}
}

// By IPv6 the source's IPv6 address is used; the EHLO name is the same (E3-51: name and address match for each family).
func TestE3_51_SourceOfTheFamily(t *testing.T) {
	r := startReceiver(t, "[::1]:0")
	sources := twoSources(t, func(o *source.Options) {
		o.Sources[0].IPv6 = netip.MustParseAddr("::1")
		o.Pools[0].Members = o.Pools[0].Members[:1]
	})
	w := workerWith(t, nil, func(o *Options) { o.Sources, o.Routes = sources, toPort(t, "::1", r.port()) })
	handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
	if got := r.seen(); len(got) != 1 || got[0] != (caller{"::1", "out2.example.org"}) {
		t.Errorf("got %v", got)
	}
}

// Hosts of a family that no source has are not tried; the job waits.
func TestHostsOfAForeignFamilyWait(t *testing.T) {
	w := workerWith(t, newFakeNet(), func(o *Options) { o.Sources, o.Routes = twoSources(t, nil), toPort(t, "2001:db8::1", 25) })
	s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
	if s.Tried || len(s.Remaining) != 1 || !s.Elsewhere || s.Delay != minDelay || !strings.Contains(s.Reason, "family") {
		t.Errorf("got %+v", s)
	}
}

// A pool that is elsewhere puts the job off for a short time without a try, and it says nothing of the domain.
func TestAbsentPool(t *testing.T) {
	r := startReceiver(t, "127.0.0.1:0")
	absent := twoSources(t, func(o *source.Options) {
		o.Sources[0].IPv4, o.Sources[1].IPv4 = netip.MustParseAddr("240.0.0.2"), netip.MustParseAddr("240.0.0.3") // no machine has these
	})
	w := workerWith(t, nil, func(o *Options) { o.Sources, o.Routes = absent, toPort(t, "127.0.0.1", r.port()) })
	s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
	if s.Tried || !s.Elsewhere || s.Delay != minDelay || len(s.Facts) != 0 || s.Source != "" || !strings.Contains(s.Reason, `none of the sources of pool "both"`) {
		t.Errorf("got %+v", s)
	}
	if len(absent.Conditions()) != 2 || len(r.seen()) != 0 {
		t.Errorf("got conditions %v, callers %v", absent.Conditions(), r.seen())
	}
}

// An address that went away between two looks is no fault of the host: the job waits a moment, nobody is called dead.
func TestAddressThatWentAway(t *testing.T) {
	gone := &smtpc.Error{Phase: smtpc.PhaseConnect, Err: &net.OpError{Op: "dial", Err: os.NewSyscallError("bind", syscall.EADDRNOTAVAIL)}}
	n := newFakeNet()
	n.set("mx.example.net", func(context.Context, smtpc.Options) (*fakeConn, error) { return nil, gone })
	w := testWorker(t, n, "example.net")
	for range deadAfter + 1 {
		s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
		if s.Tried || !s.Elsewhere || s.Delay != minDelay {
			t.Fatalf("got %+v", s)
		}
	}
	if w.gate.deadSites() != 0 || n.dialled("mx.example.net") != deadAfter+1 {
		t.Errorf("got %d dead sites, %d dials", w.gate.deadSites(), n.dialled("mx.example.net"))
	}
}

// On a machine whose IPv6 is switched off a connect by it fails at once, like a missing address: mail goes by IPv4.
func TestMachineWithoutIPv6(t *testing.T) {
	w, dialled := dualWorker(t, []string{"2001:db8::1", "198.51.100.1"}, func(addr netip.Addr) (*fakeConn, error) {
		if addr.Is4() {
			return &fakeConn{answer: ok}, nil
		}
		return nil, &smtpc.Error{Phase: smtpc.PhaseConnect, Err: &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)}}
	})
	s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
	if got := dialled(); !slices.Equal(got, []string{"2001:db8::1", "198.51.100.1"}) || len(s.Remaining) != 0 {
		t.Errorf("dialled %v, got %+v", got, s)
	}
}

// till counts what a new source sends.
type till struct{ spent, refunds int }

func (c *till) Spend(_ context.Context, _ string, n int, l queue.Limit) (queue.Spent, error) {
	if c.spent+n > l.Count {
		return queue.Spent{RetryAfter: 30 * time.Minute}, nil
	}
	c.spent += n
	return queue.Spent{OK: true, Left: n}, nil
}

func (c *till) Refund(_ string, s queue.Spent) {
	c.spent -= s.Left
	c.refunds++
}

// A new source's day is used by what was sent only; when it is used up and nobody else is there, jobs wait.
func TestWarmUpCountsWhatIsSent(t *testing.T) {
	bank := &till{}
	n := newFakeNet()
	n.refuse("mx.example.net", 0)
	w := testWorker(t, n, "example.net")
	w.o.Sources = twoSources(t, func(o *source.Options) {
		o.Pools[0].Members = o.Pools[0].Members[:1]
		o.Sources[0].Started, o.WarmUp, o.Spender = time.Now(), source.WarmUp{Days: 10, First: 5, Last: 50}, bank
	})
	if s := handleOne(t, w, testJob("a@example.net", "b@example.net"), &fakeMail{}); !s.Tried || bank.spent != 0 || bank.refunds != 1 {
		t.Errorf("not reached: got %+v, spent %+v", s, bank)
	}
	n.serve("mx.example.net", ok)
	for range 2 {
		handleOne(t, w, testJob("a@example.net", "b@example.net"), &fakeMail{})
	}
	s := handleOne(t, w, testJob("a@example.net", "b@example.net"), &fakeMail{})
	if bank.spent != 4 || s.Tried || s.Delay != 30*time.Minute || !strings.Contains(s.Reason, "new") {
		t.Errorf("got %+v, spent %+v", s, bank)
	}
}

// dualWorker has one domain with hosts of both families, and a script of what each address says.
func dualWorker(t *testing.T, hosts []string, said func(addr netip.Addr) (*fakeConn, error)) (w *Worker, dialled func() []string) {
	t.Helper()
	records := mxtest.Records{MX: map[string][]mx.MX{}, Hosts: map[string][]string{}}
	for i, addr := range hosts {
		host := fmt.Sprintf("mx%d.example.net", i)
		records.MX["example.net"] = append(records.MX["example.net"], mx.MX{Host: host, Preference: uint16(i)})
		records.Hosts[host] = []string{addr}
	}
	w = workerWith(t, nil, func(o *Options) { o.Resolver = records })
	var mu sync.Mutex
	var list []string
	w.dial = func(_ context.Context, host string, addr netip.AddrPort, _ smtpc.Options) (conn, error) {
		mu.Lock()
		list = append(list, addr.Addr().String())
		mu.Unlock()
		c, err := said(addr.Addr())
		if err != nil {
			return nil, err
		}
		c.host, c.addr = host, addr
		return c, nil
	}
	return w, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(list)
	}
}

func refusedAt(phase smtpc.Phase, code int, enhanced string) error {
	return &smtpc.Error{Phase: phase, Reply: &smtpc.Reply{Code: code, Enhanced: enhanced, Lines: []string{"go away"}, Phase: phase}}
}

// E3-44: of many hosts, at least two are tried, at most two that speak, and at most five in all.
func TestE3_44_CapsOfAnAttempt(t *testing.T) {
	var hosts []string
	for i := range 9 {
		hosts = append(hosts, fmt.Sprintf("198.51.100.%d", i+1))
	}
	tests := []struct {
		name string
		said func(netip.Addr) (*fakeConn, error)
		want int
	}{
		{"not reached", func(netip.Addr) (*fakeConn, error) {
			return nil, &smtpc.Error{Phase: smtpc.PhaseConnect, Err: errors.New("refused")}
		}, 5},
		{"451 in the greeting", func(netip.Addr) (*fakeConn, error) { return nil, refusedAt(smtpc.PhaseGreeting, 451, "4.3.2") }, 2},
		{"554 in the greeting", func(netip.Addr) (*fakeConn, error) { return nil, refusedAt(smtpc.PhaseGreeting, 554, "") }, 2},
		{"451 to EHLO", func(netip.Addr) (*fakeConn, error) { return nil, refusedAt(smtpc.PhaseEhlo, 451, "") }, 2},
		{"521: no mail at all", func(netip.Addr) (*fakeConn, error) { return nil, refusedAt(smtpc.PhaseGreeting, 521, "") }, 5},
	}
	for _, tt := range tests {
		t.Run("E3-44 "+tt.name, func(t *testing.T) {
			w, dialled := dualWorker(t, hosts, tt.said)
			handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
			if got := dialled(); len(got) != tt.want {
				t.Errorf("got %d dials %v, want %d", len(got), got, tt.want)
			}
		})
	}
}

// E3-51: both families are tried before it is given up; after a refusal of us by one family comes the other, once.
func TestE3_51_OtherFamily(t *testing.T) {
	hosts := []string{"2001:db8::1", "2001:db8::2", "2001:db8::3", "198.51.100.1", "198.51.100.2"}
	answers := func(r smtpc.Reply) *fakeConn {
		return &fakeConn{answer: func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) { return every(m, r), nil }}
	}
	said := func(six, four error, sixSays, fourSays smtpc.Reply) func(netip.Addr) (*fakeConn, error) {
		return func(addr netip.Addr) (*fakeConn, error) {
			if addr.Is6() {
				return answers(sixSays), six
			}
			return answers(fourSays), four
		}
	}
	taken := smtpc.Reply{Code: 250, Phase: smtpc.PhaseDot}
	policy := smtpc.Reply{Code: 550, Enhanced: "5.7.1", Lines: []string{"your address is listed"}, Phase: smtpc.PhaseMail}
	noName := smtpc.Reply{Code: 550, Enhanced: "5.7.25", Lines: []string{"no reverse DNS"}, Phase: smtpc.PhaseDot}
	sender := smtpc.Reply{Code: 550, Enhanced: "5.1.8", Lines: []string{"bad sender"}, Phase: smtpc.PhaseMail}
	content := smtpc.Reply{Code: 550, Enhanced: "5.7.1", Lines: []string{"spam"}, Phase: smtpc.PhaseDot}
	unreachable := &smtpc.Error{Phase: smtpc.PhaseConnect, Err: syscall.ENETUNREACH}
	tests := []struct {
		name      string
		said      func(netip.Addr) (*fakeConn, error)
		dialled   string
		event     queue.EventType
		text      string
		connected int
	}{
		{"no IPv6 here", said(unreachable, nil, taken, taken), "2001:db8::1 2001:db8::2 2001:db8::3 198.51.100.1", queue.Delivered, "", 1},
		{"greeting of a blocklist", said(refusedAt(smtpc.PhaseGreeting, 554, "5.7.1"), nil, taken, taken), "2001:db8::1 198.51.100.1", queue.Delivered, "", 1},
		{"EHLO", said(refusedAt(smtpc.PhaseEhlo, 550, "5.7.1"), nil, taken, taken), "2001:db8::1 198.51.100.1", queue.Delivered, "", 1},
		{"greetings of both", said(refusedAt(smtpc.PhaseGreeting, 554, "5.7.1"), refusedAt(smtpc.PhaseGreeting, 554, "5.7.1"), taken, taken),
			"2001:db8::1 198.51.100.1", queue.TransientFailure, "go away", 0},
		{"MAIL", said(nil, nil, policy, taken), "2001:db8::1 198.51.100.1", queue.Delivered, "", 2},
		{"IPv4 first", said(nil, nil, taken, policy), "198.51.100.1 2001:db8::1", queue.Delivered, "", 2},
		{"MAIL by both", said(nil, nil, policy, policy), "2001:db8::1 198.51.100.1", queue.Bounce, "listed", 2},
		{"MAIL, and the other does not speak", said(nil, unreachable, policy, taken), "2001:db8::1 198.51.100.1 198.51.100.2", queue.Bounce, "listed", 1},
		{"no reverse DNS, at the dot", said(nil, nil, noName, taken), "2001:db8::1 198.51.100.1", queue.Delivered, "", 2},
		{"a bad sender is bad by both", said(nil, nil, sender, taken), "2001:db8::1", queue.Bounce, "bad sender", 1},
		{"so is content", said(nil, nil, content, taken), "2001:db8::1", queue.Bounce, "spam", 1},
	}
	for _, tt := range tests {
		t.Run("E3-51 "+tt.name, func(t *testing.T) {
			hosts := hosts
			if tt.name == "IPv4 first" {
				hosts = []string{"198.51.100.1", "2001:db8::1"}
			}
			w, dialled := dualWorker(t, hosts, tt.said)
			m := &fakeMail{}
			s := handleOne(t, w, testJob("bob@example.net"), m)
			if got := strings.Join(dialled(), " "); got != tt.dialled {
				t.Errorf("got dials %s, want %s", got, tt.dialled)
			}
			if e := s.Facts[0]; e.Type != tt.event || !strings.Contains(e.Text, tt.text) {
				t.Errorf("got %+v", e)
			}
			w.pool.close()
			if open := level(t, w.metrics.open); open != 0 {
				t.Errorf("%v connections are still counted as open", open)
			}
			if got := value(t, w.metrics.connections.WithLabelValues("opened")); got != float64(tt.connected) {
				t.Errorf("got %v connections, want %d", got, tt.connected)
			}
		})
	}
}

// E3-48: our own addresses, those of all sources and those that were configured, in an MX set: what is not better is not tried.
func TestE3_48_OwnAddresses(t *testing.T) {
	self := machineAddr(t)
	for name, addr := range map[string]string{"of a source": "203.0.113.7", "configured": "192.0.2.99", "of the machine": self} {
		t.Run("E3-48 "+name, func(t *testing.T) {
			records := mxtest.Records{
				MX: map[string][]mx.MX{"example.net": {{Host: "mx.example.net", Preference: 10}, {Host: "backup.example.net", Preference: 20}},
					"example.com": {{Host: "best.example.com", Preference: 5}, {Host: "mx.example.net", Preference: 10}},
					"example.org": {{Host: "own.example.org", Preference: 5}}},
				Hosts: map[string][]string{"mx.example.net": {addr}, "backup.example.net": {"198.51.100.2"}, "best.example.com": {"198.51.100.3"}, "own.example.org": {"198.51.100.4"}},
			}
			n := newFakeNet()
			n.serve("best.example.com", ok)
			sources := twoSources(t, func(o *source.Options) { o.Sources[1].IPv4, o.Default = netip.MustParseAddr("203.0.113.7"), "" })
			w := workerWith(t, n, func(o *Options) {
				o.Resolver, o.Sources, o.OwnAddrs, o.AllowPrivate = records, sources, []netip.Addr{netip.MustParseAddr("192.0.2.99")}, true
				o.OwnNames = []string{"own.example.org"}
			})
			for domain, want := range map[string]string{"example.net": "5.4.6", "example.org": "5.4.6", "example.com": "2.0.0"} {
				s := handleOne(t, w, testJob("bob@"+domain), &fakeMail{})
				if e := s.Facts[0]; e.Enhanced != want {
					t.Errorf("%s: got %+v, want %s", domain, e, want)
				}
			}
		})
	}
}

// machineAddr is an address of this machine that others could reach, or one of a source where there is none.
func machineAddr(t *testing.T) string {
	t.Helper()
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			return p.Addr().String()
		}
	}
	return "203.0.113.7"
}

// level reads a gauge.
func level(t *testing.T, g prometheus.Gauge) float64 {
	t.Helper()
	var m dto.Metric
	if err := g.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetGauge().GetValue()
}
