package mx_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errServFail = errors.New("SERVFAIL")

var records = mxtest.Records{
	MX: map[string][]mx.MX{
		"two.test":         {{Host: "b.test", Preference: 20}, {Host: "a.test", Preference: 10}},
		"equal.test":       {{Host: "a.test", Preference: 10}, {Host: "b.test", Preference: 10}, {Host: "c.test", Preference: 10}},
		"null.test":        {{Host: "", Preference: 0}},
		"nullplus.test":    {{Host: "", Preference: 0}, {Host: "a.test", Preference: 10}},
		"unusable.test":    {{Host: "nowhere.test", Preference: 10}, {Host: "nodata.test", Preference: 20}},
		"partly.test":      {{Host: "fails.test", Preference: 10}, {Host: "a.test", Preference: 20}},
		"trouble.test":     {{Host: "fails.test", Preference: 10}, {Host: "nowhere.test", Preference: 20}},
		"self.test":        {{Host: "best.test", Preference: 5}, {Host: "relay.test", Preference: 10}, {Host: "a.test", Preference: 10}, {Host: "b.test", Preference: 20}},
		"onlyself.test":    {{Host: "relay.test", Preference: 10}, {Host: "b.test", Preference: 20}},
		"selfaddr.test":    {{Host: "best.test", Preference: 5}, {Host: "alias.test", Preference: 10}, {Host: "a.test", Preference: 10}},
		"selffirst.test":   {{Host: "alias.test", Preference: 10}, {Host: "b.test", Preference: 20}},
		"selftrouble.test": {{Host: "fails.test", Preference: 5}, {Host: "relay.test", Preference: 10}},
		"wide.test":        {{Host: "wide1.test", Preference: 10}, {Host: "wide2.test", Preference: 20}, {Host: "a.test", Preference: 30}},
		"sixes.test":       {{Host: "sixes-mx.test", Preference: 10}, {Host: "a.test", Preference: 20}},
		"evil.test":        {{Host: "evil-mx.test", Preference: 10}},
		"private.test":     {{Host: "private-mx.test", Preference: 10}},
		"noaddr.test":      {{Host: "private-mx.test", Preference: 10}, {Host: "nowhere.test", Preference: 20}},
		"forms.test":       {{Host: "forms-mx.test", Preference: 10}},
		"nat64.test":       {{Host: "nat64-mx.test", Preference: 10}},
		"6to4.test":        {{Host: "6to4-mx.test", Preference: 10}},
		"localhost.test":   {{Host: "localhost", Preference: 10}},
		"lower.test":       {{Host: "a.test", Preference: 10}, {Host: "alias.test", Preference: 20}, {Host: "b.test", Preference: 30}},
		"case.test":        {{Host: "RELAY.test", Preference: 10}},
	},
	Hosts: map[string][]string{
		"a.test":          {"192.0.2.1"},
		"b.test":          {"192.0.2.2"},
		"c.test":          {"192.0.2.3"},
		"best.test":       {"192.0.2.9"},
		"relay.test":      {"192.0.2.100"},
		"alias.test":      {"2001:db8::5", "192.0.2.100"},
		"implicit.test":   {"192.0.2.50", "2001:db8::50"},
		"nodata.test":     {},
		"wide1.test":      {"192.0.2.11", "192.0.2.12", "192.0.2.13", "2001:db8::11", "2001:db8::12", "2001:db8::13"},
		"wide2.test":      {"192.0.2.14"},
		"sixes-mx.test":   {"2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4", "2001:db8::5", "2001:db8::6"},
		"evil-mx.test":    {"127.0.0.1", "::1", "0.0.0.0", "0.1.2.3", "::", "169.254.169.254", "fe80::1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "::ffff:127.0.0.1", "fd00:ec2::254", "100.100.100.200"},
		"private-mx.test": {"10.0.0.1", "172.16.0.1", "192.168.1.1", "fd12::1"},
		"forms-mx.test": {"::ffff:169.254.169.254", "::ffff:10.0.0.1", "::7f00:1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "fec0::1", "100.64.0.1", "ff02::1",
			"64:ff9b:1::c633:6401", "2002:7f00:1::1", "2002:a9fe:a9fe::1", "2002:a83f:8110::1", "168.63.129.16"},
		"nat64-mx.test": {"64:ff9b::c633:6401"},
		"6to4-mx.test":  {"2002:c633:6401::1"},
		"localhost":     {"127.0.0.1", "::1"},
		"noaddr.test":   {"192.0.2.77"},
	},
	Fail: map[string]error{"fails.test": errServFail},
}

func TestCandidates(t *testing.T) {
	self := mx.Options{Self: []string{"Relay.test."}, SelfAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.100")}}
	tests := []struct {
		row    string
		domain string
		o      mx.Options
		want   string // hosts, those of one preference sorted
		code   string // of an error
		is     error
	}{
		{row: "E3-44", domain: "two.test", want: "a.test/192.0.2.1 b.test/192.0.2.2"},
		{row: "E3-44", domain: "equal.test", want: "a.test/192.0.2.1 b.test/192.0.2.2 c.test/192.0.2.3"},
		{row: "E3-45", domain: "implicit.test", want: "implicit.test/192.0.2.50 implicit.test/2001:db8::50"},
		{row: "E3-46", domain: "null.test", code: "556 5.1.10", is: mx.ErrNullMX},
		{row: "E3-46", domain: "nullplus.test", want: "a.test/192.0.2.1"},
		{row: "E3-45", domain: "unusable.test", code: "550 5.4.4", is: mx.ErrNoAddress},
		{row: "E3-47", domain: "nowhere.test", code: "550 5.1.2", is: mx.ErrNoName},
		{row: "E3-47", domain: "nodata.test", code: "550 5.4.4", is: mx.ErrNoAddress},
		{row: "E3-47", domain: "fails.test", code: "451 4.4.3", is: mx.ErrLookup},
		{row: "E3-47", domain: "partly.test", want: "a.test/192.0.2.1"},
		{row: "E3-47", domain: "trouble.test", code: "451 4.4.3", is: errServFail},
		{row: "E3-48", domain: "self.test", o: self, want: "best.test/192.0.2.9"},
		{row: "E3-48", domain: "selfaddr.test", o: self, want: "best.test/192.0.2.9"},
		{row: "E3-48", domain: "onlyself.test", o: self, code: "554 5.4.6", is: mx.ErrLoop},
		{row: "E3-48", domain: "selffirst.test", o: self, code: "554 5.4.6", is: mx.ErrLoop},
		{row: "E3-48", domain: "selftrouble.test", o: self, code: "451 4.4.3", is: mx.ErrLookup},
		{row: "E3-48", domain: "relay.test", o: self, code: "554 5.4.6", is: mx.ErrLoop},
		{row: "E3-48", domain: "case.test", o: self, code: "554 5.4.6", is: mx.ErrLoop},
		{row: "E3-44", domain: "sixes.test", o: mx.Options{MaxAddresses: 1}, want: "sixes-mx.test/"},
		{row: "E3-48", domain: "evil.test", code: "550 5.4.4", is: mx.ErrNoAddress},
		{row: "E3-48", domain: "evil.test", o: mx.Options{AllowPrivate: true, MaxAddresses: 1}, want: "evil-mx.test/"},
		{row: "E3-45", domain: "noaddr.test", code: "550 5.4.4", is: mx.ErrNoAddress},
		{row: "E3-48", domain: "forms.test", code: "550 5.4.4", is: mx.ErrNoAddress},
		{row: "E3-48", domain: "nat64.test", want: "nat64-mx.test/64:ff9b::c633:6401"},
		{row: "E3-48", domain: "6to4.test", want: "6to4-mx.test/2002:c633:6401::1"},
		{row: "E3-48", domain: "localhost.test", code: "550 5.4.4", is: mx.ErrNoAddress},
		{row: "E3-48", domain: "lower.test", o: self, want: "a.test/192.0.2.1"},
		{row: "E3-51", domain: "implicit.test", o: mx.Options{NoIPv6: true}, want: "implicit.test/192.0.2.50"},
		{row: "E3-51", domain: "implicit.test", o: mx.Options{NoIPv4: true}, want: "implicit.test/2001:db8::50"},
		{row: "E3-51", domain: "two.test", o: mx.Options{NoIPv4: true}, code: "451 4.4.1", is: mx.ErrNoFamily},
		{row: "E3-51", domain: "[192.0.2.1]", o: mx.Options{AllowLiteral: true, NoIPv4: true}, code: "451 4.4.1", is: mx.ErrNoFamily},
		{row: "E3-48", domain: "private.test", code: "550 5.4.4", is: mx.ErrNoAddress},
		{row: "E3-48", domain: "private.test", o: mx.Options{AllowPrivate: true, MaxAddresses: 1}, want: "private-mx.test/"},
		{row: "E3-50", domain: "[192.0.2.1]", code: "550 5.1.2", is: mx.ErrLiteral},
		{row: "E3-50", domain: "[192.0.2.1]", o: mx.Options{AllowLiteral: true}, want: "192.0.2.1/192.0.2.1"},
		{row: "E3-50", domain: "[IPv6:2001:db8::1]", o: mx.Options{AllowLiteral: true}, want: "2001:db8::1/2001:db8::1"},
		{row: "E3-50", domain: "[127.0.0.1]", o: mx.Options{AllowLiteral: true}, code: "550 5.4.4", is: mx.ErrNoAddress},
		{row: "E3-50", domain: "[192.0.2.100]", o: mx.Options{AllowLiteral: true, SelfAddrs: self.SelfAddrs}, code: "554 5.4.6", is: mx.ErrLoop},
		{row: "E3-50", domain: "[IPv6:::ffff:127.0.0.1]", o: mx.Options{AllowLiteral: true}, code: "550 5.4.4", is: mx.ErrNoAddress},
		{row: "E3-50", domain: "[IPv6:2001:db8::1]", code: "550 5.1.2", is: mx.ErrLiteral},
		{row: "E3-50", domain: "[nonsense]", o: mx.Options{AllowLiteral: true}, code: "550 5.1.2", is: mx.ErrLiteral},
	}
	for _, tt := range tests {
		t.Run(tt.row+" "+tt.domain, func(t *testing.T) {
			hosts, err := mx.Candidates(t.Context(), records, tt.domain, tt.o)
			if tt.code != "" {
				failure, ok := errors.AsType[*mx.Error](err)
				if !ok || !errors.Is(err, tt.is) || fmt.Sprintf("%d %s", failure.Code, failure.Enhanced) != tt.code {
					t.Fatalf("got %v, %v", hosts, err)
				}
				if failure.Permanent() != strings.HasPrefix(tt.code, "5") || failure.Temporary() == failure.Permanent() {
					t.Errorf("got permanent %v", failure.Permanent())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := show(hosts); got != tt.want && !(strings.HasSuffix(tt.want, "/") && strings.HasPrefix(got, tt.want)) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// show prints hosts; those of one preference are sorted, their order is random.
func show(hosts []mx.Host) string {
	hosts = slices.Clone(hosts)
	slices.SortStableFunc(hosts, func(a, b mx.Host) int {
		if a.Preference != b.Preference {
			return int(a.Preference) - int(b.Preference)
		}
		return strings.Compare(a.Name+a.Addr.String(), b.Name+b.Addr.String())
	})
	var out []string
	for _, h := range hosts {
		out = append(out, h.Name+"/"+h.Addr.String())
	}
	return strings.Join(out, " ")
}

func TestE3_44_PreferenceOrder(t *testing.T) {
	first := map[string]int{}
	for range 200 {
		hosts, err := mx.Candidates(t.Context(), records, "equal.test", mx.Options{})
		if err != nil {
			t.Fatal(err)
		}
		first[hosts[0].Name]++
		hosts, err = mx.Candidates(t.Context(), records, "two.test", mx.Options{})
		if err != nil || hosts[0].Name != "a.test" || hosts[1].Name != "b.test" {
			t.Fatalf("got %v, %v", hosts, err)
		}
	}
	if len(first) != 3 {
		t.Errorf("equal preferences were not shuffled: %v", first)
	}
}

// Five addresses at most, and neither family left out.
func TestE3_44_AddressCap(t *testing.T) {
	for range 50 {
		for _, domain := range []string{"wide.test", "sixes.test"} {
			hosts, err := mx.Candidates(t.Context(), records, domain, mx.Options{})
			if err != nil || len(hosts) != 5 {
				t.Fatalf("got %v, %v", hosts, err)
			}
			four := slices.ContainsFunc(hosts, func(h mx.Host) bool { return h.Addr.Is4() })
			six := slices.ContainsFunc(hosts, func(h mx.Host) bool { return h.Addr.Is6() })
			if !six || !four {
				t.Fatalf("%s: got %v", domain, hosts)
			}
		}
	}
}

func TestCandidatesContext(t *testing.T) {
	gone := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	for _, domain := range []string{"two.test", "implicit.test"} {
		if _, err := mx.Candidates(ctx, records, domain, mx.Options{}); !errors.Is(err, gone) {
			t.Errorf("got %v", err)
		}
	}
}

func TestSite(t *testing.T) {
	long := strings.Repeat("long-host-name-", 4)
	tests := []struct {
		name  string
		hosts []string
		want  string
	}{
		{"one host", []string{"mx.example.net"}, "mx.example.net"},
		{"one host twice", []string{"mx.example.net", "MX.example.net"}, "mx.example.net"},
		{"shared end", []string{"alt2.gmail.example", "alt1.gmail.example"}, "(alt1|alt2).gmail.example"},
		{"different depth", []string{"a.b.example", "b.example"}, "(a.b|b).example"},
		{"nothing shared", []string{"mx.a.test", "mx.b.example"}, "(mx.a.test|mx.b.example)"},
		{"labels are whole", []string{"xa.test", "ya.test"}, "(xa|ya).test"},
		{"bounded", []string{long + "1.example.net", long + "2.example.net"},
			"(long-host-name-long-host-name-long-host-name-long-host-name-1|#108fa62b).example.net"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for range 5 {
				r := mxtest.Records{MX: map[string][]mx.MX{}, Hosts: map[string][]string{}}
				for i, host := range tt.hosts {
					r.MX["domain.test"] = append(r.MX["domain.test"], mx.MX{Host: host, Preference: uint16(10 * i)})
					r.Hosts[strings.ToLower(host)] = []string{"192.0.2.1"}
				}
				hosts, err := mx.Candidates(t.Context(), r, "domain.test", mx.Options{MaxAddresses: 1})
				if err != nil {
					t.Fatal(err)
				}
				got := mx.Site(hosts)
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				if len(got) > 120 {
					t.Errorf("got %d octets", len(got))
				}
			}
		})
	}
	if got := mx.Site(nil); got != "" {
		t.Errorf("no hosts: got %q", got)
	}
}
