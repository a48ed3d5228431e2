package txt

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

const rsa = "rsa._domainkey.customer.test"

func look(t *testing.T, c *Client, name string) View {
	t.Helper()
	v, err := c.Look(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestLook(t *testing.T) {
	n := usual(t, nil)
	got := look(t, n.client(t), "RSA._domainkey.Customer.test.")
	records := []string{"v=DKIM1; p=AAAA"}
	want := View{Name: rsa, Zone: "customer.test", NegativeTTL: 15 * time.Minute, Answers: []Answer{
		{Server: n.at("ns1.customer.test", "127.0.0.2"), Zone: "customer.test", Name: rsa, IsAuthoritative: true, Records: records, TTL: 10 * time.Minute, Serial: 7},
		{Server: n.at("ns2.customer.test", "127.0.0.3"), Zone: "customer.test", Name: rsa, IsAuthoritative: true, Records: records, TTL: 10 * time.Minute, Serial: 7},
		{Server: n.resolver.String(), Name: rsa, Records: records, TTL: 10 * time.Minute},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	ids := make(map[uint16]bool)
	for addr, qs := range n.asked {
		for _, q := range qs {
			if recursive := addr == n.resolver.String(); q.RecursionDesired != recursive {
				t.Errorf("%s: got a question with RD %v, want %v", addr, q.RecursionDesired, recursive)
			}
			if opt := q.IsEdns0(); opt == nil || opt.UDPSize() != udpBytes {
				t.Errorf("%s: got EDNS %v, want a size of %d", addr, opt, udpBytes)
			}
			ids[q.Id] = true
		}
	}
	if len(ids) < 3 {
		t.Errorf("got ids %v, want random ones", ids)
	}
}

func TestLookFollowsAliases(t *testing.T) {
	n := usual(t, nil)
	c := n.client(t)
	t.Run("into another zone", func(t *testing.T) {
		const name, target = "far._domainkey.customer.test", "far.customer.dkim.relay.test"
		got := look(t, c, name)
		chain, records := []string{target}, []string{"v=DKIM1; p=FAR"}
		want := View{Name: name, Zone: "relay.test", NegativeTTL: 15 * time.Minute, Answers: []Answer{
			{Server: n.at("ns1.customer.test", "127.0.0.2"), Zone: "customer.test", Name: name, IsAuthoritative: true, CNAME: chain, TTL: 2 * time.Minute, Serial: 7},
			{Server: n.at("ns2.customer.test", "127.0.0.3"), Zone: "customer.test", Name: name, IsAuthoritative: true, CNAME: chain, TTL: 2 * time.Minute, Serial: 7},
			{Server: n.at("ns.relay.test", "127.0.0.4"), Zone: "relay.test", Name: target, IsAuthoritative: true, Records: records, TTL: 5 * time.Minute, Serial: 9},
			{Server: n.resolver.String(), Name: name, CNAME: chain, Records: records, TTL: 2 * time.Minute},
		}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		verdict := got.Judge(func(r string) bool { return r == "v=DKIM1; p=FAR" })
		if diff := cmp.Diff(Verdict{Servers: 3, Resolvers: 1}, verdict); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("in the zone", func(t *testing.T) {
		got := look(t, c, "near._domainkey.customer.test")
		if a := got.Answers[0]; len(got.Answers) != 3 || !slices.Equal(a.CNAME, []string{rsa}) || !slices.Equal(a.Records, []string{"v=DKIM1; p=AAAA"}) {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("that end without a record", func(t *testing.T) {
		got := look(t, c, "gone._domainkey.customer.test")
		verdict := got.Judge(func(string) bool { return true })
		if len(verdict.Faults) != 1 || !strings.Contains(verdict.Faults[0].Error(), "gone.customer.dkim.relay.test has no TXT record") {
			t.Errorf("got %v", verdict)
		}
		if last := got.Answers[len(got.Answers)-1]; last.TTL != time.Minute || len(last.CNAME) != 1 {
			t.Errorf("got the resolver's answer %+v, want one that holds for a minute", last)
		}
	})
	t.Run("in a circle", func(t *testing.T) {
		got := look(t, c, "loop._domainkey.customer.test")
		if a := got.Answers[2]; !errors.Is(a.Err, ErrAliases) || !strings.HasPrefix(a.Server, "ns.relay.test") {
			t.Errorf("got %+v, want an error of ns.relay.test", got)
		}
	})
	t.Run("to a zone that is not there", func(t *testing.T) {
		got := look(t, c, "nowhere._domainkey.customer.test")
		if a := got.Answers[2]; a.Err == nil || a.Server != "zone of sel.nowhere.example" {
			t.Errorf("got %+v", got)
		}
	})
}

func TestLookBoundsAliases(t *testing.T) {
	var b strings.Builder
	b.WriteString("many.test. 60 IN SOA ns.many.test. h.many.test. 1 2 3 4 5\nmany.test. 60 IN NS ns.many.test.\nns.many.test. 60 IN A 127.0.0.2\n")
	for i := range 15 {
		fmt.Fprintf(&b, "a%d.many.test. 60 IN CNAME a%d.many.test.\n", i, i+1)
	}
	z := parse(t, b.String())
	oneByOne := func(q *dns.Msg, _ bool) *dns.Msg {
		reply := z.answer(q, false)
		if len(reply.Answer) > 1 {
			reply.Answer, reply.Ns = reply.Answer[:1], nil
		}
		return reply
	}
	for name, server := range map[string]answerer{"one by one": oneByOne, "in one answer": z.serve} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t, map[string]answerer{"127.0.0.2": server}, z.resolve)
			v := look(t, n.client(t), "a0.many.test")
			bad := v.Answers[len(v.Answers)-2]
			if !errors.Is(bad.Err, ErrAliases) || len(v.Answers) > 1+maxAliases+1 {
				t.Errorf("got %d answers, the last of a server %+v, want ErrAliases", len(v.Answers), bad)
			}
		})
	}
}

// TestLookWithFaults: one server of two has a fault, and the other's answer counts all the same.
func TestLookWithFaults(t *testing.T) {
	good := parse(t, customer)
	tests := []struct {
		name   string
		server answerer
		is     error
		says   string // part of the error; no error if it is empty
		keeps  bool   // the records are shown although they do not count
	}{
		{name: "dead", server: nil, is: ErrNoAnswer, says: "no name server listens there"},
		{name: "silent", server: func(*dns.Msg, bool) *dns.Msg { return nil }, is: ErrNoAnswer, says: "no answer within 6s"},
		{name: "does not know the zone", server: parse(t, relay).serve, is: ErrLame, says: "REFUSED"},
		{name: "not authoritative", server: good.resolve, is: ErrLame, says: "not authoritative", keeps: true},
		{name: "SERVFAIL", server: func(q *dns.Msg, _ bool) *dns.Msg { return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure) }, says: "SERVFAIL"},
		{name: "unknown error", server: func(q *dns.Msg, _ bool) *dns.Msg { return new(dns.Msg).SetRcode(q, 14) }, says: "error 14"},
		{name: "wrong id", server: func(q *dns.Msg, _ bool) *dns.Msg {
			reply := good.answer(q, false)
			reply.Id++
			return reply
		}, is: errNotToQuestion, says: "not to the question"},
		{name: "another question", server: func(q *dns.Msg, _ bool) *dns.Msg {
			reply := good.answer(q, false)
			reply.Question[0].Name = "x." + reply.Question[0].Name
			return reply
		}, is: errNotToQuestion, says: "not to the question"},
		{name: "other letter case", server: func(q *dns.Msg, _ bool) *dns.Msg {
			reply := good.answer(q, false)
			reply.Question[0].Name = strings.ToUpper(reply.Question[0].Name)
			for i, rr := range reply.Answer {
				reply.Answer[i] = dns.Copy(rr)
				reply.Answer[i].Header().Name = reply.Question[0].Name
			}
			return reply
		}},
		{name: "too long for UDP", server: func(q *dns.Msg, overTCP bool) *dns.Msg {
			if overTCP {
				return good.answer(q, false)
			}
			reply := new(dns.Msg).SetReply(q)
			reply.Truncated = true
			return reply
		}},
		{name: "larger than it may be", server: func(q *dns.Msg, overTCP bool) *dns.Msg {
			reply := good.answer(q, false)
			for i := 0; !overTCP && i < 10; i++ {
				reply.Extra = append(reply.Extra, record("x.test.", strings.Repeat("x", 250), 1))
			}
			return reply
		}},
		{name: "too long and no TCP", server: func(q *dns.Msg, overTCP bool) *dns.Msg {
			reply := new(dns.Msg).SetReply(q)
			reply.Truncated = true
			if overTCP {
				return nil
			}
			return reply
		}, is: ErrNoAnswer, says: "too long for UDP"},
		{name: "does not know EDNS", server: func(q *dns.Msg, _ bool) *dns.Msg {
			if q.IsEdns0() != nil {
				return new(dns.Msg).SetRcodeFormatError(q)
			}
			return good.answer(q, false)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // some wait for what does not come
			n := usual(t, map[string]answerer{"127.0.0.3": tt.server})
			c := n.client(t, func(o *Options) { o.Timeout, o.Tries = 6*time.Second, 1 })
			v := look(t, c, rsa)
			if a := v.Answers[0]; a.Err != nil || len(a.Records) != 1 {
				t.Errorf("the other server: got %+v, want its record", a)
			}
			a := v.Answers[1]
			if tt.says == "" {
				if a.Err != nil || !slices.Equal(a.Records, []string{"v=DKIM1; p=AAAA"}) {
					t.Errorf("got %+v, want the record", a)
				}
				return
			}
			if a.Err == nil || !strings.Contains(a.Err.Error(), tt.says) || tt.is != nil && !errors.Is(a.Err, tt.is) {
				t.Errorf("got error %v, want %q", a.Err, tt.says)
			}
			if got := len(a.Records) > 0; got != tt.keeps {
				t.Errorf("got records %q", a.Records)
			}
			verdict := v.Judge(func(r string) bool { return r == "v=DKIM1; p=AAAA" })
			if verdict.Servers != 1 || len(verdict.Faults) != 1 || !strings.Contains(verdict.Faults[0].Error(), "ns2.customer.test") {
				t.Errorf("got verdict %+v, want a fault of ns2", verdict)
			}
		})
	}
}

// TestLookTriesAgain: a question or an answer that is lost is asked again.
func TestLookTriesAgain(t *testing.T) {
	good := parse(t, customer)
	lost := make(chan struct{}, 1)
	lost <- struct{}{}
	n := usual(t, map[string]answerer{"127.0.0.3": func(q *dns.Msg, _ bool) *dns.Msg {
		select {
		case <-lost:
			return nil
		default:
			return good.answer(q, false)
		}
	}})
	v := look(t, n.client(t, func(o *Options) { o.Timeout = 6 * time.Second }), rsa)
	if a := v.Answers[1]; a.Err != nil || len(a.Records) != 1 {
		t.Errorf("got %+v", a)
	}
}

func TestServersDisagree(t *testing.T) {
	old := strings.NewReplacer("p=AAAA", "p=OLD", " 7 2 3 4", " 6 2 3 4", "far.customer.dkim", "elsewhere.dkim").Replace(customer)
	n := usual(t, map[string]answerer{"127.0.0.3": parse(t, old).serve})
	c := n.client(t)
	isNew := func(r string) bool { return r == "v=DKIM1; p=AAAA" }

	v := look(t, c, rsa)
	if diff := cmp.Diff([]uint32{7, 6, 0}, []uint32{v.Answers[0].Serial, v.Answers[1].Serial, v.Answers[2].Serial}); diff != "" {
		t.Error(diff)
	}
	verdict := v.Judge(isNew)
	if verdict.Servers != 1 || verdict.Resolvers != 1 || len(verdict.Faults) != 1 || !strings.Contains(verdict.Faults[0].Error(), "has another value") {
		t.Errorf("got %+v", verdict)
	}

	v = look(t, c, "far._domainkey.customer.test") // both targets are followed
	names := make(map[string]bool)
	for _, a := range v.Answers {
		names[a.Name] = true
	}
	want := map[string]bool{"far._domainkey.customer.test": true, "far.customer.dkim.relay.test": true, "elsewhere.dkim.relay.test": true}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	if verdict := v.Judge(func(r string) bool { return r == "v=DKIM1; p=FAR" }); len(verdict.Faults) != 1 {
		t.Errorf("got %+v, want the fault of the target without record", verdict)
	}

	verdict = look(t, c, "two._domainkey.customer.test").Judge(func(string) bool { return true })
	if len(verdict.Faults) != 2 || len(verdict.ResolverFaults) != 1 || !strings.Contains(verdict.Faults[0].Error(), "2 TXT records") {
		t.Errorf("got %+v", verdict)
	}
	if got := look(t, c, "odd._domainkey.customer.test").Answers[0].Records; !slices.Equal(got, []string{"say \"x\" \\ \xc8"}) {
		t.Errorf("got %q", got)
	}
}

func TestServersThatCannotBeAsked(t *testing.T) {
	var b strings.Builder
	b.WriteString("big.test. 60 IN SOA ns.big.test. h.big.test. 1 2 3 4 5\nbig.test. 60 IN NS ns.big.test.\nbig.test. 60 IN NS lost.big.test.\n")
	b.WriteString("k.big.test. 60 IN TXT \"v\"\nns.big.test. 60 IN A 127.0.0.2\n")
	for i := range maxAddresses + 5 {
		fmt.Fprintf(&b, "big.test. 60 IN NS ns%02d.big.test.\nns%02d.big.test. 60 IN A 127.0.0.3\n", i, i)
	}
	z := parse(t, b.String())
	n := newNetwork(t, map[string]answerer{"127.0.0.2": z.serve, "127.0.0.3": z.serve}, z.resolve)
	v := look(t, n.client(t), "k.big.test")
	asked, tooMany, lost := 0, 0, 0
	for _, a := range v.Answers {
		switch {
		case errors.Is(a.Err, ErrTooMany):
			tooMany++
		case a.Server == "lost.big.test" && a.Err != nil:
			lost++
		case a.Err == nil && !a.IsResolver():
			asked++
		}
	}
	if asked > maxAddresses || asked < maxAddresses-1 || tooMany != 1 || lost != 1 {
		t.Errorf("got %d answers, %d too many, %d without address", asked, tooMany, lost)
	}
}

func TestResolvers(t *testing.T) {
	n := usual(t, nil)
	stale := parse(t, strings.ReplaceAll(customer, "rsa._domainkey", "other._domainkey"), relay)
	m := newNetwork(t, nil, stale.resolve)
	dead := newNetwork(t, nil, func(*dns.Msg, bool) *dns.Msg { return nil })
	c := n.client(t, func(o *Options) {
		o.Resolvers = []netip.AddrPort{dead.resolver, m.resolver, n.resolver}
		o.Timeout, o.Tries = 6*time.Second, 1 // the one that is silent costs as much
	})
	v := look(t, c, rsa)
	verdict := v.Judge(func(r string) bool { return r == "v=DKIM1; p=AAAA" })
	if verdict.Servers != 2 || verdict.Resolvers != 1 || len(verdict.Faults) != 0 || len(verdict.ResolverFaults) != 2 {
		t.Fatalf("got %+v", verdict)
	}
	if got := verdict.ResolverFaults[1].Error(); !strings.Contains(got, "has no TXT record, and it may say so for 15m0s more") {
		t.Errorf("got %q", got)
	}
}

func TestLookEnds(t *testing.T) {
	silent := func(*dns.Msg, bool) *dns.Msg { return nil }
	t.Run("no resolver", func(t *testing.T) {
		n := newNetwork(t, nil, silent)
		v, err := n.client(t, func(o *Options) { o.Timeout, o.Tries = 100*time.Millisecond, 1 }).Look(t.Context(), rsa)
		if !errors.Is(err, ErrNoAnswer) || len(v.Answers) != 1 || v.Answers[0].Err == nil {
			t.Errorf("got %+v, %v", v, err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		n := usual(t, map[string]answerer{"127.0.0.3": silent})
		began := time.Now()
		v := look(t, n.client(t, func(o *Options) { o.Timeout, o.Deadline = 10*time.Minute, 10*time.Second }), rsa)
		if a := v.Answers[1]; !errors.Is(a.Err, ErrNoAnswer) || v.Answers[0].Err != nil || !strings.Contains(a.Err.Error(), "whole look-up") {
			t.Errorf("got %+v", v)
		}
		if took := time.Since(began); took > 2*time.Minute {
			t.Errorf("took %s", took)
		}
	})
	t.Run("context", func(t *testing.T) {
		n := newNetwork(t, nil, silent)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		if _, err := n.client(t, func(o *Options) { o.Timeout = time.Minute }).Look(ctx, rsa); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("root", func(t *testing.T) {
		root := parse(t, ". 60 IN SOA a.test. h.test. 1 2 3 4 5\n")
		n := newNetwork(t, nil, root.resolve)
		if _, err := n.client(t).Look(t.Context(), "a.unknown"); err == nil || !strings.Contains(err.Error(), "none but the root") {
			t.Errorf("got %v", err)
		}
	})
}

func TestBadNames(t *testing.T) {
	n := newNetwork(t, nil, func(*dns.Msg, bool) *dns.Msg { return nil })
	c := n.client(t)
	for _, name := range []string{"", ".", "a..b", ".a", "bücher.example", "a b.example", "a\\.b", strings.Repeat("a", 64) + ".example", strings.Repeat("a.", 127) + "a", "a.example;b", "*.example"} {
		if _, err := c.Look(t.Context(), name); !errors.Is(err, ErrBadName) {
			t.Errorf("%q: got %v, want ErrBadName", name, err)
		}
	}
}
