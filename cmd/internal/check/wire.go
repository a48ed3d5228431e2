package check

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// Bounds of what a server may say.
const (
	maxReplyBytes = 32 << 10
	maxReplyLines = 200
	maxLineShown  = 500 // characters
)

// wire is the connection as a stream of lines, with a deadline on every step and a transcript.
type wire struct {
	raw     net.Conn // the socket
	conn    net.Conn // what is read and written: raw, or TLS on it
	in      *bufio.Reader
	isTLS   bool
	timeout time.Duration
	say     func(Line)
	secrets []string // that no transcript shows
}

// reply is one reply of the server.
type reply struct {
	to    string // what it answers, for people; may be empty
	code  int
	lines []string // without code, cleaned and masked
	raw   string   // the last one as it came
}

func (r reply) ok() bool { return r.code/100 == 2 }

// String is the code and the last line that says something.
func (r reply) String() string {
	if r.to != "" {
		return r.to + ": " + reply{code: r.code, lines: r.lines}.String()
	}
	for _, text := range slices.Backward(r.lines) {
		if text != "" {
			return fmt.Sprintf("%d %s", r.code, text)
		}
	}
	return strconv.Itoa(r.code)
}

var (
	errEndless = errors.New("the server does not stop talking: its reply is longer than any reply is")
	errNoSMTP  = errors.New("this is no reply of SMTP")
)

// hide keeps a text out of the transcript from now on.
func (w *wire) hide(texts ...string) {
	for _, text := range texts {
		if text != "" {
			w.secrets = append(w.secrets, text)
		}
	}
	slices.SortFunc(w.secrets, func(a, b string) int { return len(b) - len(a) }) // the one that holds another first
}

func (w *wire) mask(text string) string {
	for _, secret := range w.secrets {
		text = strings.ReplaceAll(text, secret, "********")
	}
	return text
}

func (w *wire) note(from, text string) {
	w.say(Line{From: from, TLS: w.isTLS, Text: clean(w.mask(text))})
}

// send writes lines; each ends with CRLF already. What shown says stands for them in the transcript, the lines themselves when it is empty.
func (w *wire) send(text, shown string) error {
	if shown == "" {
		shown = text
	}
	for line := range strings.Lines(shown) {
		w.note(fromClient, strings.TrimRight(line, "\r\n"))
	}
	if err := w.raw.SetWriteDeadline(time.Now().Add(w.timeout)); err != nil {
		return fmt.Errorf("set write deadline: %w", err)
	}
	_, err := io.WriteString(w.conn, text)
	return err
}

// ask sends one command and reads the reply to it.
func (w *wire) ask(command string) (reply, error) {
	if err := w.send(command+"\r\n", ""); err != nil {
		return reply{}, err
	}
	return w.read()
}

// read reads a reply of many lines at most; the last line decides.
func (w *wire) read() (reply, error) {
	if err := w.raw.SetReadDeadline(time.Now().Add(w.timeout)); err != nil {
		return reply{}, fmt.Errorf("set read deadline: %w", err)
	}
	var r reply
	for budget := maxReplyBytes; ; {
		line, err := w.line(&budget)
		if line != "" || err == nil {
			w.note(fromServer, line)
		}
		if err != nil {
			return r, err
		}
		code, more, text := parseLine(line)
		if code == 0 {
			return r, errNoSMTP
		}
		r.code, r.raw = code, text
		r.lines = append(r.lines, clean(w.mask(text)))
		if !more {
			return r, nil
		}
		if len(r.lines) >= maxReplyLines {
			return r, errEndless
		}
	}
}

// line reads up to LF. With an error it gives what came before that.
func (w *wire) line(budget *int) (string, error) {
	var b strings.Builder
	for {
		part, err := w.in.ReadSlice('\n')
		if *budget -= len(part); *budget < 0 {
			return b.String(), errEndless
		}
		b.Write(part)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		return strings.TrimRight(b.String(), "\r\n"), err
	}
}

// parseLine takes a line of a reply apart; code 0: it is none.
func parseLine(line string) (code int, more bool, text string) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' {
		return 0, false, ""
	}
	code, err := strconv.Atoi(line[:3])
	if err != nil || code < 200 || len(line) > 3 && line[3] != ' ' && line[3] != '-' {
		return 0, false, ""
	}
	if len(line) > 3 {
		text = line[4:]
	}
	return code, len(line) > 3 && line[3] == '-', text
}

// clean keeps what others wrote from moving the cursor, and bounds it. What cannot be printed is shown as \x00.
func clean(s string) string {
	var b strings.Builder
	n := 0
	for i, r := range s {
		if n++; n > maxLineShown {
			b.WriteString("…")
			break
		}
		switch {
		case r == unicode.ReplacementChar:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\t' || unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// explain says what an error of the connection means, and what to do.
func (w *wire) explain(err error) (text, hint string) { return explain(err, w.timeout) }

func explain(err error, timeout time.Duration) (text, hint string) {
	if n, ok := errors.AsType[*net.DNSError](err); ok {
		return clean("no address for " + n.Name + ": " + n.Err), "is the name right, and does the DNS of this machine know it?"
	}
	var timed interface{ Timeout() bool }
	switch {
	case errors.Is(err, errEndless), errors.Is(err, errNoSMTP):
		return err.Error(), "is this an SMTP server, and the right port?"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timed) && timed.Timeout():
		return fmt.Sprintf("no answer within %s", timeout), "a firewall that drops packets, a wrong address, or a server that is stuck; --timeout waits longer"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused", "nothing listens there: is the server running, does it have a listener on this port and address?"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no way to this address", "routing, or a firewall"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the server closed the connection", "its log says why; a load balancer without a healthy server behind it does the same"
	case errors.Is(err, net.ErrClosed):
		return "stopped", ""
	}
	return clean(err.Error()), ""
}
