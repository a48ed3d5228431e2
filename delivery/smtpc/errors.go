package smtpc

import (
	"context"
	"errors"
	"os"
)

// Causes of an Error, for errors.Is.
var (
	ErrTLSRequired    = errors.New("the policy wants TLS and the host does not give it") // STARTTLS not offered or refused
	ErrTLSHandshake   = errors.New("tls handshake failed")                               // with TLSMay the caller may dial again with TLSNone
	ErrCertificate    = errors.New("the certificate is not what the policy wants")       // beside ErrTLSHandshake
	ErrAuth           = errors.New("the host did not let us log in")                     // our credentials, or its mechanisms
	ErrAuthInsecure   = errors.New("no login without TLS that proves who the host is")   // see Auth.AllowInsecure
	ErrNeedSMTPUTF8   = errors.New("the message needs SMTPUTF8 and the host does not offer it")
	ErrNeed8BITMIME   = errors.New("the message has 8-bit content and the host does not offer 8BITMIME")
	ErrNeedRequireTLS = errors.New("the message needs REQUIRETLS and the host does not give it")
	ErrNeedDeliverBy  = errors.New("the message is to be delivered in time and the host does not offer DELIVERBY")
	ErrTooLate        = errors.New("the message cannot be delivered in time any more")
	ErrTooLarge       = errors.New("the message is larger than the host accepts")
	ErrBareLineEnd    = errors.New("the content has a bare CR or LF")
	ErrBody           = errors.New("the content could not be read") // our side; the cause is wrapped too
	ErrProtocol       = errors.New("the host does not speak SMTP as agreed")
	ErrChunking       = errors.New("the host offers CHUNKING and does not know BDAT") // with ErrProtocol: dial again without Options.Chunking
	ErrStale          = errors.New("the host had closed the idle connection")         // nothing was sent: dial again at once
	ErrNotReusable    = errors.New("the connection is of no more use")
)

// Error says why a connection or a message failed as a whole. It is temporary
// unless it is proven permanent.
type Error struct {
	Phase   Phase
	Reply   *Reply // what the peer said, or what we say for it (Local); nil when nothing was said
	Err     error  // the cause; nil when the reply is the cause
	InDoubt bool   // the connection was lost after the final dot: the message may have been accepted (RFC 1047)
}

// Error implements error.
func (e *Error) Error() string {
	switch {
	case e.Err != nil && e.Reply != nil && !e.Reply.Local:
		return string(e.Phase) + ": " + e.Reply.String() + ": " + e.Err.Error()
	case e.Err != nil:
		return string(e.Phase) + ": " + e.Err.Error()
	case e.Reply != nil:
		return string(e.Phase) + ": " + e.Reply.String()
	}
	return string(e.Phase) + ": unknown cause"
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Permanent reports that the host refused for good: see Reply.Permanent.
func (e *Error) Permanent() bool { return e.Reply != nil && e.Reply.Permanent() }

// Temporary is the opposite of Permanent.
func (e *Error) Temporary() bool { return !e.Permanent() }

// Fate is the reply to record for recipients who got none of their own: the
// peer's, or a Local one that says in public words what happened.
func (e *Error) Fate() Reply {
	if e.Reply != nil {
		return *e.Reply
	}
	r := Reply{Code: 451, Enhanced: "4.4.2", Phase: e.Phase, Local: true}
	text := "connection lost"
	switch {
	case errors.Is(e.Err, ErrBody):
		r.Enhanced, text = "4.3.0", "content not readable"
	case errors.Is(e.Err, ErrTLSRequired):
		r.Enhanced, text = "4.7.4", ErrTLSRequired.Error()
	case errors.Is(e.Err, ErrCertificate):
		r.Enhanced, text = "4.7.5", "certificate not accepted"
	case errors.Is(e.Err, ErrTLSHandshake):
		r.Enhanced, text = "4.7.5", "TLS handshake failed"
	case errors.Is(e.Err, ErrAuthInsecure):
		r.Enhanced, text = "4.7.11", ErrAuthInsecure.Error()
	case errors.Is(e.Err, ErrAuth):
		r.Enhanced, text = "4.7.0", ErrAuth.Error()
	case errors.Is(e.Err, ErrProtocol):
		r.Enhanced, text = "4.5.0", "reply not understood"
	case errors.Is(e.Err, os.ErrDeadlineExceeded), errors.Is(e.Err, context.DeadlineExceeded):
		text = "timed out"
	case e.Phase == PhaseConnect:
		text = "cannot connect"
	}
	if e.Phase == PhaseConnect {
		r.Enhanced = "4.4.1"
	}
	r.Lines = []string{text + " (" + string(e.Phase) + ")"}
	return r
}

// localReply is a reply that we give in the peer's place.
func localReply(phase Phase, code int, enhanced, text string) Reply {
	return Reply{Code: code, Enhanced: enhanced, Lines: []string{text}, Phase: phase, Local: true}
}
