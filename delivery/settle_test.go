package delivery

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"postroad/delivery/bounce"
	"postroad/delivery/smtpc"
	"postroad/queue"
)

func TestOutcomeTable(t *testing.T) {
	phases := []smtpc.Phase{phaseRoute, smtpc.PhaseConnect, smtpc.PhaseGreeting, smtpc.PhaseEhlo, smtpc.PhaseStartTLS,
		smtpc.PhaseMail, smtpc.PhaseRcpt, smtpc.PhaseData, smtpc.PhaseBody, smtpc.PhaseDot, smtpc.PhaseQuit, ""}
	tests := []struct {
		code   int
		at     []smtpc.Phase // with the outcome
		want   outcome
		others outcome
	}{
		{250, []smtpc.Phase{smtpc.PhaseDot}, delivered, deferred},
		{299, []smtpc.Phase{smtpc.PhaseDot}, delivered, deferred},
		{354, nil, "", deferred},
		{0, nil, "", deferred},
		{199, nil, "", deferred},
		{421, nil, "", deferred},
		{450, nil, "", deferred},
		{499, nil, "", deferred},
		{600, nil, "", deferred},
		{503, []smtpc.Phase{phaseRoute}, bounced, deferred},
		{530, []smtpc.Phase{phaseRoute}, bounced, deferred},
		{538, []smtpc.Phase{phaseRoute}, bounced, deferred},
		{550, []smtpc.Phase{phaseRoute, smtpc.PhaseMail, smtpc.PhaseRcpt, smtpc.PhaseData, smtpc.PhaseBody, smtpc.PhaseDot}, bounced, deferred},
		{552, []smtpc.Phase{phaseRoute, smtpc.PhaseMail, smtpc.PhaseData, smtpc.PhaseBody, smtpc.PhaseDot}, bounced, deferred},
		{521, []smtpc.Phase{phaseRoute, smtpc.PhaseGreeting, smtpc.PhaseMail, smtpc.PhaseRcpt, smtpc.PhaseData, smtpc.PhaseBody, smtpc.PhaseDot}, bounced, deferred},
		{556, []smtpc.Phase{phaseRoute, smtpc.PhaseGreeting, smtpc.PhaseMail, smtpc.PhaseRcpt, smtpc.PhaseData, smtpc.PhaseBody, smtpc.PhaseDot}, bounced, deferred},
		{599, []smtpc.Phase{phaseRoute, smtpc.PhaseMail, smtpc.PhaseRcpt, smtpc.PhaseData, smtpc.PhaseBody, smtpc.PhaseDot}, bounced, deferred},
	}
	for _, tt := range tests {
		for _, phase := range phases {
			want := tt.others
			if slices.Contains(tt.at, phase) {
				want = tt.want
			}
			if got := judge(smtpc.Reply{Code: tt.code, Phase: phase}); got != want {
				t.Errorf("%d at %q: got %s, want %s", tt.code, phase, got, want)
			}
		}
	}
}

func TestEnhanced(t *testing.T) {
	tests := []struct {
		outcome outcome
		code    string
		want    string
	}{
		{delivered, "2.1.5", "2.1.5"},
		{delivered, "", "2.0.0"},
		{deferred, "5.2.2", "4.0.0"}, // 552 at RCPT
		{bounced, "5.1.1", "5.1.1"},
		{bounced, "4.1.1", "5.0.0"},
		{expired, "4.2.2", "4.4.7"},
	}
	for _, tt := range tests {
		if got := enhanced(tt.outcome, smtpc.Reply{Enhanced: tt.code}); got != tt.want {
			t.Errorf("%s with %q: got %s, want %s", tt.outcome, tt.code, got, tt.want)
		}
	}
}

