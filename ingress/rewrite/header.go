package rewrite

import (
	"bytes"
	"errors"
	"slices"

	"postroad/queue/address"
)

// maxLine is the longest line of a header without its CRLF (RFC 5322 §2.1.1).
const maxLine = 998

// Header is what becomes of the fields of a header, each ending with CRLF: in
// the fields that hold addresses of senders or recipients the rules are applied,
// and if complete is set, addresses without a domain get the own one. Nothing
// but addresses changes: all other octets stay as they are, and with nothing to
// change the same slice comes back. A field whose structure is broken stays as it
// is.
//
// Mail that carries a DKIM signature must not be given: the signature would be
// worth nothing afterwards.
func (r *Rules) Header(fields []byte, complete bool, t *Trace) []byte {
	if r == nil {
		return fields
	}
	complete = complete && r.files.OwnDomain != ""
	if !complete && r.tables[headerSenders].isEmpty() && r.tables[headerRecipients].isEmpty() {
		return fields
	}
	var out []byte
	copied := 0
	for at := 0; at < len(fields); {
		end := fieldEnd(fields, at)
		name, value := splitField(fields[at:end])
		scope, isAddresses := scopeOf(name)
		if isAddresses && (complete || !r.tables[scope].isEmpty()) {
			t.enter(name)
			f := field{rules: r, scope: scope, complete: complete, name: fields[at : end-len(value)], value: value, trace: t}
			if changed := f.rewrite(); changed != nil {
				if out == nil {
					out = make([]byte, 0, len(fields)+512)
				}
				out = append(out, fields[copied:end-len(value)]...)
				out = append(out, changed...)
				copied = end
			}
		}
		at = end
	}
	t.enter(nil)
	if out == nil {
		return fields
	}
	return append(out, fields[copied:]...)
}

// fieldEnd is where the field ends that begins at at, with the lines that
// continue it.
func fieldEnd(fields []byte, at int) int {
	for {
		lf := bytes.IndexByte(fields[at:], '\n')
		if lf < 0 {
			return len(fields)
		}
		at += lf + 1
		if at == len(fields) || fields[at] != ' ' && fields[at] != '\t' {
			return at
		}
	}
}

// splitField takes a field apart; the name is empty when it is none. Blanks
// before the colon are obsolete, and read (RFC 5322 §4.5).
func splitField(raw []byte) (name, value []byte) {
	colon := bytes.IndexByte(raw, ':')
	if colon < 0 {
		return nil, nil
	}
	name = bytes.TrimRight(raw[:colon], " \t")
	return name, raw[colon+1:]
}

const maxFieldName = len("Disposition-Notification-To")

