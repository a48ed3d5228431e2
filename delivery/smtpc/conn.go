package smtpc

import (
	"context"
	"crypto/tls"
	"net/netip"
)

// Conn is a connection whose dialogue has been opened. It is not for concurrent use.
type Conn struct {
	*wire
	o    Options
	host string
	addr netip.AddrPort
	ext  Extensions

	tls        *tls.ConnectionState
	tlsRefused *Reply

	transactions int  // calls of Send that said MAIL
	needReset    bool // the last transaction did not end in a clean 250
	broken       bool // no further command may be sent
}

// TLSState is that of the connection; nil in clear text.
func (c *Conn) TLSState() *tls.ConnectionState { return c.tls }

// TLSRefused is the reply of a host that offered STARTTLS and then refused
// the command; with TLSMay the dialogue goes on in clear text (RFC 3207 §4.1).
func (c *Conn) TLSRefused() *Reply { return c.tlsRefused }

// Extensions are the keywords of the last EHLO.
func (c *Conn) Extensions() Extensions { return c.ext }

// Host is the name that was dialled.
func (c *Conn) Host() string { return c.host }

// RemoteAddr is the address that was dialled.
func (c *Conn) RemoteAddr() netip.AddrPort { return c.addr }

// Limits are what the host told us; MAILMAX is for the caller to keep.
func (c *Conn) Limits() Limits { return c.ext.Limits() }

// Transactions counts the transactions so far: peers like a limit.
func (c *Conn) Transactions() int { return c.transactions }

// Reusable reports that another Send may follow: no time-out, no lost
// connection, no 421, nothing unasked for in the buffer.
func (c *Conn) Reusable() bool { return !c.broken && c.r.Buffered() == 0 }

// Close says QUIT when the dialogue allows it, waits a moment for the answer
// (RFC 5321 §4.1.1.10), and closes. It may be called more than once.
func (c *Conn) Close(ctx context.Context) {
	defer c.raw.Close()
	if !c.Reusable() {
		return
	}
	c.broken = true
	stop := context.AfterFunc(ctx, func() { c.raw.Close() })
	defer stop()
	if _, err := c.ask(PhaseQuit, "QUIT", c.o.Timeouts.Quit); err == nil {
		c.conn.Close() // with TLS: says so
	}
}
