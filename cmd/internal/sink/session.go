package sink

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

const (
	readBuffer     = 32 << 10
	maxCommand     = 4 << 10 // octets of a command line with its parameters
	maxRecipients  = 10_000
	keepDataBuffer = 1 << 20 // a larger buffer is not kept for the next message
)

var (
	errLineTooLong = errors.New("command line too long")
	errQuit        = errors.New("quit")
)

// session is one connection.
type session struct {
	s    *Sink
	conn net.Conn
	r    *bufio.Reader
	w    *bufio.Writer
	m    Message
	data bytes.Buffer
	mail bool // MAIL was accepted
	gone bool // Closed was told
}

func newSession(s *Sink, conn net.Conn) *session {
	return &session{
		s:    s,
		conn: conn,
		r:    bufio.NewReaderSize(deadlineConn{conn, s.o.IdleTimeout}, readBuffer),
		w:    bufio.NewWriterSize(deadlineConn{conn, s.o.IdleTimeout}, 4<<10),
		m:    Message{Session: s.sessions.Add(1), Remote: conn.RemoteAddr()},
	}
}

// deadlineConn gives every read and write its own time.
type deadlineConn struct {
	net.Conn
	idle time.Duration
}

func (c deadlineConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.idle)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c deadlineConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.idle)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

func (c *session) run() {
	c.reply("220 " + c.s.o.Hostname + " ESMTP sink")
	for {
		line, err := c.line()
		if errors.Is(err, errLineTooLong) {
			c.reply("500 5.5.2 line too long")
			_ = c.flush()
			return
		}
		if err != nil {
			return
		}
		if err := c.command(line); err != nil {
			c.left()
			_ = c.flush()
			return
		}
	}
}

// left tells, once, that the client is gone or about to go: before it hears the reply to QUIT, since it may open another connection then.
func (c *session) left() {
	if !c.gone && c.s.o.Closed != nil {
		c.s.o.Closed(c.m.Session, c.m.Helo)
	}
	c.gone = true
}

// flush sends what is buffered, when the network has brought it there.
func (c *session) flush() error {
	if c.w.Buffered() > 0 && c.s.o.RoundTrip > 0 {
		time.Sleep(c.s.o.RoundTrip)
	}
	return c.w.Flush()
}

// line reads one command. Replies gathered for a pipelined group (RFC 2920 §3.2) go out when nothing more is at hand.
func (c *session) line() (string, error) {
	if c.r.Buffered() == 0 {
		if err := c.flush(); err != nil {
			return "", err
		}
	}
	line, err := c.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) || len(line) > maxCommand {
		return "", errLineTooLong
	}
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}

func (c *session) reply(line string) {
	_, _ = c.w.WriteString(line)
	_, _ = c.w.WriteString("\r\n")
}

// answer sends r, or positive when r is empty, and tells whether that was a positive reply.
func (c *session) answer(r Reply, positive string) bool {
	if r == "" {
		r = Reply(positive)
	}
	c.reply(string(r))
	return r[0] == '2'
}

func (c *session) command(line string) error {
	verb, argument, _ := strings.Cut(line, " ")
	switch strings.ToUpper(verb) {
	case "EHLO":
		c.reset()
		c.m.Helo = argument
		for _, l := range []string{c.s.o.Hostname, "PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", fmt.Sprintf("SIZE %d", c.s.o.MaxSize)} {
			c.reply("250-" + l)
		}
		c.reply("250 DSN")
	case "HELO":
		c.reset()
		c.m.Helo = argument
		c.reply("250 " + c.s.o.Hostname)
	case "MAIL":
		c.mailFrom(argument)
	case "RCPT":
		c.rcptTo(argument)
	case "DATA":
		return c.readMessage()
	case "RSET":
		c.reset()
		c.reply("250 2.0.0 forgotten")
	case "NOOP":
		c.reply("250 2.0.0 ok")
	case "QUIT":
		c.reply("221 2.0.0 bye")
		return errQuit
	default:
		c.reply("502 5.5.1 command not known here")
	}
	return nil
}

