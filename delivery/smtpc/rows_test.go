package smtpc

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
)

// Every fault at every step, over TCP: the step is named, the mail is deferred, and only what follows the content is in
// doubt. A reply may be late, wrong, half, dripping, endless, 421, or the host is gone.
func TestE4_53_56_59_60_EveryStepOverTCP(t *testing.T) {
	const ehlo = "C: EHLO relay.test\nS: 250 mx.test\n"
	steps := []struct {
		phase   Phase
		timeout string // the field of Timeouts
		option  string
		before  string // what happens until the host is to answer
	}{
		{PhaseGreeting, "Greeting", "", ""},
		{PhaseEhlo, "Ehlo", "", "S: 220 mx.test\nC: EHLO relay.test\n"},
		{PhaseStartTLS, "StartTLS", "OPTION tls=may\n", "S: 220 mx.test\nC: EHLO relay.test\nS: 250-mx.test\nS: 250 STARTTLS\nC: STARTTLS\n"},
		{PhaseMail, "Mail", "", "S: 220 mx.test\n" + ehlo + "C: MAIL FROM:<sender@example.org>\n"},
		{PhaseRcpt, "Rcpt", "", "S: 220 mx.test\n" + ehlo + "C: MAIL FROM:<sender@example.org>\nS: 250 ok\nC: RCPT TO:<a@example.net>\n"},
		{PhaseData, "Data", "", "S: 220 mx.test\n" + ehlo + "C: MAIL FROM:<sender@example.org>\nS: 250 ok\nC: RCPT TO:<a@example.net>\nS: 250 ok\nC: DATA\n"},
		{PhaseDot, "Dot", "", "S: 220 mx.test\n" + ehlo + "C: MAIL FROM:<sender@example.org>\nS: 250 ok\nC: RCPT TO:<a@example.net>\nS: 250 ok\nC: DATA\nS: 354 go\nBODY\n"},
	}
	faults := []struct {
		name, steps string
		isLate      bool
		fate        string
	}{
		{"E4-53 late", "SILENT\n", true, "local %[1]s 451 4.4.2 timed out (%[1]s)"},
		{"E4-53 drips", "DRIP \"2\"\n", true, "local %[1]s 451 4.4.2 timed out (%[1]s)"},
		{"E4-53 drips lines", "DRIP \"250-x\\r\\n\"\n", true, "local %[1]s 451 4.4.2 timed out (%[1]s)"},
		{"E4-56 wrong", "S: welcome\nEOF\n", false, "local %[1]s 451 4.5.0 reply not understood (%[1]s)"},
		{"E4-56 no code of SMTP", "S: 650 ok\nEOF\n", false, "local %[1]s 451 4.5.0 reply not understood (%[1]s)"},
		{"E4-56 endless", "S= \"250-" + strings.Repeat("x", 5000) + "\"\nEOF\n", false, "local %[1]s 451 4.5.0 reply not understood (%[1]s)"},
		{"E4-60 half", "S= \"25\"\nCLOSE\n", false, "local %[1]s 451 4.4.2 connection lost (%[1]s)"},
		{"E4-60 half of a line", "S= \"250 o\"\nCLOSE\n", false, "local %[1]s 451 4.4.2 connection lost (%[1]s)"},
		{"E4-60 half of a refusal", "S= \"550 5.1.1 unkno\"\nCLOSE\n", false, "local %[1]s 451 4.4.2 connection lost (%[1]s)"},
		{"E4-60 half of the lines", "S= \"250-mx.test\\r\\n\"\nCLOSE\n", false, "local %[1]s 451 4.4.2 connection lost (%[1]s)"},
		{"E4-60 half of a refusal's lines", "S= \"550-5.1.1 unknown\\r\\n\"\nCLOSE\n", false, "local %[1]s 451 4.4.2 connection lost (%[1]s)"},
		{"E4-60 closed", "CLOSE\n", false, "local %[1]s 451 4.4.2 connection lost (%[1]s)"},
		{"E4-60 reset", "RESET\n", false, "local %[1]s 451 4.4.2 connection lost (%[1]s)"},
		{"E4-59 421", "S: 421 4.3.2 leaving\nEOF\n", false, "%[1]s 421 4.3.2 leaving"},
	}
	for _, step := range steps {
		for _, fault := range faults {
			if fault.name == "E4-60 reset" && step.phase == PhaseGreeting {
				continue // it may come so early that it is a failure of the connect
			}
			t.Run(fmt.Sprintf("%s at %s", fault.name, step.phase), func(t *testing.T) {
				t.Parallel()
				script := step.option + "OPTION max-reply=200\n"
				if fault.isLate {
					script += "OPTION timeout=" + step.timeout + ":100ms\n"
				}
				if strings.HasPrefix(fault.steps, "DRIP") { // as many octets as there are
					script = strings.Replace(script, "OPTION max-reply=200\n", "OPTION max-reply=1000000\n", 1)
				}
				got := playDialogue(t, script+step.before+fault.steps)
				fate := fmt.Sprintf(fault.fate, step.phase)
				want := "dial failed, permanent false: " + fate + "\n"
				switch {
				case step.phase == PhaseDot && !strings.Contains(fault.name, "421"):
					want = fate + "\nin doubt\nof no more use\n"
				case step.before != "" && strings.Contains(step.before, "MAIL"):
					want = fate + "\nof no more use\n"
				}
				if got != want {
					t.Errorf("got\n%swant\n%s", got, want)
				}
			})
		}
	}
}

