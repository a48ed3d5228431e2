package ingress

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"postroad/queue/address"
)

// span is a field, or a part of one, by its place in the header.
type span struct{ start, end int }

// header is the header of a message: read once, looked at once (RFC 5322
// §2.2, §3.6). buf holds its fields and behind them what was read of the body.
type header struct {
	buf    []byte
	fields int // octets of the fields
	body   int // where the body begins; fields, when the blank line is missing

	count       int // fields
	lines       int
	received    int
	from        span // value of the first From field
	messageID   span
	returnPaths []span // whole fields
	authors     int    // From fields
	hasDate     bool
	hasID       bool
	isSigned    bool // a DKIM-Signature is there
	tlsFields   int  // TLS-Required fields
	noTLS       bool // the last of them says No

	maxBytes, maxFields int
}

// linesPerField bounds folding: signing a header costs time by lines.
const linesPerField = 5

// read reads from r to the end of the header. It keeps the strict readers'
// promise that every line ends with CRLF.
func (h *header) read(r io.Reader) error {
	field := span{-1, -1} // the field that may still be continued
	next := 0             // where the next line begins
	for {
		for {
			lf := bytes.IndexByte(h.buf[next:], '\n')
			if lf < 0 {
				break
			}
			line := h.buf[next : next+lf+1]
			switch {
			case len(line) == 2:
				h.finish(field, next, next+2)
				return nil
			case (line[0] == ' ' || line[0] == '\t') && field.start >= 0:
			case fieldName(line) > 0:
				h.take(field, next)
				field = span{next, -1}
				h.count++
			default:
				// No field: the body began without its blank line.
				h.finish(field, next, next)
				return nil
			}
			h.lines++
			next += lf + 1
			if next > h.maxBytes || h.count > h.maxFields || h.lines > linesPerField*h.maxFields {
				return errHeaderSize
			}
		}
		if len(h.buf) > h.maxBytes {
			return errHeaderSize
		}
		if len(h.buf) == cap(h.buf) {
			h.buf = append(h.buf, 0)[:len(h.buf)]
		}
		n, err := r.Read(h.buf[len(h.buf):cap(h.buf)])
		h.buf = h.buf[:len(h.buf)+n]
		if n > 0 {
			continue
		}
		if errors.Is(err, io.EOF) {
			h.finish(field, next, next)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (h *header) finish(field span, fields, body int) {
	h.take(field, fields)
	h.fields, h.body = fields, body
}

// take notes a field that ended at end.
func (h *header) take(field span, end int) {
	if field.start < 0 {
		return
	}
	raw := h.buf[field.start:end]
	n := fieldName(raw)
	value := span{field.start + bytes.IndexByte(raw, ':') + 1, end}
	switch name := raw[:n]; {
	case isName(name, "Received"):
		h.received++
	case isName(name, "From"):
		if h.authors++; h.authors == 1 {
			h.from = value
		}
	case isName(name, "Date"):
		h.hasDate = true
	case isName(name, "Message-ID"):
		if !h.hasID {
			h.messageID = value
		}
		h.hasID = true
	case isName(name, "DKIM-Signature"):
		h.isSigned = true
	case isName(name, "TLS-Required"):
		h.tlsFields++
		h.noTLS = strings.EqualFold(string(bytes.TrimSpace(h.buf[value.start:value.end])), "No")
	case isName(name, "Return-Path"):
		h.returnPaths = append(h.returnPaths, span{field.start, end})
	}
}

func isName(name []byte, want string) bool {
	return len(name) == len(want) && strings.EqualFold(string(name), want)
}

// fieldName says how long the name of the field is that a line begins with,
// or 0: printing ASCII, then perhaps blanks (RFC 5322 §4.5), then a colon.
func fieldName(line []byte) int {
	n := 0
	for n < len(line) && line[n] > ' ' && line[n] < 0x7f && line[n] != ':' {
		n++
	}
	for i := n; i < len(line); i++ {
		switch line[i] {
		case ':':
			return n
		case ' ', '\t':
		default:
			return 0
		}
	}
	return 0
}

// replace puts other fields into the place of these.
func (h *header) replace(fields []byte) error {
	if len(fields) > 0 && h.fields == len(fields) && &fields[0] == &h.buf[0] || len(fields) == 0 && h.fields == 0 {
		return nil // the same
	}
	fresh := header{
		buf:       append(append(make([]byte, 0, len(fields)+len(h.buf)-h.fields), fields...), h.buf[h.fields:]...),
		maxBytes:  2 * h.maxBytes, // what we write may be longer than what came
		maxFields: 2 * h.maxFields,
	}
	if err := fresh.read(strings.NewReader("")); err != nil {
		return err
	}
	fresh.maxBytes, fresh.maxFields = h.maxBytes, h.maxFields
	*h = fresh
	return nil
}

// dropReturnPaths takes Return-Path fields out: they are for the final
// delivery to add (RFC 5321 §4.4).
func (h *header) dropReturnPaths() {
	for i := len(h.returnPaths) - 1; i >= 0; i-- {
		f := h.returnPaths[i]
		n := f.end - f.start
		h.buf = append(h.buf[:f.start], h.buf[f.end:]...)
		h.fields -= n
		h.body -= n
		h.messageID.shift(f.start, n)
		h.from.shift(f.start, n)
	}
	h.returnPaths = nil
}

func (s *span) shift(from, n int) {
	if s.start > from {
		s.start -= n
		s.end -= n
	}
}

// authorDomain is the domain of the From field, or "" when there is none or
// when several fields leave it open whose mail this is.
func (h *header) authorDomain() string {
	if h.authors != 1 {
		return ""
	}
	domain, err := address.Normalize(authorDomain(h.buf[h.from.start:h.from.end]))
	if err != nil {
		return ""
	}
	return domain
}

// isTLSOptional reports the field "TLS-Required: No" (RFC 8689 §3). Several are none.
func (h *header) isTLSOptional() bool { return h.tlsFields == 1 && h.noTLS }

// messageIDText is the value of Message-ID for events, one clean line.
func (h *header) messageIDText() string {
	const most = 250
	text := bytes.TrimSpace(h.buf[h.messageID.start:h.messageID.end])
	text = text[:min(len(text), most)]
	for _, b := range text {
		if b < ' ' || b >= 0x7f {
			return strings.Map(func(r rune) rune {
				if r < ' ' || r >= 0x7f {
					return -1
				}
				return r
			}, string(text))
		}
	}
	return string(text)
}

// authorDomain finds the domain of the first mailbox in a From value. Display
// names are taken as they come, since many are not valid: it steps over quoted
// strings and comments, and looks for the brackets.
func authorDomain(value []byte) string {
	var bare []byte // what stands outside of comments and quotes
	depth, inQuotes := 0, false
	for i := 0; i < len(value); i++ {
		b := value[i]
		switch {
		case b == '\\' && (inQuotes || depth > 0):
			i++
		case inQuotes:
			inQuotes = b != '"'
		case b == '(':
			depth++
		case b == ')' && depth > 0:
			depth--
		case depth > 0:
		case b == '"':
			inQuotes = true
		case b == '<':
			bare = bare[:0]
		case b == '>':
			return afterAt(bare)
		case (b == ',' || b == ';') && bytes.IndexByte(bare, '@') >= 0:
			return afterAt(bare)
		case b == ':' && bytes.IndexByte(bare, '@') < 0:
			bare = bare[:0] // the name of a group
		case b > ' ':
			bare = append(bare, b)
		}
	}
	return afterAt(bare)
}

func afterAt(mailbox []byte) string {
	at := bytes.LastIndexByte(mailbox, '@')
	if at < 0 {
		return ""
	}
	return string(mailbox[at+1:])
}
