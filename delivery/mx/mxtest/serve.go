package mxtest

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Serve runs a name server on a free UDP port of 127.0.0.1 until the test ends, and gives its address. It answers from records in the form of a
// zone file; names that are not there do not exist, and those below fails.test get SERVFAIL.
func Serve(t testing.TB, records string) string {
	t.Helper()
	var rrs []dns.RR
	p := dns.NewZoneParser(strings.NewReader(records), ".", "")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		rrs = append(rrs, rr)
	}
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	s := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(answer(rrs, q)) // a lost answer is the client's business
	})}
	served := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { served <- s.ActivateAndServe() })
	select {
	case <-started:
	case err := <-served:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.ShutdownContext(ctx); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	return pc.LocalAddr().String()
}

func answer(rrs []dns.RR, q *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetReply(q)
	name, exists := q.Question[0].Name, false
	for _, rr := range rrs {
		if !strings.EqualFold(rr.Header().Name, name) {
			continue
		}
		exists = true
		if rr.Header().Rrtype == q.Question[0].Qtype {
			reply.Answer = append(reply.Answer, rr)
		}
	}
	switch {
	case strings.HasSuffix(name, "fails.test."):
		reply.Rcode = dns.RcodeServerFailure
	case !exists:
		reply.Rcode = dns.RcodeNameError
	}
	return reply
}
