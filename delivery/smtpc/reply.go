package smtpc

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Phase names the step of the dialogue that something happened in.
type Phase string

// The phases, in the order of the dialogue.
const (
	PhaseConnect  Phase = "connect"
	PhaseGreeting Phase = "greeting"
	PhaseEhlo     Phase = "ehlo"
	PhaseStartTLS Phase = "starttls"
	PhaseAuth     Phase = "auth"
	PhaseMail     Phase = "mail"
	PhaseRcpt     Phase = "rcpt"
	PhaseData     Phase = "data"
	PhaseBody     Phase = "body"
	PhaseDot      Phase = "dot"
	PhaseQuit     Phase = "quit"
)

// Reply is one SMTP reply, of the peer or of our own making.
type Reply struct {
	Code     int      // three digits; only the first decides (RFC 5321 §4.2.1)
	Enhanced string   // X.Y.Z (RFC 3463), "" when none was given
	Lines    []string // text without codes, as received: use Text for people
	Phase    Phase    // the command that it answers
	Local    bool     // we said it, not the peer: no Remote-MTA in reports
	InDoubt  bool     // the content was sent and no answer came: the host may have taken it (RFC 1047)
}

// OK reports a positive completion (2xx).
func (r Reply) OK() bool { return r.Code/100 == 2 }

// Permanent reports a refusal for good. That is a 5xx, but for three steps: a
// greeting speaks of this moment only, unless it is 521 or 556, the host that
// takes no mail at all (RFC 7504 §3); and a refused STARTTLS or login says nothing of mail.
func (r Reply) Permanent() bool {
	switch r.Phase {
	case PhaseGreeting:
		return r.Code == 521 || r.Code == 556
	case PhaseStartTLS, PhaseAuth:
		return false
	}
	return r.Code/100 == 5
}

// Temporary reports everything that is neither OK nor Permanent: unknown means temporary.
func (r Reply) Temporary() bool { return !r.OK() && !r.Permanent() }

// Closing reports that the peer is about to hang up (RFC 5321 §4.2.1: 421 may answer anything).
func (r Reply) Closing() bool { return r.Code == 421 }

// maxTextBytes bounds what Text returns.
const maxTextBytes = 512

// Text is the text on one line, safe for logs and reports: no control
// characters, valid UTF-8, at most 512 octets.
func (r Reply) Text() string {
	return clean(strings.Join(r.Lines, " "), maxTextBytes)
}

// clean makes text printable, and at most max octets long.
func clean(text string, max int) string {
	var b strings.Builder
	for _, c := range text {
		if c == utf8.RuneError || !unicode.IsPrint(c) {
			c = '?'
		}
		if b.Len()+utf8.RuneLen(c) > max-len("...") {
			b.WriteString("...")
			break
		}
		b.WriteRune(c)
	}
	return b.String()
}

// String prints code, enhanced code and Text.
func (r Reply) String() string {
	s := strconv.Itoa(r.Code)
	if r.Enhanced != "" {
		s += " " + r.Enhanced
	}
	if text := r.Text(); text != "" {
		s += " " + text
	}
	return s
}
