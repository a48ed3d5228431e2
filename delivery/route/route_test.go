package route

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"postroad/queue/address"
)

var compareAddr = cmpopts.EquateComparable(netip.Addr{})

func TestParseNextHop(t *testing.T) {
	number := netip.MustParseAddr
	fixed := func(list ...Endpoint) NextHop { return NextHop{Endpoints: list} }
	reply := func(code int, enhanced, text string) NextHop { return NextHop{Reply: &Reply{code, enhanced, text}} }
	tests := []struct {
		text string
		want NextHop
		err  error
	}{
		{text: "mx", want: NextHop{}},
		{text: " mx ", want: NextHop{}},
		{text: "mx:Example.NET", want: NextHop{MX: "example.net"}},
		{text: "discard", want: NextHop{Discard: true}},
		{text: "smtp:[relay.example.net]:2525", want: fixed(Endpoint{Host: "relay.example.net", Port: 2525, Weight: 1})},
		{text: "smtp:[Relay.Example.NET]", want: fixed(Endpoint{Host: "relay.example.net", Port: 25, Weight: 1})},
		{text: "smtp:[bücher.example]:25", want: fixed(Endpoint{Host: "xn--bcher-kva.example", Port: 25, Weight: 1})},
		{text: "smtp:[192.0.2.7]:25", want: fixed(Endpoint{Addr: number("192.0.2.7"), Port: 25, Weight: 1})},
		{text: "smtp:[2001:db8::1]:26", want: fixed(Endpoint{Addr: number("2001:db8::1"), Port: 26, Weight: 1})},
		{text: "smtp:[IPv6:2001:db8::1]:26", want: fixed(Endpoint{Addr: number("2001:db8::1"), Port: 26, Weight: 1})},
		{text: "smtp:[a.example]:1, smtp:[b.example]:2", want: fixed(
			Endpoint{Host: "a.example", Port: 1, Weight: 1}, Endpoint{Host: "b.example", Port: 2, Weight: 1, Group: 1})},
		{text: "smtp:[a.example]:1 * 3 | smtp:[b.example]*2, smtp:[c.example]", want: fixed(
			Endpoint{Host: "a.example", Port: 1, Weight: 3}, Endpoint{Host: "b.example", Port: 25, Weight: 2}, Endpoint{Host: "c.example", Port: 25, Weight: 1, Group: 1})},
		{text: "smtps:[Relay.Example.NET]", want: fixed(Endpoint{Host: "relay.example.net", Port: 465, IsTLS: true, Weight: 1})},
		{text: "smtps:[a.example]:4650*2|smtp:[a.example]:465", want: fixed(
			Endpoint{Host: "a.example", Port: 4650, IsTLS: true, Weight: 2}, Endpoint{Host: "a.example", Port: 465, Weight: 1})},
		{text: "error:550 5.1.1 local delivery is disabled", want: reply(550, "5.1.1", "local delivery is disabled")},
		{text: "error: 450 come back, later | please", want: reply(450, "", "come back, later | please")},
		{text: "", err: ErrNextHop},
		{text: "MX", err: ErrNextHop},
		{text: "mx:", err: address.ErrDomain},
		{text: "mx:[192.0.2.1]", err: ErrNextHop},
		{text: "discard:", err: ErrNextHop},
		{text: "relay.example.net", err: ErrNextHop},
		{text: "smtp:relay.example.net:25", err: ErrNextHop},
		{text: "smtp:[]:25", err: ErrNextHop},
		{text: "smtp:[a.example]25", err: ErrNextHop},
		{text: "smtp:[a.example]:25,", err: ErrNextHop},
		{text: "smtp:[a.example]:25||smtp:[b.example]", err: ErrNextHop},
		{text: "smtp:[a.example]:25,mx", err: ErrNextHop},
		{text: "smtp:[a.example]:25,discard", err: ErrNextHop},
		{text: "smtp:[fe80::1%eth0]:25", err: ErrNextHop},
		{text: "smtps:a.example", err: ErrNextHop},
		{text: "smtps:[a.example]:0", err: ErrPort},
		{text: "lmtp:[a.example]:24", err: ErrNextHop},
		{text: "smtp:[a.example]:", err: ErrPort},
		{text: "smtp:[a.example]:0", err: ErrPort},
		{text: "smtp:[a.example]:70000", err: ErrPort},
		{text: "smtp:[a.example]:25*0", err: ErrWeight},
		{text: "smtp:[a.example]:25*1001", err: ErrWeight},
		{text: "smtp:[a.example]:25*", err: ErrWeight},
		{text: "smtp:[a..example]:25", err: address.ErrDomain},
		{text: "error:", err: ErrReply},
		{text: "error:local delivery is disabled", err: ErrReply},
		{text: "error:550", err: ErrReply},
		{text: "error:550 5.1.1", err: ErrReply},
		{text: "error:550 4.1.1 unlike", err: ErrReply},
		{text: "error:550 5.1.1 5.1.1 twice", err: ErrReply},
		{text: "error:250 2.0.0 fine", err: ErrReply},
		{text: "error:600 5.1.1 more", err: ErrReply},
		{text: "error:550 a\r\nb", err: ErrReply},
		{text: "error:550 " + strings.Repeat("a", 401), err: ErrReply},
		{text: strings.Repeat("smtp:[a.example]:25,", 16) + "smtp:[a.example]:25", err: ErrTooMany},
		{text: strings.Repeat("smtp:[a.example]:25|", 16) + "smtp:[a.example]:25", err: ErrTooMany},
	}
	for _, tt := range tests {
		got, err := ParseNextHop(tt.text)
		if !errors.Is(err, tt.err) {
			t.Errorf("ParseNextHop(%q): got error %v, want %v", tt.text, err, tt.err)
		}
		if diff := cmp.Diff(tt.want, got, compareAddr); err == nil && diff != "" {
			t.Errorf("ParseNextHop(%q) (-want +got):\n%s", tt.text, diff)
		}
	}
}

