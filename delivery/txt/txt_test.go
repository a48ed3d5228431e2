package txt

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestNew(t *testing.T) {
	one := netip.MustParseAddrPort("192.0.2.1:53")
	tests := map[string]Options{
		"negative":   {Resolvers: []netip.AddrPort{one}, Tries: -1},
		"too many":   {Resolvers: slices.Repeat([]netip.AddrPort{one}, maxResolvers+1)},
		"no port":    {Resolvers: []netip.AddrPort{netip.AddrPortFrom(one.Addr(), 0)}},
		"no address": {Resolvers: []netip.AddrPort{{}}},
	}
	for name, o := range tests {
		if _, err := New(o); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	got, err := systemResolvers("testdata/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.AddrPort{one, netip.MustParseAddrPort("[2001:db8::1]:53")}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Error(diff)
	}
	if _, err := systemResolvers("testdata/none"); err == nil {
		t.Error("got no error without a file")
	}
}

// TestJudgeWithoutRoute: without IPv6 here, a host's IPv4 address speaks for it.
func TestJudgeWithoutRoute(t *testing.T) {
	shows := Answer{Server: "ns1.test 192.0.2.1", Zone: "test", Name: "k.test", IsAuthoritative: true, Records: []string{"v"}}
	noRoute := Answer{Server: "ns1.test 2001:db8::1", Zone: "test", Name: "k.test", Err: ErrNoRoute}
	other := noRoute
	other.Server = "ns2.test 2001:db8::2"
	for _, tt := range []struct {
		name    string
		answers []Answer
		faults  int
	}{
		{"both", []Answer{noRoute, shows}, 0},
		{"only IPv6", []Answer{shows, other}, 1},
		{"nobody", nil, 1},
	} {
		verdict := View{Name: "k.test", Answers: tt.answers}.Judge(func(r string) bool { return r == "v" })
		if len(verdict.Faults) != tt.faults {
			t.Errorf("%s: got %v, want %d faults", tt.name, verdict.Faults, tt.faults)
		}
	}
}

func TestDisplay(t *testing.T) {
	for addr, want := range map[string]string{"192.0.2.1:53": "192.0.2.1", "[2001:db8::1]:53": "2001:db8::1", "[2001:db8::1]:5353": "[2001:db8::1]:5353"} {
		if got := display(netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestNoRoute(t *testing.T) {
	for errno, want := range map[syscall.Errno]bool{syscall.ENETUNREACH: true, syscall.EADDRNOTAVAIL: true, syscall.EACCES: false} {
		err := &net.OpError{Op: "dial", Net: "udp", Err: os.NewSyscallError("connect", errno)}
		if got := isNoRoute(err); got != want {
			t.Errorf("%v: got %v, want %v", err, got, want)
		}
	}
}
