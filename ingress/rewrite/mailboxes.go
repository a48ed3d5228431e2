package rewrite

import (
	"bytes"
	"strings"
)

// box is one address in the value of a field.
type box struct {
	start, end int  // of local@domain, or of a local part alone
	before     int  // where the line may be folded in front of it
	isNamed    bool // stands in angle brackets
}

// mailboxes finds the addresses in the value of a field (RFC 5322 §3.4, and
// what of §4.4 is in use). It looks for the structure only: names, comments and
// routes stay where they are. It appends to boxes.
//
// ok is false when the value does not hold together, so that nobody can say
// where an address begins. odd is true when there are addresses that were passed
// over, for blanks or comments within them or because they are no address.
func mailboxes(v []byte, boxes []box) (found []box, odd, ok bool) {
	s := scanner{v: v, boxes: boxes}
	if !s.scan() {
		return boxes, false, false
	}
	return s.boxes, s.odd, true
}

// scanner walks over a value.
type scanner struct {
	v     []byte
	i     int
	boxes []box
	odd   bool

	inGroup    bool
	afterGroup bool // a comma, or the end, must come

	// The element that is being read: what stands between two commas.
	start, end int  // of its words
	words      bool // it has some
	isBroken   bool // there is space between its words
	hasAt      bool
	hasAngle   bool // it ended with an address in brackets
}

func (s *scanner) scan() bool {
	for s.i < len(s.v) {
		if !s.step() {
			return false
		}
	}
	s.finish()
	return !s.inGroup
}

// step reads one token.
func (s *scanner) step() bool {
	switch c := s.v[s.i]; c {
	case ' ', '\t':
		s.i++
	case '\r':
		return s.fold()
	case '(':
		return s.comment()
	case '"':
		end := quotedEnd(s.v, s.i)
		return end > 0 && s.word(end)
	case '[':
		end := literalEnd(s.v, s.i)
		return end > 0 && s.word(end)
	case '<':
		return s.angle()
	case ',':
		s.finish()
		s.afterGroup = false
		s.i++
	case ':':
		if s.hasAngle || s.inGroup || s.afterGroup || !s.words || s.hasAt {
			return false
		}
		s.reset()
		s.inGroup = true
		s.i++
	case ';':
		if !s.inGroup {
			return false
		}
		s.finish()
		s.inGroup, s.afterGroup = false, true
		s.i++
	case '>', ']', ')', '\\':
		return false
	default:
		if c < ' ' || c == 0x7f {
			return false
		}
		end := s.i
		for end < len(s.v) && isAtomOctet(s.v[end]) {
			end++
		}
		s.hasAt = s.hasAt || bytes.IndexByte(s.v[s.i:end], '@') >= 0
		return s.word(end)
	}
	return true
}

// isAtomOctet takes the octets of dot-atoms and the @; what is no ASCII belongs
// to a word, whatever it is.
func isAtomOctet(c byte) bool {
	switch c {
	case '(', ')', '<', '>', '[', ']', ':', ';', ',', '\\', '"', 0x7f:
		return false
	}
	return c > ' '
}

// fold passes over CRLF, behind which a blank or nothing must come.
func (s *scanner) fold() bool {
	rest := s.v[s.i:]
	if len(rest) < 2 || rest[1] != '\n' || len(rest) > 2 && rest[2] != ' ' && rest[2] != '\t' {
		return false
	}
	s.i += 2
	return true
}

// comment passes over a comment with all comments in it.
func (s *scanner) comment() bool {
	depth := 0
	for i := s.i; i < len(s.v); i++ {
		switch s.v[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				s.i = i + 1
				return true
			}
		}
	}
	return false
}

// quotedEnd is where a quoted string ends that begins at i, 0 when nowhere.
func quotedEnd(v []byte, i int) int {
	for i++; i < len(v); i++ {
		switch v[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return 0
}

// literalEnd is where brackets end that open at i, 0 when nowhere or when there
// is something between them that neither a literal nor a name in brackets has.
func literalEnd(v []byte, i int) int {
	for i++; i < len(v); i++ {
		switch c := v[i]; {
		case c == ']':
			return i + 1
		case c < ' ' || c == 0x7f || strings.IndexByte(`[\<>,;"()`, c) >= 0:
			return 0
		}
	}
	return 0
}

// word takes what stands from s.i to end into the element.
func (s *scanner) word(end int) bool {
	switch {
	case s.hasAngle || s.afterGroup:
		return false
	case !s.words:
		s.words, s.start = true, s.i
	case s.end != s.i:
		s.isBroken = true
	}
	s.end, s.i = end, end
	return true
}

// angle reads an address in angle brackets.
func (s *scanner) angle() bool {
	if s.hasAngle || s.afterGroup {
		return false
	}
	open := s.i
	i := open + 1
	for i < len(s.v) && s.v[i] != '>' {
		switch c := s.v[i]; {
		case c == '"':
			if i = quotedEnd(s.v, i); i == 0 {
				return false
			}
		case c == '<' || c < ' ' && c != '\t' && c != '\r' && c != '\n' || c == 0x7f:
			return false
		default:
			i++
		}
	}
	if i >= len(s.v) {
		return false
	}
	s.hasAngle = true
	s.i = i + 1
	inner := s.v[open+1 : i]
	trimmed := bytes.TrimLeft(inner, " \t\r\n")
	start := i - len(trimmed)
	trimmed = bytes.TrimRight(trimmed, " \t\r\n")
	if len(trimmed) > 0 {
		s.boxes = append(s.boxes, box{start: start, end: start + len(trimmed), before: open, isNamed: true})
	}
	return true
}

// finish ends an element.
func (s *scanner) finish() {
	switch {
	case s.hasAngle || !s.words:
	case s.isBroken:
		s.odd = true
	default:
		s.boxes = append(s.boxes, box{start: s.start, end: s.end, before: s.start})
	}
	s.reset()
}

func (s *scanner) reset() {
	s.words, s.isBroken, s.hasAt, s.hasAngle = false, false, false, false
}