// TestOrderHoldsGroupsAndWeights: each attempt sees every host once, group after group, and each comes first in its group as
// often as its weight says.
func TestOrderHoldsGroupsAndWeights(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var n NextHop
		for group := range rapid.IntRange(1, 4).Draw(rt, "groups") {
			for range rapid.IntRange(1, 4).Draw(rt, "hosts") {
				n.Endpoints = append(n.Endpoints, Endpoint{Host: fmt.Sprint("h", len(n.Endpoints)), Group: group, Weight: rapid.IntRange(0, 9).Draw(rt, "weight")})
			}
		}
		seed := rapid.Uint64().Draw(rt, "seed")
		r := rand.New(rand.NewPCG(seed, 1))
		const times = 500
		first := make(map[string]int)
		for range times {
			order := n.Order(r)
			seen := make(map[string]bool)
			for i, e := range order {
				if seen[e.Host] || i > 0 && e.Group < order[i-1].Group {
					rt.Fatalf("got %v of %v", order, n)
				}
				if i == 0 || e.Group > order[i-1].Group {
					first[e.Host]++
				}
				seen[e.Host] = true
			}
			if len(seen) != len(n.Endpoints) {
				rt.Fatalf("got %v of %v", order, n)
			}
		}
		for _, e := range n.Endpoints {
			total := 0
			for _, other := range n.Endpoints {
				if other.Group == e.Group {
					total += other.weight()
				}
			}
			share := float64(e.weight()) / float64(total)
			// Six times the standard deviation: this is no matter of luck.
			off := 6 * math.Sqrt(share*(1-share)*times)
			if want := share * times; math.Abs(float64(first[e.Host])-want) > off+1 {
				rt.Errorf("%s of weight %d of %d came first %d times of %d", e.Host, e.weight(), total, first[e.Host], times)
			}
		}
	})
}

func query(domain, sender, client, class string) Query {
	q := Query{Domain: domain, Client: client, Class: class}
	if sender != "" {
		local, domain, _ := strings.Cut(sender, "@")
		q.Sender = address.Path{Local: local, Domain: domain}
	}
	return q
}

