package ingress

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/emersion/go-smtp"

	"postroad/ingress/rewrite"
	"postroad/ingress/submission"
	"postroad/queue"
	"postroad/queue/address"
)

// refusal is an answer that we give to a client: a reply of the table below.
// Its text is public; inner causes are logged and never said.
type refusal struct {
	code     int
	enhanced smtp.EnhancedCode
	text     string
	hangup   bool // the connection ends with it, unread input is thrown away
}

const textQueued = "queued as "

// The reply table (RFC 5321 §4.2, RFC 3463, RFC 2034 §4).
var (
	errShutdown       = &refusal{421, smtp.EnhancedCode{4, 3, 2}, "shutting down, try again", true}
	errTooMany        = &refusal{421, smtp.EnhancedCode{4, 3, 2}, "too many connections, try later", true}
	errTooManyAddress = &refusal{421, smtp.EnhancedCode{4, 7, 0}, "too many connections from your address", true}
	errIdle           = &refusal{421, smtp.EnhancedCode{4, 4, 2}, "idle for too long", true}
	errTooManyErrors  = &refusal{421, smtp.EnhancedCode{4, 7, 0}, "too many errors", true}
	errTooManyIdle    = &refusal{421, smtp.EnhancedCode{4, 7, 0}, "too many commands without mail", true}

	errTooManyRate    = &refusal{421, smtp.EnhancedCode{4, 7, 0}, "connections from your address come too fast", true}
	errBanned         = &refusal{421, smtp.EnhancedCode{4, 7, 0}, "too many errors from your address, try later", true}
	errTooManyAuth    = &refusal{421, smtp.EnhancedCode{4, 7, 0}, "too many failed logins", true}
	errAccountChanged = &refusal{421, smtp.EnhancedCode{4, 7, 0}, "your account has changed, log in again", true}
	errDirect         = &refusal{554, smtp.EnhancedCode{5, 7, 1}, "no service for direct connections here", true}

	errLimit         = &refusal{450, smtp.EnhancedCode{4, 7, 1}, "too many recipients in a short time, try later", false}
	errAuthLater     = &refusal{454, smtp.EnhancedCode{4, 7, 0}, "cannot check this login now, try later", false}
	errAuthThrottled = &refusal{454, smtp.EnhancedCode{4, 7, 0}, "too many failed logins, try later", false}

	errBounceLater       = &refusal{451, smtp.EnhancedCode{4, 3, 0}, "cannot check this address now, try again", false}
	errBouncesApart      = &refusal{452, smtp.EnhancedCode{4, 5, 3}, "send to this address in a transaction of its own", false}
	errTooManyRecipients = &refusal{452, smtp.EnhancedCode{4, 5, 3}, "too many recipients, send the rest in another transaction", false}
	errFull              = &refusal{452, smtp.EnhancedCode{4, 3, 1}, "no room for mail now, try later", false}
	errUnavailable       = &refusal{451, smtp.EnhancedCode{4, 3, 0}, "the queue did not confirm the message, try again", false}
	errStalled           = &refusal{451, smtp.EnhancedCode{4, 4, 2}, "content did not arrive in time", true}
	errVanished          = &refusal{451, smtp.EnhancedCode{4, 4, 2}, "connection lost inside the message", true}
	errAborted           = &refusal{451, smtp.EnhancedCode{4, 3, 0}, "transaction given up", false}

	errTooLongCommand = &refusal{500, smtp.EnhancedCode{5, 5, 2}, "command line too long", true}
	errCommandLine    = &refusal{500, smtp.EnhancedCode{5, 5, 2}, "command lines end with CRLF and hold no other CR, LF or NUL", true}
	errUnknown        = &refusal{500, smtp.EnhancedCode{5, 5, 1}, "command unknown", false}
	errArguments      = &refusal{501, smtp.EnhancedCode{5, 5, 4}, "bad arguments", false}
	errChunkSize      = &refusal{501, smtp.EnhancedCode{5, 5, 4}, "bad chunk size", true}
	errNotImplemented = &refusal{502, smtp.EnhancedCode{5, 5, 1}, "command not implemented", false}
	errNoHello        = &refusal{503, smtp.EnhancedCode{5, 5, 1}, "say EHLO first", false}
	errNested         = &refusal{503, smtp.EnhancedCode{5, 5, 1}, "a transaction is open, end it with RSET", false}
	errNoTransaction  = &refusal{503, smtp.EnhancedCode{5, 5, 1}, "say MAIL and RCPT first", false}
	errTLSAlready     = &refusal{503, smtp.EnhancedCode{5, 5, 1}, "TLS is already active", false}
	errAuthAlready    = &refusal{503, smtp.EnhancedCode{5, 5, 1}, "already logged in", false}
	errAuthNeeded     = &refusal{530, smtp.EnhancedCode{5, 7, 0}, "log in first", false}
	errAuthTLSFirst   = &refusal{530, smtp.EnhancedCode{5, 7, 0}, "say STARTTLS and log in first", false}
	errAuthClear      = &refusal{538, smtp.EnhancedCode{5, 7, 11}, "logging in needs TLS, say STARTTLS first", false}
	errAuthMechanism  = &refusal{504, smtp.EnhancedCode{5, 5, 4}, "mechanism not offered", false}
	errAuthCancelled  = &refusal{501, smtp.EnhancedCode{5, 7, 0}, "login cancelled", false}
	errAuthResponse   = &refusal{501, smtp.EnhancedCode{5, 5, 2}, "response is not what the mechanism asks for", false}
	errAuthBase64     = &refusal{501, smtp.EnhancedCode{5, 5, 2}, "response is not base64", false}
	errAuthLine       = &refusal{500, smtp.EnhancedCode{5, 5, 6}, "response too long", true}
	errAuthFailed     = &refusal{535, smtp.EnhancedCode{5, 7, 8}, "wrong name or password", false}
	errSpokeFirst     = &refusal{554, smtp.EnhancedCode{5, 5, 0}, "you spoke before the greeting", true}
	errParameter      = &refusal{555, smtp.EnhancedCode{5, 5, 4}, "parameter unknown", false}
	errParameterValue = &refusal{501, smtp.EnhancedCode{5, 5, 4}, "bad parameter value", false}
	errParameterTwice = &refusal{501, smtp.EnhancedCode{5, 5, 4}, "parameter given twice", false}
	errHoldTooLong    = &refusal{501, smtp.EnhancedCode{5, 5, 4}, "mail may not be held for so long here", false}
	errDeadline       = &refusal{555, smtp.EnhancedCode{5, 5, 4}, "too short a time to deliver or return mail", false}
	errReversePath    = &refusal{501, smtp.EnhancedCode{5, 1, 7}, "bad sender address", false}
	errForwardPath    = &refusal{501, smtp.EnhancedCode{5, 1, 3}, "bad recipient address", false}
	errNeedsUTF8      = &refusal{553, smtp.EnhancedCode{5, 6, 7}, "this address needs SMTPUTF8", false}
	errNoBounce       = &refusal{550, smtp.EnhancedCode{5, 1, 1}, "there is no such address here", false}
	errRelaying       = &refusal{550, smtp.EnhancedCode{5, 7, 1}, "unauthenticated relay not permitted", false}
	errLimitReject    = &refusal{550, smtp.EnhancedCode{5, 7, 1}, "too many recipients in a short time", false}
	errNullMX         = &refusal{550, smtp.EnhancedCode{5, 7, 27}, "the sender's domain takes no mail", false}
	errSender         = &refusal{550, smtp.EnhancedCode{5, 7, 1}, "you may not send as this sender", false}
	errAuthor         = &refusal{550, smtp.EnhancedCode{5, 7, 1}, "you may not send as the author in the From field", false}
	errRecipient      = &refusal{550, smtp.EnhancedCode{5, 7, 1}, "this system does not send to that recipient", false}
	errRouted         = &refusal{550, smtp.EnhancedCode{5, 7, 1}, "addresses with a route in them are not relayed", false}
	errPipelined      = &refusal{554, smtp.EnhancedCode{5, 5, 0}, "nothing may be sent behind this command before its reply", true}
	errSize           = &refusal{552, smtp.EnhancedCode{5, 3, 4}, "message too large", false}
	errSizeEndless    = &refusal{552, smtp.EnhancedCode{5, 3, 4}, "message too large", true}
	errHeaderSize     = &refusal{552, smtp.EnhancedCode{5, 3, 4}, "message header too large", false}
	errEnvelope       = &refusal{552, smtp.EnhancedCode{5, 3, 4}, "envelope too large, use fewer recipients", false}
	errLoop           = &refusal{554, smtp.EnhancedCode{5, 4, 6}, "too many hops, this message loops", false}
	errBareCR         = &refusal{550, smtp.EnhancedCode{5, 6, 0}, "bare CR in message", true}
	errBareLF         = &refusal{550, smtp.EnhancedCode{5, 6, 0}, "bare LF in message", true}
	errNUL            = &refusal{550, smtp.EnhancedCode{5, 6, 0}, "NUL octet in message", false}
	errLongLine       = &refusal{550, smtp.EnhancedCode{5, 6, 0}, "line longer than 998 octets in message", false}
	replyReady        = &refusal{220, smtp.EnhancedCode{2, 0, 0}, "ready to start TLS", false}
	replyAuthDone     = &refusal{235, smtp.EnhancedCode{2, 7, 0}, "logged in", false}
	replyHelp         = &refusal{214, smtp.EnhancedCode{2, 0, 0}, "see RFC 5321", false}
	errHandshake      = errors.New("TLS handshake failed")
	errNoEnd          = errors.New("queue accepted a payload that it had not read to its end")
)

