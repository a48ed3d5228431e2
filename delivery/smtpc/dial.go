package smtpc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Dial connects to addr and opens the dialogue with host there. An error is
// an *Error; nothing is left open then.
func Dial(ctx context.Context, host string, addr netip.AddrPort, o Options) (*Conn, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, &Error{Phase: PhaseConnect, Err: err}
	}
	raw, err := connect(ctx, addr, o)
	if err != nil {
		o.Tap.note("cannot connect to ", host, " ", addr.String(), ": ", err.Error())
		return nil, &Error{Phase: PhaseConnect, Err: err}
	}
	o.Tap.note("connected to ", host, " ", addr.String())
	c := &Conn{wire: newWire(raw, o.MaxReplyBytes, o.Tap), o: o, host: strings.TrimSuffix(host, "."), addr: addr}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	failure := c.open(ctx)
	if !stop() && failure == nil {
		failure = &Error{Phase: PhaseEhlo, Err: context.Cause(ctx)}
	}
	if failure != nil {
		c.abandon(failure)
		failure = withCause(ctx, failure)
		c.tap.note("closed: ", failure.Error())
		return nil, failure
	}
	return c, nil
}

func connect(ctx context.Context, addr netip.AddrPort, o Options) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Timeouts.Connect)
	defer cancel()
	dial := o.Dial
	if dial == nil {
		var d net.Dialer
		if o.LocalAddr.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(o.LocalAddr, 0))
		}
		dial = d.DialContext
	}
	return dial(ctx, "tcp", addr.String())
}

// open runs the dialogue up to where MAIL may be said.
func (c *Conn) open(ctx context.Context) *Error {
	if c.o.ImplicitTLS {
		if failure := c.handshake(ctx); failure != nil {
			return failure
		}
	}
	greeting, err := c.reply(PhaseGreeting, c.o.Timeouts.Greeting)
	if err != nil {
		return lateAlert(&Error{Phase: PhaseGreeting, Err: err})
	}
	if !greeting.OK() {
		return &Error{Phase: PhaseGreeting, Reply: &greeting}
	}
	if failure := c.hello(); failure != nil {
		return failure
	}
	if failure := c.startTLS(ctx); failure != nil {
		return failure
	}
	if c.o.RequireTLS && !c.ext.Has("REQUIRETLS") {
		r := localReply(PhaseEhlo, 550, "5.7.30", ErrNeedRequireTLS.Error())
		return &Error{Phase: PhaseEhlo, Reply: &r, Err: ErrNeedRequireTLS}
	}
	return c.logIn()
}

// hello says EHLO, and HELO to a host that does not know it (RFC 5321 §3.2),
// unless TLS is a must or in force already, or we have to log in: then HELO is no way on.
func (c *Conn) hello() *Error {
	for _, verb := range []string{"EHLO ", "HELO "} {
		r, err := c.ask(PhaseEhlo, verb+c.o.Hostname, c.o.Timeouts.Ehlo)
		if err != nil {
			return &Error{Phase: PhaseEhlo, Err: err}
		}
		if r.OK() {
			c.ext = Extensions{}
			if verb == "EHLO " {
				c.ext = parseEhlo(r)
			}
			return nil
		}
		mayHelo := r.Permanent() && r.Code != 521 && c.tls == nil && c.o.TLS < TLSEncrypt && !c.o.RequireTLS && c.o.Auth == nil
		if verb == "HELO " || !mayHelo {
			return &Error{Phase: PhaseEhlo, Reply: &r}
		}
	}
	return nil
}

// abandon closes, with a QUIT that is not waited for when the peer still listens.
func (c *Conn) abandon(failure *Error) {
	if r := failure.Reply; r != nil && !r.Closing() {
		_ = c.write([]byte("QUIT\r\n"), c.o.Timeouts.Quit) // best effort: the socket goes anyway
	}
	c.broken = true
	c.raw.Close()
}

// withCause names the context's end as the cause of a failure that it made.
func withCause(ctx context.Context, e *Error) *Error {
	if ctx.Err() != nil && e.Reply == nil && !errors.Is(e.Err, context.Cause(ctx)) {
		e.Err = fmt.Errorf("%w: %w", context.Cause(ctx), e.Err)
	}
	return e
}

func (o Options) withDefaults() (Options, error) {
	if o.Hostname == "" || strings.ContainsFunc(o.Hostname, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return o, fmt.Errorf("name for EHLO %q: must be a host name", o.Hostname)
	}
	d, t := DefaultTimeouts(), &o.Timeouts
	t.Connect = cmp.Or(t.Connect, d.Connect)
	t.Greeting = cmp.Or(t.Greeting, d.Greeting)
	t.Ehlo = cmp.Or(t.Ehlo, d.Ehlo)
	t.StartTLS = cmp.Or(t.StartTLS, d.StartTLS)
	t.Auth = cmp.Or(t.Auth, d.Auth)
	t.Mail = cmp.Or(t.Mail, d.Mail)
	t.Rcpt = cmp.Or(t.Rcpt, d.Rcpt)
	t.Data = cmp.Or(t.Data, d.Data)
	t.Block = cmp.Or(t.Block, d.Block)
	t.Dot = cmp.Or(t.Dot, d.Dot)
	t.Quit = cmp.Or(t.Quit, d.Quit)
	if err := o.Auth.check(); err != nil {
		return o, err
	}
	if o.ImplicitTLS {
		o.TLS = max(o.TLS, TLSEncrypt)
	}
	o.MaxReplyBytes = cmp.Or(o.MaxReplyBytes, 16<<10)
	return o, nil
}