func TestE3_52_Lookup(t *testing.T) {
	table, err := NewTable([]Route{
		{Name: "rest", Match: "*"},
		{Name: "rest of a", Match: "*", Senders: []string{"@a.test"}},
		{Name: "rest of bob", Match: "*", Senders: []string{"Bob@a.test"}},
		{Name: "rest below a", Match: "*", Senders: []string{".a.test"}},
		{Name: "rest deep below a", Match: "*", Senders: []string{".x.a.test"}},
		{Name: "notices", Match: "*", Senders: []string{"<>"}},
		{Name: "rest of web", Match: "*", Clients: []string{"web", "web2"}},
		{Name: "rest of hosts", Match: "*", Classes: []string{"host"}},
		{Name: "rest of web in a", Match: "*", Senders: []string{"@a.test"}, Clients: []string{"web"}},
		{Name: "numbers", Match: `/m[0-9]+\.example\.(org|net)/`},
		{Name: "letters", Match: `/m.*\.example\.org/`},
		{Name: "exact", Match: "Example.com"},
		{Name: "exact of web", Match: "example.com", Clients: []string{"web"}},
		{Name: "below", Match: ".example.com"},
		{Name: "deep", Match: ".deep.example.com"},
		{Name: "only of web", Match: "web.test", Clients: []string{"web"}},
		{Name: "only of a", Match: "web.test", Senders: []string{"@a.test", "bob@a.test"}},
		{Name: "literal", Match: "[192.0.2.1]"},
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		q    Query
		want string
	}{
		{"the domain itself", query("example.com", "x@y.test", "", ""), "exact"},
		{"a client on top", query("example.com", "x@y.test", "web", ""), "exact of web"},
		{"the domain before any number of other conditions", query("example.com", "x@a.test", "other", "host"), "exact"},
		{"a suffix", query("a.example.com", "x@y.test", "", ""), "below"},
		{"a suffix is not below itself", query("deep.example.com", "x@y.test", "", ""), "below"},
		{"the longest suffix", query("a.deep.example.com", "x@y.test", "", ""), "deep"},
		{"a suffix ends at a dot", query("notexample.com", "x@y.test", "", ""), "rest"},
		{"the first pattern", query("m1.example.org", "x@y.test", "", ""), "numbers"},
		{"the second pattern", query("mx.example.org", "x@y.test", "", ""), "letters"},
		{"a pattern is anchored", query("mail.m1.example.net", "x@y.test", "", ""), "rest"},
		{"a pattern is anchored at its end", query("m1.example.net.test", "x@y.test", "", ""), "rest"},
		{"a sender", query("else.test", "x@a.test", "", ""), "rest of a"},
		{"an address", query("else.test", "BOB@a.test", "", ""), "rest of bob"},
		{"below a domain of senders", query("else.test", "x@b.a.test", "", ""), "rest below a"},
		{"deep below it", query("else.test", "x@b.x.a.test", "", ""), "rest deep below a"},
		{"the null sender", query("else.test", "", "", ""), "notices"},
		{"a client", query("else.test", "x@y.test", "web2", ""), "rest of web"},
		{"a class", query("else.test", "x@y.test", "other", "host"), "rest of hosts"},
		{"as many conditions, the earlier", query("else.test", "x@y.test", "web", "host"), "rest of web"},
		{"as many conditions, the sender", query("else.test", "x@a.test", "web2", "host"), "rest of a"},
		{"more conditions before a more specific sender", query("else.test", "bob@a.test", "web", ""), "rest of web in a"},
		{"conditions that do not hold", query("web.test", "x@y.test", "other", ""), "rest"},
		{"one of several", query("web.test", "bob@a.test", "web", ""), "only of a"},
		{"a literal", query("[192.0.2.1]", "x@y.test", "", ""), "literal"},
		{"another literal", query("[192.0.2.2]", "x@y.test", "", ""), "rest"},
		{"no domain", query("", "x@y.test", "", ""), "rest"},
	}
	for _, tt := range tests {
		t.Run("E3-52 "+tt.name, func(t *testing.T) {
			if got := table.Lookup(tt.q).Name; got != tt.want {
				t.Errorf("Lookup(%+v): got route %q, want %q", tt.q, got, tt.want)
			}
			list, _ := table.Explain(tt.q, 100)
			if len(list) == 0 || !list[0].Won || list[0].Route.Name != tt.want {
				t.Errorf("Explain(%+v): got %+v, want %q first", tt.q, list, tt.want)
			}
			for _, c := range list[1:] {
				if c.Won || c.Why == "" {
					t.Errorf("got loser %+v", c)
				}
			}
		})
	}
	if r := (Table{}).Lookup(query("example.com", "", "", "")); !r.NextHop.IsMX() || r.Match != "" {
		t.Errorf("zero table: got %+v, want mx", r)
	}
}

func TestExplainSaysWhy(t *testing.T) {
	table, err := NewTable([]Route{
		{Name: "rest", Match: "*"},
		{Name: "second", Match: "/.*/"},
		{Name: "third", Match: "/e.*/"},
		{Name: "of a", Match: "example.com", Senders: []string{"@a.test"}},
		{Name: "of host", Match: "example.com", Classes: []string{"host"}},
		{Name: "of web", Match: "example.com", Clients: []string{"web"}},
		{Name: "exact", Match: "example.com"},
		{Name: "of bob", Match: "example.com", Senders: []string{"bob@a.test"}},
		{Name: "of user", Match: "example.com", Classes: []string{"user"}},
		{Name: "elsewhere", Match: "example.net"},
	})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		q    Query
		want string
	}{
		{query("example.com", "bob@a.test", "web", "host"), `of bob: matches example.com from bob@a.test
of a: its sender is less specific
of host: its sender is less specific
of web: its sender is less specific
of user: is for other classes of clients
exact: it has fewer conditions
second: its domain is less specific: /.*/
third: its domain is less specific: /e.*/
rest: its domain is less specific: *
`},
		{query("example.com", "x@y.test", "", ""), `exact: matches example.com
of a: is for other senders
of host: is for some classes of clients only, and no class is known
of web: is for some clients only, and no client is given
of bob: is for other senders
of user: is for some classes of clients only, and no class is known
second: its domain is less specific: /.*/
third: its domain is less specific: /e.*/
rest: its domain is less specific: *
`},
		{query("example.com", "x@y.test", "web", "host"), `of host: matches example.com class host
of a: is for other senders
of web: it has as many conditions and comes later
of bob: is for other senders
of user: is for other classes of clients
exact: it has fewer conditions
second: its domain is less specific: /.*/
third: its domain is less specific: /e.*/
rest: its domain is less specific: *
`},
		{query("else.test", "x@y.test", "", ""), `second: matches /.*/
third: its pattern comes later
rest: its domain is less specific: *
`},
	}
	tests[3].q.Domain = "else"
	for _, tt := range tests {
		list, more := table.Explain(tt.q, 20)
		var got strings.Builder
		for _, c := range list {
			fmt.Fprintf(&got, "%s: %s\n", c.Route, c.Why)
		}
		if diff := cmp.Diff(tt.want, got.String()); diff != "" || more != 0 {
			t.Errorf("%+v: %d more (-want +got):\n%s", tt.q, more, diff)
		}
	}
	if list, more := table.Explain(tests[0].q, 3); len(list) != 4 || !list[0].Won || more != 5 {
		t.Errorf("at most 3 losers: got %d routes and %d more", len(list), more)
	}
}

