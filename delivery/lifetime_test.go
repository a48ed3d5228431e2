package delivery

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"postroad/delivery/retry"
	"postroad/delivery/smtpc"
	"postroad/queue"
)

// Whatever hosts say, whenever, however often a job is put off: each recipient comes to exactly one final state, and its tries end with its
// largest age.
func TestEveryRecipientEndsOnce(t *testing.T) {
	phases := []smtpc.Phase{phaseRoute, smtpc.PhaseConnect, smtpc.PhaseGreeting, smtpc.PhaseMail, smtpc.PhaseRcpt, smtpc.PhaseData, smtpc.PhaseDot}
	replies := []smtpc.Reply{{Code: 250}, {Code: 421}, {Code: 450, Enhanced: "4.2.0", Lines: []string{"Greylisted"}}, {Code: 452, Enhanced: "4.2.2"},
		{Code: 451, Enhanced: "4.4.1", Local: true}, {Code: 550}, {Code: 450}}
	schedules := []string{"1m, 5m, 15m, 1h, 4h", "F,2h,15m; G,16h,1h,1.5; F,4d,6h", "backoff 300s..4000s"}
	rapid.Check(t, func(t *rapid.T) {
		schedule, err := retry.Parse(rapid.SampledFrom(schedules).Draw(t, "schedule"))
		if err != nil {
			t.Fatal(err)
		}
		o := DefaultOptions()
		maxAge := time.Duration(rapid.IntRange(1, 5*24*60).Draw(t, "largest age")) * time.Minute
		o.Retry, err = retry.Policy{Schedule: schedule, MaxAge: maxAge, Greylist: 6 * time.Minute, Jitter: rapid.IntRange(0, 50).Draw(t, "jitter"),
			Rules: []retry.Rule{{Failures: []retry.Failure{retry.Quota}, MaxAge: max(1, maxAge/2)}}}.Complete()
		if err != nil {
			t.Fatal(err)
		}
		var rcpts []string
		for i := range rapid.IntRange(1, 4).Draw(t, "recipients") {
			rcpts = append(rcpts, fmt.Sprintf("r%d@example.net", i))
		}
		job := testJob(rcpts...)
		now := job.Accepted
		ends := make(map[string]queue.EventType)
		for len(job.Recipients) > 0 {
			r := result{tried: rapid.Bool().Draw(t, "tried"), startedAt: now, cause: causeReply}
			for range job.Recipients {
				reply := rapid.SampledFrom(replies).Draw(t, "reply")
				reply.Phase = rapid.SampledFrom(phases).Draw(t, "phase")
				r.replies = append(r.replies, reply)
			}
			d := o.decide(job, r, now)
			for _, fact := range d.Facts {
				if ends[fact.Recipient] != "" {
					t.Fatalf("%s is %s after it was %s", fact.Recipient, fact.Type, ends[fact.Recipient])
				}
				if fact.Type != queue.TransientFailure {
					ends[fact.Recipient] = fact.Type
				}
			}
			if len(d.Remaining) > 0 && d.Delay < minDelay {
				t.Fatalf("%d remain and wait %v", len(d.Remaining), d.Delay)
			}
			if d.Tried {
				job.Tries++
			}
			job.Recipients, job.Reason, now = d.Remaining, d.Reason, now.Add(d.Delay)
			if age := now.Sub(job.Accepted); len(d.Remaining) > 0 && age > maxAge+minDelay {
				t.Fatalf("to be tried at the age of %v, largest is %v", age, maxAge)
			}
		}
		if len(ends) != len(rcpts) {
			t.Fatalf("%d of %d recipients came to an end: %v", len(ends), len(rcpts), ends)
		}
	})
}

// 4.26: a notification that nobody takes is dropped after two days, and nobody is told.
func TestE6_77_NotificationsLiveShorter(t *testing.T) {
	o := DefaultOptions()
	now := time.Now()
	for _, tt := range []struct {
		name   string
		isNull bool
		age    time.Duration
		want   outcome
	}{
		{"mail", false, 2 * 24 * time.Hour, deferred},
		{"mail at its end", false, 5 * 24 * time.Hour, expired},
		{"notification", true, 2*24*time.Hour - time.Minute, deferred},
		{"notification at its end", true, 2 * 24 * time.Hour, expired},
	} {
		t.Run("E6-77 "+tt.name, func(t *testing.T) {
			job := testJob("bob@example.net")
			job.Accepted = now.Add(-tt.age)
			if tt.isNull {
				job.ReversePath = path("")
			}
			r := result{tried: true, startedAt: now}
			r.all(job, smtpc.Reply{Code: 450, Phase: smtpc.PhaseRcpt})
			if d := o.decide(job, r, now); d.outcomes[0] != tt.want {
				t.Errorf("got %s, want %s", d.outcomes[0], tt.want)
			}
		})
	}
}

// The first try after a greylisting comes in minutes, also for a mail that is old; when the answer stays the same, the schedule goes on.
func TestE6_75_GreylistedJob(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
		return every(m, smtpc.Reply{Code: 451, Enhanced: "4.7.1", Lines: []string{"Greylisting in action, please come back later"}, Phase: smtpc.PhaseRcpt}), nil
	})
	w := testWorker(t, n, "example.net")
	job := testJob("bob@example.net")
	job.Accepted, job.Tries, job.Reason = time.Now().Add(-24*time.Hour), 6, "cannot connect (connect)"
	s := handleOne(t, w, job, &fakeMail{})
	if s.Delay != retry.DefaultGreylist {
		t.Errorf("waits %v, want %v", s.Delay, retry.DefaultGreylist)
	}
	job.Tries, job.Reason = 7, s.Reason
	if s = handleOne(t, w, job, &fakeMail{}); s.Delay != 4*time.Hour {
		t.Errorf("the same answer again: waits %v, want 4h", s.Delay)
	}
}

// After the last cutoff of Exim's rules the next failure is the last; a busy site is none, until the largest age.
func TestEndOfRules(t *testing.T) {
	schedule, err := retry.Parse("F,1d,1h")
	if err != nil {
		t.Fatal(err)
	}
	o := DefaultOptions()
	o.Retry.Schedule = schedule
	now := time.Now()
	for _, tt := range []struct {
		name  string
		age   time.Duration
		cause cause
		want  outcome
	}{
		{"at the cutoff", 24 * time.Hour, causeReply, deferred},
		{"after it", 25 * time.Hour, causeReply, expired},
		{"after it, dead site", 25 * time.Hour, causeDead, expired},
		{"after it, busy site", 25 * time.Hour, causeBusy, deferred},
		{"largest age, busy site", 5 * 24 * time.Hour, causeBusy, expired},
	} {
		job := testJob("bob@example.net")
		job.Accepted = now.Add(-tt.age)
		r := result{tried: tt.cause == causeReply, cause: tt.cause, startedAt: now}
		r.all(job, smtpc.Reply{Code: 451, Phase: smtpc.PhaseRcpt})
		if d := o.decide(job, r, now); d.outcomes[0] != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, d.outcomes[0], tt.want)
		}
	}
}
