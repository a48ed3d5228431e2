package delivery

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
	"postroad/delivery/route"
	"postroad/delivery/smtpc"
	"postroad/queue"
)

// routed is a route to a next hop.
func routed(t *testing.T, r route.Route, via string) route.Route {
	t.Helper()
	hop, err := route.ParseNextHop(via)
	if err != nil {
		t.Fatal(err)
	}
	r.NextHop = hop
	return r
}

func tableOf(t *testing.T, routes ...route.Route) route.Table {
	t.Helper()
	table, err := route.NewTable(routes)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// TestS2_26_RoutesThatAnswer: a route may say itself what becomes of its mail; nobody is asked then.
func TestS2_26_RoutesThatAnswer(t *testing.T) {
	tests := []struct {
		name, via string
		notify    []string
		fact      queue.EventType
		code      int
		enhanced  string
		text      string
		remaining bool
		dsn       string
	}{
		{name: "no local delivery", via: "error:550 5.1.1 local delivery is disabled", fact: queue.Bounce, code: 550, enhanced: "5.1.1",
			text: "local delivery is disabled", dsn: "Status: 5.1.1\r\n"},
		{name: "5xx without an enhanced code", via: "error:554 no", fact: queue.Bounce, code: 554, enhanced: "5.0.0", text: "no", dsn: "Status: 5.0.0\r\n"},
		{name: "5xx that would wait if a host said it", via: "error:530 5.7.0 no", fact: queue.Bounce, code: 530, enhanced: "5.7.0", text: "no", dsn: "Status: 5.7.0\r\n"},
		{name: "5xx and nobody wants to know", via: "error:550 5.1.1 no", notify: []string{"NEVER"}, fact: queue.Bounce, code: 550, enhanced: "5.1.1", text: "no"},
		{name: "4xx waits", via: "error:450 4.3.2 closed for today", fact: queue.TransientFailure, code: 450, enhanced: "4.3.2", text: "closed for today", remaining: true},
		{name: "discard", via: "discard", fact: queue.Discarded, code: 250, enhanced: "2.0.0", text: "discarded by the route void"},
		{name: "discard tells nobody", via: "discard", notify: []string{"SUCCESS", "FAILURE", "DELAY"}, fact: queue.Discarded, code: 250,
			enhanced: "2.0.0", text: "discarded by the route void"},
	}
	for _, tt := range tests {
		t.Run("S2-26 "+tt.name, func(t *testing.T) {
			n := newFakeNet()
			w := workerWith(t, n, func(o *Options) {
				o.Routes = tableOf(t, routed(t, route.Route{Name: "void", Match: "void.test"}, tt.via))
			})
			job := testJob("bob@void.test")
			job.Recipients[0].Notify = tt.notify
			s := handleOne(t, w, job, &fakeMail{})
			if len(s.Facts) != 1 || s.Facts[0].Type != tt.fact || s.Facts[0].Code != tt.code || s.Facts[0].Enhanced != tt.enhanced || s.Facts[0].Text != tt.text {
				t.Errorf("got facts %+v", s.Facts)
			}
			if s.Tried || (len(s.Remaining) == 1) != tt.remaining || tt.remaining && s.Reason != tt.text {
				t.Errorf("got tried %v, remaining %v because of %q", s.Tried, s.Remaining, s.Reason)
			}
			if (len(s.Notify) == 1) != (tt.dsn != "") || tt.dsn != "" && !strings.Contains(string(s.Notify[0].Payload), tt.dsn) {
				t.Errorf("got notifications %+v, want one with %q", s.Notify, tt.dsn)
			}
		})
	}
}

// TestS2_24_ConditionsChooseTheHop: the same domain leaves by different ways, by sender, client and class.
func TestS2_24_ConditionsChooseTheHop(t *testing.T) {
	n := newFakeNet()
	for _, host := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "mx.other.test"} {
		n.serve(host, ok)
	}
	w := workerWith(t, n, func(o *Options) {
		o.Routes = tableOf(t,
			routed(t, route.Route{Match: "*", Senders: []string{"@example.org"}}, "smtp:[192.0.2.1]"),
			routed(t, route.Route{Match: "*", Senders: []string{"<>"}}, "smtp:[192.0.2.2]"),
			routed(t, route.Route{Match: "*", Clients: []string{"web"}}, "smtp:[192.0.2.3]"),
			routed(t, route.Route{Match: "*", Classes: []string{"host"}}, "smtp:[192.0.2.4]"),
			routed(t, route.Route{Match: "*"}, "smtp:[192.0.2.5]"),
			routed(t, route.Route{Match: "moved.test"}, "mx:other.test"))
		o.Resolver = mxtest.Records{MX: map[string][]mx.MX{"other.test": {{Host: "mx.other.test", Preference: 1}}},
			Hosts: map[string][]string{"mx.other.test": {"198.51.100.1"}}}
	})
	tests := []struct{ sender, rcpt, client, class, peer string }{
		{"alice@example.org", "bob@else.test", "web", "host", "192.0.2.1"},
		{"", "bob@else.test", "web", "host", "192.0.2.2"},
		{"alice@else.test", "bob@else.test", "web", "host", "192.0.2.3"},
		{"alice@else.test", "bob@else.test", "db", "host", "192.0.2.4"},
		{"alice@else.test", "bob@else.test", "db", "user", "192.0.2.5"},
		{"alice@example.org", "bob@moved.test", "web", "host", "mx.other.test"},
	}
	for _, tt := range tests {
		job := testJob(tt.rcpt)
		job.ReversePath, job.Client, job.Class = path(tt.sender), tt.client, tt.class
		s := handleOne(t, w, job, &fakeMail{})
		if got := s.Facts[0]; got.Type != queue.Delivered || !strings.HasPrefix(got.Peer, tt.peer+"[") {
			t.Errorf("%+v: got %s at %s", tt, got.Type, got.Peer)
		}
	}
}

