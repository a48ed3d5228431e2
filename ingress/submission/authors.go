package submission

import (
	"bytes"

	"postroad/queue/address"
)

// Authors are the addresses in From, in their order, and behind them the one in
// Sender when there is such a field: all that a client must be allowed to use.
//
// It reads strictly, since a client could hide an author from us where other
// programs read a field differently. So it refuses, besides what is no address
// list (RFC 5322 §3.4):
//
//   - From missing or repeated, Sender repeated or with more than one address,
//     blanks between these names and the colon, text that is no field;
//   - addresses without a domain (errors.Is address.ErrNoDomain), or which
//     package address refuses;
//   - source routes; comments in angle brackets; blanks or comments around
//     the @; encoded words in an address;
//   - unquoted brackets, colons, @ and backslashes in display names;
//   - control characters other than tabs; quoted pairs of anything but printing
//     ASCII; comments with <>, quotes, backslashes or other comments in them;
//   - lists that name nobody.
//
// Groups are read, and all their members returned.
func Authors(fields []byte) ([]address.Path, error) {
	var from, sender field
	for len(fields) > 0 {
		var f field
		if f, fields = next(fields); f.name == 0 {
			return nil, &Error{Err: ErrAmbiguous}
		}
		switch natureOf(f.raw[:f.name]).once {
		case onceFrom:
			if from.name != 0 {
				return nil, &Error{Field: "From", Err: ErrFrom}
			}
			from = f
		case onceSender:
			if sender.name != 0 {
				return nil, &Error{Field: "Sender", Err: ErrRepeated}
			}
			sender = f
		}
	}
	if from.name == 0 {
		return nil, &Error{Field: "From", Err: ErrFrom}
	}
	authors, err := appendPaths(nil, from, "From")
	if err != nil || sender.name == 0 {
		return authors, err
	}
	n := len(authors)
	if authors, err = appendPaths(authors, sender, "Sender"); err != nil {
		return nil, err
	}
	if len(authors) != n+1 {
		return nil, &Error{Field: "Sender", Err: ErrAddress}
	}
	return authors, nil
}

// appendPaths appends all addresses of a field, or tells why it cannot.
func appendPaths(paths []address.Path, f field, name string) ([]address.Path, error) {
	if f.colon != f.name {
		return nil, &Error{Field: name, Err: ErrAmbiguous}
	}
	var buffer [48]token
	p := parser{src: f.value()}
	p.tokens = lex(buffer[:0], p.src)
	if !p.list() || p.mailboxes == 0 {
		return nil, &Error{Field: name, Err: ErrAddress}
	}
	if p.isOdd {
		return nil, &Error{Field: name, Err: ErrAmbiguous}
	}
	for local, last, ok := nextMailbox(p.tokens, 0); ok; local, last, ok = nextMailbox(p.tokens, last+1) {
		text := p.src[p.tokens[local].start:p.tokens[last].end]
		// Some programs decode first and parse then.
		if bytes.Contains(text, []byte("=?")) {
			return nil, &Error{Field: name, Err: ErrAmbiguous}
		}
		path, err := address.Parse(string(text))
		if err != nil {
			return nil, &Error{Field: name, Err: ErrAddress, Inner: err}
		}
		paths = append(paths, path)
	}
	return paths, nil
}
