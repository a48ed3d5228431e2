// Package ledger says what became of every message that a crash run accepted.
//
// The addresses of a run carry their meaning: a recipient's local part holds
// the token of its message and what the receiver will do with it (Want), so
// that neither side needs to look anything up. The load client and the
// receiver write what they saw into a Book; nothing is ever taken from a
// process that may be killed. In the end Account compares what was accepted
// with what arrived, what came back and what the queue still lists.
package ledger

import (
	"fmt"
	"strconv"
	"strings"
)

// Want is what the receiver does with a recipient.
type Want string

// The fates of a recipient.
const (
	WantOK     Want = "ok"     // 250 at once
	WantGrey   Want = "grey"   // 450 for some seconds, then 250
	WantMoody  Want = "moody"  // the first try fails at some point of the dialogue, then 250
	WantBounce Want = "bounce" // 550: a notification must come back
	WantWait   Want = "wait"   // 450 until the receiver is told to release it
	WantReturn Want = "return" // 450 until an operator returns it: a notification must come back
	WantCancel Want = "cancel" // 450 until an operator cancels it: nobody hears of it again
	WantBack   Want = "back"   // 250, and then the receiver reports that it failed: its sender must hear of it
)

// SenderDomain is where reverse-paths live, and so where notifications go.
const SenderDomain = "sender.chaos.test"

// RecipientDomain is the parent of all next-hop domains.
const RecipientDomain = "rcpt.chaos.test"

// Address is a recipient of a run.
type Address struct {
	Token  string
	Index  int
	Want   Want
	Domain string
}

// waits says that the recipient waits for somebody to do something.
func (a Address) waits() bool {
	return a.Want == WantWait || a.Want == WantReturn || a.Want == WantCancel
}

// String is the address in SMTP syntax.
func (a Address) String() string {
	return fmt.Sprintf("%s.%d.%s@%s", a.Token, a.Index, a.Want, a.Domain)
}

// ParseAddress reads what String prints; ok is false for anything else.
func ParseAddress(s string) (a Address, ok bool) {
	local, domain, ok := strings.Cut(s, "@")
	if !ok {
		return Address{}, false
	}
	fields := strings.Split(local, ".")
	if len(fields) != 3 || fields[0] == "" {
		return Address{}, false
	}
	index, err := strconv.Atoi(fields[1])
	if err != nil || index < 0 {
		return Address{}, false
	}
	switch w := Want(fields[2]); w {
	case WantOK, WantGrey, WantMoody, WantBounce, WantWait, WantReturn, WantCancel, WantBack:
		return Address{Token: fields[0], Index: index, Want: w, Domain: strings.ToLower(domain)}, true
	default:
		return Address{}, false
	}
}

// Sender is the reverse-path of a message.
func Sender(token string) string { return token + "@" + SenderDomain }

// ParseSender reads the token out of a reverse-path; ok is false for anything
// that Sender did not make.
func ParseSender(s string) (token string, ok bool) {
	token, domain, ok := strings.Cut(s, "@")
	if !ok || token == "" || !strings.EqualFold(domain, SenderDomain) {
		return "", false
	}
	return token, true
}
