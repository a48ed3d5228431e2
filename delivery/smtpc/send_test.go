package smtpc

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

const (
	flightA   = "< MAIL FROM:<sender@example.org> SIZE=25\n< RCPT TO:<a@example.net>\n< DATA\n"
	flightABC = "< MAIL FROM:<sender@example.org> SIZE=25\n< RCPT TO:<a@example.net>\n< RCPT TO:<b@example.net>\n< RCPT TO:<c@example.net>\n< DATA\n"
	quit      = "\n< QUIT\n> 221 bye"
)

// Each recipient has a fate of its own until the dot, whose reply is that of all who were taken.
func TestFates(t *testing.T) {
	tests := []struct {
		name, script string
		fates        []string
		failed       bool // Send gives an error
		again        bool // the connection may be used again
		reset        bool // but only after RSET
	}{
		{name: "all taken", script: flightABC + "> 250 ok\n> 250 ok\n> 250 ok\n> 251 forwarded\n> 354 go\nbody\n> 250 2.0.0 kept" + quit,
			fates: []string{"dot 250 2.0.0 kept", "dot 250 2.0.0 kept", "dot 250 2.0.0 kept"}, again: true},
		{name: "one of each", script: flightABC + "> 250 ok\n> 550 5.1.1 unknown\n> 450 4.2.0 greylisted\n> 250 ok\n> 354 go\nbody\n> 250 kept" + quit,
			fates: []string{"rcpt 550 5.1.1 unknown", "rcpt 450 4.2.0 greylisted", "dot 250 kept"}, again: true},
		{name: "unknown codes go by class", script: flightABC + "> 259 ok\n> 299 ok\n> 499 hm\n> 599 no\n> 399 go\nbody\n> 222 kept" + quit,
			fates: []string{"dot 222 kept", "rcpt 499 hm", "rcpt 599 no"}, again: true},
		{name: "552 at RCPT is later", script: flightABC + "> 250 ok\n> 250 ok\n> 552 5.5.3 too many\n> 552 too many\n> 354 go\nbody\n> 250 kept" + quit,
			fates: []string{"dot 250 kept", "rcpt 452 4.5.3 too many", "rcpt 452 too many"}, again: true},
		{name: "MAIL refused", script: flightABC + "> 550 5.7.1 not you\n> 503 no\n> 503 no\n> 503 no\n> 503 no" + quit,
			fates: []string{"mail 550 5.7.1 not you", "mail 550 5.7.1 not you", "mail 550 5.7.1 not you"}, again: true, reset: true},
		{name: "MAIL deferred, the rest is taken as said", script: flightABC + "> 451 4.7.1 later\n> 250 ok\n> 550 no\n> 250 ok\n> 503 no" + quit,
			fates: []string{"mail 451 4.7.1 later", "mail 451 4.7.1 later", "mail 451 4.7.1 later"}, again: true, reset: true},
		{name: "all refused, DATA refused", script: flightABC + "> 250 ok\n> 550 no\n> 450 later\n> 550 no\n> 554 no valid recipients" + quit,
			fates: []string{"rcpt 550 no", "rcpt 450 later", "rcpt 550 no"}, again: true, reset: true},
		{name: "all refused, DATA taken: a lone dot", script: flightABC + "> 250 ok\n> 550 no\n> 450 later\n> 550 no\n> 354 go\n< .\n> 554 no valid recipients" + quit,
			fates: []string{"rcpt 550 no", "rcpt 450 later", "rcpt 550 no"}, again: true, reset: true},
		{name: "all refused, the lone dot answered 250", script: flightABC + "> 250 ok\n> 550 no\n> 450 later\n> 550 no\n> 354 go\n< .\n> 250 thanks" + quit,
			fates: []string{"rcpt 550 no", "rcpt 450 later", "rcpt 550 no"}, again: true, reset: true},
		{name: "DATA refused", script: flightABC + "> 250 ok\n> 250 ok\n> 550 no\n> 250 ok\n> 451 4.3.0 no room" + quit,
			fates: []string{"data 451 4.3.0 no room", "rcpt 550 no", "data 451 4.3.0 no room"}, again: true, reset: true},
		{name: "content refused", script: flightABC + "> 250 ok\n> 250 ok\n> 450 later\n> 250 ok\n> 354 go\nbody\n> 554 5.7.1 spam" + quit,
			fates: []string{"dot 554 5.7.1 spam", "rcpt 450 later", "dot 554 5.7.1 spam"}, again: true, reset: true},
		{name: "421 at the second RCPT", script: flightABC + "> 250 ok\n> 550 no\n> 421 4.3.2 leaving\ngone", failed: true,
			fates: []string{"rcpt 550 no", "rcpt 421 4.3.2 leaving", "rcpt 421 4.3.2 leaving"}},
		{name: "421 at DATA", script: flightABC + "> 250 ok\n> 550 no\n> 250 ok\n> 250 ok\n> 421 leaving\ngone", failed: true,
			fates: []string{"rcpt 550 no", "data 421 leaving", "data 421 leaving"}},
		{name: "421 at the dot", script: flightABC + "> 250 ok\n> 250 ok\n> 250 ok\n> 550 no\n> 354 go\nbody\n> 421 leaving\ngone", failed: true,
			fates: []string{"dot 421 leaving", "dot 421 leaving", "rcpt 550 no"}},
		{name: "421 at the lone dot", script: flightABC + "> 250 ok\n> 550 no\n> 550 no\n> 550 no\n> 354 go\n< .\n> 421 leaving\ngone", failed: true,
			fates: []string{"rcpt 550 no", "rcpt 550 no", "rcpt 550 no"}},
		{name: "closed at the third RCPT", script: flightABC + "> 250 ok\n> 550 no\n> 250 ok", failed: true,
			fates: []string{"rcpt 550 no", "local rcpt 451 4.4.2 connection lost (rcpt)", "local rcpt 451 4.4.2 connection lost (rcpt)"}},
		{name: "MAIL refused and closed", script: flightABC + "> 550 no", failed: true,
			fates: []string{"mail 550 no", "mail 550 no", "mail 550 no"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, o := play(t, opening+tt.script)
				c := dial(t, o)
				res, err := c.Send(t.Context(), message(t, "a@example.net", "b@example.net", "c@example.net"))
				if diff := cmp.Diff(tt.fates, fates(res)); diff != "" {
					t.Errorf("fates (-want +got):\n%s", diff)
				}
				if (err != nil) != tt.failed || c.Reusable() != tt.again || c.needReset != tt.reset && tt.again || res.InDoubt {
					t.Errorf("got error %v, reusable %v, reset %v, in doubt %v", err, c.Reusable(), c.needReset, res.InDoubt)
				}
				c.Close(t.Context())
				p.done.Wait()
			})
		})
	}
}

