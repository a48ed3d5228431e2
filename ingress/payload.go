package ingress

import (
	"crypto/x509"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"postroad/ingress/submission"
	"postroad/queue"
)

// payload is a message as the queue gets it: what we add, the header, the
// body as it comes from the client. Nothing is gathered: the body passes.
type payload struct {
	parts [4][]byte // our fields, the client's fields, a blank line if missing, the begin of the body
	part  int
	body  io.Reader
	size  int64 // octets given out
	err   error // how the body ended
}

func newPayload(prefix []byte, h *header, body io.Reader) *payload {
	p := &payload{body: body}
	p.parts[0] = prefix
	p.parts[1] = h.buf[:h.body]
	if h.body == h.fields {
		// Without a blank line nobody can sign it.
		p.parts[2] = []byte("\r\n")
	}
	p.parts[3] = h.buf[h.body:]
	return p
}

func (p *payload) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) && p.part < len(p.parts) {
		k := copy(b[n:], p.parts[p.part])
		p.parts[p.part] = p.parts[p.part][k:]
		n += k
		if len(p.parts[p.part]) == 0 {
			p.part++
		}
	}
	if n == 0 && p.err == nil && len(b) > 0 {
		n, p.err = p.body.Read(b)
	}
	p.size += int64(n)
	if n > 0 {
		return n, nil
	}
	return 0, p.err
}

// isComplete reports that the reader has seen the end of the message.
func (p *payload) isComplete() bool { return errors.Is(p.err, io.EOF) }

// fault is the error of the body, if it had one.
func (p *payload) fault() error {
	if p.isComplete() {
		return nil
	}
	return p.err
}

// trace is what a Received field says (RFC 5321 §4.4).
type trace struct {
	helo, remote string // as announced, and the address literal
	hostname     string
	protocol     string // RFC 3848, RFC 6531 §4.3
	isHidden     bool   // neither of them is to be told
	tls          string // version and cipher, "" without
	certificate  *x509.Certificate
	id           queue.MessageID
	recipient    string // only when there is one: others are nobody's business (RFC 5321 §7.2)
	now          time.Time
}

const dateLayout = "Mon, 02 Jan 2006 15:04:05 -0700" // RFC 5322 §3.3

// appendReceived prints the Received field.
func (t *trace) appendReceived(b []byte) []byte {
	b = append(b, "Received: from "...)
	if t.isHidden {
		b = append(b, submission.HiddenHost+"\r\n\tby "...)
	} else {
		b = append(b, t.helo...)
		b = append(b, " ("...)
		b = append(b, t.remote...)
		b = append(b, ")\r\n\tby "...)
	}
	b = append(b, t.hostname...)
	b = append(b, " with "...)
	b = append(b, t.protocol...)
	if t.tls != "" {
		b = append(b, " ("...)
		b = append(b, t.tls...)
		if t.certificate != nil && !t.isHidden {
			b = append(b, ",\r\n\tclient "...)
			b = appendComment(b, t.certificate.Subject.CommonName)
			b = append(b, " by "...)
			b = appendComment(b, t.certificate.Issuer.CommonName)
		}
		b = append(b, ')')
	}
	b = append(b, "\r\n\tid "...)
	b = append(b, t.id...)
	if t.recipient != "" {
		b = append(b, "\r\n\tfor <"...)
		b = append(b, t.recipient...)
		b = append(b, '>')
	}
	b = append(b, "; "...)
	b = t.now.AppendFormat(b, dateLayout)
	return append(b, "\r\n"...)
}

// appendComment prints a name from a certificate so that it is part of a comment
// (RFC 5322 §3.2.2) whatever it is: in quotes, printing ASCII, of bounded length.
func appendComment(b []byte, name string) []byte {
	const most = 64
	b = append(b, '"')
	for _, r := range name[:min(len(name), most)] {
		if r < ' ' || r > '~' || r == '(' || r == ')' || r == '\\' || r == '"' {
			r = '?'
		}
		b = append(b, byte(r))
	}
	return append(b, '"')
}

// appendFixes prints the fields that every message needs and this one lacks
// (RFC 6409 §8.2, §8.3). A message that carries a signature is left as it is.
func (t *trace) appendFixes(b []byte, h *header) []byte {
	if h.isSigned {
		return b
	}
	if !h.hasDate {
		b = append(b, "Date: "...)
		b = t.now.AppendFormat(b, dateLayout)
		b = append(b, "\r\n"...)
	}
	if !h.hasID {
		b = append(b, "Message-ID: "...)
		b = append(b, t.madeMessageID()...)
		b = append(b, "\r\n"...)
	}
	return b
}

func (t *trace) madeMessageID() string { return "<" + string(t.id) + "@" + t.hostname + ">" }

// protocolName is the word behind "with".
func protocolName(isESMTP, isUTF8, isTLS, isAuthenticated bool) string {
	var b strings.Builder
	switch {
	case isUTF8:
		b.WriteString("UTF8SMTP")
	case isESMTP:
		b.WriteString("ESMTP")
	default:
		b.WriteString("SMTP")
	}
	if isTLS {
		b.WriteByte('S')
	}
	if isAuthenticated {
		b.WriteByte('A')
	}
	return b.String()
}

const (
	bufferBytes    = 16 << 10
	maxBufferBytes = 64 << 10 // larger ones are not kept
)

var buffers = sync.Pool{New: func() any {
	b := make([]byte, 0, bufferBytes)
	return &b
}}

func getBuffer() *[]byte { return buffers.Get().(*[]byte) }

func putBuffer(b *[]byte) {
	if cap(*b) <= maxBufferBytes {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}