// scopeOf says whose addresses a field holds. Return-Path, Original-Recipient
// and all trace fields are not here: they tell what was, and stay (RFC 3461
// §4.2, RFC 5321 §4.4).
func scopeOf(name []byte) (int, bool) {
	if len(name) < 2 || len(name) > maxFieldName {
		return 0, false
	}
	var lower [maxFieldName]byte
	for i, c := range name {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	switch string(lower[:len(name)]) {
	case "from", "sender", "reply-to", "resent-from", "resent-sender", "resent-reply-to", "errors-to", "return-receipt-to",
		"disposition-notification-to":
		return headerSenders, true
	case "to", "cc", "bcc", "resent-to", "resent-cc", "resent-bcc", "apparently-to":
		return headerRecipients, true
	}
	return 0, false
}

// field is one field on its way.
type field struct {
	rules    *Rules
	scope    int
	complete bool
	name     []byte // with its colon
	value    []byte // with the CRLF at its end
	trace    *Trace

	boxes   []box
	results []string // in the place of boxes; empty: stays
}

// rewrite returns the new value, nil when it stays.
func (f *field) rewrite() []byte {
	var room [8]box
	boxes, odd, ok := mailboxes(f.value, room[:0])
	if !ok {
		f.rules.metrics.fieldsSkipped.Inc()
		return nil
	}
	f.boxes = boxes
	change := false
	for i := range boxes {
		result, isOdd := f.address(boxes[i])
		odd = odd || isOdd
		if result == "" {
			continue
		}
		if f.results == nil {
			f.results = make([]string, len(boxes))
		}
		f.results[i] = result
		change = true
	}
	if odd {
		f.rules.metrics.fieldsSkipped.Inc()
	}
	if !change {
		return nil
	}
	out := f.build(false)
	if longest(out, len(f.name)) <= maxLine {
		return out
	}
	if out = f.build(true); longest(out, len(f.name)) <= maxLine {
		return out
	}
	f.rules.metrics.fieldsSkipped.Inc()
	return nil
}

// address gives what comes in the place of an address, "" when it stays. odd
// tells of one that is none.
func (f *field) address(b box) (result string, odd bool) {
	text := string(f.value[b.start:b.end])
	p, err := address.Parse(text)
	isBare := err == nil && p.Domain == "" || errors.Is(err, address.ErrNoDomain)
	switch {
	case isBare && f.complete && f.isCompleted(b):
		result = text + "@" + f.rules.files.OwnDomain
		if p, err = address.Parse(result); err != nil {
			return "", true
		}
		if f.trace != nil {
			f.trace.add(Step{Stage: StageComplete, Before: text, After: []string{result}})
		}
	case isBare:
		return "", false
	case err != nil:
		return "", true
	}
	if became := f.rules.rewrite(f.scope, p, f.trace); became != p {
		return became.String(), false
	}
	return result, false
}

// isCompleted tells a local part that came alone from a word that only looks
// like one: in "Doe, John <john@example.org>", and in an encoded word with a comma
// in it, quotes are missing and Doe is nobody.
func (f *field) isCompleted(b box) bool {
	return b.isNamed || !slices.ContainsFunc(f.boxes, func(other box) bool {
		text := f.value[other.start:other.end]
		return other.isNamed || bytes.HasPrefix(text, []byte("=?")) || bytes.HasSuffix(text, []byte("?="))
	})
}

// build puts the results into the value. With fold set lines are folded in front
// of addresses where they would become too long.
func (f *field) build(fold bool) []byte {
	out := make([]byte, 0, len(f.value)+64*len(f.boxes))
	copied := 0
	begin := -len(f.name) // where the line begins in out
	put := func(upTo int) {
		for copied < upTo {
			part := f.value[copied:upTo]
			if lf := bytes.IndexByte(part, '\n'); lf >= 0 {
				part = part[:lf+1]
				out = append(out, part...)
				begin = len(out)
			} else {
				out = append(out, part...)
			}
			copied += len(part)
		}
	}
	for i, b := range f.boxes {
		if fold {
			at := b.before
			for at > copied && (f.value[at-1] == ' ' || f.value[at-1] == '\t') {
				at--
			}
			put(at)
			if len(out)-begin+f.piece(i, at) > maxLine && len(bytes.TrimSpace(out[max(begin, 0):])) > 0 {
				out = append(out, "\r\n"...)
				begin = len(out)
				if at == b.before {
					out = append(out, ' ')
				}
			}
		}
		put(b.start)
		if f.results != nil && f.results[i] != "" {
			out = append(out, f.results[i]...)
			copied = b.end
		}
	}
	put(len(f.value))
	return out
}

// piece is how long the new line is from at to the end of what cannot be folded:
// to the next address, or to the end of the line.
func (f *field) piece(i, at int) int {
	b, end := f.boxes[i], len(f.value)
	if i+1 < len(f.boxes) {
		end = f.boxes[i+1].before
	}
	grown := 0
	if f.results[i] != "" {
		grown = len(f.results[i]) - (b.end - b.start)
	}
	rest := f.value[at:end]
	if cr := bytes.IndexByte(rest, '\r'); cr >= 0 {
		if at+cr < b.start {
			return 0 // the line ends before the address
		}
		rest = rest[:cr]
	}
	return len(rest) + grown
}

// longest is the length of the longest line of a value whose name stands before.
func longest(value []byte, name int) int {
	most := 0
	for line := range bytes.Lines(value) {
		most = max(most, name+len(bytes.TrimRight(line, "\r\n")))
		name = 0
	}
	return most
}
