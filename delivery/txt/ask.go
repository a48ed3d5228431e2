package txt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

var errNotToQuestion = errors.New("the answer is not to the question")

// recurse asks the resolvers in turn until one gives a definite answer: each
// once before any is asked again.
func (c *Client) recurse(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	var last error
	first := int(c.good.Load())
	for try := range c.tries * len(c.resolvers) {
		i := (first + try) % len(c.resolvers)
		reply, err := c.ask(ctx, c.resolvers[i], question{name, qtype, true}, 1)
		if err == nil {
			err = complaint(reply)
		}
		if err == nil {
			c.good.Store(int32(i))
			return reply, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		last = fmt.Errorf("ask resolver %s for %s of %s: %w", display(c.resolvers[i]), dns.TypeToString[qtype], bare(name), err)
	}
	return nil, last
}

// complaint is the error in a reply that says neither "here it is" nor "there is none".
func complaint(reply *dns.Msg) error {
	if reply.Rcode == dns.RcodeSuccess || reply.Rcode == dns.RcodeNameError {
		return nil
	}
	return fmt.Errorf("the server says %s", rcodeName(reply.Rcode))
}

func rcodeName(rcode int) string {
	if name, ok := dns.RcodeToString[rcode]; ok {
		return name
	}
	return fmt.Sprintf("error %d", rcode)
}

// question is what a server is asked.
type question struct {
	name      string // with the final dot
	qtype     uint16
	recursive bool
}

// ask puts one question to one server, again if it gets lost.
func (c *Client) ask(ctx context.Context, server netip.AddrPort, q question, tries int) (*dns.Msg, error) {
	select {
	case c.open <- struct{}{}:
		defer func() { <-c.open }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	var last error
	for range tries {
		reply, err := c.askOnce(ctx, server.String(), q)
		if err == nil {
			return reply, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		last = err
	}
	return nil, last
}

// askOnce asks by UDP, and by TCP when the answer did not fit.
func (c *Client) askOnce(ctx context.Context, server string, q question) (*dns.Msg, error) {
	m := new(dns.Msg).SetQuestion(q.name, q.qtype)
	m.RecursionDesired = q.recursive
	m.SetEdns0(udpBytes, false)
	reply, err := exchange(ctx, "udp", server, m, c.timeout, nil)
	if err == nil && (reply.Rcode == dns.RcodeFormatError || reply.Rcode == dns.RcodeNotImplemented) {
		m.Extra, m.Id = nil, dns.Id() // a server that does not know EDNS (RFC 6891 §7)
		reply, err = exchange(ctx, "udp", server, m, c.timeout, nil)
	}
	if err != nil || !reply.Truncated {
		return reply, err
	}
	m.Id = dns.Id()
	if reply, err = exchange(ctx, "tcp", server, m, c.timeout, nil); err != nil {
		return nil, fmt.Errorf("the answer is too long for UDP, and by TCP: %w", err)
	}
	return reply, nil
}

// exchange sends a question and waits for its answer. Packets that are not the
// answer do not end the wait. A question with a TSIG needs the secrets, by name
// of the key; a reply whose signature is wrong comes with an error.
func exchange(ctx context.Context, network, server string, q *dns.Msg, timeout time.Duration, secrets map[string]string) (*dns.Msg, error) {
	over := fmt.Errorf("%w within %s", ErrNoAnswer, timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, over)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, network, server)
	if err != nil && network == "udp" && isNoRoute(err) {
		return nil, ErrNoRoute
	}
	if err != nil {
		return nil, plain(ctx, err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if end, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(end); err != nil {
			return nil, err
		}
	}
	co := &dns.Conn{Conn: conn, UDPSize: udpBytes, TsigSecret: secrets}
	if err := co.WriteMsg(q); err != nil {
		return nil, plain(ctx, err)
	}
	var odd error // what else came
	for {
		reply, err := co.ReadMsg()
		_, isNet := errors.AsType[net.Error](err)
		switch {
		case reply == nil && (isNet || network != "udp") && odd != nil:
			return nil, odd
		case reply == nil && (isNet || network != "udp"):
			return nil, plain(ctx, err)
		case reply != nil && answers(reply, q) && (err == nil || reply.IsTsig() != nil):
			return reply, err
		case reply != nil && answers(reply, q) && network == "udp":
			reply.Truncated = true // cut in the middle of a record, by the server or on the way
			return reply, nil
		case err != nil:
			odd = fmt.Errorf("the answer is damaged: %w", err)
		default:
			odd = errNotToQuestion
		}
		if network != "udp" {
			return nil, odd
		}
	}
}

// isNoRoute reports, of an error in opening a UDP socket, that it is this
// machine's: nothing was sent yet.
func isNoRoute(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH) ||
		errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)
}

// plain makes an error of the network one for people.
func plain(ctx context.Context, err error) error {
	if late, is := errors.AsType[net.Error](err); is && late.Timeout() {
		<-ctx.Done() // the socket may be a moment ahead of its context, which knows why
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w: the server hung up", ErrNoAnswer)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: no name server listens there", ErrNoAnswer)
	case errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EHOSTUNREACH):
		return fmt.Errorf("%w: a router says that it cannot be reached", ErrNoAnswer)
	}
	return err
}

// answers reports that reply is a reply to q. Servers may give the name back in
// other letter cases. Updates and questions that were not understood may come
// back without what they were about.
func answers(reply, q *dns.Msg) bool {
	if !reply.Response || reply.Id != q.Id || reply.Opcode != q.Opcode {
		return false
	}
	if len(reply.Question) == 0 {
		return q.Opcode == dns.OpcodeUpdate || reply.Rcode == dns.RcodeFormatError || reply.Rcode == dns.RcodeNotImplemented
	}
	if len(reply.Question) != 1 {
		return false
	}
	got, want := reply.Question[0], q.Question[0]
	return got.Qtype == want.Qtype && got.Qclass == want.Qclass && strings.EqualFold(got.Name, want.Name)
}
