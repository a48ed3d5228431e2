package retry

import (
	"strings"
	"testing"
	"time"

	"postroad/delivery/smtpc"
)

func reply(code int, enhanced, text string) smtpc.Reply {
	return smtpc.Reply{Code: code, Enhanced: enhanced, Lines: []string{text}, Phase: smtpc.PhaseRcpt}
}

func own(phase smtpc.Phase, enhanced, text string) smtpc.Reply {
	return smtpc.Reply{Code: 451, Enhanced: enhanced, Lines: []string{text}, Phase: phase, Local: true}
}

func TestFailureOf(t *testing.T) {
	tests := []struct {
		reply smtpc.Reply
		want  Failure
	}{
		{reply(450, "4.2.0", "<bob@example.com>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/help/example.com.html"), Greylisted},
		{reply(451, "4.7.1", "Greylisting in action, please come back in 00:05:00"), Greylisted},
		{reply(451, "4.7.1", "Try again later"), Greylisted},
		{reply(450, "", "GREY-LISTED for 300 seconds"), Greylisted},
		{reply(421, "4.7.0", "You have been graylisted"), Greylisted},
		{reply(450, "4.7.1", "first time sender, please retry in a few minutes"), Greylisted},
		{reply(451, "4.7.1", "Try again later, too many messages from your address"), Other},
		{reply(451, "4.7.1", "Your reputation is low, try again later"), Other},
		{reply(451, "4.3.0", "try again later"), Other},
		{reply(421, "4.7.0", "try again later"), Other},
		{reply(550, "5.7.1", "greylisted"), Other},
		{reply(452, "4.2.2", "over"), Quota},
		{reply(552, "", "Quota exceeded"), Quota},
		{reply(450, "4.2.0", "mailbox is full, try again later"), Quota},
		{reply(452, "4.3.1", "insufficient system storage"), Other},
		{reply(421, "4.4.2", "closing"), Other}, // the peer's word
		{own(smtpc.PhaseConnect, "4.4.1", "cannot connect (connect)"), Connection},
		{own(smtpc.PhaseConnect, "4.4.1", "timed out (connect)"), Timeout},
		{own(smtpc.PhaseData, "4.4.2", "connection lost (data)"), Connection},
		{own("route", "4.4.3", "find a host for example.com: name service failed"), DNS},
		{own(smtpc.PhaseEhlo, "4.7.4", "the policy wants TLS"), TLS},
		{reply(454, "4.7.0", "TLS not available"), Other},
		{smtpc.Reply{Code: 454, Phase: smtpc.PhaseStartTLS}, TLS},
		{own("", "4.4.5", "site is busy"), Other},
	}
	for _, tt := range tests {
		if got := FailureOf(tt.reply); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.reply, got, tt.want)
		}
	}
}

