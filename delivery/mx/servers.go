package mx

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// server is one recursive server, and whether it answered of late.
type server struct {
	addr string
	down atomic.Int64 // unix nanoseconds until which it is asked last; 0: it answers
}

// downFor is how long a server that did not answer is asked after the others.
const downFor = 30 * time.Second

// exchange asks one server one question.
type exchange func(ctx context.Context, q *dns.Msg, server string) (*dns.Msg, error)

// mayAsk reports that the server answers as far as we know. When its time is over one question is the one that finds out; others still go
// elsewhere.
func (s *server) mayAsk(now time.Time) bool {
	until := s.down.Load()
	return until == 0 || now.UnixNano() >= until && s.down.CompareAndSwap(until, now.Add(downFor).UnixNano())
}

// order is the servers as they were given, those that do not answer last.
func (d *DNS) order(now time.Time) []*server {
	up, down := make([]*server, 0, len(d.servers)), []*server(nil)
	for _, s := range d.servers {
		if s.mayAsk(now) {
			up = append(up, s)
		} else {
			down = append(down, s)
		}
	}
	return append(up, down...)
}

// errRefused is a definite answer that says nothing about the name.
var errRefused = errors.New("the server says")

// ask goes through the servers until one gives a definite answer.
func (d *DNS) ask(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	var last error
	for range d.attempts {
		for _, s := range d.order(time.Now()) {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			reply, err := d.askServer(ctx, name, qtype, s.addr)
			switch {
			case err == nil:
				s.down.Store(0)
				return reply, nil
			case errors.Is(err, errRefused):
				s.down.Store(0)
			case ctx.Err() == nil:
				s.down.Store(time.Now().Add(downFor).UnixNano())
			}
			last = fmt.Errorf("ask %s: %w", s.addr, err)
		}
	}
	return nil, last
}

func (d *DNS) askServer(ctx context.Context, name string, qtype uint16, server string) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(name, qtype)
	q.AuthenticatedData = true // tell us whether it is proven (RFC 6840 §5.7)
	q.SetEdns0(udpBytes, false)
	reply, err := d.exchange(ctx, q, server)
	if err == nil && (reply.Rcode == dns.RcodeFormatError || reply.Rcode == dns.RcodeNotImplemented) {
		q = new(dns.Msg).SetQuestion(name, qtype) // a server that does not know EDNS (RFC 6891 §7)
		reply, err = d.exchange(ctx, q, server)
	}
	switch {
	case err != nil:
		return nil, err
	case !answers(reply, q):
		return nil, fmt.Errorf("%w something else than was asked", errRefused)
	case reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError:
		return nil, refusalOf(reply)
	}
	reply.AuthenticatedData = reply.AuthenticatedData && d.trusted
	return reply, nil
}

// bogusCodes are the extended errors of an answer that failed validation (RFC 8914 §4.7 to §4.13).
var bogusCodes = []uint16{
	dns.ExtendedErrorCodeDNSBogus, dns.ExtendedErrorCodeSignatureExpired, dns.ExtendedErrorCodeSignatureNotYetValid,
	dns.ExtendedErrorCodeDNSKEYMissing, dns.ExtendedErrorCodeRRSIGsMissing, dns.ExtendedErrorCodeNoZoneKeyBitSet,
	dns.ExtendedErrorCodeNSECMissing,
}

// refusalOf is the error in a reply, with what the server says about it.
func refusalOf(reply *dns.Msg) error {
	err := fmt.Errorf("%w %s", errRefused, dns.RcodeToString[reply.Rcode])
	opt := reply.IsEdns0()
	if opt == nil {
		return err
	}
	for _, o := range opt.Option {
		e, ok := o.(*dns.EDNS0_EDE)
		if !ok {
			continue
		}
		err = fmt.Errorf("%w (%s)", err, dns.ExtendedErrorCodeToString[e.InfoCode])
		if slices.Contains(bogusCodes, e.InfoCode) {
			return fmt.Errorf("%w: %w", ErrBogus, err)
		}
	}
	return err
}

// answers reports that reply is a reply to q.
func answers(reply, q *dns.Msg) bool {
	if !reply.Response || reply.Id != q.Id || len(reply.Question) != 1 {
		return false
	}
	got, want := reply.Question[0], q.Question[0]
	return got.Qtype == want.Qtype && got.Qclass == want.Qclass && strings.EqualFold(got.Name, want.Name)
}

// overNetwork asks by UDP, and by TCP when the answer did not fit, maxOpen questions at a time.
func overNetwork(timeout time.Duration) exchange {
	open := make(chan struct{}, maxOpen)
	return func(ctx context.Context, q *dns.Msg, server string) (*dns.Msg, error) {
		select {
		case open <- struct{}{}:
			defer func() { <-open }()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		udp := dns.Client{Net: "udp", Timeout: timeout, UDPSize: udpBytes}
		reply, _, err := udp.ExchangeContext(ctx, q, server)
		if err == nil && !reply.Truncated {
			return reply, nil
		}
		if err != nil && reply == nil {
			return nil, err
		}
		tcp := dns.Client{Net: "tcp", Timeout: timeout}
		reply, _, err = tcp.ExchangeContext(ctx, q, server)
		return reply, err
	}
}