// Without PIPELINING every command waits for its answer, and nothing is said for nobody.
func TestStepByStep(t *testing.T) {
	const start = plainOpening + "< MAIL FROM:<sender@example.org>\n"
	tests := []struct {
		name, script string
		fates        []string
	}{
		{"taken", start + "> 250 ok\n< RCPT TO:<a@example.net>\n> 250 ok\n< RCPT TO:<b@example.net>\n> 550 no\n< DATA\n> 354 go\nbody\n> 250 kept" + quit,
			[]string{"dot 250 kept", "rcpt 550 no"}},
		{"MAIL refused", start + "> 550 no" + quit, []string{"mail 550 no", "mail 550 no"}},
		{"all refused", start + "> 250 ok\n< RCPT TO:<a@example.net>\n> 450 later\n< RCPT TO:<b@example.net>\n> 550 no" + quit,
			[]string{"rcpt 450 later", "rcpt 550 no"}},
		{"DATA refused", start + "> 250 ok\n< RCPT TO:<a@example.net>\n> 250 ok\n< RCPT TO:<b@example.net>\n> 550 no\n< DATA\n> 554 no" + quit,
			[]string{"data 554 no", "rcpt 550 no"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, o := play(t, tt.script)
				c := dial(t, o)
				res, err := c.Send(t.Context(), message(t, "a@example.net", "b@example.net"))
				if diff := cmp.Diff(tt.fates, fates(res)); diff != "" || err != nil {
					t.Errorf("error %v, fates (-want +got):\n%s", err, diff)
				}
				c.Close(t.Context())
				p.done.Wait()
			})
		})
	}
}

