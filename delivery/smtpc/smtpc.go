// Package smtpc is the client side of SMTP towards one host.
//
// Dial connects and runs the opening of the dialogue: greeting, EHLO with our
// name, STARTTLS with its handshake, EHLO again, AUTH; or the handshake first (see
// Options.ImplicitTLS). Send then runs one
// transaction: MAIL, every RCPT and DATA in one flight when the host offers
// PIPELINING, the content, the final dot; or everything in one flight (see
// Options.Chunking). Every read and write has a deadline,
// every reply a bound, and a context that ends closes the socket. A content
// that breaks off is never ended with a dot.
//
//	c, err := smtpc.Dial(ctx, "mx.example.net", addr, smtpc.Options{Hostname: "relay.example.org", TLS: smtpc.TLSMay})
//	res, err := c.Send(ctx, smtpc.Message{From: from, Recipients: rcpts, Size: n, Body: r})
//	for i, reply := range res.Recipients { … }
//	c.Close(ctx)
//
// The package decides nothing: the caller knows what a reply means for a
// recipient, when to try the next host, and whether clear text will do.
package smtpc

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"time"

	"postroad/queue"
	"postroad/queue/address"
)

// Timeouts bound each step. Each is absolute for its step, however the peer
// drips; Block is per piece of content written.
type Timeouts struct {
	Connect, Greeting, Ehlo, StartTLS, Auth, Mail, Rcpt, Data, Block, Dot, Quit time.Duration
}

// DefaultTimeouts are those of RFC 5321 §4.5.3.2; connect, STARTTLS, AUTH and
// QUIT, which it leaves open, are short.
func DefaultTimeouts() Timeouts {
	return Timeouts{
		Connect:  30 * time.Second,
		Greeting: 5 * time.Minute,
		Ehlo:     5 * time.Minute,
		StartTLS: 2 * time.Minute,
		Auth:     2 * time.Minute,
		Mail:     5 * time.Minute,
		Rcpt:     5 * time.Minute,
		Data:     2 * time.Minute,
		Block:    3 * time.Minute,
		Dot:      10 * time.Minute,
		Quit:     5 * time.Second,
	}
}

// TLSMode says what is asked of STARTTLS.
type TLSMode int

// The modes. A host that offers STARTTLS and fails the handshake gives
// ErrTLSHandshake in every mode: the caller decides whether clear text will do and dials again with TLSNone.
const (
	TLSNone    TLSMode = iota // never
	TLSMay                    // when offered, any certificate (RFC 7435)
	TLSEncrypt                // always, any certificate
	TLSVerify                 // always, with a certificate valid for the host, or whatever else VerifyConnection takes for a proof
)

// Options say how to dial.
type Options struct {
	Hostname  string     // our name for EHLO; required
	LocalAddr netip.Addr // source address; zero: the system's choice
	Timeouts  Timeouts   // fields that are zero take those of DefaultTimeouts
	TLS       TLSMode    // default TLSNone
	// ImplicitTLS begins with the handshake, before the greeting (RFC 8314 §3.3): TLS is TLSEncrypt at least.
	ImplicitTLS bool
	// TLSConfig is the base of the handshake, not changed; at least TLS 1.2 (RFC 8996). A VerifyConnection in it judges the
	// certificate alone, in every mode; its error gives ErrCertificate.
	TLSConfig         *tls.Config
	ServerName        string                 // for SNI and the certificate; default: that of TLSConfig, then the host
	RequireTLS        bool                   // a host without REQUIRETLS is of no use (RFC 8689): ErrNeedRequireTLS
	ClientCertificate *tls.Certificate       // shown when the host asks for one
	Sessions          tls.ClientSessionCache // for resumption; may be shared: what differs in host, certificate or check is kept apart
	Auth              *Auth                  // to log in before mail; nil: no login
	Tap               Tap                    // hears the dialogue; nil: nobody does. Message.Tap takes over from it
	Chunking          bool                   // a message of one piece (32 KiB) goes as one chunk with its envelope, to hosts with PIPELINING and CHUNKING
	MaxReplyBytes     int                    // bound of one reply with all its lines; default 16 KiB
	Dial              func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Message is one message for one transaction.
type Message struct {
	From       address.Path
	Recipients []queue.Recipient
	ENVID, RET string // DSN parameters, passed on when the host offers DSN
	Flags      queue.Flags
	Deadline   queue.Deadline
	Size       int64     // octets of Body, for SIZE=; 0: unknown
	Body       io.Reader // whole message, CRLF line ends
	Sent       func()    // called right before the last octets of the content are written; may be nil
	Tap        Tap       // hears this transaction and what follows it; nil: nobody does
}

// Result is what became of a message. It is complete whatever error came
// with it: who got no answer of his own has that of the step that failed, Local when the peer said nothing.
type Result struct {
	Recipients []Reply // the final fate of each recipient, in the order of Message.Recipients
	DSN        bool    // the host offers DSN and was given the parameters: success reports are its duty now (RFC 3461 §5.2.1)
	Deadline   bool    // the host was told of the deadline
	InDoubt    bool    // the connection was lost after the content: recipients may get the message twice, see Reply.InDoubt (RFC 1047)
}