// The wishes of RFC 3461 against what can happen.
func TestE4_62_WhoIsTold(t *testing.T) {
	replies := map[outcome]smtpc.Reply{
		delivered: {Code: 250, Phase: smtpc.PhaseDot},
		deferred:  {Code: 450, Phase: smtpc.PhaseRcpt},
		bounced:   {Code: 550, Phase: smtpc.PhaseRcpt},
	}
	tests := []struct {
		name    string
		notify  []string
		state   outcome
		age     time.Duration
		delayed bool
		dsn     bool
		want    bounce.Action
	}{
		{"bounced", nil, bounced, 0, false, false, bounce.Failed},
		{"bounced, only success wanted", []string{"SUCCESS"}, bounced, 0, false, false, ""},
		{"bounced, never", []string{"NEVER"}, bounced, 0, false, false, ""},
		{"bounced, failure", []string{"SUCCESS", "FAILURE"}, bounced, 0, false, false, bounce.Failed},
		{"expired", nil, deferred, 5 * 24 * time.Hour, true, false, bounce.Failed},
		{"expired, never", []string{"NEVER"}, deferred, 5 * 24 * time.Hour, true, false, ""},
		{"delivered", nil, delivered, 0, false, false, ""},
		{"delivered, success", []string{"SUCCESS"}, delivered, 0, false, false, bounce.Relayed},
		{"delivered, success, next hop reports", []string{"SUCCESS"}, delivered, 0, false, true, ""},
		{"delivered, never", []string{"NEVER"}, delivered, 0, false, false, ""},
		{"young", nil, deferred, time.Hour, false, false, ""},
		{"old", nil, deferred, 4 * time.Hour, false, false, bounce.Delayed},
		{"old, told before", nil, deferred, 8 * time.Hour, true, false, ""},
		{"old, delay", []string{"DELAY"}, deferred, 4 * time.Hour, false, false, bounce.Delayed},
		{"old, failure", []string{"FAILURE"}, deferred, 4 * time.Hour, false, false, ""},
		{"old, never", []string{"NEVER"}, deferred, 4 * time.Hour, false, false, ""},
	}
	o := DefaultOptions()
	now := time.Now()
	for _, tt := range tests {
		t.Run("E4-62 "+tt.name, func(t *testing.T) {
			job := testJob("bob@example.net")
			job.Recipients[0].Notify = tt.notify
			job.Accepted, job.Delayed = now.Add(-tt.age), tt.delayed
			r := result{tried: true, dsn: tt.dsn, startedAt: now}
			r.all(job, replies[tt.state])
			d := o.decide(job, r, now)
			var got bounce.Action
			if len(d.reports) > 0 {
				got = d.reports[0].Action
			}
			if got != tt.want || len(d.reports) > 1 {
				t.Errorf("got %q (%d reports), want %q", got, len(d.reports), tt.want)
			}
		})
	}
}

// What a sender hears who has set a deadline (RFC 2852 §4), and when it is tried again.
func TestE4_63_Deadline(t *testing.T) {
	now := time.Now()
	by := func(d time.Duration, isReturn bool) queue.Deadline {
		return queue.Deadline{At: now.Add(d), Return: isReturn}
	}
	kept, later := smtpc.Reply{Code: 250, Phase: smtpc.PhaseDot}, smtpc.Reply{Code: 450, Phase: smtpc.PhaseRcpt}
	for _, tt := range []struct {
		name     string
		notify   []string
		deadline queue.Deadline
		reply    smtpc.Reply
		isKept   bool // the host was told of it
		delayed  bool
		want     bounce.Action
		delay    time.Duration
	}{
		{name: "host does not know of it", deadline: by(time.Hour, false), reply: kept, want: bounce.Relayed},
		{name: "host does not know of it, never", notify: []string{"NEVER"}, deadline: by(time.Hour, false), reply: kept},
		{name: "host keeps it", deadline: by(time.Hour, false), reply: kept, isKept: true},
		{name: "host keeps it, trace", deadline: queue.Deadline{At: now, Trace: true}, reply: kept, isKept: true, want: bounce.Relayed},
		{name: "waits", deadline: by(time.Hour, false), reply: later, delay: time.Minute},
		{name: "next try when time is over", deadline: by(20*time.Second, false), reply: later, delay: 20 * time.Second},
		{name: "late", deadline: by(-time.Second, false), reply: later, want: bounce.Delayed, delay: time.Minute},
		{name: "late, failures only", notify: []string{"FAILURE"}, deadline: by(-time.Second, false), reply: later, want: bounce.Delayed, delay: time.Minute},
		{name: "late, never", notify: []string{"NEVER"}, deadline: by(-time.Second, false), reply: later, delay: time.Minute},
		{name: "late, told before", deadline: by(-time.Second, false), reply: later, delayed: true, delay: time.Minute},
		{name: "to be returned, time is left", deadline: by(20*time.Second, true), reply: later, delay: 20 * time.Second},
		{name: "to be returned, just late", deadline: by(-time.Millisecond, true), reply: later, delay: minDelay},
	} {
		t.Run("E4-63 "+tt.name, func(t *testing.T) {
			job := testJob("bob@example.net")
			job.Recipients[0].Notify = tt.notify
			job.Accepted, job.Delayed, job.Deadline = now.Add(-time.Hour), tt.delayed, tt.deadline
			r := result{tried: true, keepsDeadline: tt.isKept, startedAt: now}
			r.all(job, tt.reply)
			d := DefaultOptions().decide(job, r, now)
			var got bounce.Action
			if len(d.reports) > 0 {
				got = d.reports[0].Action
			}
			if got != tt.want || d.Delay != tt.delay {
				t.Errorf("got %q and a delay of %s, want %q and %s", got, d.Delay, tt.want, tt.delay)
			}
		})
	}
}