// Error makes a refusal an error, so that it can come out of a payload.
func (r *refusal) Error() string { return strconv.Itoa(r.code) + " " + r.status() + " " + r.text }

func (r *refusal) status() string {
	e := r.enhanced
	return strconv.Itoa(e[0]) + "." + strconv.Itoa(e[1]) + "." + strconv.Itoa(e[2])
}

// smtpError is the one way from an error to go-smtp, which looks neither into
// wrapped errors nor hides foreign texts. Unknown means temporary.
func smtpError(err error) *smtp.SMTPError {
	r := refusalOf(err)
	return &smtp.SMTPError{Code: r.code, EnhancedCode: r.enhanced, Message: r.text}
}

// refusalOf finds the public answer to an error.
func refusalOf(err error) *refusal {
	if e, isKnown := errors.AsType[*rewrite.Error](err); isKnown {
		return &refusal{e.Code, smtp.EnhancedCode(e.Enhanced), e.Text, false}
	}
	switch r, isRefusal := errors.AsType[*refusal](err); {
	case isRefusal:
		return r
	case errors.Is(err, queue.ErrFull):
		return errFull
	case errors.Is(err, queue.ErrEnvelopeTooLarge):
		return errEnvelope
	case errors.Is(err, smtp.ErrDataReset), errors.Is(err, io.ErrClosedPipe):
		return errAborted
	}
	return errUnavailable
}

