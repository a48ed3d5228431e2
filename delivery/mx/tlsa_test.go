package mx

import (
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Row E5-69: TLSA records, and whether they are proven: AD counts from resolvers that are trusted (RFC 7672 §2.1).
func TestE5_69_LookupTLSA(t *testing.T) {
	const digest = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	answer := func(q *dns.Msg, _ bool) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		m.AuthenticatedData = true
		add := func(s string) {
			rr, err := dns.NewRR(s)
			if err != nil {
				panic(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		switch name, qtype := q.Question[0].Name, q.Question[0].Qtype; {
		case name == "_25._tcp.mx.test.":
			add("_25._tcp.mx.test. 60 IN TLSA 3 1 1 " + digest)
			add("_25._tcp.mx.test. 60 IN TLSA 2 0 1 00")
		case name == "alias.test.":
			add("alias.test. 60 IN CNAME mx.test.")
		case name == "_25._tcp.bogus.test.":
			m.Rcode = dns.RcodeServerFailure
		case qtype == dns.TypeCNAME && name == "mx.test.":
		default:
			m.Rcode = dns.RcodeNameError
		}
		return m
	}
	for _, isTrusted := range []bool{true, false} {
		d, err := NewDNS(DNSOptions{Servers: []string{newServer(t, answer).addr}, Timeout: time.Minute, Attempts: 1})
		if err != nil {
			t.Fatal(err)
		}
		d.trusted = isTrusted
		got, err := d.LookupTLSA(t.Context(), "_25._tcp.mx.test")
		if err != nil || got.IsSecure != isTrusted || len(got.Records) != 2 {
			t.Fatalf("trusted %t: got %+v, %v", isTrusted, got, err)
		}
		if r := got.Records[0]; r.Usage != 3 || r.Selector != 1 || r.Matching != 1 || hex.EncodeToString(r.Data) != digest {
			t.Errorf("got %+v", r)
		}
		for host, want := range map[string]bool{"alias.test": isTrusted, "mx.test": false, "none.test": false} {
			if got, err := d.LookupAlias(t.Context(), host); err != nil || got != want {
				t.Errorf("alias %s, trusted %t: got %t, %v", host, isTrusted, got, err)
			}
		}
		if _, err := d.LookupTLSA(t.Context(), "_25._tcp.none.test"); !errors.Is(err, ErrNoName) {
			t.Errorf("no such name: got %v", err)
		}
		if _, err := d.LookupTLSA(t.Context(), "_25._tcp.bogus.test"); err == nil || errors.Is(err, ErrNoName) {
			t.Errorf("failure: got %v", err)
		}
	}
}