// A mail that was held lives from its release on.
func TestHeldMailIsYoung(t *testing.T) {
	now := time.Now()
	job := testJob("bob@example.net")
	job.Accepted, job.HoldUntil = now.Add(-30*24*time.Hour), now.Add(-time.Minute)
	r := result{tried: true, startedAt: now}
	r.all(job, smtpc.Reply{Code: 450, Phase: smtpc.PhaseRcpt})
	if d := DefaultOptions().decide(job, r, now); !d.has(deferred) || len(d.reports) > 0 || d.Delay != time.Minute {
		t.Errorf("got %v, %d reports, delay %s", d.outcomes, len(d.reports), d.Delay)
	}
}

// Whatever the hosts say: each recipient ends in exactly one state, only the deferred remain, and only once.
func TestEveryRecipientHasOneState(t *testing.T) {
	o := DefaultOptions()
	phases := []smtpc.Phase{phaseRoute, phaseDiscard, smtpc.PhaseConnect, smtpc.PhaseGreeting, smtpc.PhaseEhlo, smtpc.PhaseStartTLS,
		smtpc.PhaseMail, smtpc.PhaseRcpt, smtpc.PhaseData, smtpc.PhaseBody, smtpc.PhaseDot, smtpc.PhaseQuit}
	rapid.Check(t, func(t *rapid.T) {
		now := time.Now()
		n := rapid.IntRange(1, 8).Draw(t, "recipients")
		var rcpts []string
		for i := range n {
			rcpts = append(rcpts, fmt.Sprintf("r%d@example.net", i))
		}
		job := testJob(rcpts...)
		job.Accepted = now.Add(-time.Duration(rapid.Int64Range(0, int64(8*24*time.Hour)).Draw(t, "age")))
		job.Tries = rapid.IntRange(0, 20).Draw(t, "tries")
		job.Delayed = rapid.Bool().Draw(t, "delayed")
		r := result{tried: rapid.Bool().Draw(t, "tried"), startedAt: now, cause: causeReply}
		for i := range n {
			job.Recipients[i].Notify = rapid.SampledFrom([][]string{nil, {"NEVER"}, {"SUCCESS"}, {"FAILURE"}, {"DELAY"}, {"SUCCESS", "FAILURE", "DELAY"}}).Draw(t, "notify")
			r.replies = append(r.replies, smtpc.Reply{Code: rapid.IntRange(0, 700).Draw(t, "code"), Phase: rapid.SampledFrom(phases).Draw(t, "phase")})
		}
		d := o.decide(job, r, now)

		if len(d.outcomes) != n || len(d.Facts) != n {
			t.Fatalf("got %d outcomes and %d facts for %d recipients", len(d.outcomes), len(d.Facts), n)
		}
		var remaining []queue.Recipient
		for i, state := range d.outcomes {
			wantType := map[outcome]queue.EventType{delivered: queue.Delivered, deferred: queue.TransientFailure,
				bounced: queue.Bounce, expired: queue.Expiration, discarded: queue.Discarded}[state]
			if wantType == "" || d.Facts[i].Type != wantType || d.Facts[i].Recipient != job.Recipients[i].Path.String() {
				t.Fatalf("recipient %d is %q with fact %+v", i, state, d.Facts[i])
			}
			if state == deferred {
				remaining = append(remaining, job.Recipients[i])
			}
			if state == deferred && now.Sub(job.Accepted) >= o.Retry.MaxAge {
				t.Fatalf("recipient %d is deferred at the age of %v", i, now.Sub(job.Accepted))
			}
		}
		if len(remaining) != len(d.Remaining) {
			t.Fatalf("got %d remaining, want %d", len(d.Remaining), len(remaining))
		}
		for i := range remaining {
			if remaining[i].Path != d.Remaining[i].Path {
				t.Fatalf("remaining %d is %v, want %v", i, d.Remaining[i].Path, remaining[i].Path)
			}
		}
		if (len(remaining) > 0) != (d.Delay > 0) || d.Delay > 0 && (d.Delay < minDelay || d.Delay > 4*time.Hour) {
			t.Fatalf("got delay %v with %d remaining", d.Delay, len(remaining))
		}
		if d.Delayed && len(remaining) == 0 {
			t.Fatal("a finished part is marked as delayed")
		}
	})
}

// The last try comes when the lifetime ends.
func TestDelayEndsWithLifetime(t *testing.T) {
	o := DefaultOptions()
	job := testJob("bob@example.net")
	job.Tries = 8
	r := result{tried: true}
	r.all(job, smtpc.Reply{Code: 450, Phase: smtpc.PhaseRcpt})
	end := job.Accepted.Add(o.Retry.MaxAge)
	if got, want := o.decide(job, r, end.Add(-37*time.Minute)).Delay, 37*time.Minute; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := o.decide(job, r, end.Add(-time.Second)).Delay; got != minDelay {
		t.Errorf("got %v, want %v", got, minDelay)
	}
}
