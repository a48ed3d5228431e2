package throttle

import (
	"strings"
	"testing"
	"time"

	"postroad/queue"
)

func perSecond(n int) queue.Rate { return queue.Rate{Count: n, Window: time.Second} }

func TestRulesInTheirOrder(t *testing.T) {
	rules, err := NewRules(
		Rule{Connections: 10, Messages: 50},
		Rule{Source: "out-1", Connections: 11},
		Rule{MX: "example.net", Connections: 12, Rate: perSecond(12)},
		Rule{MX: "mx.example.net", Connections: 13},
		Rule{MX: "mx.example.net", Source: "out-1", Connections: 14},
		Rule{Site: "big", Connections: 15, PerSite: true},
		Rule{Domain: ".example.org", Connections: 16},
		Rule{Domain: ".b.example.org", Connections: 17},
		Rule{Domain: "a.b.example.org", Connections: 18, ConnectionRate: perSecond(3)},
		Rule{Domain: "a.b.example.org", Messages: 7, Live: true},
		Rule{Domain: "a.b.example.org", Connections: 19, Live: true},
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		q    Query
		want Limits
	}{
		{"everything", Query{Domain: "x.test", Site: "s"}, Limits{Path: "s", Connections: 10, Messages: 50}},
		{"a source", Query{Domain: "x.test", Site: "s", Source: "out-1"}, Limits{Path: "s@out-1", Connections: 11, Messages: 50}},
		{"a domain of hosts", Query{Site: "s", Hosts: []string{"in.Example.net."}}, Limits{Path: "s", Connections: 12, Messages: 50, Rate: perSecond(12)}},
		{"a host, the rate of its domain", Query{Site: "s", Hosts: []string{"mx.example.net"}}, Limits{Path: "s", Connections: 13, Messages: 50, Rate: perSecond(12)}},
		{"not a name that only ends so", Query{Site: "s", Hosts: []string{"notexample.net"}}, Limits{Path: "s", Connections: 10, Messages: 50}},
		{"a host and a source", Query{Site: "s", Hosts: []string{"mx.example.net"}, Source: "out-1"}, Limits{Path: "s@out-1", Connections: 14, Messages: 50, Rate: perSecond(12)}},
		{"a site, all sources together", Query{Site: "big", Hosts: []string{"mx.example.net"}, Source: "out-2"}, Limits{Path: "big", Connections: 15, Messages: 50, Rate: perSecond(12)}},
		{"below a domain", Query{Domain: "x.example.org", Site: "big"}, Limits{Path: "big#.example.org", Connections: 16, Messages: 50}},
		{"the longest suffix", Query{Domain: "x.b.example.org", Site: "s"}, Limits{Path: "s#.b.example.org", Connections: 17, Messages: 50}},
		{"what operators set comes first", Query{Domain: "a.b.example.org", Site: "s"}, Limits{Path: "s#a.b.example.org", Connections: 19, Messages: 7, ConnectionRate: perSecond(3)}},
	} {
		if got := rules.For(tc.q); got != tc.want {
			t.Errorf("%s: got %+v, want %+v", tc.name, got, tc.want)
		}
	}
	slow, err := NewRules(Rule{Rate: queue.Rate{Count: 10, Window: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	if got := slow.For(Query{Site: "s"}).Connections; got != 1 {
		t.Errorf("ten an hour: got %d connections, want one", got)
	}
	if got := pathName(strings.Repeat("x", 120), strings.Repeat("y", 200), "out-1"); len(got) > maxPath {
		t.Errorf("a path of %d octets", len(got))
	}
}

// Each limit is traced back to the rule that gave it, and a live rule hides only what it gives itself.
func TestOrigins(t *testing.T) {
	rules, err := NewRules(
		Rule{Connections: 10, Messages: 50, Origin: "all"},
		Rule{MX: "example.net", Connections: 12, ConnectionRate: perSecond(3), Origin: "mx"},
		Rule{MX: "example.net", Rate: queue.Rate{Count: 1, Window: time.Minute}, Live: true, Origin: "live"},
	)
	if err != nil {
		t.Fatal(err)
	}
	name := func(r *Rule) string {
		if r == nil {
			return "-"
		}
		return r.Origin
	}
	for _, tc := range []struct {
		name     string
		rules    *Rules
		host     string
		want     string // of connections, rate, connection rate, messages
		isByRate bool
	}{
		{"no rule", &Rules{}, "x.test", "- - - -", false},
		{"everything", rules, "x.test", "all - - all", false},
		{"three rules", rules, "mx.example.net", "mx live mx all", true},
	} {
		limits, from := tc.rules.Explain(Query{Site: "s", Hosts: []string{tc.host}})
		got := strings.Join([]string{name(from.Connections), name(from.Rate), name(from.ConnectionRate), name(from.Messages)}, " ")
		if got != tc.want || from.IsByRate != tc.isByRate || tc.isByRate != (limits.Connections == 1) {
			t.Errorf("%s: got %s, %+v, want %s", tc.name, got, limits, tc.want)
		}
	}
}

func TestRuleFaults(t *testing.T) {
	for _, r := range []Rule{{}, {Domain: "a.test", Site: "b", Connections: 1}, {Connections: -1}, {Rate: queue.Rate{Burst: 2}, Connections: 1}} {
		if _, err := NewRules(r); err == nil {
			t.Errorf("%+v is taken", r)
		}
	}
}

func TestRates(t *testing.T) {
	for text, want := range map[string]queue.Rate{
		"100/s": perSecond(100), "6000/h": {Count: 6000, Window: time.Hour}, "30/5m": {Count: 30, Window: 5 * time.Minute}, "1/d": {Count: 1, Window: 24 * time.Hour},
	} {
		got, err := ParseRate(text)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
		if again, err := ParseRate(RateText(got)); err != nil || again != want {
			t.Errorf("%s printed as %s: got %+v, %v", text, RateText(got), again, err)
		}
	}
	for _, text := range []string{"", "100", "/s", "0/s", "-1/s", "1/x", "1/1ms", "1/40d", "9999999/s", "1.5/s"} {
		if got, err := ParseRate(text); err == nil {
			t.Errorf("%q: got %+v", text, got)
		}
	}
}
