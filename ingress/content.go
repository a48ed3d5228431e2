package ingress

import (
	"bytes"
	"errors"
	"io"
	"time"
)

// maxLine is the longest line of a message without its CRLF (RFC 5321
// §4.5.3.1.6, RFC 5322 §2.1.1).
const maxLine = 998

// endless is how many times the largest message a client may go on sending
// what was refused before we hang up on it.
const endless = 4

// strict follows the octets of a message and lets nothing through that is not
// lines ended by CRLF (RFC 5321 §2.3.8; CVE-2023-51764 and its kin).
type strict struct {
	passLongLines bool
	hasCR         bool  // the last octet was a CR, its LF must come
	owesLF        bool  // a CR was given out, its LF not yet (mend)
	wasCRLF       bool  // … and both had come from the client
	length        int   // octets of the current line so far
	fault         error // the first thing that spoils the message but not the framing
}

// line checks p up to the end of the line and says how much that is, and
// whether the line ended. An error spoils the framing: hang up.
func (s *strict) line(p []byte) (n int, ended bool, err error) {
	if s.hasCR {
		if p[0] != '\n' {
			return 0, false, errBareCR
		}
		s.hasCR, s.length = false, 0
		return 1, true, nil
	}
	lf := bytes.IndexByte(p, '\n')
	text := p
	if lf >= 0 {
		text = p[:lf]
	}
	n = len(text)
	switch cr := bytes.IndexByte(text, '\r'); {
	case cr >= 0 && cr < len(text)-1:
		return 0, false, errBareCR
	case cr >= 0:
		text = text[:cr]
		s.hasCR = lf < 0
	case lf >= 0:
		return 0, false, errBareLF
	}
	s.length += len(text)
	switch {
	case s.fault != nil:
	case bytes.IndexByte(text, 0) >= 0:
		s.fault = errNUL
	case s.length > maxLine && !s.passLongLines:
		s.fault = errLongLine
	}
	if lf < 0 {
		return n, false, nil
	}
	s.length = 0
	return lf + 1, true, nil
}

// mend copies src to dst up to the end of a line, as line does, and mends what
// line refuses: a bare LF becomes CRLF, a bare CR a blank. Only a true CRLF
// ends a line for the purpose of the final dot.
func (s *strict) mend(dst, src []byte) (n, read int, ended bool) {
	for n < len(dst) && (read < len(src) || s.owesLF) {
		if s.owesLF {
			dst[n] = '\n'
			s.owesLF = false
			return n + 1, read, s.wasCRLF
		}
		b := src[read]
		if s.hasCR && b != '\n' {
			s.hasCR = false
			dst[n] = ' '
			n++
			s.length++
			continue
		}
		read++
		switch b {
		case '\r':
			s.hasCR = true
		case '\n':
			dst[n] = '\r'
			n++
			s.owesLF, s.wasCRLF = true, s.hasCR
			s.hasCR, s.length = false, 0
		default:
			dst[n] = b
			n++
			s.length++
			s.look(b)
		}
	}
	return n, read, false
}

// look notes what spoils a message whose lines are mended.
func (s *strict) look(b byte) {
	switch {
	case s.fault != nil:
	case b == 0:
		s.fault = errNUL
	case s.length > maxLine && !s.passLongLines:
		s.fault = errLongLine
	}
}

// dataReader reads the content that follows DATA from the guard: checked,
// without the stuffed dots, up to the final dot (RFC 5321 §4.5.2).
type dataReader struct {
	c         *conn
	strict    strict
	until     time.Time // the whole content must be here
	max       int64
	size      int64 // octets given out
	lineStart bool
	mends     bool  // bare CR and LF instead of refusing them
	draining  bool  // throw away the rest: only the framing counts
	err       error // what every further Read returns
}

// content begins the content of a DATA command.
func (c *conn) content() *dataReader {
	c.mode = modeContent
	return &dataReader{
		c:         c,
		strict:    strict{passLongLines: c.srv.options.PassLongLines},
		until:     time.Now().Add(c.srv.options.MessageTimeout),
		max:       c.srv.options.MaxMessageBytes,
		lineStart: true,
		mends:     c.listener.NormalizeLines,
	}
}

func (d *dataReader) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) && d.err == nil {
		input := d.c.in[d.c.r:d.c.w]
		if d.mends && (d.strict.owesLF || len(input) > 0 && !d.lineStart) {
			k, read, ended := d.strict.mend(p[n:], input)
			n += k
			d.c.r += read
			d.size += int64(k)
			d.lineStart = ended
			d.err = d.check(nil)
			continue
		}
		if len(input) == 0 || d.lineStart && isOpenDot(input) {
			if n > 0 {
				break
			}
			d.err = d.c.fillContent(d.until)
			continue
		}
		if d.lineStart && input[0] == '.' {
			if bytes.HasPrefix(input, endOfData) {
				d.c.r += len(endOfData)
				d.err = io.EOF
				break
			}
			d.c.r++
			d.lineStart = false
			continue
		}
		if d.mends {
			d.lineStart = false // no dot: mend takes it
			continue
		}
		k, ended, err := d.strict.line(input[:min(len(input), len(p)-n)])
		copy(p[n:], input[:k])
		n += k
		d.c.r += k
		d.size += int64(k)
		d.lineStart = ended
		d.err = d.check(err)
	}
	if n > 0 {
		// What came before an error is given out first.
		return n, nil
	}
	return n, d.err
}

