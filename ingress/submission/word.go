package submission

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime"
	"unicode/utf8"
)

// form is what becomes of a word.
type form uint8

const (
	plain   form = iota // it stays
	encoded             // it stays, and is an encoded word already
	toWord              // it is put into encoded words
)

// word is a word of text, of a phrase or of a comment.
type word struct {
	gap  []byte // the blanks in front of it, as they came
	raw  []byte // as it came
	text []byte // what it says
	form form
}

// newWord makes a word that is what it says.
func newWord(gap, raw []byte) word {
	w := word{gap: gap, raw: raw, text: raw}
	switch {
	case !isASCII(raw):
		w.form = toWord
	case isEncodedWord(raw):
		w.form = encoded
	}
	return w
}

// words writes words, and those that need it as encoded words (RFC 2047).
func (f *folder) words(list []word) {
	spread(list)
	for i := 0; i < len(list); i++ {
		w := &list[i]
		f.blank(w.gap)
		if w.form != toWord {
			f.text(w.raw)
			continue
		}
		// Blanks between encoded words are not shown (RFC 2047 §6.2): those
		// that have to be seen go inside.
		var text []byte
		if i > 0 && list[i-1].form == encoded {
			text = append(text, unfold(w.gap)...)
		}
		text = append(text, w.text...)
		for i+1 < len(list) && list[i+1].form == toWord {
			i++
			text = append(text, unfold(list[i].gap)...)
			text = append(text, list[i].text...)
		}
		if i+1 < len(list) && list[i+1].form == encoded {
			text = append(text, unfold(list[i+1].gap)...)
		}
		f.encode(text)
	}
}

// spread finds what must be encoded for its neighbours' sake: words without a
// blank in between, and what a reader could take for the begin of an encoded
// word.
func spread(list []word) {
	isNeeded := false
	for i := range list {
		isNeeded = isNeeded || list[i].form == toWord
	}
	if !isNeeded {
		return
	}
	for i := range list {
		w := &list[i]
		if w.form == plain && bytes.Contains(w.raw, []byte("=?")) {
			w.form = toWord
		}
		if i > 0 && len(w.gap) == 0 && list[i-1].form == toWord {
			w.form = toWord
		}
	}
	for i := len(list) - 1; i > 0; i-- {
		if len(list[i].gap) == 0 && list[i].form == toWord {
			list[i-1].form = toWord
		}
	}
}

// isEncodedWord reports what readers decode (RFC 2047 §2).
func isEncodedWord(b []byte) bool {
	if len(b) < len("=?c?q??=") || b[0] != '=' || b[1] != '?' {
		return false
	}
	decoder := mime.WordDecoder{CharsetReader: func(_ string, r io.Reader) (io.Reader, error) { return r, nil }}
	_, err := decoder.Decode(string(b))
	return err == nil
}

// unknownCharset names text that is not UTF-8, and which we do not want to
// guess at (RFC 1428 §3).
const unknownCharset = "unknown-8bit"

func charsetOf(text []byte) string {
	if utf8.Valid(text) {
		return "UTF-8"
	}
	return unknownCharset
}

// encode writes text as encoded words, by the encoding that takes less.
func (f *folder) encode(text []byte) {
	if c := f.out[len(f.out)-1]; !isSpace(c) && c != '(' {
		f.blank([]byte(" "))
	}
	charset := charsetOf(text)
	inBase64 := base64.StdEncoding.EncodedLen(len(text)) < lengthInQ(text)
	begin := "=?" + charset + "?Q?"
	if inBase64 {
		begin = "=?" + charset + "?B?"
	}
	const end = "?="
	overhead := len(begin) + len(end)
	for {
		room := min(f.room(), wordLength)
		isLast := f.gap >= 0 && fit(text, wordLength-overhead, inBase64) == len(text)
		if room < overhead+3*utf8.UTFMax || isLast {
			room = wordLength // perhaps it goes to the next line
		}
		n := fit(text, room-overhead, inBase64)
		f.out = append(f.out, begin...)
		if inBase64 {
			f.out = base64.StdEncoding.AppendEncode(f.out, text[:n])
		} else {
			f.out = appendQ(f.out, text[:n])
		}
		f.out = append(f.out, end...)
		if text = text[n:]; len(text) == 0 {
			return
		}
		f.blank([]byte(" "))
	}
}

// fit says how many octets of text, in whole characters, fit encoded into a
// room that holds at least one character.
func fit(text []byte, room int, inBase64 bool) int {
	n, length := 0, 0
	for n < len(text) {
		_, size := utf8.DecodeRune(text[n:])
		if inBase64 {
			length = base64.StdEncoding.EncodedLen(n + size)
		} else {
			length += lengthInQ(text[n : n+size])
		}
		if length > room {
			break
		}
		n += size
	}
	return n
}

// isPlainInQ reports the octets that stand for themselves everywhere, in
// phrases too (RFC 2047 §5, rule 3).
func isPlainInQ(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return c == '!' || c == '*' || c == '+' || c == '-' || c == '/'
}

func lengthInQ(text []byte) int {
	n := 0
	for _, c := range text {
		if n++; !isPlainInQ(c) && c != ' ' {
			n += 2
		}
	}
	return n
}

const hexDigits = "0123456789ABCDEF"

func appendQ(out, text []byte) []byte {
	for _, c := range text {
		switch {
		case c == ' ':
			out = append(out, '_')
		case isPlainInQ(c):
			out = append(out, c)
		default:
			out = append(out, '=', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return out
}
