package submission

import "bytes"

// field is one field as it came, with its folding and its final CRLF.
type field struct {
	raw   []byte
	name  int // octets of the name; 0: this is no field
	colon int
}

// next cuts the first field off a header: a line and those that continue it.
func next(fields []byte) (f field, rest []byte) {
	end := lineEnd(fields, 0)
	f.name, f.colon = fieldName(fields[:end])
	for end < len(fields) && isBlank(fields[end]) {
		end = lineEnd(fields, end)
	}
	f.raw = fields[:end]
	return f, fields[end:]
}

func lineEnd(b []byte, from int) int {
	if lf := bytes.IndexByte(b[from:], '\n'); lf >= 0 {
		return from + lf + 1
	}
	return len(b)
}

// fieldName finds the name of a field, printing ASCII, and the colon, in front
// of which there may be blanks (RFC 5322 §4.5).
func fieldName(line []byte) (name, colon int) {
	n := 0
	for n < len(line) && line[n] > ' ' && line[n] < 0x7f && line[n] != ':' {
		n++
	}
	if n == 0 {
		return 0, 0
	}
	for i := n; i < len(line); i++ {
		switch {
		case line[i] == ':':
			return n, i
		case !isBlank(line[i]):
			return 0, 0
		}
	}
	return 0, 0
}

// value is what stands behind the colon, without the CRLF at its end.
func (f field) value() []byte {
	value := f.raw[f.colon+1:]
	value = bytes.TrimSuffix(value, []byte("\n"))
	return bytes.TrimSuffix(value, []byte("\r"))
}

// label is the name of the field in errors.
func (f field) label() string {
	const most = 40
	return string(f.raw[:min(f.name, most)])
}

// syntax is what a field is made of, as far as octets outside of ASCII go.
type syntax uint8

const (
	unstructured syntax = iota // any text
	structured                 // comments may hold text, nothing else may
	addresses                  // display names and comments may
	phrases                    // a list of phrases
	parameters                 // as structured, and values of MIME parameters
	opaque                     // nothing may
)

// once are the fields that come once at most (RFC 5322 §3.6).
type once uint16

const (
	onceFrom once = 1 << iota
	onceSender
	onceReplyTo
	onceTo
	onceCc
	onceDate
	onceSubject
	onceMessageID
	onceInReplyTo
	onceReferences
)

// nature is what we know of a field by its name.
type nature struct {
	name     string // only of those that come once
	syntax   syntax
	once     once
	isHidden bool // not for the eyes of recipients, or not ours to send
	isTrace  bool
}

// natureOf knows the fields that are not plain text. Whatever is not here is
// plain text, as RFC 5322 §3.6.8 has it for optional fields.
func natureOf(name []byte) nature {
	var buffer [32]byte
	if len(name) > len(buffer) {
		return nature{}
	}
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		buffer[i] = c
	}
	switch string(buffer[:len(name)]) {
	case "from":
		return nature{name: "From", syntax: addresses, once: onceFrom}
	case "sender":
		return nature{name: "Sender", syntax: addresses, once: onceSender}
	case "reply-to":
		return nature{name: "Reply-To", syntax: addresses, once: onceReplyTo}
	case "to":
		return nature{name: "To", syntax: addresses, once: onceTo}
	case "cc":
		return nature{name: "Cc", syntax: addresses, once: onceCc}
	case "date":
		return nature{name: "Date", syntax: structured, once: onceDate}
	case "subject":
		return nature{name: "Subject", once: onceSubject}
	case "message-id":
		return nature{name: "Message-ID", syntax: structured, once: onceMessageID}
	case "in-reply-to":
		return nature{name: "In-Reply-To", syntax: structured, once: onceInReplyTo}
	case "references":
		return nature{name: "References", syntax: structured, once: onceReferences}
	case "bcc", "resent-bcc":
		// Who gets a message is in the envelope (RFC 5322 §3.6.3, RFC 5321 §7.2).
		return nature{isHidden: true}
	case "return-path":
		// It is for the final delivery to add (RFC 5321 §4.4).
		return nature{isHidden: true}
	case "received":
		// No encoded words here, not even in comments (RFC 2047 §5).
		return nature{syntax: opaque, isTrace: true}
	case "resent-from", "resent-sender", "resent-to", "resent-cc", "resent-reply-to", "apparently-to", "errors-to",
		"disposition-notification-to", "return-receipt-to", "mail-followup-to", "mail-reply-to",
		"list-id": // a phrase and <words> too (RFC 2919 §3)
		return nature{syntax: addresses}
	case "keywords":
		return nature{syntax: phrases}
	case "content-type", "content-disposition":
		return nature{syntax: parameters}
	case "resent-date", "resent-message-id", "mime-version", "content-transfer-encoding", "content-id", "content-language",
		"content-location", "content-base", "content-duration", "content-features", "list-help", "list-unsubscribe",
		"list-subscribe", "list-post", "list-owner", "list-archive", "archived-at", "auto-submitted", "precedence",
		"importance", "priority", "sensitivity", "expires", "expiry-date", "reply-by", "supersedes",
		"original-message-id", "disposition-notification-options":
		return nature{syntax: structured}
	case "content-md5", "dkim-signature", "domainkey-signature", "arc-seal", "arc-message-signature",
		"arc-authentication-results", "authentication-results", "received-spf", "list-unsubscribe-post", "delivered-to",
		"original-recipient", "mt-priority", "tls-required", "require-recipient-valid-since", "autocrypt":
		return nature{syntax: opaque}
	}
	return nature{}
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}
