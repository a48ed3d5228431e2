package delivery

import (
	"strconv"

	"postroad/delivery/smtpc"
)

// outcome is what became of one recipient in one settlement.
type outcome string

const (
	delivered outcome = "delivered"
	deferred  outcome = "deferred"
	bounced   outcome = "bounced"
	expired   outcome = "expired"
	discarded outcome = "discarded" // a route throws it away
)

// phaseRoute is the step before the dialogue: finding the hosts.
const phaseRoute smtpc.Phase = "route"

// phaseDiscard is that of a route that throws mail away. It is no other's, so that no error can look like it.
const phaseDiscard smtpc.Phase = "discard"

// outcomes is the outcome table: the first row that matches says what a reply in a phase means for a recipient. An empty
// phase is any. What no row matches is temporary.
var outcomes = []struct {
	phase     smtpc.Phase
	low, high int
	outcome   outcome
}{
	{"", 421, 421, deferred},              // closing: says nothing of the mail (RFC 5321 §3.8)
	{smtpc.PhaseDot, 200, 299, delivered}, // the only way to be through
	{phaseRoute, 500, 599, bounced},       // the DNS proved that there is no host, or the route says so
	{phaseDiscard, 250, 250, discarded},
	{smtpc.PhaseGreeting, 521, 521, bounced}, // the host takes no mail at all (RFC 7504 §3)
	{smtpc.PhaseGreeting, 556, 556, bounced},
	{smtpc.PhaseRcpt, 552, 552, deferred}, // once meant too many recipients (RFC 5321 §4.5.3.1.10)
	{"", 503, 503, deferred},              // the two sides disagree on where they are
	{"", 530, 538, deferred},              // wants authentication or TLS of us: a matter of our configuration
	{smtpc.PhaseMail, 500, 599, bounced},
	{smtpc.PhaseRcpt, 500, 599, bounced},
	{smtpc.PhaseData, 500, 599, bounced},
	{smtpc.PhaseBody, 500, 599, bounced},
	{smtpc.PhaseDot, 500, 599, bounced},
}

// judge looks a reply up in the outcome table.
func judge(r smtpc.Reply) outcome {
	for _, row := range outcomes {
		if (row.phase == "" || row.phase == r.Phase) && r.Code >= row.low && r.Code <= row.high {
			return row.outcome
		}
	}
	return deferred
}

// enhanced is the enhanced status code of an outcome: the one that came with the reply when it agrees with what we make
// of it (RFC 2034 §4, RFC 3463 §2), else the one that says no more than we know.
func enhanced(o outcome, r smtpc.Reply) string {
	class := map[outcome]byte{delivered: '2', discarded: '2', deferred: '4', expired: '4', bounced: '5'}[o]
	if o == expired {
		return "4.4.7"
	}
	if r.Enhanced != "" && r.Enhanced[0] == class {
		return r.Enhanced
	}
	return string(class) + ".0.0"
}

// localReply is something that we say ourselves.
func localReply(code int, enhanced, text string) smtpc.Reply {
	return smtpc.Reply{Code: code, Enhanced: enhanced, Lines: []string{text}, Local: true}
}

// replyText is a reply as people see it in a notification or as the reason of a wait.
func replyText(r smtpc.Reply) string {
	if r.Local {
		return r.Text()
	}
	text := strconv.Itoa(r.Code)
	if r.Enhanced != "" {
		text += " " + r.Enhanced
	}
	return text + " " + r.Text()
}
