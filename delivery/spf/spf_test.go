package spf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// names is a name service made of records.
type names struct {
	mxtest.Records
	txt map[string][]string
	ptr map[string][]string
}

func (n names) LookupTXT(_ context.Context, name string) ([]string, error) {
	if err := n.Fail[name]; err != nil {
		return nil, err
	}
	texts, ok := n.txt[name]
	if !ok {
		return nil, mx.ErrNoName
	}
	return texts, nil
}

func (n names) LookupAddr(_ context.Context, addr netip.Addr) ([]string, error) {
	if list, ok := n.ptr[addr.String()]; ok {
		return list, nil
	}
	return nil, mx.ErrNoName
}

var world = names{
	Records: mxtest.Records{
		MX:    map[string][]mx.MX{"example.com": {{Host: "mx1.example.com"}, {Host: "mx2.example.com"}}},
		Hosts: map[string][]string{"example.com": {"192.0.2.10"}, "mx1.example.com": {"192.0.2.20"}, "mx2.example.com": {"2001:db8:2::20"}, "1.2.0.192.spf.example.com": {"127.0.0.2"}, "out.example.com": {"192.0.2.1"}},
		Fail:  map[string]error{"fails.test": errors.New("SERVFAIL")},
	},
	ptr: map[string][]string{"192.0.2.1": {"out.example.com"}},
	txt: map[string][]string{"inc.test": {"v=spf1 ip4:192.0.2.0/28 -all"}, "soft.test": {"v=spf1 ~all"}, "two.test": {"v=spf1 -all", "v=spf1 +all"}, "fails-inc.test": {"v=spf1 include:fails.test -all"}},
}

