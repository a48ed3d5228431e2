package submission

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"
)

// parameters writes the value of Content-Type and Content-Disposition. Values
// of parameters become extended ones (RFC 2231).
func (f *folder) parameters(src []byte) error {
	segments := split(lex(nil, src), src)
	names := make(map[string]int, len(segments))
	for _, s := range segments[1:] {
		base, _, _ := strings.Cut(parameterName(src, s), "*")
		names[base]++
	}
	for i, s := range segments {
		if i > 0 {
			f.text([]byte(";"))
			f.breakable()
		}
		if isASCIIButComments(src, s) {
			if err := f.tokens(src, s); err != nil {
				return err
			}
			continue
		}
		if i == 0 {
			return Err8Bit
		}
		name, value, ok := parameter(src, s)
		if !ok || names[strings.ToLower(name)] != 1 {
			return Err8Bit
		}
		if s[0].kind == blank {
			f.blank(s[0].of(src))
		} else {
			f.blank([]byte(" "))
		}
		f.extended(name, value)
	}
	return nil
}

// split cuts tokens at the semicolons.
func split(tokens []token, src []byte) [][]token {
	var segments [][]token
	start := 0
	for i, t := range tokens {
		if t.kind == special && src[t.start] == ';' {
			segments = append(segments, tokens[start:i])
			start = i + 1
		}
	}
	return append(segments, tokens[start:])
}

// isASCIIButComments reports that only comments hold octets outside of ASCII.
func isASCIIButComments(src []byte, tokens []token) bool {
	for _, t := range tokens {
		if t.kind != comment && !isASCII(t.of(src)) {
			return false
		}
	}
	return true
}

// parameterName is the name in a segment, in lower case, or "".
func parameterName(src []byte, tokens []token) string {
	for _, t := range tokens {
		if t.kind == atom {
			name, _, _ := bytes.Cut(t.of(src), []byte("="))
			return strings.ToLower(string(name))
		}
	}
	return ""
}

// parameter reads name=value. The value may be quoted, or be any text without
// quotes: names of files with blanks in them are seen often.
func parameter(src []byte, tokens []token) (name string, value []byte, ok bool) {
	for len(tokens) > 0 && tokens[0].kind == blank {
		tokens = tokens[1:]
	}
	for len(tokens) > 0 && tokens[len(tokens)-1].kind == blank {
		tokens = tokens[:len(tokens)-1]
	}
	if len(tokens) == 0 {
		return "", nil, false
	}
	last := tokens[len(tokens)-1]
	before, after, found := bytes.Cut(src[tokens[0].start:last.end], []byte("="))
	name = string(bytes.TrimSpace(before))
	if !found || !isExtensible(name) {
		return "", nil, false
	}
	after = bytes.TrimSpace(after)
	if last.kind == quoted && len(after) == last.end-last.start {
		return name, last.says(src), true
	}
	for _, t := range tokens {
		if t.kind == quoted || t.kind == comment || t.kind == junk {
			return "", nil, false
		}
	}
	return name, unfold(after), true
}

// isExtensible reports a name whose value may be written in the extended way.
// Nobody would find the parts of a message by an extended boundary.
func isExtensible(name string) bool {
	const most = 30
	if name == "" || len(name) > most || strings.EqualFold(name, "boundary") || strings.EqualFold(name, "charset") {
		return false
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`()<>@,;:\"/[]?=*'%`, c) >= 0 {
			return false
		}
	}
	return true
}

// extended writes a parameter (RFC 2231 §4), a long one in pieces (§3).
func (f *folder) extended(name string, value []byte) {
	begin := charsetOf(value) + "''"
	const longest = lineLength - 2 // a blank in front, a semicolon behind
	if n := lengthExtended(value); len(name)+len("*=")+len(begin)+n <= longest {
		f.text([]byte(name + "*=" + begin))
		f.text(appendExtended(nil, value))
		return
	}
	for i := 0; ; i++ {
		piece := []byte(name + "*" + strconv.Itoa(i) + "*=" + begin)
		begin = ""
		n := 0
		for length := len(piece); n < len(value); {
			_, size := utf8.DecodeRune(value[n:])
			if length += lengthExtended(value[n : n+size]); length > longest {
				break
			}
			n += size
		}
		f.text(appendExtended(piece, value[:n]))
		if value = value[n:]; len(value) == 0 {
			return
		}
		f.text([]byte(";"))
		f.blank([]byte(" "))
	}
}

// isPlainExtended reports attribute-char of RFC 2231 §7.
func isPlainExtended(c byte) bool {
	return c > ' ' && c < 0x7f && strings.IndexByte(`()<>@,;:\"/[]?=*'%`, c) < 0
}

func lengthExtended(value []byte) int {
	n := 0
	for _, c := range value {
		if n++; !isPlainExtended(c) {
			n += 2
		}
	}
	return n
}

func appendExtended(out, value []byte) []byte {
	for _, c := range value {
		if isPlainExtended(c) {
			out = append(out, c)
		} else {
			out = append(out, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return out
}
