package mx

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// scripted answers by a function, without a network, and says that it is a trusted server.
func scripted(answer func(q *dns.Msg, server string) (*dns.Msg, error), servers ...string) *DNS {
	d := &DNS{attempts: 1, trusted: true, cache: newCache(100)}
	for _, s := range servers {
		d.servers = append(d.servers, &server{addr: s})
	}
	d.exchange = func(_ context.Context, q *dns.Msg, server string) (*dns.Msg, error) { return answer(q, server) }
	return d
}

func reply(t *testing.T, q *dns.Msg, secure bool, records ...string) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetReply(q)
	m.AuthenticatedData = secure
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
	}
	return m
}

// The AD flag counts when the server is trusted, and all the way of the aliases.
func TestAuthenticatedData(t *testing.T) {
	answer := func(q *dns.Msg, _ string) (*dns.Msg, error) {
		if !q.AuthenticatedData {
			t.Error("the question does not ask for the AD flag")
		}
		switch name, qtype := q.Question[0].Name, q.Question[0].Qtype; {
		case qtype == dns.TypeMX && name == "proven.test.":
			return reply(t, q, true, "proven.test. 60 IN MX 10 mx.test."), nil
		case qtype == dns.TypeMX:
			return reply(t, q, name == "implicit.test."), nil
		case qtype == dns.TypeA && name == "mx.test.":
			return reply(t, q, true, "mx.test. 60 IN A 192.0.2.1"), nil
		case qtype == dns.TypeA && name == "half.test.":
			return reply(t, q, true, "half.test. 60 IN CNAME end.test."), nil
		case qtype == dns.TypeA && name == "end.test.":
			return reply(t, q, false, "end.test. 60 IN A 192.0.2.2"), nil
		}
		return reply(t, q, false), nil
	}
	for _, trusted := range []bool{true, false} {
		d := scripted(answer, "127.0.0.1:53")
		d.trusted = trusted
		for domain, want := range map[string]bool{"proven.test": trusted, "implicit.test": trusted, "other.test": false} {
			if got, err := d.LookupMX(t.Context(), domain); err != nil || got.IsSecure != want {
				t.Errorf("trusted %v, %s: got %+v, %v", trusted, domain, got, err)
			}
		}
		got, err := d.LookupHost(t.Context(), "mx.test")
		if err != nil || len(got.Addrs) != 1 || got.Addrs[0].IsSecure != trusted || got.Canonical != "mx.test" {
			t.Errorf("trusted %v: got %+v, %v", trusted, got, err)
		}
		got, err = d.LookupHost(t.Context(), "half.test")
		if err != nil || len(got.Addrs) != 1 || got.Addrs[0].IsSecure || got.Canonical != "end.test" {
			t.Errorf("trusted %v: got %+v, %v", trusted, got, err)
		}
	}
}

// One resolver that is not trusted spoils the trust in all: it takes their place when they are kept from answering.
func TestTrust(t *testing.T) {
	trusted := []netip.Addr{netip.MustParseAddr("192.0.2.53")}
	tests := []struct {
		servers []string
		want    bool
	}{
		{[]string{"127.0.0.1"}, true},
		{[]string{"[::1]:5353"}, true},
		{[]string{"192.0.2.53:53"}, true},
		{[]string{"127.0.0.1", "192.0.2.53"}, true},
		{[]string{"192.0.2.54"}, false},
		{[]string{"127.0.0.1", "192.0.2.54"}, false},
		{[]string{"127.0.0.53"}, true},
		{[]string{"127.0.0.11"}, false}, // of a container's network: it forwards
		{[]string{"[::ffff:127.0.0.11]:53"}, false},
	}
	for _, tt := range tests {
		d, err := NewDNS(DNSOptions{Servers: tt.servers, Trusted: trusted})
		if err != nil || d.IsTrusted() != tt.want {
			t.Errorf("%v: got %v, %v", tt.servers, d.IsTrusted(), err)
		}
	}
}

