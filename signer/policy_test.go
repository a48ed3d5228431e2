package signer

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"postroad/queue"
)

// rules of options, or the test fails.
func rules(t testing.TB, o Options) *Rules {
	t.Helper()
	r, err := o.Rules()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// office has a domain with clients of its own, one for customers, and a relay that is neither.
func office() Options {
	return Options{OwnDomain: "relay.example.net", Domains: []Domain{
		{Names: []string{"Example.com", ".example.com"}, Clients: []string{"web1", "class:host", "10.0.0.0/8"}, AllowParent: true},
		{Names: []string{"news.example.com"}, Clients: []string{"newsletter"}, Others: Hold, AllowParent: true},
		{Names: []string{"bücher.example"}, Clients: []string{"shop"}, Others: Relay, MissingKey: Relay, RelaySignature: true, OnlyUnsigned: true},
		{Names: []string{"dept.example.net", ".example"}, Clients: []string{"class:dept"}, Others: Relay, RelaySignature: true},
	}}
}

func TestDecide(t *testing.T) {
	const own = "relay.example.net"
	tests := []struct {
		name                  string
		kind                  queue.Kind
		author, client, class string
		want                  Decision
	}{
		{"nothing names it", "", "free.test", "web9", "", Decision{Author: "free.test", Domains: []string{"free.test"}, Otherwise: Hold}},
		{"no client, nothing names it", "", "free.test", "", "", Decision{Author: "free.test", Domains: []string{"free.test"}, Otherwise: Hold}},
		{"account", "", "example.com", "web1", "", Decision{Author: "example.com", Rule: "example.com", Domains: []string{"example.com"}, Otherwise: Hold}},
		{"class", "", "example.com", "db7", "host", Decision{Author: "example.com", Rule: "example.com", Domains: []string{"example.com"}, Otherwise: Hold}},
		{"network", "", "example.com", "net:10.0.0.0/8", "network", Decision{Author: "example.com", Rule: "example.com", Domains: []string{"example.com"}, Otherwise: Hold}},
		{"network within", "", "example.com", "net:10.3.0.0/16", "network", Decision{Author: "example.com", Rule: "example.com", Domains: []string{"example.com"}, Otherwise: Hold}},
		{"network around", "", "example.com", "net:0.0.0.0/4", "network", Decision{Author: "example.com", Rule: "example.com", Refused: true, Otherwise: Pass,
			Reason: "net:0.0.0.0/4 may not have mail signed by example.com"}},
		{"other account", "", "example.com", "web2", "", Decision{Author: "example.com", Rule: "example.com", Refused: true, Otherwise: Pass,
			Reason: "web2 may not have mail signed by example.com"}},
		{"no client", "", "example.com", "", "host", Decision{Author: "example.com", Rule: "example.com", Refused: true, Otherwise: Pass,
			Reason: "a client without a name may not have mail signed by example.com"}},
		{"any spelling", "", "EXAMPLE.Com.", "web1", "", Decision{Author: "example.com", Rule: "example.com", Domains: []string{"example.com"}, Otherwise: Hold}},
		{"below, with parents", "", "a.b.example.com", "web1", "", Decision{Author: "a.b.example.com", Rule: ".example.com",
			Domains: []string{"a.b.example.com", "b.example.com", "example.com"}, Otherwise: Hold}},
		{"most specific", "", "news.example.com", "web1", "", Decision{Author: "news.example.com", Rule: "news.example.com", Refused: true, Otherwise: Hold,
			Reason: "web1 may not have mail signed by news.example.com"}},
		{"parent that the client may not use", "", "news.example.com", "newsletter", "", Decision{Author: "news.example.com", Rule: "news.example.com",
			Domains: []string{"news.example.com"}, Otherwise: Hold}},
		{"U-label", "", "Bücher.example", "shop", "", Decision{Author: "xn--bcher-kva.example", Rule: "xn--bcher-kva.example", OnlyUnsigned: true,
			Domains: []string{"xn--bcher-kva.example"}, Beside: true, Otherwise: Relay, Relay: own, Reason: "no DKIM key for xn--bcher-kva.example"}},
		{"A-label, others by the relay", "", "XN--BCHER-KVA.EXAMPLE", "web1", "", Decision{Author: "xn--bcher-kva.example", Rule: "xn--bcher-kva.example", OnlyUnsigned: true,
			Refused: true, Otherwise: Relay, Relay: own, Reason: "web1 may not have mail signed by xn--bcher-kva.example"}},
		{"others by the relay, of one organisation", "", "dept.example.net", "web1", "", Decision{Author: "dept.example.net", Rule: "dept.example.net", Refused: true,
			Otherwise: Pass, Reason: "web1 may not have mail signed by dept.example.net, nor by relay.example.net, which receivers take for the same organisation"}},
		{"author at an address", "", "[192.0.2.1]", "web1", "", Decision{Otherwise: Pass, Reason: `the author has no domain to sign for ("[192.0.2.1]")`}},
		{"notification", queue.KindDSN, "example.com", "web1", "", Decision{Author: own, Domains: []string{own}, Otherwise: Hold}},
	}
	r := rules(t, office())
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.kind == "" {
				tt.kind = queue.KindMail
			}
			if diff := cmp.Diff(tt.want, r.Decide(tt.kind, tt.author, tt.client, tt.class)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestDecideOfRelay has a relay whose own domain is not everybody's.
func TestDecideOfRelay(t *testing.T) {
	r := rules(t, Options{OwnDomain: "Example.com.", MissingKey: Relay, RelaySignature: true, AllowParent: true, Domains: []Domain{
		{Names: []string{"example.com"}, Clients: []string{"admin"}, Others: Relay, MissingKey: Relay, RelaySignature: true},
		{Names: []string{"shop.test"}, Clients: []string{"shop"}, Others: Relay, MissingKey: Pass, RelaySignature: true},
	}})
	tests := []struct {
		name           string
		kind           queue.Kind
		author, client string
		want           Decision
	}{
		{"the relay's, no key: nothing to fall back on", "", "example.com", "admin", Decision{Author: "example.com", Rule: "example.com",
			Domains: []string{"example.com"}, Otherwise: Hold, Reason: "no DKIM key for example.com"}},
		{"not the relay's by the relay", "", "example.com", "shop", Decision{Author: "example.com", Rule: "example.com", Refused: true, Otherwise: Pass,
			Reason: "shop may not have mail signed by example.com, nor by example.com, which receivers take for the same organisation"}},
		{"below the relay's", "", "news.example.com", "shop", Decision{Author: "news.example.com", Domains: []string{"news.example.com"}, Otherwise: Pass,
			Reason: "no DKIM key for news.example.com, and shop may not have mail signed by example.com"}},
		{"below the relay's, may", "", "news.example.com", "admin", Decision{Author: "news.example.com", Domains: []string{"news.example.com", "example.com"},
			Beside: true, Relay: "example.com", Otherwise: Hold, Reason: "no DKIM key for news.example.com"}},
		{"beside, not the relay's client", "", "shop.test", "shop", Decision{Author: "shop.test", Rule: "shop.test", Domains: []string{"shop.test"}, Otherwise: Pass}},
		{"alone, not the relay's client", "", "shop.test", "other", Decision{Author: "shop.test", Rule: "shop.test", Refused: true, Otherwise: Pass,
			Reason: "other may not have mail signed by shop.test, nor by example.com"}},
		{"alone, the relay's client", "", "shop.test", "admin", Decision{Author: "shop.test", Rule: "shop.test", Refused: true, Otherwise: Relay, Relay: "example.com",
			Reason: "admin may not have mail signed by shop.test"}},
		{"beside, the relay's client", "", "free.test", "admin", Decision{Author: "free.test", Domains: []string{"free.test"}, Beside: true, Otherwise: Relay,
			Relay: "example.com", Reason: "no DKIM key for free.test"}},
		{"notification: no client, no parent, no relay beside it", queue.KindDSN, "shop.test", "", Decision{Author: "example.com", Rule: "example.com",
			Domains: []string{"example.com"}, Otherwise: Hold}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.kind == "" {
				tt.kind = queue.KindMail
			}
			if diff := cmp.Diff(tt.want, r.Decide(tt.kind, tt.author, tt.client, "")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestRulesRefuse(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Options
		want string
	}{
		{"no names", Options{Domains: []Domain{{}}}, "domain 0: it has no names"},
		{"name", Options{Domains: []Domain{{Names: []string{"*"}}}}, `"*" is neither`},
		{"suffix of nothing", Options{Domains: []Domain{{Names: []string{"."}}}}, `"." is neither`},
		{"name twice", Options{Domains: []Domain{{Names: []string{"bücher.example"}}, {Names: []string{"XN--BCHER-KVA.example."}}}}, "is there twice"},
		{"name twice in one", Options{Domains: []Domain{{Names: []string{".a.test", ".A.test"}}}}, "is there twice"},
		{"client", Options{Domains: []Domain{{Names: []string{"a.test"}, Clients: []string{"class:"}}}}, "is no class"},
		{"others", Options{Domains: []Domain{{Names: []string{"a.test"}, Others: "drop"}}}, `policy "drop"`},
		{"missing key", Options{MissingKey: "drop"}, `policy "drop"`},
		{"relay of no domain", Options{MissingKey: Relay}, "there is no own domain"},
		{"relay signature of no domain", Options{RelaySignature: true}, "there is no own domain"},
		{"others by no domain", Options{Domains: []Domain{{Names: []string{"a.test"}, Others: Relay}}}, "domain 0: a signature of our own domain is wanted"},
		{"own domain", Options{OwnDomain: "[192.0.2.1]"}, "own domain"},
	} {
		if _, err := tt.o.Rules(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestClients(t *testing.T) {
	for _, tt := range []struct {
		words         []string
		client, class string
		want          bool
	}{
		{nil, "", "", true},
		{[]string{"Web1"}, "web1", "host", true},
		{[]string{"web1"}, "WEB1", "host", true},
		{[]string{"web1"}, "web10", "host", false},
		{[]string{"jane@example.com"}, "jane@example.com", "", true},
		{[]string{"class:default"}, "web1", "", true},
		{[]string{"class:default"}, "web1", "host", false},
		{[]string{"class:default"}, "", "", false},
		{[]string{"class:network"}, "net:10.0.0.0/8", "network", true},
		{[]string{"class:host"}, "net:10.0.0.0/8", "network", false},
		{[]string{"10.0.0.1"}, "net:10.0.0.1/32", "network", true},
		{[]string{"net:10.0.0.0/24"}, "net:10.0.0.128/25", "network", true},
		{[]string{"10.0.0.0/24"}, "net:10.0.0.0/23", "network", false},
		{[]string{"::ffff:10.0.0.0/104"}, "net:10.0.0.0/8", "network", true},
		{[]string{"2001:db8::/32"}, "net:2001:db8:1::/48", "network", true},
		{[]string{"0.0.0.0/0"}, "net:2001:db8:1::/48", "network", false},
		{[]string{"10.0.0.0/8"}, "net:10.0.0.0/8", "host", false}, // no account has such a name
		{[]string{"10.0.0.0/8"}, "net:junk", "network", false},
		{[]string{"10.0.0.0/8"}, "10.0.0.0/8", "network", false},
	} {
		c, err := parseClients(tt.words)
		if err != nil || c.have(tt.client, tt.class) != tt.want {
			t.Errorf("%q: %s of class %q: got %t, %v", tt.words, tt.client, tt.class, !tt.want, err)
		}
	}
	for _, word := range []string{"", "a b", "class:", "class:Ü", "network", "10.0.0.1/8", "10.0.0.0/33", "net:", "net:web1", "fe80::1%eth0", "web1,web2", "user!"} {
		if err := CheckClient(word); err == nil {
			t.Errorf("%q is accepted", word)
		}
	}
}

func TestAligned(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"example.com", "example.com", true},
		{"relay.example.com", "example.com", true},
		{"a.example.com", "b.example.com", true},
		{"example.com", "example.org", false},
		{"a.co.uk", "b.co.uk", false},
		{"x.a.co.uk", "y.a.co.uk", true},
		{"a.github.io", "b.github.io", true}, // some receivers think so
		{"a.internal", "b.internal", false},
		{"localhost", "example.com", false},
		{"localhost", "localhost", true},
		{"com", "example.com", false},
		{"example.com", "", false},
	} {
		if got := Aligned(tt.a, tt.b); got != tt.want || Aligned(tt.b, tt.a) != got {
			t.Errorf("%s and %s: got %t", tt.a, tt.b, got)
		}
	}
}

// drawnRules are any rules over a small world of names, so that they meet often.
func drawnRules(t *rapid.T) (Options, *Rules) {
	names := rapid.SampledFrom([]string{"a.test", "b.a.test", "c.b.a.test", ".a.test", ".b.a.test", ".test", "bücher.test", "xn--bcher-kva.test", "r.test", "m.r.test", ".R.test"})
	words := rapid.SampledFrom([]string{"one", "two", "class:c", "class:default", "class:network", "10.0.0.0/8", "10.1.0.0/16"})
	policy := rapid.SampledFrom([]Policy{Hold, Pass, Relay})
	o := Options{
		OwnDomain:      rapid.SampledFrom([]string{"r.test", "a.test", "b.a.test", "other.example"}).Draw(t, "own"),
		MissingKey:     policy.Draw(t, "missing"),
		AllowParent:    rapid.Bool().Draw(t, "parent"),
		RelaySignature: rapid.Bool().Draw(t, "relay"),
	}
	seen := make(map[string]bool)
	for _, name := range rapid.SliceOfNDistinct(names, 0, 6, rapid.ID).Draw(t, "names") {
		if clean, err := CleanName(name); err != nil || seen[clean] {
			continue
		} else {
			seen[clean] = true
		}
		o.Domains = append(o.Domains, Domain{Names: []string{name}, Clients: rapid.SliceOfN(words, 0, 3).Draw(t, "clients"),
			Others: policy.Draw(t, "others"), MissingKey: policy.Draw(t, "missing"), AllowParent: rapid.Bool().Draw(t, "parent"),
			RelaySignature: rapid.Bool().Draw(t, "relay"), OnlyUnsigned: rapid.Bool().Draw(t, "unsigned")})
	}
	r, err := o.Rules()
	if err != nil {
		t.Fatal(err)
	}
	return o, r
}

// allowed says once more, and plainly, whether a client may use a domain: of all names that match, the longest holds.
func allowed(o Options, domain, client, class string) bool {
	best, clients := "", []string(nil)
	for _, d := range o.Domains {
		name := strings.ToLower(strings.ReplaceAll(d.Names[0], "bücher", "xn--bcher-kva"))
		matches := name == domain || name[0] == '.' && strings.HasSuffix(domain, name)
		// An exact name is more specific than any suffix, and longer than those that match too.
		if matches && len(name) > len(best) {
			best, clients = name, d.Clients
		}
	}
	if len(clients) == 0 {
		return true
	}
	switch {
	case slices.Contains(clients, client), class != "" && slices.Contains(clients, "class:"+class):
		return true
	case client == "":
		return false
	case class == "":
		return slices.Contains(clients, "class:default")
	case client == "net:10.1.0.0/16":
		return slices.Contains(clients, "10.1.0.0/16") || slices.Contains(clients, "10.0.0.0/8")
	case client == "net:10.0.0.0/8":
		return slices.Contains(clients, "10.0.0.0/8")
	}
	return false
}

// TestNeverForOthers: whatever the rules are, no domain is to sign that the client may not use.
func TestNeverForOthers(t *testing.T) {
	authors := rapid.SampledFrom([]string{"a.test", "A.Test.", "b.a.test", "c.b.a.test", "d.C.b.A.test", "bücher.test", "BÜCHER.test.", "XN--bcher-kva.test",
		"x.bücher.test", "r.test", "m.r.test", "n.m.r.TEST", "free.example", "other.example", "", "[192.0.2.1]", "a..test", "a.test..", "test", "a。test"})
	who := rapid.SampledFrom([][2]string{{"one", ""}, {"two", ""}, {"one", "c"}, {"three", "c"}, {"three", ""}, {"", ""},
		{"net:10.0.0.0/8", "network"}, {"net:10.1.0.0/16", "network"}, {"net:192.0.2.0/24", "network"}})
	rapid.Check(t, func(t *rapid.T) {
		o, r := drawnRules(t)
		author, client := authors.Draw(t, "author"), who.Draw(t, "client")
		checkDecision(t, o, r, r.Decide(queue.KindMail, author, client[0], client[1]), client[0], client[1])
		d := r.Decide(queue.KindDSN, author, client[0], client[1])
		if !slices.Equal(d.Domains, []string{o.OwnDomain}) || d.Beside || d.Relay != "" || d.Otherwise == Relay || d.OnlyUnsigned {
			t.Errorf("notification: got %+v", d)
		}
	})
}

type failer interface {
	Helper()
	Errorf(string, ...any)
}

func checkDecision(t failer, o Options, r *Rules, d Decision, client, class string) {
	t.Helper()
	for _, domain := range d.Domains {
		if !allowed(o, domain, client, class) {
			t.Errorf("%s of class %q may not use %s: got %+v", client, class, domain, d)
		}
		if domain != d.Author && !strings.HasSuffix(d.Author, "."+domain) {
			t.Errorf("%s does not speak for %s", domain, d.Author)
		}
	}
	if d.Refused && len(d.Domains) > 0 || d.Author != "" && d.Refused == allowed(o, d.Author, client, class) {
		t.Errorf("%s of class %q: got %+v", client, class, d)
	}
	if d.Relay != "" && (d.Relay != r.own || !allowed(o, d.Relay, client, class) || d.Refused && Aligned(d.Relay, d.Author) || d.Relay == d.Author) {
		t.Errorf("%s of class %q may not have the relay's signature: got %+v", client, class, d)
	}
	if (d.Beside || d.Otherwise == Relay) != (d.Relay != "") {
		t.Errorf("got relay %q: %+v", d.Relay, d)
	}
	if d.Otherwise != Hold && d.Otherwise != Pass && d.Otherwise != Relay {
		t.Errorf("nothing becomes of the mail: %+v", d)
	}
}

// FuzzDecide lets anything be the author and the client: a client that is not among those of example.com never gets its signature, nor that of the relay
// of the same organisation.
func FuzzDecide(f *testing.F) {
	for _, seed := range []string{"example.com", "EXAMPLE.COM.", "example。com", "a.example.com", "ｅxample.com", "exam\u00adple.com", "example.com\x00", "xn--example-.com", "example.com/..", "bücher.example.com"} {
		f.Add(seed, "net:192.0.2.0/24", "network")
		f.Add(seed, "web2", "")
	}
	o := Options{OwnDomain: "relay.example.com", MissingKey: Relay, AllowParent: true, RelaySignature: true, Domains: []Domain{
		{Names: []string{"example.com"}, Clients: []string{"web1", "class:host", "10.0.0.0/8"}, Others: Relay, AllowParent: true, RelaySignature: true}}}
	r := rules(f, o)
	f.Fuzz(func(t *testing.T, author, client, class string) {
		d := r.Decide(queue.KindMail, author, client, class)
		may := r.may("example.com", client, class)
		if !may && slices.Contains(d.Domains, "example.com") || d.Refused && (d.Relay != "" || len(d.Domains) > 0) {
			t.Errorf("%q of class %q as %q: got %+v", client, class, author, d)
		}
		for _, domain := range append([]string{d.Relay}, d.Domains...) {
			if clean, ok := cleanDomain(domain); domain != "" && (!ok || clean != domain) {
				t.Errorf("%q: %q is no clean domain", author, domain)
			}
		}
		if !may && strings.EqualFold(strings.TrimSuffix(author, "."), "example.com") && !d.Refused {
			t.Errorf("%q of class %q as %q: got %+v", client, class, author, d)
		}
	})
}

func ExampleRules_Decide() {
	r, err := Options{OwnDomain: "relay.example.net", Domains: []Domain{
		{Names: []string{"example.com"}, Clients: []string{"class:host"}, Others: Relay, RelaySignature: true}}}.Rules()
	if err != nil {
		fmt.Println(err)
		return
	}
	d := r.Decide(queue.KindMail, "example.com", "web1", "host")
	fmt.Println(d.Domains, d.Relay)
	d = r.Decide(queue.KindMail, "example.com", "jane", "user")
	fmt.Println(d.Domains, d.Relay, d.Reason)
	// Output:
	// [example.com] relay.example.net
	// [] relay.example.net jane may not have mail signed by example.com
}
