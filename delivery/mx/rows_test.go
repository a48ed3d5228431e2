package mx_test

import (
	"fmt"
	"strings"
	"testing"

	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
)

// The shuffle can be given, so that the order is known.
func TestE3_44_ShuffleIsGiven(t *testing.T) {
	reverse := func(n int, swap func(i, j int)) {
		for i := range n / 2 {
			swap(i, n-1-i)
		}
	}
	stay := func(int, func(i, j int)) {}
	for want, shuffle := range map[string]func(int, func(i, j int)){"c.test b.test a.test": reverse, "a.test b.test c.test": stay} {
		hosts, err := mx.Candidates(t.Context(), records, "equal.test", mx.Options{Shuffle: shuffle})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, h := range hosts {
			names = append(names, h.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// Sets that somebody made large cost a bounded number of look-ups and give the usual number of addresses.
func TestE3_44_LargeSets(t *testing.T) {
	r := mxtest.Records{MX: map[string][]mx.MX{}, Hosts: map[string][]string{}}
	var addrs []string
	for i := range 1000 {
		addrs = append(addrs, fmt.Sprintf("198.51.%d.%d", i/250, i%250+1))
		host := fmt.Sprintf("mx%d.large.test", i)
		r.MX["large.test"] = append(r.MX["large.test"], mx.MX{Host: host, Preference: uint16(i % 3)})
		r.Hosts[host] = []string{addrs[i]}
	}
	r.MX["wide.test"], r.Hosts["wide-mx.test"] = []mx.MX{{Host: "wide-mx.test"}}, addrs
	for _, domain := range []string{"large.test", "wide.test"} {
		c := &counting{Records: r}
		hosts, err := mx.Candidates(t.Context(), c, domain, mx.Options{})
		if err != nil || len(hosts) != 5 || len(mx.Site(hosts)) > 120 {
			t.Errorf("%s: got %v, %v", domain, hosts, err)
		}
		if n := c.hosts.Load(); n > 20 {
			t.Errorf("%s: %d hosts were looked up", domain, n)
		}
	}
}

// What a name stands for is followed to the address, and both names are kept: which one TLSA records, a policy and SNI are for is said by
// their RFCs.
func TestE3_49_NamesBeforeAndAfterAliases(t *testing.T) {
	r := mxtest.Records{
		MX:     map[string][]mx.MX{"secure.test": {{Host: "mx.test", Preference: 10}, {Host: "insecure-mx.test", Preference: 20}}, "insecure.test": {{Host: "mx.test"}}, "none.test": nil},
		Hosts:  map[string][]string{"mx.test": {"192.0.2.1"}, "insecure-mx.test": {"192.0.2.2"}, "none.test": {"192.0.2.3"}},
		Alias:  map[string]string{"mx.test": "real.test"},
		Secure: map[string]bool{"secure.test": true, "mx.test": true, "none.test": true},
	}
	tests := []struct{ domain, want string }{
		{"secure.test", "mx.test real.test true true, insecure-mx.test insecure-mx.test true false"},
		{"insecure.test", "mx.test real.test false false"},
		{"none.test", "none.test none.test true true"},
	}
	for _, tt := range tests {
		hosts, err := mx.Candidates(t.Context(), r, tt.domain, mx.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, h := range hosts {
			got = append(got, fmt.Sprintf("%s %s %v %v", h.Name, h.Canonical, h.SecureMX, h.Secure))
		}
		if strings.Join(got, ", ") != tt.want {
			t.Errorf("%s: got %v, want %s", tt.domain, got, tt.want)
		}
	}
}