// What is on loopback because the system says so may be a mere forwarder: it is trusted when the operator says so.
func TestTrustInServersOfTheSystem(t *testing.T) {
	for _, server := range []string{"127.0.0.1", "127.0.0.11", "127.0.0.53", "192.0.2.53"} {
		file := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(file, []byte("nameserver "+server+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, trusted := range [][]netip.Addr{nil, {netip.MustParseAddr(server)}} {
			d, err := openDNS(DNSOptions{Trusted: trusted}, file)
			if want := len(trusted) > 0; err != nil || d.IsTrusted() != want {
				t.Errorf("%s, trusted %v: got %v, %v", server, trusted, d.IsTrusted(), err)
			}
		}
	}
}

// E3-47: an answer that is forged is temporary trouble, and no older answer takes its place.
func TestE3_47_Bogus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		isBogus := false
		d := scripted(func(q *dns.Msg, _ string) (*dns.Msg, error) {
			if !isBogus {
				return reply(t, q, false, "a.test. 1 IN MX 10 mx.a.test."), nil
			}
			m := new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
			m.SetEdns0(udpBytes, false)
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeSignatureExpired, ExtraText: "x"})
			return m, nil
		}, "127.0.0.1:53")
		if _, err := d.LookupMX(t.Context(), "a.test"); err != nil {
			t.Fatal(err)
		}
		isBogus = true
		time.Sleep(2 * time.Second)
		_, err := Candidates(t.Context(), d, "a.test", Options{})
		failure, ok := errors.AsType[*Error](err)
		if !ok || !errors.Is(err, ErrBogus) || failure.Permanent() || failure.Enhanced != "4.4.3" || !strings.Contains(err.Error(), "Signature Expired") {
			t.Errorf("got %v", err)
		}
	})
}

// When the name service fails, what was known stands in for some hours, unless it was proven: then it ends with its time.
func TestStaleAnswers(t *testing.T) {
	for _, secure := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			fails, asked := false, 0
			d := scripted(func(q *dns.Msg, _ string) (*dns.Msg, error) {
				asked++
				if fails {
					return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure), nil
				}
				return reply(t, q, secure, "a.test. 60 IN MX 10 mx.a.test."), nil
			}, "127.0.0.1:53")
			look := func() error {
				_, err := d.LookupMX(t.Context(), "a.test")
				return err
			}
			if err := look(); err != nil {
				t.Fatal(err)
			}
			fails = true
			time.Sleep(61 * time.Second)
			if err := look(); (err == nil) == secure {
				t.Fatalf("secure %v: got %v", secure, err)
			}
			before := asked
			if _ = look(); asked != before {
				t.Error("the failure was not remembered")
			}
			if secure {
				return
			}
			time.Sleep(staleTTL + time.Second)
			if _ = look(); asked != before+1 {
				t.Errorf("asked %d times after the wait", asked-before)
			}
			time.Sleep(maxStale)
			if err := look(); err == nil {
				t.Error("it is told for ever")
			}
			fails = false
			time.Sleep(failureTTL + time.Second)
			if err := look(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A server that does not answer is asked last, until one question finds it well.
func TestDeadServerIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dead atomic.Bool
		dead.Store(true)
		counts := map[string]int{}
		d := scripted(func(q *dns.Msg, server string) (*dns.Msg, error) {
			counts[server]++
			if server == "one" && dead.Load() {
				return nil, errors.New("timed out")
			}
			return reply(t, q, false), nil
		}, "one", "two")
		n := 0
		look := func() {
			n++
			if _, err := d.LookupMX(t.Context(), fmt.Sprintf("n%d.test", n)); err != nil {
				t.Fatal(err)
			}
		}
		for range 10 {
			look()
		}
		if counts["one"] != 1 || counts["two"] != 10 {
			t.Errorf("got %v", counts)
		}
		time.Sleep(downFor + time.Second)
		look()
		look()
		if counts["one"] != 2 || counts["two"] != 12 {
			t.Errorf("still dead: got %v", counts)
		}
		dead.Store(false)
		time.Sleep(downFor + time.Second)
		look()
		look()
		if counts["one"] != 4 || counts["two"] != 12 {
			t.Errorf("well again: got %v", counts)
		}
	})
}

// While one question finds out whether a server is well again, others do not wait for it.
func TestOneQuestionProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var probes atomic.Int64
		d := scripted(func(q *dns.Msg, server string) (*dns.Msg, error) {
			if server == "one" {
				probes.Add(1)
				time.Sleep(5 * time.Second)
				return nil, errors.New("timed out")
			}
			return reply(t, q, false), nil
		}, "one", "two")
		d.servers[0].down.Store(time.Now().UnixNano())
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				if _, err := d.LookupMX(t.Context(), fmt.Sprintf("n%d.test", i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := probes.Load(); n != 1 {
			t.Errorf("%d questions waited for the dead server", n)
		}
	})
}

