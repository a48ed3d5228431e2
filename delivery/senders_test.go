package delivery

import (
	"context"
	"strings"
	"testing"

	"postroad/delivery/smtpc"
	"postroad/queue"
)

type fakeSenders struct {
	why            string
	ended, refused int
}

func (f *fakeSenders) Ended(_ *queue.Job, ended, refused int) {
	f.ended, f.refused = f.ended+ended, f.refused+refused
}
func (f *fakeSenders) HoldFor(*queue.Job) string { return f.why }

func TestEndsAreCounted(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
		res := every(m, smtpc.Reply{Code: 250, Phase: smtpc.PhaseDot})
		res.Recipients[0] = smtpc.Reply{Code: 550, Phase: smtpc.PhaseRcpt}
		res.Recipients[1] = smtpc.Reply{Code: 450, Phase: smtpc.PhaseRcpt}
		return res, nil
	})
	w := testWorker(t, n, "example.net")
	senders := &fakeSenders{}
	w.o.Senders = senders
	w.o.Suppressor = &fakeSuppressor{blocked: map[string]queue.Suppression{"d@example.net": {}}}
	handleOne(t, w, testJob("a@example.net", "b@example.net", "c@example.net", "d@example.net"), &fakeMail{})
	if senders.ended != 2 || senders.refused != 1 { // neither who waits nor who was not written to
		t.Errorf("got %+v, want 2 ended, 1 refused", senders)
	}
	handleOne(t, w, testJob("a@nowhere.example"), &fakeMail{})
	if senders.ended != 3 || senders.refused != 2 {
		t.Errorf("a domain that is not there: got %+v", senders)
	}
}

func TestSenderIsHeld(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", ok)
	w := testWorker(t, n, "example.net")
	w.o.Senders = &fakeSenders{why: "too much"}
	job := testJob("a@example.net", "b@example.net")
	s := handleOne(t, w, job, &fakeMail{})
	if s.Hold != "bounces" || len(s.Remaining) != 2 || s.Tried || s.Reason != "too much" || n.dialled("mx.example.net") != 0 {
		t.Errorf("got %+v, %d dials", s, n.dialled("mx.example.net"))
	}
	null := testJob("a@example.net")
	null.ReversePath = path("")
	if s := handleOne(t, w, null, &fakeMail{}); s.Hold != "" || len(s.Remaining) != 0 {
		t.Errorf("a notification: got %+v", s)
	}
}

// What an operator sends back is refused without a try, signed or not.
func TestReturned(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", ok)
	w := testWorker(t, n, "example.net")
	w.o.Senders = &fakeSenders{why: "too much"}
	for _, isUnsigned := range []bool{false, true} {
		job := testJob("a@example.net")
		job.Returned, job.Unsigned = "held for too long", isUnsigned
		s := handleOne(t, w, job, &fakeMail{})
		if len(s.Remaining) != 0 || s.Tried || len(s.Notify) != 1 || n.dialled("mx.example.net") != 0 {
			t.Fatalf("got %+v, %d dials", s, n.dialled("mx.example.net"))
		}
		if report := string(s.Notify[0].Payload); !strings.Contains(report, "Status: 5.7.1\r\n") || !strings.Contains(report, "held for too long") {
			t.Errorf("report:\n%s", report)
		}
	}
}