// submissionRefusal answers what is wrong with the header of a submission.
func submissionRefusal(err error) *refusal {
	if e, isKnown := errors.AsType[*submission.Error](err); isKnown {
		return &refusal{550, smtp.EnhancedCode(e.Enhanced()), e.Error(), false}
	}
	return errUnavailable
}

// pathRefusal answers a path that address refused.
func pathRefusal(err error, otherwise *refusal) *refusal {
	if errors.Is(err, address.ErrDomain) || errors.Is(err, address.ErrLiteral) {
		return &refusal{otherwise.code, otherwise.enhanced, otherwise.text + ": not a domain", false}
	}
	return otherwise
}

// rewrites turns the fixed texts of go-smtp into ours: the codes that it gives
// against RFC 5321 §4.2.4, and texts that repeat what the client said.
var rewrites = []struct{ from, to string }{
	{"250 2.0.0 Roger, accepting", "250 2.1.0 sender accepted"},
	{"250 2.0.0 I'll make sure", "250 2.1.5 recipient accepted"},
	{"250 2.0.0 I have successfully", "250 2.0.0 done"},
	{"250 2.0.0 Session reset", "250 2.0.0 reset"},
	{"250 2.0.0 Continue", "250 2.0.0 chunk received"},
	{"252 2.5.0 ", "252 2.5.0 not verified, but mail for it may be accepted"},
	{"354 ", "354 end data with <CRLF>.<CRLF>"},
	{"221 2.0.0 ", "221 2.0.0 bye"},
	{"421 4.0.0 ", "421 4.3.0 internal error, try again"},
	{"501 5.5.4 DATA command", "501 5.5.4 DATA takes no argument"},
	{"502 5.5.1 Please introduce", "503 5.5.1 say EHLO first"},
	{"502 5.5.1 Missing", "503 5.5.1 say MAIL and RCPT first"},
	{"502 5.5.1 MAIL not allowed", "503 5.5.1 not between chunks"},
	{"502 5.5.1 RCPT not allowed", "503 5.5.1 not between chunks"},
	{"502 5.5.1 DATA not allowed", "503 5.5.1 not between chunks"},
}

