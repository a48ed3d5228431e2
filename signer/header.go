package signer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
)

// Bounds of what is signed. Mail beyond them is not signed, and never makes the
// signer slow: everything here and below is linear in the size of the header.
const (
	maxHeaderBytes = 512 << 10 // ingress admits half of that from clients
	maxLineOctets  = 998       // RFC 5322 §2.1.1
	// maxListOctets is for the value of h=, which stands on a line of its own
	// but is never folded inside by the library.
	maxListOctets = maxLineOctets - len(" h=;")
	// maxPlainRepeats bounds the fields of one name of class plain that are
	// signed: the lowest ones, which are the oldest.
	maxPlainRepeats = 4
)

// unsignableError says why a message can never be signed.
type unsignableError string

func (e unsignableError) Error() string { return string(e) }

// class says how often a field name is listed in h= (RFC 6376 §5.4, §8.15).
type class int

const (
	// always lists a name once more than it occurs, so that nobody can add one
	// without breaking the signature, even where there was none.
	always class = iota
	// ifPresent does the same for a field that is there, and leaves others free
	// to add one that is not.
	ifPresent
	// plain lists a field as often as it occurs: forwarders and mailing lists
	// rightly put further ones on top.
	plain
)

// signedFields are the fields that are signed, in the order of h=. Trace fields
// (Received, Return-Path), Bcc and signatures are never among them
// (RFC 6376 §5.4.1).
func signedFields() []signedField {
	return []signedField{
		{"from", always},
		{"to", always},
		{"cc", always},
		{"subject", always},
		{"date", always},
		{"reply-to", always},
		{"content-type", always},
		{"message-id", ifPresent},
		{"mime-version", ifPresent},
		{"content-transfer-encoding", ifPresent},
		{"in-reply-to", ifPresent},
		{"references", ifPresent},
		{"list-unsubscribe", ifPresent},
		{"list-unsubscribe-post", ifPresent}, // RFC 8058 §4 wants both covered
		{"resent-date", plain},
		{"resent-from", plain},
		{"resent-sender", plain},
		{"resent-to", plain},
		{"resent-cc", plain},
		{"resent-message-id", plain},
		{"list-id", plain},
		{"list-help", plain},
		{"list-subscribe", plain},
		{"list-post", plain},
		{"list-owner", plain},
		{"list-archive", plain},
	}
}

type signedField struct {
	name  string
	class class
}

// headerList is the value of h= for a header in which each name occurs count
// times. The error is an unsignableError.
func headerList(fields []signedField, count map[string]int) ([]string, error) {
	if n := count["from"]; n != 1 {
		return nil, unsignableError(fmt.Sprintf("the header has %d From fields, not one", n)) // RFC 5322 §3.6
	}
	var list []string
	octets := -1 // no colon before the first
	for _, f := range fields {
		n := count[f.name]
		switch {
		case f.class == always, f.class == ifPresent && n > 0:
			n++
		case f.class == plain:
			n = min(n, maxPlainRepeats)
		}
		octets += n * (len(f.name) + 1)
		if octets > maxListOctets {
			return nil, unsignableError(fmt.Sprintf("the header repeats %s too often to sign them all", f.name))
		}
		for range n {
			list = append(list, f.name)
		}
	}
	return list, nil
}

// header is what signing needs of a message header.
type header struct {
	count  map[string]int // of the signed fields, by lower-case name
	signed []byte         // those fields in their order, each unfolded to one line
	prior  []tagged       // the DKIM signatures that are there already
	line   lines          // what is known of line ends where the body begins
}

// tagged names a signature by d= and s=, both in lower case.
type tagged struct{ domain, selector string }

// parseHeader reads a header with CRLF line ends, with or without the empty line
// that ends it.
//
// Only the fields that are signed are handed on to the library, unfolded. That
// changes no signature, relaxed canonicalization unfolds them anyway (RFC 6376
// §3.4.2), but the library takes quadratic time for a field of many lines and
// for a header of many fields.
//
// A line that is no field is an unsignableError: some verifiers refuse such a
// header (RFC 6376 §5.3), some hosts begin the body there, and one that has the
// name of a signed field and no colon is a field to some.
func parseHeader(raw []byte, fields []signedField) (header, error) {
	h := header{count: make(map[string]int, len(fields))}
	for _, f := range fields {
		h.count[f.name] = 0
	}
	for len(raw) > 0 {
		field := raw[:fieldEnd(raw)]
		raw = raw[len(field):]
		if len(raw) == 0 && string(field) == "\r\n" {
			break
		}
		name, value, found := bytes.Cut(field, []byte(":"))
		name = bytes.TrimRight(name, " \t") // RFC 5322 §4.5.3 allows white space there
		if !found || !isFieldName(name) {
			return header{}, unsignableError(fmt.Sprintf("the header has a line that is no field (%.40q)", field))
		}
		key := strings.ToLower(string(name))
		if key == "dkim-signature" {
			h.prior = append(h.prior, signatureTags(value))
			continue
		}
		if _, is := h.count[key]; !is {
			continue
		}
		h.count[key]++
		h.signed = append(append(h.signed, key...), ':')
		for line := range bytes.SplitSeq(value, []byte("\r\n")) {
			h.signed = append(h.signed, line...)
		}
		h.signed = append(h.signed, "\r\n"...)
	}
	return h, nil
}

