// Package submission brings the header of a message that a client of our own
// hands in into the form that it must have before it is signed (RFC 6409 §8),
// and finds out whose message it is.
//
//	fields, err := submission.Fix(fields, submission.Options{ReversePath: path})
//	authors, err := submission.Authors(fields) // before Fix: what the client wrote
//
// It works on the fields as they came, without the blank line behind them:
// lines ended by CRLF, with their folding. Fields that are in order keep every
// octet; when all are, Fix gives back the same slice. Errors are *Error: the
// name of a field and a cause, in a text that the client may see.
//
// Mail that is only relayed must not come here: its header is not ours to
// change. Mail that carries a signature is looked at only.
package submission

import (
	"unicode/utf8"

	"postroad/queue/address"
)

// Options say how the message came.
type Options struct {
	// UTF8 says that MAIL had SMTPUTF8: nothing is encoded (RFC 6532).
	UTF8 bool
	// Signed says that the message carries a signature: nothing is changed,
	// and what would have to be is refused. Bcc, Resent-Bcc, Return-Path and
	// Received are left alone.
	Signed bool
	// ReversePath becomes the Sender where several authors have none.
	ReversePath address.Path
	// HideReceived takes names and addresses out of Received fields: nobody
	// sees the hosts on the client's side. The fields stay, since loops are
	// found by their number.
	HideReceived bool
}

// Fix gives back the fields as they must be, the same slice when nothing had
// to change:
//
//   - refused are From missing, repeated or without any address, and each of
//     Sender, Reply-To, To, Cc, Date, Subject, Message-ID, In-Reply-To and
//     References that is repeated (RFC 5322 §3.6);
//   - several authors without a Sender get the reverse-path as Sender;
//   - Bcc, Resent-Bcc and Return-Path are removed;
//   - octets outside of ASCII are encoded, or refused where they cannot be,
//     unless the client gave SMTPUTF8: then they must be UTF-8.
func Fix(fields []byte, o Options) ([]byte, error) {
	s, err := look(fields, o)
	if err != nil {
		return nil, err
	}
	if o.Signed || !s.addSender && !s.hasHidden && !s.has8Bit && !(o.HideReceived && s.hasTrace) {
		return fields, nil
	}
	f := folder{out: make([]byte, 0, len(fields)+len(fields)/4+256)}
	for len(fields) > 0 {
		var fl field
		fl, fields = next(fields)
		n := natureOf(fl.raw[:fl.name])
		if n.isHidden {
			continue
		}
		if n.once == onceFrom && s.addSender {
			f.out = append(f.out, "Sender: <"...)
			f.out = append(f.out, o.ReversePath.String()...)
			f.out = append(f.out, ">\r\n"...)
		}
		switch {
		case n.isTrace && o.HideReceived:
			f.out = appendHidden(f.out, fl)
		case o.UTF8 || isASCII(fl.raw):
			f.out = append(f.out, fl.raw...)
		default:
			if err := f.downgrade(fl, n.syntax); err != nil {
				return nil, &Error{Field: fl.label(), Err: err}
			}
		}
	}
	return f.out, nil
}

// survey is what a look at the header brings.
type survey struct {
	seen      once
	addSender bool
	hasHidden bool // fields to be removed
	hasTrace  bool
	has8Bit   bool // octets to be encoded
	authors   int  // mailboxes in From
}

// look reads the fields and refuses what cannot be mended.
func look(fields []byte, o Options) (survey, error) {
	var s survey
	for len(fields) > 0 {
		var f field
		f, fields = next(fields)
		n := natureOf(f.raw[:f.name])
		if n.once != 0 && s.seen&n.once != 0 {
			if n.once == onceFrom {
				return s, &Error{Field: n.name, Err: ErrFrom}
			}
			return s, &Error{Field: n.name, Err: ErrRepeated}
		}
		s.seen |= n.once
		s.hasHidden = s.hasHidden || n.isHidden
		s.hasTrace = s.hasTrace || n.isTrace
		if n.once == onceFrom {
			if s.authors = countAuthors(f.value()); s.authors == 0 {
				return s, &Error{Field: n.name, Err: ErrAddress}
			}
		}
		if err := s.check8Bit(f, n, o); err != nil {
			return s, err
		}
	}
	if s.seen&onceFrom == 0 {
		return s, &Error{Field: "From", Err: ErrFrom}
	}
	if s.authors > 1 && s.seen&onceSender == 0 {
		switch {
		case o.Signed, o.ReversePath.IsNull():
			return s, &Error{Field: "From", Err: ErrSender}
		case o.ReversePath.NeedsSMTPUTF8() && !o.UTF8:
			return s, &Error{Field: "Sender", Err: ErrNeedsUTF8}
		}
		s.addSender = true
	}
	return s, nil
}

// check8Bit refuses octets outside of ASCII that can neither stay nor go.
func (s *survey) check8Bit(f field, n nature, o Options) error {
	switch {
	case isASCII(f.raw):
		return nil
	case n.isHidden && !o.Signed, n.isTrace && o.HideReceived && !o.Signed:
		return nil // they will be gone
	case o.UTF8 && !utf8.Valid(f.raw):
		return &Error{Field: f.label(), Err: ErrNotUTF8}
	case o.UTF8:
		return nil
	case o.Signed, f.name == 0:
		return &Error{Field: f.label(), Err: Err8Bit}
	}
	s.has8Bit = true
	return nil
}

// countAuthors counts the mailboxes in From. Display names are often written
// without the quotes that they need; as long as there is an address that is
// one author.
func countAuthors(value []byte) int {
	var buffer [48]token
	p := parser{src: value, tokens: lex(buffer[:0], value)}
	if p.list() {
		return p.mailboxes
	}
	if hasAddress(p.src, p.tokens) {
		return 1
	}
	return 0
}
