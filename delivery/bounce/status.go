package bounce

import (
	"bytes"
	"fmt"
	"iter"
	"regexp"
	"strings"
)

// status is the machine-readable part (RFC 3464 §2): fields of the message, then one group of fields for each recipient.
func (r Report) status() section {
	f := &fields{raw: r.isGlobal()}
	if id, ok := DecodeXtext(r.ENVID); ok && id != "" {
		f.add("Original-Envelope-Id", id)
	}
	f.add("Reporting-MTA", "dns; "+r.Hostname)
	if !r.Arrival.IsZero() {
		f.add("Arrival-Date", r.Arrival.Format(dateLayout))
	}
	if !r.DeliverBy.IsZero() {
		f.add("Deliver-By-Date", r.DeliverBy.Format(dateLayout))
	}
	if r.ID != "" {
		f.add("X-Postroad-Queue-ID", r.ID)
	}
	for _, rcpt := range r.Recipients {
		f.WriteString("\r\n")
		rcpt.addTo(f)
	}
	s := section{contentType: "message/delivery-status", description: "Delivery report", body: f.Bytes()}
	if r.isGlobal() {
		s.contentType = "message/global-delivery-status"
		s.encode()
	}
	return s
}

func (rcpt Recipient) addTo(f *fields) {
	if original, ok := rcpt.original(f.raw); ok {
		f.add("Original-Recipient", original)
	}
	f.add("Final-Recipient", rcpt.final(f.raw))
	f.add("Action", string(rcpt.Action))
	f.add("Status", rcpt.status())
	if rcpt.RemoteMTA != "" {
		f.add("Remote-MTA", "dns; "+Clean(rcpt.RemoteMTA, 300))
	}
	if rcpt.Diagnostic != "" {
		kind := "smtp; "
		if rcpt.RemoteMTA == "" {
			kind = "x-postroad; " // our own words are no SMTP reply
		}
		f.fold("Diagnostic-Code", kind+Clean(rcpt.Diagnostic, MaxText))
	}
	if !rcpt.LastAttempt.IsZero() {
		f.add("Last-Attempt-Date", rcpt.LastAttempt.Format(dateLayout))
	}
	if rcpt.Action == Delayed && !rcpt.WillRetryUntil.IsZero() {
		f.add("Will-Retry-Until", rcpt.WillRetryUntil.Format(dateLayout))
	}
}

// statusCode is the syntax of RFC 3463 §2.
var statusCode = regexp.MustCompile(`^[245]\.[0-9]{1,3}\.[0-9]{1,3}$`)

func (rcpt Recipient) status() string {
	switch {
	case statusCode.MatchString(rcpt.Status):
		return rcpt.Status
	case rcpt.Action == Failed:
		return "5.0.0"
	case rcpt.Action == Delayed:
		return "4.0.0"
	}
	return "2.0.0"
}

// original is the value of Original-Recipient: ORCPT without its xtext (RFC 3464 §2.3.1). Type utf-8 has an encoding of its own: it goes
// where UTF-8 may stand as it is, and stays elsewhere (RFC 6533 §3).
func (rcpt Recipient) original(isGlobal bool) (string, bool) {
	addressType, encoded, found := strings.Cut(rcpt.ORCPT, ";")
	if !found || addressType == "" || encoded == "" {
		return "", false
	}
	if strings.EqualFold(addressType, "utf-8") {
		if isGlobal {
			return "utf-8; " + DecodeUnitext(encoded), true
		}
		if isASCII(encoded) {
			return "utf-8; " + encoded, true
		}
		return "utf-8; " + EncodeUnitext(DecodeUnitext(encoded)), true
	}
	addr, ok := DecodeXtext(encoded)
	return Clean(addressType, 64) + "; " + addr, ok
}

func (rcpt Recipient) final(isGlobal bool) string {
	switch {
	case rcpt.Path.NeedsSMTPUTF8() && isGlobal:
		return "utf-8; " + rcpt.Path.String()
	case rcpt.Path.NeedsSMTPUTF8():
		return "utf-8; " + EncodeUnitext(rcpt.Path.String())
	}
	return "rfc822; " + rcpt.Path.String()
}

// fields writes header-like fields that cannot be broken by their values.
type fields struct {
	bytes.Buffer
	raw bool // UTF-8 may stand as it is: the part will be encoded
}

// add writes a field on one line, cut at what a line may hold. What is not ASCII becomes \x{…} (RFC 6533 §3) where it
// may not stand as it is.
func (f *fields) add(name, value string) {
	start := f.Len()
	f.WriteString(name + ": ")
	for _, r := range value {
		if f.Len()-start > maxLine {
			break
		}
		switch {
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029':
			f.WriteByte('?')
		case r < 0x7f || f.raw:
			f.WriteRune(r)
		default:
			fmt.Fprintf(f, `\x{%X}`, r)
		}
	}
	f.WriteString("\r\n")
}

// fold writes a field of words over several lines. What has no spaces to fold at is broken.
func (f *fields) fold(name, value string) {
	f.WriteString(name + ":")
	width := len(name) + 1
	for word := range strings.FieldsSeq(value) {
		for piece := range pieces(word, maxLine/2) {
			if width+1+len(piece) > lineWidth && width > 4 {
				f.WriteString("\r\n   ")
				width = 3
			}
			f.WriteString(" " + piece)
			width += 1 + len(piece)
		}
	}
	f.WriteString("\r\n")
}

func pieces(word string, size int) iter.Seq[string] {
	return func(yield func(string) bool) {
		for len(word) > size {
			if !yield(word[:size]) {
				return
			}
			word = word[size:]
		}
		yield(word)
	}
}
