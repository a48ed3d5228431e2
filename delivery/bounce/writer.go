package bounce

import (
	"bytes"
	"mime/quotedprintable"
	"strconv"
	"strings"
)

// section is one part of the report.
type section struct {
	contentType string
	description string
	encoding    string // empty: 7bit
	body        []byte
}

// encode makes the body fit for 7 bits.
func (s *section) encode() {
	var b bytes.Buffer
	w := quotedprintable.NewWriter(&b)
	// Writes to a bytes.Buffer do not fail.
	_, _ = w.Write(s.body)
	_ = w.Close()
	s.encoding, s.body = "quoted-printable", b.Bytes()
}

// writer puts the parts together.
type writer struct {
	bytes.Buffer
	boundary string
}

func (w *writer) line(s string) { w.WriteString(s + "\r\n") }

func (w *writer) field(name, value string) { w.line(name + ": " + value) }

func (w *writer) part(s section) {
	w.line("")
	w.line("--" + w.boundary)
	w.field("Content-Type", s.contentType)
	w.field("Content-Description", s.description)
	if s.encoding != "" {
		w.field("Content-Transfer-Encoding", s.encoding)
	}
	w.line("")
	w.Write(s.body)
	if !bytes.HasSuffix(s.body, []byte("\r\n")) {
		w.line("")
	}
}

func (w *writer) end() {
	w.line("")
	w.line("--" + w.boundary + "--")
}

// boundary makes one that is in none of the bodies (RFC 2046 §5.1.1), the same whenever it is asked for the same.
func boundary(id string, bodies ...[]byte) string {
	base := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return -1
	}, id)
	if len(base) > 50 {
		base = base[:50]
	}
	for n := 0; ; n++ {
		candidate := "=_" + base + "_" + strconv.Itoa(n)
		if !contains(bodies, candidate) {
			return candidate
		}
	}
}

func contains(bodies [][]byte, text string) bool {
	for _, b := range bodies {
		if bytes.Contains(b, []byte(text)) {
			return true
		}
	}
	return false
}
