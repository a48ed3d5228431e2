package smtpc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// pieceBytes is how much content is read and written at a time.
const pieceBytes = 32 << 10

// maxEmptyReads bounds the reads in a row that give neither octets nor an error.
const maxEmptyReads = 100

// content reads a body piece by piece and keeps an eye on its length.
type content struct {
	r     io.Reader
	size  int64 // promised; 0: none
	read  int64
	buf   []byte // of pieceBytes
	piece []byte // the current piece, in buf
	last  bool   // the body ends with this piece
}

// next reads the next piece. Only a plain io.EOF ends a body: anything else,
// io.ErrUnexpectedEOF included, is a body that broke off.
func (c *content) next() error {
	n := 0
	for idle := 0; n < len(c.buf) && !c.last; {
		m, err := c.r.Read(c.buf[n:])
		n += m
		if idle++; m > 0 {
			idle = 0
		}
		switch {
		case err == io.EOF:
			c.last = true
		case err != nil:
			return fmt.Errorf("%w: %w", ErrBody, err)
		case idle > maxEmptyReads:
			return fmt.Errorf("%w: %w", ErrBody, io.ErrNoProgress)
		}
	}
	c.piece = c.buf[:n]
	c.read += int64(n)
	if c.size > 0 && (c.read > c.size || c.last && c.read < c.size) {
		return fmt.Errorf("%w: %d octets of %d", ErrBody, c.read, c.size)
	}
	return nil
}

// stuffer doubles the dots at the start of lines (RFC 5321 §4.5.2) and lets
// no bare CR or LF through, across the borders of pieces.
type stuffer struct {
	inLine bool // the last octet was not the end of a line
	cr     bool // the last octet was CR
}

// append appends piece to dst as it goes over the wire.
func (s *stuffer) append(dst, piece []byte) ([]byte, error) {
	copied := 0
	for i := 0; i < len(piece); {
		if s.cr {
			if piece[i] != '\n' {
				return dst, ErrBareLineEnd
			}
			s.cr, s.inLine = false, false
			i++
			continue
		}
		if !s.inLine && piece[i] == '.' {
			dst = append(dst, piece[copied:i]...)
			dst = append(dst, '.')
			copied = i
		}
		line := piece[i:]
		lf := bytes.IndexByte(line, '\n')
		if lf >= 0 {
			line = line[:lf]
		}
		cr := bytes.IndexByte(line, '\r')
		if lf >= 0 && (cr < 0 || cr != len(line)-1) || cr >= 0 && cr != len(line)-1 {
			return dst, ErrBareLineEnd
		}
		s.inLine = lf < 0
		s.cr = lf < 0 && cr >= 0
		i += len(line)
		if lf >= 0 {
			i++
		}
	}
	return append(dst, piece[copied:]...), nil
}

// end appends the end of data.
func (s *stuffer) end(dst []byte) ([]byte, error) {
	if s.cr {
		return dst, ErrBareLineEnd
	}
	if s.inLine {
		dst = append(dst, "\r\n"...)
	}
	return append(dst, ".\r\n"...), nil
}

// hasEightBit reports an octet above 127.
func hasEightBit(p []byte) bool {
	for ; len(p) >= 8; p = p[8:] {
		if binary.NativeEndian.Uint64(p)&0x8080808080808080 != 0 {
			return true
		}
	}
	for _, c := range p {
		if c >= 0x80 {
			return true
		}
	}
	return false
}