// Every fault at every step, with and without PIPELINING: the step is named,
// the recipient is deferred, only what follows the dot is in doubt, and the connection is done with.
func TestFaults(t *testing.T) {
	steps := []struct {
		phase       Phase
		said, reply string
		late        string // more than the step's time-out
	}{
		{PhaseMail, "< MAIL FROM:<sender@example.org>\n", "> 250 ok\n", "5m1s"},
		{PhaseRcpt, "< RCPT TO:<a@example.net>\n", "> 250 ok\n", "5m1s"},
		{PhaseData, "< DATA\n", "> 354 go\n", "2m1s"},
		{PhaseDot, "body\n", "> 250 ok\n", "10m1s"},
	}
	faults := []struct{ name, script, fate string }{
		{"closed", "", "local %[1]s 451 4.4.2 connection lost (%[1]s)"},
		{"half", ">> 250 o\n", "local %[1]s 451 4.4.2 connection lost (%[1]s)"},
		{"half a reply of two", "> 250-ok\n", "local %[1]s 451 4.4.2 connection lost (%[1]s)"},
		{"late", "wait LATE\n> 250 ok\n", "local %[1]s 451 4.4.2 timed out (%[1]s)"},
		{"wrong", "> ok\ngone\n", "local %[1]s 451 4.5.0 reply not understood (%[1]s)"},
		{"wrong class", "> WRONG hm\ngone\n", "local %[1]s 451 4.5.0 reply not understood (%[1]s)"},
		{"421", "> 421 4.3.2 leaving\ngone\n", "%[1]s 421 4.3.2 leaving"},
	}
	for _, pipelining := range []bool{true, false} {
		for at, step := range steps {
			for _, fault := range faults {
				t.Run(fmt.Sprintf("%s at %s, pipelining %v", fault.name, step.phase, pipelining), func(t *testing.T) {
					wrong := "354"
					if step.phase == PhaseData {
						wrong = "250"
					}
					script := strings.NewReplacer("LATE", step.late, "WRONG", wrong).Replace(fault.script)
					want := fmt.Sprintf(fault.fate, step.phase)
					synctest.Test(t, func(t *testing.T) {
						p, o := play(t, faultScript(pipelining, at, script, func(i int) (string, string) { return steps[i].said, steps[i].reply }))
						c := dial(t, o)
						m := message(t, "a@example.net")
						m.Size = 0
						res, err := c.Send(t.Context(), m)
						failure, ok := errors.AsType[*Error](err)
						if !ok || failure.Phase != step.phase || failure.Permanent() || c.Reusable() {
							t.Errorf("got error %v, reusable %v", err, c.Reusable())
						}
						inDoubt := step.phase == PhaseDot && fault.name != "421"
						if res.InDoubt != inDoubt || ok && failure.InDoubt != inDoubt {
							t.Errorf("got in doubt %v, want %v", res.InDoubt, inDoubt)
						}
						if diff := cmp.Diff([]string{want}, fates(res)); diff != "" {
							t.Errorf("fates (-want +got):\n%s", diff)
						}
						p.done.Wait()
					})
				})
			}
		}
	}
}

// faultScript plays the steps up to the fault. With PIPELINING the client says
// MAIL, RCPT and DATA before any of their replies.
func faultScript(pipelining bool, at int, fault string, step func(int) (said, reply string)) string {
	const flight = 3
	script := plainOpening
	if pipelining {
		script = strings.Replace(plainOpening, "> 250 mx.test", "> 250-mx.test\n> 250 PIPELINING", 1)
		for i := range flight {
			said, _ := step(i)
			script += said
		}
	}
	for i := range at + 1 {
		said, reply := step(i)
		if !pipelining || i >= flight {
			script += said
		}
		if i < at {
			script += reply
		}
	}
	return script + fault
}