func TestCheck(t *testing.T) {
	tests := []struct {
		record, addr string
		want         Result
		err          error
	}{
		{"", "192.0.2.1", None, nil},
		{"other text", "192.0.2.1", None, nil},
		{"v=spf10 +all", "192.0.2.1", None, nil},
		{"v=spf1", "192.0.2.1", Neutral, nil},
		{"v=spf1 -all", "192.0.2.1", Fail, nil},
		{"V=SPF1 ?ALL", "192.0.2.1", Neutral, nil},
		{"v=spf1 ip4:192.0.2.0/24 -all", "192.0.2.1", Pass, nil},
		{"v=spf1 ip4:192.0.2.0/24 -all", "::ffff:192.0.2.1", Pass, nil},
		{"v=spf1 ip4:192.0.2.2 ~all", "192.0.2.1", SoftFail, nil},
		{"v=spf1 ip6:2001:db8::/32 -all", "2001:db8::1", Pass, nil},
		{"v=spf1 ip6:2001:db8::/32 -all", "192.0.2.1", Fail, nil},
		{"v=spf1 ip4:2001:db8::/32 -all", "2001:db8::1", PermError, ErrSyntax},
		{"v=spf1 a:example.com -all", "192.0.2.10", Pass, nil},
		{"v=spf1 a:example.com/24 -all", "192.0.2.99", Pass, nil},
		{"v=spf1 a:example.com/33 -all", "192.0.2.99", PermError, ErrSyntax},
		{"v=spf1 mx:example.com -all", "192.0.2.20", Pass, nil},
		{"v=spf1 mx:example.com//48 -all", "2001:db8:2::99", Pass, nil},
		{"v=spf1 mx:example.com -all", "192.0.2.21", Fail, nil},
		{"v=spf1 include:inc.test -all", "192.0.2.1", Pass, nil},
		{"v=spf1 include:soft.test -all", "192.0.2.1", Fail, nil},
		{"v=spf1 include:none.test -all", "192.0.2.1", PermError, ErrInclude},
		{"v=spf1 include:two.test -all", "192.0.2.1", PermError, ErrRecords},
		{"v=spf1 include:fails.test -all", "192.0.2.1", TempError, nil},
		{"v=spf1 ip4:192.0.2.1 include:fails.test -all", "192.0.2.1", Pass, nil},
		{"v=spf1 redirect=inc.test", "192.0.2.1", Pass, nil},
		{"v=spf1 redirect=none.test", "192.0.2.1", PermError, ErrInclude},
		{"v=spf1 exists:%{ir}.spf.example.com -all", "192.0.2.1", Pass, nil},
		{"v=spf1 exists:%{ir}.spf.example.com -all", "192.0.2.2", Fail, nil},
		{"v=spf1 ptr:example.com -all", "192.0.2.1", Pass, nil},
		{"v=spf1 exp=why.example.com x-other=1 -all", "192.0.2.1", Fail, nil},
		{"v=spf1 all:x", "192.0.2.1", PermError, ErrSyntax},
		{"v=spf1 include -all", "192.0.2.1", PermError, ErrSyntax},
		{"v=spf1 nonsense -all", "192.0.2.1", PermError, ErrSyntax},
		{"v=spf1 a:%{x} -all", "192.0.2.1", PermError, ErrSyntax},
		{"v=spf1 a:%{d -all", "192.0.2.1", PermError, ErrSyntax},
		{"v=spf1 include:test.test -all", "192.0.2.1", PermError, ErrLookups},
		{"v=spf1 " + strings.Repeat("a:mx1.example.com ", 10) + "-all", "192.0.2.1", Fail, nil},
		{"v=spf1 " + strings.Repeat("a:mx1.example.com ", 11) + "-all", "192.0.2.1", PermError, ErrLookups},
		{"v=spf1 a:n1.test a:n2.test -all", "192.0.2.1", Fail, nil},
		{"v=spf1 a:n1.test a:n2.test a:n3.test -all", "192.0.2.1", PermError, ErrLookups},
	}
	for _, tt := range tests {
		t.Run(tt.record+" "+tt.addr, func(t *testing.T) {
			w := world
			w.txt = map[string][]string{"test.test": {tt.record}}
			if tt.record == "" {
				w.txt = map[string][]string{}
			}
			for name, texts := range world.txt {
				w.txt[name] = texts
			}
			got, err := Check(t.Context(), w, netip.MustParseAddr(tt.addr), "test.test")
			if got != tt.want || tt.err != nil && !errors.Is(err, tt.err) || (err != nil) != (got == TempError || got == PermError) {
				t.Errorf("got %s, %v, want %s, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestMacros(t *testing.T) {
	tests := []struct{ spec, want string }{
		{"%{d}", "strong.example.com"},
		{"%{d2}", "example.com"},
		{"%{dr}", "com.example.strong"},
		{"%{d2r}", "example.strong"},
		{"%{l}.%{o}", "postmaster.example.com"},
		{"%{l-}._spf.%{d2}", "postmaster._spf.example.com"},
		{"%{i}._%{v}.x", "192.0.2.3._in-addr.x"},
		{"%{ir}.%{v}", "3.2.0.192.in-addr"},
		{"%%%_%-", "% %20"},
	}
	c := &check{addr: netip.MustParseAddr("192.0.2.3"), sender: "postmaster@example.com"}
	for _, tt := range tests {
		if got, err := c.expand("strong.example.com", tt.spec); err != nil || got != tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.spec, got, err, tt.want)
		}
	}
	c.addr = netip.MustParseAddr("2001:db8::cb01")
	if got, err := c.expand("x.test", "%{ir}.%{v}"); err != nil || !strings.HasPrefix(got, "1.0.b.c.0.") || !strings.HasSuffix(got, ".8.b.d.0.1.0.0.2.ip6") {
		t.Errorf("got %q, %v", got, err)
	}
}

// Whatever a record holds, it ends and does not panic.
func FuzzCheck(f *testing.F) {
	for _, s := range []string{"v=spf1 a mx ip4:1.2.3.4/8 include:inc.test ~all", "v=spf1 redirect=%{d2r}", "v=spf1 exists:%{ir-}.x/24//64", "v=spf1 a:test.test//"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, record string) {
		w := world
		w.txt = map[string][]string{"test.test": {record}}
		got, err := Check(t.Context(), w, netip.MustParseAddr("192.0.2.1"), "test.test")
		if (err != nil) != (got == TempError || got == PermError) {
			t.Error(fmt.Sprint(got, err))
		}
	})
}