// The handshake and the flush of content have deadlines too, however the host holds them up.
func TestE4_53_HandshakeAndContent(t *testing.T) {
	const opening = "S: 220 mx.test\nC: EHLO relay.test\n"
	const envelope = opening + "S: 250 mx.test\nC: MAIL FROM:<sender@example.org>\nS: 250 ok\nC: RCPT TO:<a@example.net>\nS: 250 ok\nC: DATA\nS: 354 go\n"
	big := "OPTION body=\"" + strings.Repeat("x", 70) + "\\r\\n\"\nOPTION copies=300000\n" // more than any socket buffers
	for _, tt := range []struct{ name, script, want string }{
		{"E4-53 handshake, silent", "OPTION tls=may\nOPTION timeout=StartTLS:200ms\n" + opening + "S: 250-mx.test\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\nSILENT\n",
			"dial failed, permanent false: local starttls 451 4.7.5 TLS handshake failed (starttls)\n"},
		{"E4-53 handshake, dripping", "OPTION tls=may\nOPTION timeout=StartTLS:200ms\n" + opening + "S: 250-mx.test\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\nCHUNK \"\\x16\\x03\\x01\"\nDRIP \"\\x16\\x03\\x03\\x40\\x00\"\n",
			"dial failed, permanent false: local starttls 451 4.7.5 TLS handshake failed (starttls)\n"},
		{"E4-53 content not read", "OPTION timeout=Block:200ms\n" + big + envelope + "STUCK\n",
			"local body 451 4.4.2 timed out (body)\nof no more use\n"},
		{"E4-60 reset in the content", big + envelope + "CHUNK \"xxxxxxxxxx\"\nRESET\n",
			"local body 451 4.4.2 connection lost (body)\nof no more use\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := playDialogue(t, tt.script); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
		})
	}
}

// A host may take as long as RFC 5321 §4.5.3.2 lets it: what comes a second before the end of a step's time is in time.
func TestE4_53_JustInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := play(t, `
			wait 4m59s
			> 220 mx
			< EHLO relay.test
			wait 4m59s
			> 250 mx
			< MAIL FROM:<sender@example.org>
			wait 4m59s
			> 250 ok
			< RCPT TO:<a@example.net>
			wait 4m59s
			> 250 ok
			< RCPT TO:<b@example.net>
			wait 4m59s
			> 250 ok
			< DATA
			wait 1m59s
			> 354 go
			body
			wait 9m59s
			> 250 kept
			< QUIT
			> 221 bye
		`)
		c := dial(t, o)
		res, err := c.Send(t.Context(), message(t, "a@example.net", "b@example.net"))
		if err != nil || !res.Recipients[0].OK() || !res.Recipients[1].OK() {
			t.Errorf("got %v, %v", fates(res), err)
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}
