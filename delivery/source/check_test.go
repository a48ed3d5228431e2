package source

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
)

// zone is a name service that answers from records.
func zone(t *testing.T, records string) *mx.DNS {
	t.Helper()
	r, err := mx.NewDNS(mx.DNSOptions{Servers: []string{mxtest.Serve(t, records)}, Timeout: time.Minute, Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const goodZone = `
1.2.0.192.in-addr.arpa. 60 IN PTR out1.example.com.
1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 60 IN PTR out1.example.com.
out1.example.com. 60 IN A 192.0.2.1
out1.example.com. 60 IN AAAA 2001:db8::1
example.com. 60 IN TXT "v=spf1 ip4:192.0.2.1 ip6:2001:db8::/64 -all"
_dmarc.example.com. 60 IN TXT "v=DMARC1; p=reject"

2.2.0.192.in-addr.arpa. 60 IN PTR host2.provider.test.
host2.provider.test. 60 IN A 192.0.2.2
3.2.0.192.in-addr.arpa. 60 IN PTR out3.example.com.
4.2.0.192.in-addr.arpa. 60 IN PTR out4.fails.test.
nospf.test. 60 IN A 192.0.2.9
wrong.test. 60 IN TXT "v=spf1 nonsense"
`

// E6-84: every address of a source has a name that leads back to it and is the one of EHLO, and SPF lets it send; S2.2.
func TestE6_84_Check(t *testing.T) {
	r := zone(t, goodZone)
	tests := []struct {
		name   string
		source Source
		domain string
		want   string // checks with their verdicts
		do     string // of the first that is not good
	}{
		{"all is well, by both families", Source{Name: "out1", IPv4: ip("192.0.2.1"), IPv6: ip("2001:db8::1"), Hostname: "out1.example.com"}, "example.com",
			"192.0.2.1 ptr good, 192.0.2.1 forward good, 192.0.2.1 ehlo good, 192.0.2.1 spf good, 2001:db8::1 ptr good, 2001:db8::1 forward good, 2001:db8::1 ehlo good, 2001:db8::1 spf good", ""},
		{"the provider's name", Source{IPv4: ip("192.0.2.2"), Hostname: "out2.example.com"}, "example.com",
			"192.0.2.2 ptr good, 192.0.2.2 forward good, 192.0.2.2 ehlo bad, 192.0.2.2 spf bad", "set ehlo of the source to host2.provider.test"},
		{"a name that leads nowhere", Source{IPv4: ip("192.0.2.3"), Hostname: "out3.example.com"}, "nospf.test",
			"192.0.2.3 ptr good, 192.0.2.3 forward bad, 192.0.2.3 ehlo bad, 192.0.2.3 spf bad", "give out3.example.com an address record 192.0.2.3"},
		{"no name at all", Source{IPv4: ip("192.0.2.7"), Hostname: "out7.example.com"}, "wrong.test",
			"192.0.2.7 ptr bad, 192.0.2.7 spf bad", "have a PTR record made"},
		{"the name service fails", Source{IPv4: ip("192.0.2.4"), Hostname: "out4.fails.test"}, "fails.test",
			"192.0.2.4 ptr good, 192.0.2.4 forward unknown, 192.0.2.4 ehlo unknown, 192.0.2.4 spf unknown", "see that the name servers"},
	}
	for _, tt := range tests {
		t.Run("E6-84 "+tt.name, func(t *testing.T) {
			var got []string
			do := ""
			for _, f := range Check(t.Context(), r, tt.source, []string{tt.domain}) {
				got = append(got, fmt.Sprintf("%s %s %s", f.Address, f.Check, f.Verdict))
				if f.Source != tt.source.Name || f.Text == "" || (f.Verdict == Bad) && f.Do == "" {
					t.Errorf("got %+v", f)
				}
				if do == "" {
					do = f.Do
				}
			}
			if s := strings.Join(got, ", "); s != tt.want {
				t.Errorf("got\n%s, want\n%s", s, tt.want)
			}
			if !strings.HasPrefix(do, tt.do) || (do == "") != (tt.do == "") {
				t.Errorf("got %q, want %q", do, tt.do)
			}
		})
	}
}

func TestCheckDMARC(t *testing.T) {
	r := zone(t, goodZone)
	for domain, want := range map[string]Verdict{"example.com": Good, "deep.down.example.com": Good, "nospf.test": Bad, "fails.test": Unknown} {
		if f := CheckDMARC(t.Context(), r, domain); f.Verdict != want || f.Check != "dmarc" {
			t.Errorf("%s: got %+v, want %s", domain, f, want)
		}
	}
}

// What ends the look-ups is no verdict.
func TestCheckEnds(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("stopped"))
	for _, f := range Check(ctx, zone(t, goodZone), Source{IPv4: ip("192.0.2.1"), Hostname: "out1.example.com"}, []string{"example.com"}) {
		if f.Verdict != Unknown {
			t.Errorf("got %+v", f)
		}
	}
}
