package submission

// kind tells the tokens of structured fields apart (RFC 5322 §3.2).
type kind uint8

const (
	blank   kind = iota // white space with its folding
	comment             // with what is nested in it
	atom                // atext, dots, and all octets above 127
	quoted              // a quoted string
	literal             // [a domain literal]
	special             // one of <>@,;:
	junk                // what fits nowhere, or the rest behind a bracket that is never closed
)

// role is what the parser found a token to be.
type role uint8

const (
	noRole role = iota
	rolePhrase
	roleLocal
	roleDomain
)

type token struct {
	start, end int
	kind       kind
	role       role
	isOdd      bool // other programs may see another token here
}

func (t token) of(src []byte) []byte { return src[t.start:t.end] }

// says is what a word means, without its quotes and folding.
func (t token) says(src []byte) []byte {
	if t.kind == quoted {
		return unquote(src[t.start+1 : t.end-1])
	}
	return unfold(t.of(src))
}

// lex takes a field value apart. The tokens cover all of it, in its order.
func lex(tokens []token, src []byte) []token {
	for i := 0; i < len(src); {
		t := token{start: i, end: i + 1}
		isClosed := true
		switch c := src[i]; {
		case isSpace(c):
			for t.end < len(src) && isSpace(src[t.end]) {
				t.end++
			}
		case isAtom(c):
			t.kind = atom
			for t.end < len(src) && isAtom(src[t.end]) {
				t.end++
			}
		case c == '(':
			t.kind = comment
			t.end, t.isOdd, isClosed = commentEnd(src, i)
		case c == '"':
			t.kind = quoted
			t.end, t.isOdd, isClosed = enclosedEnd(src, i, '"')
		case c == '[':
			t.kind = literal
			t.end, t.isOdd, isClosed = enclosedEnd(src, i, ']')
		case c == '<' || c == '>' || c == '@' || c == ',' || c == ';' || c == ':':
			t.kind = special
		default:
			t.kind = junk
		}
		if !isClosed {
			t.kind, t.end = junk, len(src)
		}
		tokens = append(tokens, t)
		i = t.end
	}
	return tokens
}

// commentEnd finds the end of a comment. Nested comments, quoted pairs and
// what looks like an address in brackets make it odd: not all programs that
// read addresses know comments well.
func commentEnd(src []byte, start int) (end int, isOdd, isClosed bool) {
	depth := 0
	for i := start; i < len(src); i++ {
		switch c := src[i]; {
		case c == '\\':
			isOdd = true
			i++
		case c == '(':
			depth++
			isOdd = isOdd || depth > 1
		case c == ')':
			if depth--; depth == 0 {
				return i + 1, isOdd, true
			}
		case c == '<' || c == '>' || c == '"' || isControl(c):
			isOdd = true
		}
	}
	return len(src), true, false
}

// enclosedEnd finds the end of a quoted string or a literal.
func enclosedEnd(src []byte, start int, closing byte) (end int, isOdd, isClosed bool) {
	for i := start + 1; i < len(src); i++ {
		switch c := src[i]; {
		case c == '\\':
			i++
			isOdd = isOdd || i < len(src) && (src[i] < ' ' || src[i] >= 0x7f)
		case c == closing:
			return i + 1, isOdd, true
		case isControl(c):
			isOdd = true
		}
	}
	return len(src), true, false
}

// unquote is what a quoted string or a comment's word says.
func unquote(b []byte) []byte {
	text := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+1 < len(b) {
			i++
		}
		if b[i] != '\r' && b[i] != '\n' {
			text = append(text, b[i])
		}
	}
	return text
}

// unfold takes the line ends out of blanks (RFC 5322 §2.2.3).
func unfold(b []byte) []byte {
	text := make([]byte, 0, len(b))
	for _, c := range b {
		if c != '\r' && c != '\n' {
			text = append(text, c)
		}
	}
	return text
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

func isControl(c byte) bool { return c < ' ' && !isSpace(c) || c == 0x7f }

// isAtom follows RFC 5322 §3.2.3, with the dot and RFC 6532 §3.2.
func isAtom(c byte) bool {
	switch c {
	case '(', ')', '<', '>', '[', ']', ':', ';', '@', '\\', ',', '"':
		return false
	}
	return c > ' ' && c != 0x7f
}