// A flight is bounded: the peer's replies must fit while it is being written.
func TestManyRecipients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rcpts []string
		script := opening + "< MAIL FROM:<sender@example.org> SIZE=25\n"
		replies, size := "> 250 ok\n", len("MAIL FROM:<sender@example.org> SIZE=25\r\n")
		for i := range 1000 {
			rcpt := fmt.Sprintf("recipient%04d@example.net", i)
			rcpts = append(rcpts, rcpt)
			if size >= flightBytes {
				script, replies, size = script+replies, "", 0
			}
			script += "< RCPT TO:<" + rcpt + ">\n"
			replies += "> 250 ok\n"
			size += len("RCPT TO:<" + rcpt + ">\r\n")
		}
		p, o := play(t, script+"< DATA\n"+replies+"> 354 go\nbody\n> 250 kept"+quit)
		c := dial(t, o)
		res, err := c.Send(t.Context(), message(t, rcpts...))
		for _, r := range res.Recipients {
			if !r.OK() {
				t.Fatalf("got %v, %v", r, err)
			}
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}

// A second message needs no RSET after a clean one, and one in its flight after a refused one.
func TestReuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := play(t, opening+
			flightA+"> 250 ok\n> 250 ok\n> 354 go\nbody\n> 250 one\n"+
			flightA+"> 250 ok\n> 550 no\n> 554 no\n"+
			"< RSET\n"+flightA+"> 250 ok\n> 250 ok\n> 250 ok\n> 354 go\nbody\n> 250 three\n"+
			flightA+"> 250 ok\n> 250 ok\n> 354 go\nbody\n> 250 four"+quit)
		c := dial(t, o)
		var got []string
		for range 4 {
			res, err := c.Send(t.Context(), message(t, "a@example.net"))
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fates(res)...)
		}
		if diff := cmp.Diff([]string{"dot 250 one", "rcpt 550 no", "dot 250 three", "dot 250 four"}, got); diff != "" {
			t.Errorf("fates (-want +got):\n%s", diff)
		}
		if c.Transactions() != 4 || p.writes != 1+4+3 {
			t.Errorf("got %d transactions in %d writes", c.Transactions(), p.writes)
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}

// A host may hang up between two messages: the caller learns that nothing was lost by it.
func TestStale(t *testing.T) {
	for _, leaving := range []string{"", "> 421 4.4.2 idle too long\n"} {
		synctest.Test(t, func(t *testing.T) {
			p, o := play(t, opening+flightA+"> 250 ok\n> 250 ok\n> 354 go\nbody\n> 250 one\n"+flightA+leaving)
			c := dial(t, o)
			if _, err := c.Send(t.Context(), message(t, "a@example.net")); err != nil {
				t.Fatal(err)
			}
			res, err := c.Send(t.Context(), message(t, "a@example.net"))
			if !errors.Is(err, ErrStale) || !res.Recipients[0].Temporary() {
				t.Errorf("got %v, %v", fates(res), err)
			}
			res, err = c.Send(t.Context(), message(t, "a@example.net"))
			if !errors.Is(err, ErrNotReusable) || errors.Is(err, ErrStale) || !res.Recipients[0].Temporary() {
				t.Errorf("third: got %v, %v", fates(res), err)
			}
			p.done.Wait()
		})
	}
}

// RSET refused, and words that nobody asked for: the dialogue is out of step.
func TestOutOfStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := play(t, opening+flightA+"> 250 ok\n> 250 ok\n> 354 go\nbody\n> 550 no\n< RSET\n"+flightA+"> 500 what\ngone")
		c := dial(t, o)
		if _, err := c.Send(t.Context(), message(t, "a@example.net")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Send(t.Context(), message(t, "a@example.net")); !errors.Is(err, ErrProtocol) {
			t.Errorf("RSET refused: got %v", err)
		}
		p.done.Wait()
	})
	synctest.Test(t, func(t *testing.T) {
		p, o := play(t, opening+flightA+`>> 250 ok\r\n250 ok\r\n354 go\r\n`+"\nbody\n"+`>> 250 kept\r\n421 bye\r\n`)
		c := dial(t, o)
		if res, err := c.Send(t.Context(), message(t, "a@example.net")); err != nil || c.Reusable() {
			t.Errorf("words behind the last reply: got %v, %v, reusable %v", fates(res), err, c.Reusable())
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}
