package delivery

import (
	"context"
	"testing"

	"postroad/delivery/smtpc"
	"postroad/delivery/throttle"
	"postroad/queue"
)

// TestPanicGivesTheConnectionBack: what is leased of a site is free again, whatever the panic was in the middle of.
func TestPanicGivesTheConnectionBack(t *testing.T) {
	for _, tc := range []struct {
		name string
		dial func(context.Context, smtpc.Options) (*fakeConn, error)
	}{
		{"dialling", func(context.Context, smtpc.Options) (*fakeConn, error) { panic("bug") }},
		{"sending", func(context.Context, smtpc.Options) (*fakeConn, error) {
			return &fakeConn{answer: func(context.Context, int, smtpc.Message) (smtpc.Result, error) { panic("bug") }}, nil
		}},
	} {
		n := newFakeNet()
		n.set("mx.example.net", tc.dial)
		workers, _ := clusterOf(t, n, 1, []string{"example.net"}, func(o *Options) { o.Shaping = []throttle.Rule{{MX: "example.net", Connections: 1}} })
		w := workers[0]
		w.handle(t.Context(), testJob("bob@example.net"), &fakeMail{})
		if got := value(t, w.metrics.panics); got != 1 {
			t.Fatalf("%s: %v panics", tc.name, got)
		}
		w.pool.closing.Wait()
		n.serve("mx.example.net", ok)
		if s := settled(t, w, "bob@example.net"); len(s.Remaining) > 0 {
			t.Errorf("%s: got %+v, want the next job to have the only connection", tc.name, s)
		}
	}
}

// TestPanicAfterDelivery: who has the mail does not get it again, the others are tried again.
func TestPanicAfterDelivery(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
		res := every(m, smtpc.Reply{Code: 250, Phase: smtpc.PhaseDot})
		res.Recipients[1] = smtpc.Reply{Code: 450, Phase: smtpc.PhaseRcpt}
		return res, nil
	})
	w := testWorker(t, n, "example.net")
	m := &panicMail{}
	w.handle(t.Context(), testJob("bob@example.net", "carol@example.net"), m)
	s := m.only(t)
	if value(t, w.metrics.panics) != 1 || len(s.Remaining) != 1 || s.Remaining[0].Path != path("carol@example.net") || s.Delay == 0 || !s.Tried {
		t.Errorf("got %+v, want carol to be left", s)
	}
}

// panicMail panics the first time it is to be settled.
type panicMail struct {
	fakeMail
	hasPanicked bool
}

func (m *panicMail) Settle(ctx context.Context, s queue.Settlement) error {
	if !m.hasPanicked {
		m.hasPanicked = true
		panic("bug")
	}
	return m.fakeMail.Settle(ctx, s)
}
