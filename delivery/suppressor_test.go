package delivery

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"postroad/delivery/smtpc"
	"postroad/queue"
)

// fakeSuppressor blocks by address.
type fakeSuppressor struct {
	blocked map[string]queue.Suppression
	err     error
	heard   []HardBounce
}

func (f *fakeSuppressor) Blocked(_ context.Context, job *queue.Job) (list []*queue.Suppression, err error) {
	for i, r := range job.Recipients {
		if s, is := f.blocked[r.Path.String()]; is {
			if list == nil {
				list = make([]*queue.Suppression, len(job.Recipients))
			}
			list[i] = &s
		}
	}
	return list, f.err
}

func (f *fakeSuppressor) HardBounced(b HardBounce) { f.heard = append(f.heard, b) }

// Who is on the list is not written to, the others are; their senders hear of it as they asked.
func TestSuppressed(t *testing.T) {
	n := newFakeNet()
	var offered []string
	n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
		for _, r := range m.Recipients {
			offered = append(offered, r.Path.String())
		}
		res := every(m, smtpc.Reply{Code: 250, Phase: smtpc.PhaseDot})
		res.Recipients[len(res.Recipients)-1] = smtpc.Reply{Code: 450, Lines: []string{"later"}, Phase: smtpc.PhaseRcpt}
		return res, nil
	})
	w := testWorker(t, n, "example.net")
	list := &fakeSuppressor{blocked: map[string]queue.Suppression{
		"a@example.net": {Address: "a@example.net", Reason: "invalid_recipient", Owner: "policy", Text: "550 5.1.1 no such user"},
		"c@example.net": {Address: "example.net", Reason: "asked", Owner: "alice"},
	}}
	w.o.Suppressor = list
	job := testJob("a@example.net", "b@example.net", "c@example.net", "d@example.net")
	job.Recipients[2].Notify = []string{"NEVER"}
	s := handleOne(t, w, job, &fakeMail{})
	if want := []string{"b@example.net", "d@example.net"}; !slices.Equal(offered, want) {
		t.Errorf("offered to the host: got %v, want %v", offered, want)
	}
	if len(s.Remaining) != 1 || s.Remaining[0].Path.Local != "d" {
		t.Errorf("got %v remaining, want d", s.Remaining)
	}
	for i, want := range []queue.EventType{queue.Suppressed, queue.Delivered, queue.Suppressed, queue.TransientFailure} {
		if got := s.Facts[i]; got.Type != want || got.Recipient != job.Recipients[i].Path.String() {
			t.Errorf("fact %d: got %+v, want %s", i, got, want)
		}
	}
	if len(s.Notify) != 1 {
		t.Fatalf("got %d notifications, want 1", len(s.Notify))
	}
	report := string(s.Notify[0].Payload)
	if !strings.Contains(report, "Status: 5.1.1\r\n") || !strings.Contains(report, "suppression list") || strings.Contains(report, "rfc822; c@example.net") {
		t.Errorf("report:\n%s", report)
	}
	if len(list.heard) != 0 {
		t.Errorf("a suppressed recipient counts as refused again: %+v", list.heard)
	}

	t.Run("nobody left", func(t *testing.T) {
		offered = nil
		s := handleOne(t, w, testJob("a@example.net"), &fakeMail{})
		if len(s.Remaining) != 0 || s.Tried || len(s.Notify) != 1 || len(offered) != 0 {
			t.Errorf("got %+v, offered %v", s, offered)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		list.err = errors.New("no answer")
		m := &fakeMail{}
		w.handle(t.Context(), testJob("b@example.net"), m)
		if m.tries != 0 {
			t.Errorf("got %d settlements, want none", m.tries)
		}
	})
}

// What a sender is told does not wait by the rules of his class.
func TestNotificationsHaveNoClassOfRetries(t *testing.T) {
	job := testJob("a@example.net")
	job.Class = "news"
	o := &Options{}
	if got := o.waits(job, result{}, 1, time.Now()).query.Class; got != "news" {
		t.Errorf("mail: got %q", got)
	}
	job.Kind = queue.KindDSN
	if got := o.waits(job, result{}, 1, time.Now()).query.Class; got != "" {
		t.Errorf("notification: got %q", got)
	}
}

// The suppressor hears of whom hosts refused, with the class of the refusal; of nothing that we said ourselves.
func TestSuppressorHearsOfRefusals(t *testing.T) {
	n := newFakeNet()
	refusal := smtpc.Reply{Code: 550, Enhanced: "5.1.1", Lines: []string{"no such user here"}, Phase: smtpc.PhaseRcpt}
	n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
		if refusal.Phase == smtpc.PhaseDot {
			return every(m, refusal), nil
		}
		res := every(m, smtpc.Reply{Code: 250, Phase: smtpc.PhaseDot})
		res.Recipients[0] = refusal
		return res, nil
	})
	w := testWorker(t, n, "example.net")
	list := &fakeSuppressor{}
	w.o.Suppressor = list
	job := testJob("a@example.net", "b@example.net")
	job.Class, job.Client = "news", "web01"
	handleOne(t, w, job, &fakeMail{})
	want := HardBounce{Recipient: path("a@example.net"), Class: "invalid_recipient", MailClass: "news", Client: "web01", ID: job.ID, Text: "550 5.1.1 no such user here"}
	if len(list.heard) != 1 || list.heard[0] != want {
		t.Errorf("got %+v, want %+v", list.heard, want)
	}
	handleOne(t, w, testJob("a@nowhere.example"), &fakeMail{}) // the DNS says so
	job.ReversePath = path("")
	handleOne(t, w, job, &fakeMail{})
	if len(list.heard) != 1 {
		t.Errorf("got %+v, want no more", list.heard[1:])
	}

	refusal.Phase = smtpc.PhaseDot
	job.ReversePath = path("alice@example.org")
	if handleOne(t, w, job, &fakeMail{}); len(list.heard) != 1 {
		t.Errorf("said of two at once: got %+v, want no more", list.heard[1:])
	}
	if handleOne(t, w, testJob("c@example.net"), &fakeMail{}); len(list.heard) != 2 {
		t.Errorf("said of one alone: got %+v, want it too", list.heard[1:])
	}
}