// appendReply prints a refusal as one reply line.
func appendReply(out []byte, r *refusal) []byte {
	out = strconv.AppendInt(out, int64(r.code), 10)
	out = append(out, ' ')
	out = append(out, r.status()...)
	out = append(out, ' ')
	out = append(out, r.text...)
	return append(out, "\r\n"...)
}

// appendExtensions prints the EHLO keywords that go-smtp knows nothing of.
func (c *conn) appendExtensions(out []byte) []byte {
	if c.listener.TLS != nil && !c.isTLS() {
		out = append(out, "250-STARTTLS\r\n"...)
	}
	if c.isTLS() { // RFC 8689 §2: only where TLS is
		out = append(out, "250-REQUIRETLS\r\n"...)
	}
	if words := c.mechanisms(); len(words) > 0 {
		out = append(out, "250-AUTH "+strings.Join(words, " ")+"\r\n"...)
	}
	if most := c.maxHold(); most > 0 { // RFC 4865 §3
		out = append(out, "250-FUTURERELEASE "...)
		out = strconv.AppendInt(out, int64(most/time.Second), 10)
		out = append(out, ' ')
		out = time.Now().Add(most).UTC().AppendFormat(out, time.RFC3339)
		out = append(out, "\r\n"...)
	}
	out = append(out, "250-DELIVERBY "...) // RFC 2852 §3
	out = strconv.AppendInt(out, minDeliverBy, 10)
	out = append(out, "\r\n250-LIMITS RCPTMAX="...) // RFC 9422
	out = strconv.AppendInt(out, int64(c.srv.options.MaxRecipients), 10)
	return append(out, "\r\n"...)
}

// appendLibrary appends a reply line of go-smtp, put into our words.
func (c *conn) appendLibrary(out, line []byte) []byte {
	switch {
	case bytes.HasPrefix(line, []byte("250-Hello ")):
		// RFC 5321 §4.1.1.1: our own domain comes first.
		out = append(out, "250-"+c.srv.options.Hostname+"\r\n"...)
		return c.appendExtensions(out)
	case bytes.HasPrefix(line, []byte("250 2.0.0 Hello ")):
		return append(out, "250 "+c.srv.options.Hostname+"\r\n"...)
	case bytes.HasPrefix(line, []byte("220 ")) && bytes.HasSuffix(line, []byte(" ESMTP Service Ready\r\n")):
		out = append(out, "220 "+c.srv.options.Hostname+" "+c.listener.Banner+"\r\n"...)
		return out
	case bytes.Equal(line, []byte("250 SIZE\r\n")):
		out = append(out, "250 SIZE "...)
		out = strconv.AppendInt(out, c.srv.options.MaxMessageBytes, 10)
		return append(out, "\r\n"...)
	}
	for _, r := range rewrites {
		if len(line) > len(r.from) && string(line[:len(r.from)]) == r.from {
			out = append(out, r.to...)
			return append(out, "\r\n"...)
		}
	}
	return append(out, line...)
}