func TestNewTableReportsEverything(t *testing.T) {
	web, a := []string{"web"}, []string{"@a.test"}
	_, err := NewTable([]Route{
		{Match: "a.example"},
		{Match: "A.example"},
		{Match: ""},
		{Match: ".[192.0.2.1]"},
		{Match: "a b"},
		{Match: "/a(/"},
		{Match: "/a)|(b/"},
		{Match: "//"},
		{Match: "/" + strings.Repeat("a", 500) + "/"},
		{Match: "*", Senders: []string{"nobody"}},
		{Match: "*", Clients: []string{"a b"}},
		{Match: "*", Classes: []string{""}},
		{Name: "first", Match: "*", Senders: a, Clients: web},
		{Name: "same sender and client", Match: "*", Senders: []string{"b@b.test", "@A.test"}, Clients: []string{"db", "web"}},
		{Match: "*", Senders: a, Clients: []string{"db"}},
		{Match: "*", Senders: a, Classes: []string{"web"}},
		{Match: "*", Senders: []string{"@b.test", "@b.test"}},
	})
	for _, want := range []error{ErrDuplicate, ErrMatch, ErrPattern, ErrSender, ErrWord, address.ErrDomain} {
		if !errors.Is(err, want) {
			t.Errorf("got %v, want it to have %v", err, want)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 12 {
		t.Errorf("got %d errors, want 12: %v", n, err)
	}
	if !strings.Contains(err.Error(), `route "same sender and client": two routes ask for the same: "first" comes before it`) {
		t.Errorf("got %v", err)
	}
}

// manyRoutes are n routes of a domain each, and one for the rest.
func manyRoutes(n int) []Route {
	routes := []Route{{Match: "*"}}
	for i := range n {
		routes = append(routes, Route{Match: fmt.Sprintf("d%d.example", i)}, Route{Match: "*", Senders: []string{fmt.Sprintf("@d%d.example", i)}})
	}
	return routes
}

func BenchmarkLookup(b *testing.B) {
	table, err := NewTable(manyRoutes(10000))
	if err != nil {
		b.Fatal(err)
	}
	for name, q := range map[string]Query{
		"domain": query("d5000.example", "alice@sender.example", "web", "host"),
		"sender": query("else.example", "alice@d5000.example", "web", "host"),
		"rest":   query("a.b.else.example", "alice@sender.example", "web", "host"),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				table.Lookup(q)
			}
		})
	}
}