func (c *session) reset() {
	c.mail = false
	c.m.ReversePath, c.m.Parameters, c.m.Recipients, c.m.Data = "", "", c.m.Recipients[:0], nil
	c.data.Reset()
	if c.data.Cap() > keepDataBuffer {
		c.data = bytes.Buffer{}
	}
}

func (c *session) mailFrom(argument string) {
	path, parameters, ok := pathOf(argument, "FROM:")
	switch {
	case !ok:
		c.reply("501 5.5.4 want MAIL FROM:<path>")
	case c.mail:
		c.reply("503 5.5.1 a transaction is open already")
	default:
		c.reset()
		c.mail = true
		c.m.ReversePath, c.m.Parameters = path, parameters
		c.reply("250 2.1.0 ok")
	}
}

func (c *session) rcptTo(argument string) {
	path, _, ok := pathOf(argument, "TO:")
	switch {
	case !ok || path == "":
		c.reply("501 5.5.4 want RCPT TO:<path>")
		return
	case !c.mail:
		c.reply("503 5.5.1 MAIL first")
		return
	case len(c.m.Recipients) >= maxRecipients:
		c.reply("452 4.5.3 too many recipients")
		return
	}
	var r Reply
	if c.s.o.Recipient != nil {
		r = c.s.o.Recipient(&c.m, path)
	}
	if c.answer(r, "250 2.1.5 ok") {
		c.m.Recipients = append(c.m.Recipients, path)
	}
}

// pathOf takes "FROM:<a@b> PARAMETERS" apart. A quoted local part may hold any character (RFC 5321 §4.1.2).
func pathOf(argument, keyword string) (path, parameters string, ok bool) {
	if len(argument) < len(keyword) || !strings.EqualFold(argument[:len(keyword)], keyword) {
		return "", "", false
	}
	rest := strings.TrimLeft(argument[len(keyword):], " ")
	if !strings.HasPrefix(rest, "<") {
		return "", "", false
	}
	quoted := false
	for i := 1; i < len(rest); i++ {
		switch {
		case quoted && rest[i] == '\\':
			i++
		case rest[i] == '"':
			quoted = !quoted
		case rest[i] == '>' && !quoted:
			return rest[1:i], strings.TrimSpace(rest[i+1:]), true
		}
	}
	return "", "", false
}

func (c *session) readMessage() error {
	if !c.mail || len(c.m.Recipients) == 0 {
		c.reply("503 5.5.1 MAIL and RCPT first")
		return nil
	}
	c.reply("354 go ahead")
	if err := c.flush(); err != nil {
		return err
	}
	fits, err := c.readData()
	if err != nil {
		return err
	}
	if !fits {
		c.reply("552 5.3.4 message too large")
		c.reset()
		return nil
	}
	c.m.Data = c.data.Bytes()
	var r Reply
	if c.s.o.Message != nil {
		r = c.s.o.Message(&c.m)
	}
	if c.s.o.Latency > 0 {
		time.Sleep(c.s.o.Latency)
	}
	if r == "" || r[0] == '2' {
		c.s.messages.Add(1)
	}
	c.answer(r, "250 2.0.0 taken")
	c.reset()
	return nil
}

// readData reads up to the final dot (RFC 5321 §4.5.2). fits is false for a message above MaxSize, which is read but not kept.
func (c *session) readData() (fits bool, err error) {
	size, start := int64(0), true // start: at the beginning of a line
	last := byte(0)               // octet before the piece: a CR may be cut from its LF
	for {
		piece, err := c.r.ReadSlice('\n')
		whole := err == nil
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return false, fmt.Errorf("read data: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		if start && piece[0] == '.' {
			if string(piece) == ".\r\n" {
				return size <= c.s.o.MaxSize, nil
			}
			piece = piece[1:]
		}
		size += int64(len(piece))
		if size <= c.s.o.MaxSize {
			c.data.Write(piece)
		}
		start = whole && (bytes.HasSuffix(piece, []byte("\r\n")) || last == '\r' && len(piece) == 1)
		if len(piece) > 0 {
			last = piece[len(piece)-1]
		}
	}
}
