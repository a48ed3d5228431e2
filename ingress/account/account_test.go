package account

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"postroad/queue/address"
)

func TestMaySend(t *testing.T) {
	tests := []struct {
		senders string // blanks between them
		path    string
		want    bool
	}{
		{"", "anybody@anywhere.example", true},
		{"", "", true},
		{"root@web1.example", "root@web1.example", true},
		{"root@web1.example", "Root@web1.example", true},
		{"root@web1.example", "root@web2.example", false},
		{"root@web1.example", "root+cron@web1.example", false},
		{"root@web1.example", "postmaster", false},
		{"root@web1.example", "", true}, // the null path
		{"@example.com", "a@example.com", true},
		{"@example.com", "a@sub.example.com", false},
		{"@example.com", "a@xexample.com", false},
		{"@EXAMPLE.com", "a@Example.COM", true},
		{"@bücher.example", "a@xn--bcher-kva.example", true},
		{".example.com", "a@sub.example.com", true},
		{".example.com", "a@deep.sub.example.com", true},
		{".example.com", "a@example.com", false},
		{".example.com", "a@xexample.com", false},
		{"@[192.0.2.1]", "a@[192.0.2.1]", true},
		{"x@example.com @example.org", "y@example.org", true},
		{"x@example.com @example.org", "y@example.com", false},
	}
	for _, tt := range tests {
		c := &Client{}
		for text := range strings.FieldsSeq(tt.senders) {
			s, err := ParseSender(text)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := ParseSender(s.String()); err != nil || again != s {
				t.Errorf("%s printed and read: got %v, %v", s, again, err)
			}
			c.Senders = append(c.Senders, s)
		}
		path, err := address.Parse(tt.path)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.MaySend(path); got != tt.want {
			t.Errorf("%q for <%s>: got %t, want %t", tt.senders, tt.path, got, tt.want)
		}
	}
}

func TestMayConnect(t *testing.T) {
	tests := []struct {
		networks string
		addr     string
		want     bool
	}{
		{"", "192.0.2.1", true},
		{"10.0.0.0/8", "10.1.2.3", true},
		{"10.0.0.0/8", "::ffff:10.1.2.3", true},
		{"10.0.0.0/8", "192.0.2.1", false},
		{"10.0.0.0/8", "::1", false},
		{"::ffff:10.0.0.0/104", "10.1.2.3", true},
		{"::ffff:10.0.0.0/104", "::ffff:10.1.2.3", true},
		{"::ffff:10.0.0.0/104", "11.1.2.3", false},
		{"192.0.2.7", "192.0.2.7", true},
		{"192.0.2.7", "192.0.2.8", false},
		{"::ffff:192.0.2.7", "192.0.2.7", true},
		{"2001:db8::/32", "2001:db8:1::1", true},
		{"2001:db8::/32", "2001:db9::1", false},
		{"fe80::/10", "fe80::1%eth0", true},
		{"10.0.0.0/8 2001:db8::/32", "2001:db8::1", true},
		{"0.0.0.0/0", "::1", false},
	}
	for _, tt := range tests {
		c := &Client{}
		for text := range strings.FieldsSeq(tt.networks) {
			n, err := ParseNetwork(text)
			if err != nil {
				t.Fatal(err)
			}
			c.Networks = append(c.Networks, n)
		}
		if got := c.MayConnect(netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("%s in %q: got %t, want %t", tt.addr, tt.networks, got, tt.want)
		}
	}
}

func TestCleanName(t *testing.T) {
	for name, want := range map[string]string{
		"web1": "web1", "Web1.Example.COM": "web1.example.com", "user+x@example.com": "user+x@example.com", "a_b-c": "a_b-c", "7": "7",
		"": "", ".": "", "..": "", ".a": "", "a.": "", "a..b": "", "-a": "", "a-": "", "a/b": "", `a\b`: "", "a b": "", "é": "", "a\x00b": "",
		strings.Repeat("a", 128): strings.Repeat("a", 128), strings.Repeat("a", 129): "",
	} {
		if got, ok := CleanName(name); got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %t, want %q", name, got, ok, want)
		}
	}
}

func TestClone(t *testing.T) {
	c := &Client{Name: "a", Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Passwords: []Password{{ID: "x"}}, revision: "r"}
	copied := c.Clone()
	copied.Networks[0] = netip.MustParsePrefix("::/0")
	copied.Passwords[0].ID = "y"
	if c.Networks[0].String() != "10.0.0.0/8" || c.Passwords[0].ID != "x" || copied.Revision() != "r" {
		t.Errorf("a change of the copied %+v changed %+v", copied, c)
	}
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"web1", "../x", "a@b.example", "A.B", "a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		clean, ok := CleanName(name)
		if !ok {
			return
		}
		if again, ok := CleanName(clean); !ok || again != clean {
			t.Errorf("%q became %q, which becomes %q, %t", name, clean, again, ok)
		}
		if strings.ContainsAny(clean, "/\\\x00") || clean[0] == '.' || slices.Contains(strings.Split(clean, "."), "") {
			t.Errorf("%q is no safe name of a file", clean)
		}
	})
}
