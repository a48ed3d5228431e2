package submission

import "bytes"

const (
	lineLength = 78 // what lines should not exceed (RFC 5322 §2.1.1)
	wordLength = 75 // what an encoded word must not exceed (RFC 2047 §2)
)

// folder writes the value of a field and folds it where its line would become
// too long. It breaks lines only where it was told that it may.
type folder struct {
	out    []byte
	line   int // where the current line begins
	gap    int // the last place where it can be broken, or -1
	gapEnd int // where the blanks at that place end
	first  int // where it must not be broken
}

// begin starts a field with its name and colon. Right behind them a line is
// broken only if the name is long: many programs dislike an empty first line.
func (f *folder) begin(name, value []byte) {
	const longName = 40
	f.line, f.gap = len(f.out), -1
	f.out = append(f.out, name...)
	f.first = len(f.out)
	if len(name) > longName {
		f.first = -1
	}
	if len(value) == 0 || !isSpace(value[0]) {
		f.blank([]byte(" "))
	}
}

// finish ends the field.
func (f *folder) finish() {
	f.settle()
	f.out = append(f.out, "\r\n"...)
}

// text writes what must stay in one piece.
func (f *folder) text(b []byte) {
	if lf := bytes.LastIndexByte(b, '\n'); lf >= 0 {
		// It brings folding of its own.
		first := bytes.IndexByte(b, '\r')
		if first < 0 {
			first = lf
		}
		f.out = append(f.out, b[:first]...)
		f.settle()
		f.out = append(f.out, b[first:]...)
		f.line = len(f.out) - (len(b) - lf - 1)
		return
	}
	f.out = append(f.out, b...)
}

// blank writes blanks: a place where the line can be broken, unless they break
// it already.
func (f *folder) blank(b []byte) {
	if len(b) == 0 {
		return
	}
	if bytes.IndexByte(b, '\n') >= 0 {
		f.settle()
		f.text(b)
		return
	}
	f.breakable()
	f.out = append(f.out, b...)
	f.gapEnd = len(f.out)
}

// breakable says that blanks may be put in here.
func (f *folder) breakable() {
	if f.gap >= 0 && f.gapEnd == len(f.out) {
		return
	}
	f.settle()
	if len(f.out) == f.first || isSpace(f.out[len(f.out)-1]) {
		return
	}
	f.gap, f.gapEnd = len(f.out), len(f.out)
}

// settle breaks the line at the last place if it has become too long.
func (f *folder) settle() {
	gap := f.gap
	f.gap = -1
	if gap < 0 || f.gapEnd == len(f.out) || len(f.out)-f.line <= lineLength {
		return
	}
	fold := "\r\n"
	if f.gapEnd == gap {
		fold = "\r\n "
	}
	n := len(f.out)
	f.out = append(f.out, fold...)
	copy(f.out[gap+len(fold):], f.out[gap:n])
	copy(f.out[gap:], fold)
	f.line = gap + len("\r\n")
}

// room is what the line still holds.
func (f *folder) room() int { return lineLength - (len(f.out) - f.line) }
