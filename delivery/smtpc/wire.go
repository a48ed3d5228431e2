package smtpc

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// wire is the connection as a stream of commands and replies, with a deadline on every step.
type wire struct {
	raw  net.Conn // the socket: closing it ends whatever hangs
	conn net.Conn // what is read and written: raw, or TLS on it
	r    *bufio.Reader
	max  int // octets of one reply
	tap  Tap
}

func newWire(raw net.Conn, maxReplyBytes int, tap Tap) *wire {
	return &wire{raw: raw, conn: raw, r: bufio.NewReader(raw), max: maxReplyBytes, tap: tap}
}

// write writes p within timeout.
func (w *wire) write(p []byte, timeout time.Duration) error {
	if err := w.raw.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return fmt.Errorf("set write deadline: %w", err)
	}
	if _, err := w.conn.Write(p); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// reply reads one reply within timeout, however the peer drips.
func (w *wire) reply(phase Phase, timeout time.Duration) (Reply, error) {
	if err := w.raw.SetDeadline(time.Now().Add(timeout)); err != nil { // TLS may have to write in order to read
		return Reply{}, fmt.Errorf("set deadline: %w", err)
	}
	r, err := readReply(w.r, w.max)
	r.Phase = phase
	if err == nil {
		w.tap.reply(r)
	}
	return r, err
}

// ask sends one command line and reads the reply to it.
func (w *wire) ask(phase Phase, line string, timeout time.Duration) (Reply, error) {
	return w.askAs(phase, line, line, timeout)
}

// askAs is ask with a line of which a tap hears shown.
func (w *wire) askAs(phase Phase, line, shown string, timeout time.Duration) (Reply, error) {
	if w.r.Buffered() > 0 {
		return w.unasked(phase, Reply.Closing)
	}
	w.tap.line(Client, shown)
	if err := w.write([]byte(line+"\r\n"), timeout); err != nil {
		return Reply{}, err
	}
	return w.reply(phase, timeout)
}

// unasked reads a reply that came before we said what it could answer. From there on the two sides are out of step, and no
// reply is sure to be about what it seems to be about; it is an error, unless it is one that counts at any time.
func (w *wire) unasked(phase Phase, counts func(Reply) bool) (Reply, error) {
	r, err := w.reply(phase, earlyReply)
	if err == nil && !counts(r) {
		err = fmt.Errorf("%w: %s in answer to nothing", ErrProtocol, r)
	}
	return r, err
}

// readReply reads a reply of at most max octets (RFC 5321 §4.2). It is
// tolerant where the meaning is clear: missing text, LF for CRLF, a
// continuation line without or with another code. The last line decides.
func readReply(r *bufio.Reader, max int) (Reply, error) {
	var reply Reply
	for budget := max; ; {
		line, err := readLine(r, &budget)
		if err != nil {
			return Reply{}, err
		}
		code, more, text := parseReplyLine(line)
		if code == 0 && len(reply.Lines) == 0 {
			return Reply{}, fmt.Errorf("%w: reply %q", ErrProtocol, shorten(line, 80))
		}
		reply.Lines = append(reply.Lines, text)
		if code == 0 {
			continue
		}
		reply.Code = code
		if !more {
			break
		}
	}
	reply.splitEnhanced()
	return reply, nil
}

// parseReplyLine takes a line apart; code 0 is a line without a reply code.
func parseReplyLine(line []byte) (code int, more bool, text string) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' || !isDigit(line[1]) || !isDigit(line[2]) {
		return 0, false, string(line)
	}
	if len(line) > 3 && isDigit(line[3]) {
		return 0, false, string(line)
	}
	code = int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
	rest := line[3:]
	if len(rest) > 0 && (rest[0] == '-' || rest[0] == ' ') {
		more = rest[0] == '-'
		rest = rest[1:]
	}
	return code, more, string(rest)
}

// splitEnhanced moves the enhanced code from the text to its field when its
// class agrees with the reply's (RFC 2034 §4).
func (r *Reply) splitEnhanced() {
	code, _, _ := strings.Cut(r.Lines[0], " ")
	if !isEnhanced(code) || int(code[0]-'0') != r.Code/100 {
		return
	}
	r.Enhanced = code
	for i, line := range r.Lines {
		if rest, ok := strings.CutPrefix(line, code); ok && (rest == "" || rest[0] == ' ') {
			r.Lines[i] = strings.TrimLeft(rest, " ")
		}
	}
}

// isEnhanced reports class.subject.detail as RFC 3463 §2 writes it.
func isEnhanced(s string) bool {
	class, rest, ok := strings.Cut(s, ".")
	subject, detail, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || (class != "2" && class != "4" && class != "5") {
		return false
	}
	for _, part := range []string{subject, detail} {
		if n, err := strconv.Atoi(part); err != nil || n < 0 || len(part) > 3 || !isDigit(part[0]) {
			return false
		}
	}
	return true
}

// readLine reads up to LF and gives the line without its end; budget shrinks by what was read.
func readLine(r *bufio.Reader, budget *int) ([]byte, error) {
	var long []byte
	for {
		part, err := r.ReadSlice('\n')
		if *budget -= len(part); *budget < 0 {
			return nil, fmt.Errorf("%w: reply too long", ErrProtocol)
		}
		switch {
		case err == nil && long == nil:
			return trimLineEnd(part), nil
		case err == nil:
			return trimLineEnd(append(long, part...)), nil
		case err == bufio.ErrBufferFull:
			long = append(long, part...)
		case err == io.EOF && len(part)+len(long) > 0:
			return nil, fmt.Errorf("read reply: %w", io.ErrUnexpectedEOF)
		default:
			return nil, fmt.Errorf("read reply: %w", err)
		}
	}
}

func trimLineEnd(line []byte) []byte {
	return bytes.TrimRight(line, "\r\n")
}

func shorten(line []byte, n int) []byte {
	if len(line) > n {
		return line[:n]
	}
	return line
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
