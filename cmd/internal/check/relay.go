package check

import (
	"context"
	"strings"
)

// AnyRefusal is what Relay expects unless told otherwise.
const AnyRefusal = "5xx"

const openRelay = "the server takes mail for anybody from here without a login: an open relay, unless this machine is in its trusted networks"

// Relay checks that the server refuses recipients elsewhere to who has not logged in: each of them. It sends nothing. Only an answer to RCPT
// tells that, or 530 to MAIL, which asks for a login; a refusal of anything else leaves relaying untested, which is not good.
func Relay(ctx context.Context, o Options) *Report {
	o.User, o.Password, o.Certificate, o.Stop = "", "", nil, Rcpt
	if len(o.Expect) == 0 {
		o.Expect = Codes{AnyRefusal}
	}
	s := newSession(o)
	s.isRelay = true
	if s.open(ctx) {
		s.dialogue()
		s.quit()
	}
	s.close()
	return s.r.finish()
}

// relayed judges the reply to one recipient.
func (s *session) relayed(recipient string, r reply) {
	r.to = "<" + recipient + ">"
	if r.ok() {
		s.judge(Bad, "rcpt", r.code, openRelay, "got %s, expected was %s", r, s.o.Expect)
		return
	}
	s.answered("rcpt", r, false)
}

// isOfRelaying reports whether a refusal at this step tells that the server does not relay, or is the very code that is expected of a recipient.
func (s *session) isOfRelaying(step string, r reply) bool {
	if step == "mail" {
		return r.code == 530 && !wantsOnlyTLS(r)
	}
	return step == "rcpt" && (s.o.Expect.names(r.code) || r.code/100 == 5 && !isOfSomethingElse(r))
}

// untested explains a refusal that tells nothing about relaying.
func (s *session) untested(step string, r reply) {
	hint := hintFor(step, r)
	switch {
	case step == "rcpt" && isOfSomethingElse(r):
		hint = "the server dislikes the address or the command: --send-to another one, or --expect this very code if it is how the server refuses to relay"
	case step == "mail" && r.code/100 == 5 && r.code != 530:
		hint = "the server dislikes the sender: --from another one"
	case (step == "mail" || step == "rcpt") && wantsOnlyTLS(r):
		hint = "the server wants TLS first: --tls starttls"
	}
	s.judge(Bad, step, r.code, hint, "not tested: %s, which is no refusal to relay", r)
}

// isOfSomethingElse finds replies to RCPT that are about syntax (RFC 5321) or about the address itself (RFC 3463 X.1.X, RFC 7505).
func isOfSomethingElse(r reply) bool {
	text := reply{code: r.code, lines: r.lines}.String()
	return r.code <= 504 || r.code == 521 || r.code == 556 || strings.Contains(text, " 5.1.") || strings.Contains(text, " 5.5.") || wantsOnlyTLS(r)
}

// wantsOnlyTLS tells a server that wants TLS, and says nothing of a login, from one that wants a login.
func wantsOnlyTLS(r reply) bool {
	text := strings.ToLower(strings.Join(r.lines, " "))
	return r.code == 530 && strings.Contains(text, "starttls") && !strings.Contains(text, "log in") && !strings.Contains(text, "login") && !strings.Contains(text, "authent")
}
