package receiver

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"strings"
	"time"

	"postroad/cmd/internal/cluster/ledger"
)

const (
	maxLine       = 64 << 10
	maxRecipients = 1000
)

var errHangUp = errors.New("hang up")

// session is one connection of a worker.
type session struct {
	r      *Receiver
	c      net.Conn
	in     *bufio.Reader
	out    *bufio.Writer
	worker string

	begin time.Time // of the transaction; zero outside of one
	from  string
	to    []string
	mood  mood
}

func newSession(r *Receiver, c net.Conn, worker string) *session {
	return &session{r: r, c: c, in: bufio.NewReaderSize(c, maxLine), out: bufio.NewWriter(c), worker: worker}
}

func (s *session) serve() {
	defer s.reset()
	if s.reply("220 receiver.chaos.test ESMTP") != nil {
		return
	}
	for {
		line, err := s.line()
		if err != nil {
			return
		}
		if err := s.command(strings.TrimRight(string(line), "\r\n")); err != nil {
			_ = s.out.Flush() // the worker may be gone
			return
		}
	}
}

// line reads one line; what is buffered for the worker goes out first when we
// would have to wait.
func (s *session) line() ([]byte, error) {
	if s.in.Buffered() == 0 {
		if err := s.flush(); err != nil {
			return nil, err
		}
	}
	if err := s.c.SetReadDeadline(time.Now().Add(readTimeout)); err != nil {
		return nil, err
	}
	return s.in.ReadSlice('\n')
}

func (s *session) flush() error {
	if err := s.c.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	return s.out.Flush()
}

func (s *session) reply(text string) error {
	_, err := s.out.WriteString(text + "\r\n")
	return err
}

func (s *session) command(line string) error {
	verb, rest, _ := strings.Cut(line, " ")
	switch strings.ToUpper(verb) {
	case "EHLO":
		return s.reply("250-receiver.chaos.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 SIZE 104857600")
	case "HELO", "NOOP":
		return s.reply("250 2.0.0 yes")
	case "RSET":
		s.reset()
		return s.reply("250 2.0.0 forgotten")
	case "QUIT":
		_ = s.reply("221 2.0.0 bye")
		return errHangUp
	case "MAIL":
		return s.mail(rest)
	case "RCPT":
		return s.rcpt(rest)
	case "DATA":
		return s.data()
	default:
		return s.reply("500 5.5.1 unknown command")
	}
}

func (s *session) reset() {
	if !s.begin.IsZero() {
		s.r.count(s.worker, -1)
	}
	s.begin, s.to, s.mood = time.Time{}, nil, moodNone
}

func (s *session) mail(rest string) error {
	if !s.begin.IsZero() {
		return s.reply("503 5.5.1 one transaction at a time")
	}
	_, rest, _ = strings.Cut(rest, "<")
	s.from, _, _ = strings.Cut(rest, ">")
	s.begin = time.Now()
	s.r.count(s.worker, 1)
	return s.reply("250 2.1.0 go on")
}

func (s *session) rcpt(rest string) error {
	if s.begin.IsZero() {
		return s.reply("503 5.5.1 MAIL first")
	}
	_, rest, _ = strings.Cut(rest, "<")
	to, _, ok := strings.Cut(rest, ">")
	if !ok || len(s.to) >= maxRecipients {
		return s.reply("501 5.1.3 not a path, or too many")
	}
	text, m := s.r.verdict(to)
	if strings.HasPrefix(text, "250") {
		s.to = append(s.to, to)
		s.mood = max(s.mood, m)
	}
	return s.reply(text)
}

func (s *session) data() error {
	if len(s.to) == 0 {
		return s.reply("503 5.5.1 nobody to take it")
	}
	defer s.reset()
	if err := s.reply("354 go on"); err != nil {
		return err
	}
	if s.mood == moodDrop {
		if _, err := s.line(); err != nil {
			return err
		}
		return errHangUp
	}
	var c ledger.Checker
	if err := s.content(&c); err != nil {
		return err
	}
	switch s.mood {
	case moodMute:
		return errHangUp
	case moodDot:
		return s.reply("451 4.3.0 not now")
	}
	time.Sleep(s.r.o.Pause())
	s.record(&c)
	return s.reply("250 2.0.0 kept")
}

// content reads up to the final dot and undoes the stuffing (RFC 5321 §4.5.2).
func (s *session) content(c *ledger.Checker) error {
	for {
		line, err := s.line()
		if err != nil {
			return err
		}
		if line[0] == '.' {
			if bytes.Equal(line, []byte(".\r\n")) {
				return nil
			}
			line = line[1:]
		}
		c.Line(line)
	}
}

// record writes into the book what is about to be answered 250.
func (s *session) record(c *ledger.Checker) {
	now := time.Now()
	for _, to := range s.to {
		v := ledger.Arrival{Worker: s.worker, Begin: s.begin, At: now}
		if a, ok := ledger.ParseAddress(to); ok {
			v.Token, v.Recipient, v.Damage = a.Token, to, c.Damage(a.Token)
			s.r.o.Book.Arrive(v)
			if a.Want == ledger.WantBack {
				if _, again := s.r.try(to); !again {
					s.r.o.Report(s.from, to)
				}
			}
			continue
		}
		v.Token, _ = ledger.ParseSender(to)
		v.Report = true
		for _, v.Recipient = range c.Reports() {
			s.r.o.Book.Arrive(v)
		}
	}
}