// A domain that a route names and that is gone is our mistake: no mail is returned for it. The recipient's own domain is another matter.
func TestRouteToDomainThatIsGone(t *testing.T) {
	w := workerWith(t, newFakeNet(), func(o *Options) {
		o.Routes = tableOf(t, routed(t, route.Route{Match: "moved.test"}, "mx:gone.test"))
		o.Resolver = mxtest.Records{MX: map[string][]mx.MX{"null.test": {{}}}}
	})
	for domain, want := range map[string]int{"moved.test": 1, "null.test": 0} {
		s := handleOne(t, w, testJob("bob@"+domain), &fakeMail{})
		if len(s.Remaining) != want {
			t.Errorf("%s: got %+v, want %d to be tried again", domain, s, want)
		}
	}
}

// TestFallBackOrder: equals are tried before those that stand in for them, and all of these, whatever the others say.
func TestFallBackOrder(t *testing.T) {
	for _, isBusy := range []bool{false, true} {
		testFallBack(t, isBusy)
	}
}

func testFallBack(t *testing.T, isBusy bool) {
	for _, down := range []int{0, 1, 2, 3} {
		t.Run(fmt.Sprintf("%d down, busy %t", down, isBusy), func(t *testing.T) {
			n := newFakeNet()
			hosts := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"}
			for i, host := range hosts {
				switch {
				case i < down && isBusy:
					n.set(host, func(context.Context, smtpc.Options) (*fakeConn, error) {
						return nil, &smtpc.Error{Phase: smtpc.PhaseGreeting, Reply: &smtpc.Reply{Code: 554, Enhanced: "5.7.1", Lines: []string{"not you"}, Phase: smtpc.PhaseGreeting}}
					})
				case i < down:
					n.refuse(host, 0)
				default:
					n.serve(host, ok)
				}
			}
			w := workerWith(t, n, func(o *Options) {
				o.Routes = tableOf(t, routed(t, route.Route{Match: "*"}, "smtp:[192.0.2.1]*5|smtp:[192.0.2.2],smtp:[192.0.2.3],smtp:[192.0.2.4],smtp:[2001:db8::1]"))
			})
			s := handleOne(t, w, testJob("bob@else.test"), &fakeMail{})
			peer := s.Facts[0].Peer
			switch {
			case s.Facts[0].Type != queue.Delivered:
				t.Errorf("got %+v", s.Facts[0])
			case down == 0 && !strings.HasPrefix(peer, hosts[0]) && !strings.HasPrefix(peer, hosts[1]), down > 0 && !strings.HasPrefix(peer, hosts[down]):
				t.Errorf("got %s", peer)
			}
			if down >= 2 && (n.dialled(hosts[0]) != 1 || n.dialled(hosts[1]) != 1) || n.dialled(hosts[3]) > 0 && down < 3 {
				t.Errorf("got dials %v", n.dials)
			}
		})
	}
}

// TestS2_31_S4_25_TLSOfRoutes: internal hosts may take mail without TLS (row 2.31), and everything else may be made to insist on it (row 4.25,
// hosts_require_tls=*).
func TestS2_31_S4_25_TLSOfRoutes(t *testing.T) {
	none, encrypt := smtpc.TLSNone, smtpc.TLSEncrypt
	inside, outside := startPeer(t), startPeer(t) // both without STARTTLS
	via := func(p *peer) string { return fmt.Sprintf("smtp:[127.0.0.1]:%d", p.l.Addr().(*net.TCPAddr).Port) }
	w := workerWith(t, nil, func(o *Options) {
		o.Routes = tableOf(t,
			routed(t, route.Route{Match: "issue.example.org", TLS: &none}, via(inside)),
			routed(t, route.Route{Match: "*", TLS: &encrypt}, via(outside)))
	})
	if s := handleOne(t, w, testJob("bob@issue.example.org"), &fakeMail{}); len(s.Remaining) > 0 {
		t.Errorf("S2-31 inside without TLS: waits because of %q", s.Reason)
	}
	s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
	outside.mu.Lock()
	defer outside.mu.Unlock()
	if len(s.Remaining) != 1 || len(outside.got) > 0 || !strings.Contains(s.Reason, "TLS") {
		t.Errorf("S4-25 outside without TLS: got %v, remaining %v because of %q", outside.got, s.Remaining, s.Reason)
	}
}