// check makes the error that a Read ends with, if it does.
func (d *dataReader) check(err error) error {
	switch {
	case err != nil:
		return err
	case d.draining && d.size > endless*d.max:
		return errSizeEndless
	case d.draining:
		return nil
	case d.strict.fault != nil:
		return d.strict.fault
	case d.size > d.max:
		return errSize
	}
	return nil
}

// isOpenDot reports a line of which it is not known yet whether it is the
// final dot.
func isOpenDot(input []byte) bool {
	return len(input) < len(endOfData) && bytes.HasPrefix(endOfData, input)
}

// drain reads on to the final dot after the message was refused (RFC 1870
// §6.3). An error says that there is no end: hang up.
func (d *dataReader) drain() error {
	if r, isRefusal := errors.AsType[*refusal](d.err); isRefusal && !r.hangup {
		d.err = nil
	}
	d.draining = true
	waste := getBuffer()
	defer putBuffer(waste)
	for d.err == nil {
		_, _ = d.Read((*waste)[:cap(*waste)]) // d.err tells
	}
	if errors.Is(d.err, io.EOF) {
		return nil
	}
	return d.err
}

// chunkReader reads the content of BDAT commands from go-smtp's pipe, checked
// (RFC 3030 §2). A last line without CRLF gets one: it will leave by DATA or
// to a store that wants lines.
type chunkReader struct {
	r      io.Reader
	c      *conn
	strict strict
	until  time.Time
	max    int64
	size   int64
	isOpen bool // the current line has not ended
	tail   []byte
	mends  bool
	raw    []byte // what was read and is not mended yet
	room   []byte // for raw
	rawErr error  // what ends raw
	err    error
}

func (c *conn) chunks(r io.Reader) *chunkReader {
	return &chunkReader{
		r:      r,
		c:      c,
		strict: strict{passLongLines: c.srv.options.PassLongLines},
		until:  time.Now().Add(c.srv.options.MessageTimeout),
		max:    c.srv.options.MaxMessageBytes,
		mends:  c.listener.NormalizeLines,
	}
}

// readMended is Read for a listener that mends line ends.
func (k *chunkReader) readMended(p []byte) (int, error) {
	for k.err == nil {
		if len(k.raw) == 0 && k.rawErr == nil && !k.strict.owesLF {
			if k.room == nil {
				k.room = make([]byte, 4096)
			}
			var n int
			n, k.rawErr = k.r.Read(k.room)
			k.raw = k.room[:n]
		}
		if len(k.raw) > 0 || k.strict.owesLF {
			n, read, _ := k.strict.mend(p, k.raw)
			k.raw = k.raw[read:]
			k.size += int64(n)
			k.err = k.checkEnd(nil)
			if n > 0 {
				k.isOpen = p[n-1] != '\n'
				return n, nil
			}
			continue
		}
		if errors.Is(k.rawErr, io.EOF) && (k.strict.hasCR || k.isOpen) && !k.c.givenUp.Load() {
			// A last line without its end, or with half of it.
			k.strict.hasCR, k.strict.wasCRLF = true, true
			k.raw = []byte("\n")
			k.isOpen = false
			continue
		}
		k.err = k.checkEnd(k.rawErr)
	}
	return 0, k.err
}

func (k *chunkReader) Read(p []byte) (int, error) {
	if k.mends {
		return k.readMended(p)
	}
	if len(k.tail) > 0 {
		n := copy(p, k.tail)
		k.tail = k.tail[n:]
		return n, nil
	}
	if k.err != nil {
		return 0, k.err
	}
	n, err := k.r.Read(p)
	k.size += int64(n)
	k.err = k.check(p[:n], err)
	if errors.Is(k.err, io.EOF) && k.isOpen {
		k.tail = []byte("\r\n")
		if n == 0 {
			return k.Read(p)
		}
	}
	if n > 0 {
		return n, nil
	}
	return 0, k.err
}

func (k *chunkReader) check(p []byte, err error) error {
	for len(p) > 0 {
		n, ended, lineErr := k.strict.line(p)
		if lineErr != nil {
			return lineErr
		}
		k.isOpen = !ended
		p = p[n:]
	}
	return k.checkEnd(err)
}

// checkEnd makes the error that a Read ends with, if it does.
func (k *chunkReader) checkEnd(err error) error {
	switch {
	case errors.Is(err, io.EOF) && k.c.givenUp.Load():
		return errAborted
	case k.strict.fault != nil:
		return k.strict.fault
	case k.size > k.max:
		return errSize
	case errors.Is(err, io.EOF) && k.strict.hasCR:
		return errBareCR
	case err == nil && time.Now().After(k.until):
		return errStalled
	}
	return err
}