// The first try after greylisting comes in 5 to 15 minutes, also late in the life of a mail; after that the schedule goes on.
func TestE6_75_Greylisting(t *testing.T) {
	p, err := Policy{Greylist: DefaultGreylist}.Complete()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		text   string
		tried  Tried
		reason string // of the wait before
		want   time.Duration
	}{
		{"first try", "Greylisted", Tried{Tries: 1}, "", 6 * time.Minute},
		{"the receiver wants less", "Greylisted for 60 seconds", Tried{Tries: 1}, "", 6 * time.Minute},
		{"the receiver wants more", "Greylisting in action, please come back in 00:10:00", Tried{Tries: 1}, "", 10 * time.Minute},
		{"the receiver wants more, in minutes", "greylisted, come back in 12 minutes", Tried{Tries: 1}, "", 12 * time.Minute},
		{"the receiver wants too much", "Greylisted for 7200 seconds", Tried{Tries: 1}, "", 15 * time.Minute},
		{"after an outage", "Greylisted", Tried{Tries: 9, Age: day}, "cannot connect (connect)", 6 * time.Minute},
		{"again", "Greylisted", Tried{Tries: 3, Age: time.Hour}, "450 4.2.0 Greylisted", 15 * time.Minute},
		{"again, without enhanced code", "Greylisted", Tried{Tries: 4, Age: time.Hour}, "451 Greylisted", time.Hour},
	}
	for _, tt := range tests {
		t.Run("E6-75 "+tt.name, func(t *testing.T) {
			tt.tried.Text, tt.tried.Greylists = tt.text, WasGreylisted(tt.reason)
			plan := p.Plan(Query{Failure: FailureOf(reply(450, "4.7.1", tt.text))})
			if got := plan.Wait(tt.tried); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestPlans(t *testing.T) {
	p, err := Policy{
		Schedule: List(time.Minute),
		Rules: []Rule{
			{Failures: []Failure{Quota}, Schedule: List(time.Hour), MaxAge: day},
			{Domains: []string{"Example.com", ".example.net"}, Schedule: List(2 * time.Minute)},
			{Classes: []string{"bulk"}, Sites: []string{".big.example"}, Schedule: List(3 * time.Minute)},
			{Classes: []string{"bulk"}, MaxAge: 2 * day},
			{Routes: []string{"smart"}, Schedule: List(4 * time.Minute), MaxAge: 3 * day},
		},
		NullMaxAge: 36 * time.Hour,
	}.Complete()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		query  Query
		wait   time.Duration
		maxAge time.Duration
	}{
		{"no rule", Query{Domain: "example.org", Failure: Other}, time.Minute, 5 * day},
		{"domain", Query{Domain: "example.com"}, 2 * time.Minute, 5 * day},
		{"below a domain", Query{Domain: "a.example.net"}, 2 * time.Minute, 5 * day},
		{"not below a domain", Query{Domain: "example.net"}, time.Minute, 5 * day},
		{"failure first", Query{Domain: "example.com", Failure: Quota}, time.Hour, day},
		{"class and site", Query{Domain: "example.org", Class: "bulk", Site: "mx.big.example"}, 3 * time.Minute, 2 * day},
		{"class", Query{Domain: "example.org", Class: "bulk", Site: "mx.small.example"}, time.Minute, 2 * day},
		{"each setting from the first that has it", Query{Domain: "example.com", Class: "bulk", Route: "smart"}, 2 * time.Minute, 2 * day},
		{"route", Query{Domain: "example.org", Route: "smart"}, 4 * time.Minute, 3 * day},
		{"null reverse-path", Query{Domain: "example.org", IsNull: true}, time.Minute, 36 * time.Hour},
		{"null reverse-path, shorter anyway", Query{Domain: "example.org", IsNull: true, Failure: Quota}, time.Hour, day},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			plan := p.Plan(tt.query)
			if got := plan.Wait(Tried{Tries: 1}); got != tt.wait {
				t.Errorf("waits %v, want %v", got, tt.wait)
			}
			if plan.MaxAge != tt.maxAge || plan.IsOver(tt.maxAge-1) || !plan.IsOver(tt.maxAge) {
				t.Errorf("given up at %v, want %v", plan.MaxAge, tt.maxAge)
			}
		})
	}
}

func TestComplete(t *testing.T) {
	_, err := Policy{
		Schedule: List(time.Second), MaxAge: 100 * day, Greylist: time.Second, Jitter: 51,
		Rules: []Rule{{}, {Domains: []string{"a b"}, MaxAge: day}, {Failures: []Failure{"bad luck"}, MaxAge: day}, {MaxAge: 101 * day}, {Schedule: List(0)}},
	}.Complete()
	for _, want := range []string{"the wait 1s", "largest age 100d", "greylisting 1s", "51 percent", "rule 1: says nothing", "rule 2", "bad luck", "rule 4: largest age 101d", "rule 5: the wait 0s"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to say %q", err, want)
		}
	}
}

// The jitter of one try of one job is always the same, bounded, and differs between jobs.
func TestE6_74_Jitter(t *testing.T) {
	p := Plan{Schedule: List(4 * time.Hour), MaxAge: 5 * day, jitter: 25}
	seen := make(map[time.Duration]bool)
	for seed := range uint64(100) {
		got := p.Wait(Tried{Tries: 1, Seed: seed})
		if got != p.Wait(Tried{Tries: 1, Seed: seed}) || got < 4*time.Hour || got > 5*time.Hour || got%(15*time.Minute) != 0 {
			t.Errorf("seed %d: got %v", seed, got)
		}
		seen[got] = true
	}
	if len(seen) != 5 {
		t.Errorf("got %d different waits, want 5", len(seen))
	}
}
