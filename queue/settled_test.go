package queue_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postroad/queue"
)

// TestReturnedJobsAreSettled: what a killed server has forgotten of a job, its removal and its acknowledgement, comes back: the job, and if it
// was finished its mail. The process that settled it does not work on it again.
func TestReturnedJobsAreSettled(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		settlement queue.Settlement
		withMail   bool
		left       uint64 // jobs in LATER
	}{
		"finished": {queue.Settlement{Tried: true}, true, 0},
		"deferred": {queue.Settlement{Tried: true, Delay: time.Hour, Reason: "later"}, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testServer(t)
			q := openQueue(t, s)
			nc, err := s.Connect()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(nc.Close)
			js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			last := func(stream, filter string) *jetstream.RawStreamMsg {
				str, err := js.Stream(t.Context(), stream)
				if err != nil {
					t.Fatal(err)
				}
				m, err := str.GetLastMsgForSubject(t.Context(), filter)
				if err != nil {
					t.Fatal(err)
				}
				return m
			}
			signAll(t, q, "")
			var tries atomic.Int32
			var job, mail *jetstream.RawStreamMsg
			got := deliver(t, q, func(d *queue.Delivery) queue.Settlement {
				if tries.Add(1) == 1 {
					job, mail = last("JOBS", "ready.>"), last("MAIL", "mail.*.m")
				}
				st := tt.settlement
				if st.Delay > 0 {
					st.Remaining = d.Job.Recipients
				}
				return st
			})
			accept(t, q, "body", "a@example.com")
			receive(t, got)
			back := []*jetstream.RawStreamMsg{job}
			if tt.withMail {
				drained(t, q)
				back = []*jetstream.RawStreamMsg{mail, job}
			}
			for _, m := range back {
				if _, err := js.Publish(t.Context(), m.Subject, m.Data); err != nil {
					t.Fatal(err)
				}
			}
			for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				c, err := q.Counts(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if c.Ready == 0 && (!tt.withMail || c.Mails == 0) {
					break
				}
			}
			c, err := q.Counts(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var later uint64
			for _, n := range c.Later {
				later += n
			}
			if tries.Load() != 1 || c.Ready != 0 || later != tt.left || tt.withMail && c.Mails != 0 {
				t.Errorf("got %d tries, %+v, want one try and %d jobs that wait", tries.Load(), c, tt.left)
			}
		})
	}
}

// TestSettledAgainBeforeOthersTake: what a server forgot when it ended is settled again by the process that had settled it, before another
// process takes it.
func TestSettledAgainBeforeOthersTake(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		settlement queue.Settlement
		later      uint64
	}{
		"finished": {queue.Settlement{Tried: true}, 0},
		"deferred": {queue.Settlement{Tried: true, Delay: time.Hour, Reason: "later"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := testServer(t)
			one := openQueue(t, s)
			var conns []*nats.Conn // of the other
			other := openQueue(t, s, func(o *queue.Options) {
				o.Node = "other"
				o.Connect = func(extra ...nats.Option) (*nats.Conn, error) {
					nc, err := s.Connect(extra...)
					conns = append(conns, nc)
					return nc, err
				}
			})
			other.SetRest(5 * time.Minute)
			nc, err := s.Connect()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(nc.Close)
			js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			var lost []*jetstream.RawStreamMsg // what is to come back
			t.Run("settle", func(t *testing.T) {
				signAll(t, one, "")
				got := deliver(t, one, func(d *queue.Delivery) queue.Settlement {
					for stream, filter := range map[string]string{"MAIL": "mail.*.m", "JOBS": "ready.>"} {
						str, err := js.Stream(t.Context(), stream)
						if err != nil {
							t.Error(err)
							continue
						}
						m, err := str.GetLastMsgForSubject(t.Context(), filter)
						if err != nil {
							t.Error(err)
							continue
						}
						lost = append(lost, m)
					}
					st := tt.settlement
					if st.Delay > 0 {
						st.Remaining = d.Job.Recipients
					}
					return st
				})
				accept(t, one, "body", "a@example.com")
				receive(t, got)
			})
			var tries atomic.Int32
			deliver(t, other, func(*queue.Delivery) queue.Settlement {
				tries.Add(1)
				return queue.Settlement{Tried: true}
			})
			if err := conns[0].ForceReconnect(); err != nil {
				t.Fatal(err)
			}
			for conns[0].Stats().Reconnects == 0 || !conns[0].IsConnected() {
				time.Sleep(10 * time.Millisecond)
			}
			for _, m := range lost {
				if tt.later > 0 && m.Subject[:5] == "mail." {
					continue // it is there
				}
				if _, err := js.Publish(t.Context(), m.Subject, m.Data); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second) // long enough for the other to take it, if it did not rest
			one.Returned()
			var c queue.Counts
			for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if c, err = one.Counts(t.Context()); err != nil {
					t.Fatal(err)
				}
				if tt.later == 0 && c.Mails == 0 || tt.later > 0 && c.Ready == 0 {
					break
				}
			}
			if n := tries.Load(); n != 0 || tt.later > 0 && c.Ready != 0 || c.Later["1h"] != tt.later || tt.later == 0 && c.Mails != 0 {
				t.Errorf("another process tried it %d times, %+v", n, c)
			}
		})
	}
}