// isFieldName tells printable ASCII without a colon (RFC 5322 §3.6.8). A
// continuation line with no field above begins with a space, and is none.
func isFieldName(name []byte) bool {
	for _, c := range name {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(name) > 0
}

// fieldEnd is the length of the first field in raw with its continuation lines.
func fieldEnd(raw []byte) int {
	end := 0
	for {
		i := bytes.IndexByte(raw[end:], '\n')
		if i < 0 {
			return len(raw)
		}
		end += i + 1
		if end == len(raw) || raw[end] != ' ' && raw[end] != '\t' {
			return end
		}
	}
}

// signatureTags reads d= and s= from the value of a DKIM-Signature field.
func signatureTags(value []byte) tagged {
	var t tagged
	for tag := range strings.SplitSeq(string(value), ";") {
		name, v, _ := strings.Cut(tag, "=")
		switch strings.TrimSpace(name) {
		case "d":
			t.domain = strings.ToLower(strings.TrimSpace(v))
		case "s":
			t.selector = strings.ToLower(strings.TrimSpace(v))
		}
	}
	return t
}

// readHead reads from r into buf until the header has ended. It returns the
// header with the empty line that ends it, if there is one, and what it has read
// of the body.
func readHead(ctx context.Context, r io.Reader, buf []byte, chunk int) (head, body, grown []byte, err error) {
	buf = buf[:0]
	searched := 0
	for {
		if err := ctx.Err(); err != nil {
			return nil, nil, buf, err
		}
		if cap(buf)-len(buf) < chunk {
			buf = append(make([]byte, 0, 2*cap(buf)+chunk), buf...)
		}
		n, readErr := r.Read(buf[len(buf) : len(buf)+chunk])
		buf = buf[:len(buf)+n]
		if end := headEnd(buf, searched); end >= 0 {
			return buf[:end], buf[end:], buf, nil
		}
		searched = max(0, len(buf)-3)
		if len(buf) > maxHeaderBytes {
			return nil, nil, buf, unsignableError(fmt.Sprintf("the header is larger than %d octets", maxHeaderBytes))
		}
		if readErr == io.EOF {
			return buf, nil, buf, ctx.Err()
		}
		if readErr != nil {
			return nil, nil, buf, readErr
		}
	}
}

// headEnd is where the body begins, or -1; nothing ends before from+4.
func headEnd(b []byte, from int) int {
	if bytes.HasPrefix(b, []byte("\r\n")) {
		return 2
	}
	if i := bytes.Index(b[from:], []byte("\r\n\r\n")); i >= 0 {
		return from + i + 4
	}
	return -1
}

// maxBlankOctets bounds the line ends of successive blank lines: the library
// keeps them in memory until it knows whether a line with text follows.
const maxBlankOctets = 1 << 20

// lines checks a stream for what must not be signed. The zero value is ready.
type lines struct {
	cr    bool // the last octet was CR
	text  bool // the current line has more than white space
	blank int  // octets of line ends since the last line with text
}

// check looks at the next octets of the stream. A CR or LF on its own means
// different things to different verifiers and hosts (the library hashes LF as
// CRLF, and takes CR for a line end), so that mail with one is never signed.
func (l *lines) check(b []byte) error {
	if len(b) > 0 && l.cr && b[0] != '\n' {
		return unsignableError("the message has a CR without LF")
	}
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		line := b
		if i >= 0 {
			line = b[:i]
		}
		if len(line) > 0 {
			l.cr = line[len(line)-1] == '\r'
			if l.cr {
				line = line[:len(line)-1]
			}
			if bytes.IndexByte(line, '\r') >= 0 {
				return unsignableError("the message has a CR without LF")
			}
		}
		if !l.text {
			l.text = len(bytes.TrimLeft(line, " \t")) > 0
		}
		if l.text {
			l.blank = 0
		}
		if i < 0 {
			return nil
		}
		if !l.cr {
			return unsignableError("the message has an LF without CR")
		}
		l.cr, l.text = false, false
		if l.blank += 2; l.blank > maxBlankOctets {
			return unsignableError(fmt.Sprintf("the message has blank lines of more than %d octets in a row", maxBlankOctets))
		}
		b = b[i+1:]
	}
	return nil
}

// end is called after the last octet.
func (l *lines) end() error {
	if l.cr {
		return unsignableError("the message has a CR without LF")
	}
	return nil
}
