package check

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"time"
)

// session is one check.
type session struct {
	wire
	o    Options
	r    *Report
	ext  map[string]string // keywords of the last EHLO, in capitals
	safe bool              // nobody but the right server can read what is said
	last reply             // that decided something
	met  bool              // the expected refusal has come
	dead bool              // the connection is of no further use
	stop func() bool

	isRelay bool // only a refusal to relay is what Expect means
}

func newSession(o Options) *session {
	o = o.withDefaults()
	s := &session{o: o, r: &Report{Server: o.Server, Verdicts: []Verdict{}, Transcript: []Line{}}}
	s.timeout = o.Timeout
	s.say = func(l Line) {
		s.r.Transcript = append(s.r.Transcript, l)
		o.Say(l)
	}
	return s
}

func (s *session) judge(state State, step string, code int, hint, format string, args ...any) {
	s.r.Verdicts = append(s.r.Verdicts, Verdict{State: state, Step: step, Text: s.mask(fmt.Sprintf(format, args...)), Hint: hint, Code: code})
}

func (s *session) good(step, format string, args ...any) { s.judge(Good, step, 0, "", format, args...) }

func (s *session) bad(step, hint, format string, args ...any) {
	s.judge(Bad, step, 0, hint, format, args...)
}

// broken judges a step that the connection did not survive. It returns false.
func (s *session) broken(step string, err error) bool {
	s.dead = true
	text, hint := s.explain(err)
	s.bad(step, hint, "%s", text)
	return false
}

// answered judges the reply to a step, and tells whether to go on.
func (s *session) answered(step string, r reply, isGood bool) bool {
	s.last = r
	switch {
	case isGood:
		s.judge(Good, step, r.code, "", "%s", r)
		return true
	case s.isRelay && !s.isOfRelaying(step, r):
		s.untested(step, r)
	case s.o.Expect.match(r.code):
		s.met = true
		s.judge(Good, step, r.code, "", "%s, as expected", r)
	case len(s.o.Expect) > 0:
		s.judge(Bad, step, r.code, hintFor(step, r), "%s, expected was %s", r, s.o.Expect)
	default:
		s.judge(Bad, step, r.code, hintFor(step, r), "%s", r)
	}
	return false
}

// expectAtEnd looks whether what was expected is the last reply at least.
func (s *session) expectAtEnd() {
	if len(s.o.Expect) == 0 || s.met || s.o.Expect.match(s.last.code) {
		return
	}
	hint := ""
	if s.o.Stop >= Rcpt && !s.o.logsIn() {
		hint = openRelay
	}
	s.judge(Bad, "expect", s.last.code, hint, "got %s, expected was %s", s.last, s.o.Expect)
}

// open connects; false says that there is nothing to go on with.
func (s *session) open(ctx context.Context) bool {
	if err := s.o.wrong(); err != nil {
		s.bad("options", "", "%v", err)
		return false
	}
	began := time.Now()
	s.note(fromCheck, "connecting to "+s.o.Server)
	dialer := net.Dialer{Timeout: s.timeout}
	raw, err := dialer.DialContext(ctx, "tcp", s.o.Server)
	if err != nil {
		return s.broken("connect", err)
	}
	s.raw, s.conn, s.in = raw, raw, bufio.NewReader(raw)
	s.stop = context.AfterFunc(ctx, func() { _ = raw.Close() })
	s.r.Address = raw.RemoteAddr().String()
	s.good("connect", "%s in %s", s.r.Address, time.Since(began).Round(100*time.Microsecond))
	return true
}

// close ends what is open.
func (s *session) close() {
	if s.raw != nil {
		s.stop()
		_ = s.raw.Close()
	}
}

// quit says goodbye, and does not insist on an answer.
func (s *session) quit() {
	if s.dead {
		return
	}
	s.timeout = min(s.timeout, 3*time.Second)
	_, _ = s.ask("QUIT")
}

// dialogue goes through the stages; true says that all that was wanted has gone well.
func (s *session) dialogue() bool {
	if s.o.TLS == ImplicitTLS && !s.handshake() {
		return false
	}
	if !s.greeting() {
		return false
	}
	steps := []struct {
		stage Stage
		do    func() bool
	}{{FirstHelo, s.hello}, {Handshake, s.startTLS}, {Helo, s.helloAgain}, {Auth, s.auth}, {Mail, s.mail}, {Rcpt, s.rcpt}, {Data, s.data}}
	for _, step := range steps {
		if s.o.Stop < step.stage {
			return true
		}
		if !step.do() {
			return false
		}
	}
	return true
}

