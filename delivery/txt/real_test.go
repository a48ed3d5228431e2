//go:build realdns

package txt

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// TestRealServer speaks to a name server that is not ours. It takes from the
// environment what knot_start of .ci/verify/dns-lib.sh sets up:
//
//	KNOT_ADDR  its address and port, where it is also asked as a resolver
//	KNOT_ZONE  a zone on it, with NS records whose hosts are in the zone and on KNOT_ADDR's address
//	KNOT_KEY   the file with the key that may change TXT records of the zone
func TestRealServer(t *testing.T) {
	at, zone, key := os.Getenv("KNOT_ADDR"), os.Getenv("KNOT_ZONE"), os.Getenv("KNOT_KEY")
	addr, err := netip.ParseAddrPort(at)
	if err != nil || zone == "" || key == "" {
		t.Fatalf("KNOT_ADDR=%q KNOT_ZONE=%q KNOT_KEY=%q: start a server and set them all", at, zone, key)
	}
	c, err := New(Options{Resolvers: []netip.AddrPort{addr}, AuthoritativePort: addr.Port()})
	if err != nil {
		t.Fatal(err)
	}
	o := UpdateOptions{Server: at, Zone: zone, KeyFile: key}
	name := "rsa-202601._domainkey." + zone
	// shows waits for the change to be in use, which may take a moment, and returns the last View.
	shows := func(records ...string) View {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			v, err := c.Look(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			good := len(v.Answers) >= 2
			for _, a := range v.Answers {
				good = good && a.Err == nil && strings.Join(a.Records, "|") == strings.Join(records, "|")
			}
			if good {
				return v
			}
			if time.Now().After(end) {
				t.Fatalf("got %+v, want records %q", v, records)
			}
		}
	}
	update := func(op Op, value string) {
		t.Helper()
		if err := Update(t.Context(), o, Change{op, name, value, 5 * time.Minute}); err != nil {
			t.Fatal(err)
		}
	}

	first := shows()
	long := "v=DKIM1; k=rsa; n=\"x\"\\; p=" + strings.Repeat("MIIBIjANBgkqhkiG9w0B", 40)
	update(Add, long)
	update(Add, long)
	v := shows(long)
	t.Logf("published: %+v", v)
	if v.Zone != zone || v.NegativeTTL <= 0 || v.Answers[0].TTL != 5*time.Minute || v.Answers[0].Serial <= first.Answers[0].Serial {
		t.Errorf("got %+v", v)
	}
	if verdict := v.Judge(func(r string) bool { return r == long }); len(verdict.Faults) > 0 || verdict.Resolvers != 1 {
		t.Errorf("got %+v", verdict)
	}
	update(Add, "another")
	shows("another", long)
	update(Delete, long)
	update(Delete, long)
	shows("another")
	update(Replace, "v=DKIM1; p=")
	shows("v=DKIM1; p=")
	update(Delete, "")
	update(Delete, "")
	shows()

	k, err := readKey(o)
	if err != nil {
		t.Fatal(err)
	}
	refusals := []struct {
		name   string
		o      UpdateOptions
		record string
		is     error
	}{
		{"other secret", UpdateOptions{Server: at, Zone: zone, KeyName: k.name, KeyFile: writeKey(t, secretOf('x'), 0o600)}, name, ErrKey},
		{"key not known", UpdateOptions{Server: at, Zone: zone, KeyName: "unknown", KeyFile: writeKey(t, secretOf('x'), 0o600)}, name, ErrKey},
		{"zone not there", UpdateOptions{Server: at, Zone: "not-there.example", KeyFile: key}, "a.not-there.example", ErrNotPrimary},
	}
	for _, r := range refusals {
		err := Update(t.Context(), r.o, Change{Replace, r.record, "v", 0})
		t.Logf("%s: %v", r.name, err)
		if !errors.Is(err, r.is) {
			t.Errorf("%s: got %v, want %v", r.name, err, r.is)
		}
	}
}
