package check

import "strings"

// hintFor says what a refusal mostly means, and where to look.
func hintFor(step string, r reply) string {
	text := r.String()
	has := func(part string) bool { return strings.Contains(text, part) }
	switch {
	case step == "auth":
		return authHint(r.code)
	case r.code == 421:
		return "the server is going down or has had enough of this address: too many connections, errors or failed logins; its log says which"
	case r.code == 530 && has("STARTTLS"), r.code == 538, r.code == 523:
		return "the server wants TLS first: --tls starttls"
	case r.code == 530:
		return "this listener wants a login first: --user"
	case r.code == 452 && has("4.3.1"):
		return "the queue is full: postroad queue counts"
	case r.code == 451:
		return "the server cannot store mail now: are its queue and the nodes of that up?"
	case step == "rcpt" && r.code == 550 && has("5.7.1"):
		return "without a login only trusted networks may send elsewhere; with one, a limit or ingress.allowed_recipients (postroad explain tells)"
	case step == "mail" && r.code == 550 && has("5.7.1"):
		return "the account may not use this sender: postroad client list shows its senders, postroad client add NAME --sender … changes them"
	case step == "greeting" && r.code == 554:
		return "the server takes no mail from this address: it may expect a load balancer's PROXY header, or have been spoken to too early"
	case step == "data" && r.code/100 == 5:
		return "the content was refused: the text says why"
	case r.code/100 == 4:
		return "refused for now: try again later; the server's log says why"
	}
	return ""
}

func authHint(code int) string {
	switch code {
	case 535:
		return "name or password wrong, or the account is disabled, or it may not log in from here: the server's log says which, postroad client list shows the account"
	case 454:
		return "the server cannot look at accounts now, or there were too many failed logins from here: wait a few minutes, look at its log"
	case 504, 534:
		return "this mechanism is not taken: --mechanism chooses another"
	case 538, 530:
		return "logging in needs TLS: --tls starttls"
	case 421:
		return "too many failed logins: wait a few minutes"
	}
	return ""
}