func (s *session) greeting() bool {
	r, err := s.read()
	if err != nil {
		s.broken("greeting", err)
		if v := &s.r.Verdicts[len(s.r.Verdicts)-1]; !s.isTLS {
			v.Hint += "; or the port speaks TLS from the first octet: --tls implicit"
		}
		return false
	}
	return s.answered("greeting", r, r.ok())
}

func (s *session) hello() bool {
	r, err := s.ask("EHLO " + s.o.Hello)
	if err == nil && r.code/100 == 5 && s.o.TLS == NoTLS && !s.o.logsIn() {
		r, err = s.ask("HELO " + s.o.Hello)
	}
	if err != nil {
		return s.broken("ehlo", err)
	}
	s.ext = make(map[string]string)
	s.r.Extensions, s.r.Mechanisms = nil, nil
	if !r.ok() {
		return s.answered("ehlo", r, false)
	}
	for _, line := range r.lines[1:] {
		word, rest, _ := strings.Cut(line, " ")
		s.ext[strings.ToUpper(word)] = rest
		s.r.Extensions = append(s.r.Extensions, line)
	}
	s.r.Mechanisms = strings.Fields(strings.ToUpper(s.ext["AUTH"]))
	s.last = r
	text := fmt.Sprintf("%d extensions", len(s.r.Extensions))
	if len(s.r.Mechanisms) > 0 {
		text += ", AUTH " + strings.Join(s.r.Mechanisms, " ")
	} else {
		text += ", no AUTH"
	}
	s.judge(Good, "ehlo", r.code, "", "%s", text)
	if !s.isTLS && (s.offers("PLAIN") || s.offers("LOGIN")) {
		s.judge(Note, "ehlo", 0, "auth_in_clear of the listener; leave it off where others can listen", "passwords are taken in clear, without TLS")
	}
	return true
}

// helloAgain is the EHLO inside of STARTTLS.
func (s *session) helloAgain() bool { return s.o.TLS != StartTLS || s.hello() }

func (s *session) mail() bool {
	path := s.o.Sender
	if path != "<>" {
		path = "<" + path + ">"
	}
	r, err := s.ask("MAIL FROM:" + path)
	if err != nil {
		return s.broken("mail", err)
	}
	return s.answered("mail", r, r.ok())
}

func (s *session) rcpt() bool {
	for _, recipient := range s.o.Recipients {
		r, err := s.ask("RCPT TO:<" + recipient + ">")
		if err != nil {
			return s.broken("rcpt", err)
		}
		if s.isRelay {
			s.relayed(recipient, r)
			continue
		}
		if !s.answered("rcpt", r, r.ok()) {
			return false
		}
	}
	return true
}

func (s *session) data() bool {
	r, err := s.ask("DATA")
	if err != nil {
		return s.broken("data", err)
	}
	if r.code != 354 {
		return s.answered("data", r, false)
	}
	message := s.message()
	if err := s.send(message+".\r\n", ""); err != nil {
		return s.broken("data", err)
	}
	if r, err = s.read(); err != nil {
		return s.broken("data", err)
	}
	return s.answered("data", r, r.ok())
}

// message is a mail that says what it is.
func (s *session) message() string {
	now := time.Now()
	from := s.o.Sender
	if from == "<>" {
		from = "postroad-check@" + s.o.Hello
	}
	// No line begins with a dot. Addresses stand as they were given; the server judges them.
	return strings.Join([]string{
		"Date: " + now.Format("Mon, 02 Jan 2006 15:04:05 -0700"),
		"From: <" + from + ">",
		"To: <" + strings.Join(s.o.Recipients, ">,\r\n <") + ">",
		"Subject: postroad check " + now.UTC().Format(time.RFC3339),
		fmt.Sprintf("Message-ID: <check.%d@%s>", now.UnixNano(), s.o.Hello),
		"Auto-Submitted: auto-generated",
		"",
		"This message was sent by `postroad check smtp` through " + s.o.Server + ".",
		"Nobody needs to do anything about it.",
		"",
	}, "\r\n")
}