// Chains that are too long, or go round, end; and a thousand records are not all kept.
func TestE3_49_LongChains(t *testing.T) {
	d := scripted(func(q *dns.Msg, _ string) (*dns.Msg, error) {
		name := q.Question[0].Name
		if name == "many.test." {
			var records []string
			for i := range 3000 {
				records = append(records, fmt.Sprintf("many.test. 60 IN MX %d mx%d.test.", i, i))
			}
			return reply(t, q, false, records...), nil
		}
		return reply(t, q, false, name+" 60 IN CNAME x"+name), nil
	}, "127.0.0.1:53")
	if got, err := d.LookupHost(t.Context(), "a.test"); err == nil || errors.Is(err, ErrNoName) {
		t.Errorf("got %v, %v, want a temporary error", got, err)
	}
	if got, err := d.LookupMX(t.Context(), "many.test"); err != nil || len(got.Records) != maxRecords {
		t.Errorf("got %d records, %v", len(got.Records), err)
	}
}

// Records beside the answer (glue) are nobody's business: only the answer section counts.
func TestGlueIsIgnored(t *testing.T) {
	d := scripted(func(q *dns.Msg, _ string) (*dns.Msg, error) {
		m := reply(t, q, false)
		extra := reply(t, q, false, q.Question[0].Name+" 60 IN A 203.0.113.66", "mx.test. 60 IN A 203.0.113.66")
		m.Extra, m.Ns = extra.Answer, extra.Answer
		return m, nil
	}, "127.0.0.1:53")
	if got, err := d.LookupHost(t.Context(), "mx.test"); err != nil || len(got.Addrs) != 0 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestTXTAndAddr(t *testing.T) {
	d := scripted(func(q *dns.Msg, _ string) (*dns.Msg, error) {
		switch q.Question[0].Name {
		case "a.test.":
			return reply(t, q, false, `a.test. 60 IN TXT "v=spf1 " "-all"`, `a.test. 60 IN TXT "other"`), nil
		case "1.2.0.192.in-addr.arpa.":
			return reply(t, q, false, "1.2.0.192.in-addr.arpa. 60 IN PTR Out1.Example.COM."), nil
		}
		return new(dns.Msg).SetRcode(q, dns.RcodeNameError), nil
	}, "127.0.0.1:53")
	if got, err := d.LookupTXT(t.Context(), "a.test"); err != nil || fmt.Sprint(got) != "[v=spf1 -all other]" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, addr := range []string{"192.0.2.1", "::ffff:192.0.2.1"} {
		if got, err := d.LookupAddr(t.Context(), netip.MustParseAddr(addr)); err != nil || fmt.Sprint(got) != "[out1.example.com]" {
			t.Errorf("got %q, %v", got, err)
		}
	}
	if _, err := d.LookupAddr(t.Context(), netip.MustParseAddr("2001:db8::1")); !errors.Is(err, ErrNoName) {
		t.Errorf("got %v", err)
	}
}

// Large answers are not kept: the memory is bounded by octets too.
func TestLargeAnswersAreNotKept(t *testing.T) {
	for length, want := range map[int]int{100: 1, 60_000: 2} {
		asked := 0
		d := scripted(func(q *dns.Msg, _ string) (*dns.Msg, error) {
			asked++
			m := reply(t, q, false)
			txt := &dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 3600}}
			for n := 0; n < length; n += 100 {
				txt.Txt = append(txt.Txt, strings.Repeat("x", 100))
			}
			m.Answer = append(m.Answer, txt)
			return m, nil
		}, "127.0.0.1:53")
		for range 2 {
			if got, err := d.LookupTXT(t.Context(), "large.test"); err != nil || len(got) != 1 || len(got[0]) != length {
				t.Errorf("got %d records, %v", len(got), err)
			}
		}
		if asked != want || len(d.cache.entries) != 2-want {
			t.Errorf("%d octets: asked %d times, %d kept", length, asked, len(d.cache.entries))
		}
	}
}

// E3-47: where addresses of one family lead nowhere and those of the other cannot be looked up, nothing is proven.
func TestE3_47_OneFamilyFails(t *testing.T) {
	for aaaa, want := range map[string]string{"::1": "451 4.4.3", "2001:db8::1": ""} {
		d := scripted(func(q *dns.Msg, _ string) (*dns.Msg, error) {
			name := q.Question[0].Name
			switch q.Question[0].Qtype {
			case dns.TypeMX:
				return reply(t, q, false, name+" 60 IN MX 10 mx.test."), nil
			case dns.TypeAAAA:
				return reply(t, q, false, name+" 60 IN AAAA "+aaaa), nil
			}
			return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure), nil
		}, "127.0.0.1:53")
		hosts, err := Candidates(t.Context(), d, "example.test", Options{})
		got := ""
		if e, is := errors.AsType[*Error](err); is {
			got = fmt.Sprintf("%d %s", e.Code, e.Enhanced)
		}
		if got != want || (len(hosts) == 1) != (want == "") {
			t.Errorf("%s: got %v, %v", aaaa, hosts, err)
		}
	}
}
