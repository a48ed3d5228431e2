package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/textproto"
	"regexp"
	"time"
)

// idPattern is a message id as the 250 gives it.
var idPattern = regexp.MustCompile(`\b[0-9a-hjkmnp-tv-z]{26}0\b`)

// session is one connection to an ingress process.
type session struct {
	c       net.Conn
	t       *textproto.Reader
	w       *bufio.Writer
	timeout time.Duration
}

// answer is what a whole transaction came to.
type answer struct {
	code  int
	id    string
	taken []string // recipients
}

func dial(ctx context.Context, target string, timeout time.Duration) (*session, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	c, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return nil, err
	}
	s := &session{c: c, t: textproto.NewReader(bufio.NewReader(c)), w: bufio.NewWriterSize(c, 32<<10), timeout: timeout}
	if _, err := s.reply(); err != nil {
		s.close()
		return nil, err
	}
	fmt.Fprintf(s.w, "EHLO load.chaos.test\r\n")
	if code, err := s.reply(); err != nil || code != 250 {
		s.close()
		return nil, fmt.Errorf("EHLO: %d %w", code, err)
	}
	return s, nil
}

func (s *session) close() { _ = s.c.Close() } // nothing is to be kept of it

func (s *session) quit() {
	fmt.Fprintf(s.w, "QUIT\r\n")
	_, _ = s.reply() // a courtesy
}

// reply sends what is buffered and reads one reply.
func (s *session) reply() (int, error) {
	code, _, err := s.answer()
	return code, err
}

func (s *session) answer() (int, string, error) {
	if err := s.c.SetDeadline(time.Now().Add(s.timeout)); err != nil {
		return 0, "", err
	}
	if err := s.w.Flush(); err != nil {
		return 0, "", err
	}
	code, text, err := s.t.ReadResponse(0)
	return code, text, err
}

// send goes through one transaction, pipelined as far as RFC 2920 allows. An
// error says that the outcome is unknown.
func (s *session) send(from string, recipients []string, message []byte) (answer, error) {
	fmt.Fprintf(s.w, "MAIL FROM:<%s>\r\n", from)
	for _, to := range recipients {
		fmt.Fprintf(s.w, "RCPT TO:<%s>\r\n", to)
	}
	fmt.Fprintf(s.w, "DATA\r\n")
	a := answer{}
	code, err := s.reply()
	if err != nil {
		return a, err
	}
	refused := 0
	if code != 250 {
		refused = code
	}
	for _, to := range recipients {
		switch code, err = s.reply(); {
		case err != nil:
			return a, err
		case code == 250:
			a.taken = append(a.taken, to)
		case refused == 0:
			refused = code
		}
	}
	if code, err = s.reply(); err != nil {
		return a, err
	}
	if code != 354 {
		if a.code = refused; refused == 0 {
			a.code = code
		}
		fmt.Fprintf(s.w, "RSET\r\n")
		_, err = s.reply()
		return a, err
	}
	if err := s.content(message); err != nil {
		return a, err
	}
	code, text, err := s.answer()
	if err != nil {
		return a, err
	}
	a.code, a.id = code, idPattern.FindString(text)
	if code == 250 && a.id == "" {
		return a, fmt.Errorf("no message id in %q", text)
	}
	return a, nil
}

// content writes the message with dots stuffed (RFC 5321 §4.5.2) and the dot.
func (s *session) content(message []byte) error {
	if err := s.c.SetDeadline(time.Now().Add(s.timeout)); err != nil {
		return err
	}
	for line := range bytes.Lines(message) {
		if line[0] == '.' {
			if err := s.w.WriteByte('.'); err != nil {
				return err
			}
		}
		if _, err := s.w.Write(line); err != nil {
			return err
		}
	}
	_, err := s.w.WriteString(".\r\n")
	return err
}