func BenchmarkNewTable(b *testing.B) {
	routes := manyRoutes(10000)
	for b.Loop() {
		if _, err := NewTable(routes); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzNewTable(f *testing.F) {
	f.Add("example.com", "@a.test", "web", "example.com", "x@a.test")
	f.Add(".example.com", "<>", "", "a.example.com", "x@a.test")
	f.Add(`/m[0-9]+\.example\.com/`, ".a.test", "", "m1.example.com", "x@b.a.test")
	f.Add("*", "bob@a.test", "web", "[192.0.2.1]", "bob@a.test")
	f.Fuzz(func(t *testing.T, match, sender, client, domain, from string) {
		r := Route{Match: match}
		if sender != "" {
			r.Senders = []string{sender}
		}
		if client != "" {
			r.Clients = []string{client}
		}
		table, err := NewTable([]Route{r})
		if err != nil {
			return
		}
		q := query(domain, from, client, "")
		found := table.Lookup(q)
		if found.Match != "" {
			// What is printed is read as the same.
			again, err := NewTable([]Route{found})
			if err != nil || again.Lookup(q).Match != found.Match {
				t.Errorf("%+v is not read as itself: %v", found, err)
			}
		}
		if list, _ := table.Explain(q, 10); (len(list) > 0 && list[0].Won) != (found.Match != "") {
			t.Errorf("got %+v, found %+v", list, found)
		}
	})
}

func FuzzParseNextHop(f *testing.F) {
	for _, s := range []string{"mx", "smtp:[a.example]:25", "smtp:[2001:db8::1]", "smtp:[a.example],smtp:[192.0.2.1]:1", "smtp:[::ffff:192.0.2.1]:25", "smtps:[a.example],smtps:[b.example]:25|smtp:[b.example]:465",
		"mx:example.net", "discard", "error:550 5.1.1 local delivery is disabled", "smtp:[a.example]*3|smtp:[b.example]:26*2,smtp:[c.example]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseNextHop(s)
		if err != nil {
			return
		}
		again, err := ParseNextHop(n.String())
		if diff := cmp.Diff(n, again, compareAddr); err != nil || diff != "" {
			t.Errorf("%q is not read as itself: %v\n%s", n, err, diff)
		}
	})
}

// TestSitesOfFixedHosts: the site of a long list is short, and still its own.
func TestSitesOfFixedHosts(t *testing.T) {
	hop := func(text string) NextHop {
		n, err := ParseNextHop(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	long := func(last string) NextHop {
		return hop(strings.Repeat("smtp:[a-rather-long-name.mail.example.net]:2525|", 15) + "smtp:[" + last + "]")
	}
	one, two := long("b.example").Site(), long("c.example").Site()
	if one == two || len(one) > maxSiteBytes || len(two) > maxSiteBytes || !strings.HasPrefix(one, "smtp:[a-rather-long-name") {
		t.Errorf("got %q and %q", one, two)
	}
	if got := hop("smtp:[a.example]*2|smtp:[b.example]").Site(); got != "smtp:[a.example]:25*2|smtp:[b.example]:25" {
		t.Errorf("got %q", got)
	}
}
