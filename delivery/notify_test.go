package delivery

import (
	"context"
	"strings"
	"testing"
	"time"

	"postroad/delivery/retry"
	"postroad/delivery/smtpc"
	"postroad/queue"
	"postroad/queue/address"
)

// refusing is a worker whose only host refuses everybody with a reply.
func refusing(t *testing.T, reply smtpc.Reply, change ...func(*Options)) *Worker {
	t.Helper()
	n := newFakeNet()
	n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
		return every(m, reply), nil
	})
	w := testWorker(t, n, "example.net")
	for _, c := range change {
		c(&w.o)
	}
	return w
}

var noUser = smtpc.Reply{Code: 550, Enhanced: "5.1.1", Lines: []string{"no such user"}, Phase: smtpc.PhaseRcpt}

func payloads(s queue.Settlement) string {
	var all strings.Builder
	for _, n := range s.Notify {
		all.Write(n.Payload)
	}
	return all.String()
}

// What an attempt puts into each field of a report, and the envelope that it goes out with.
func TestE6_76_ReportOfAnAttempt(t *testing.T) {
	accepted := time.Now().Add(-6 * time.Hour).Truncate(time.Second)
	date := func(at time.Time) string { return at.Format("Mon, 2 Jan 2006 15:04:05 -0700") }
	refused := smtpc.Reply{Code: 450, Enhanced: "4.2.1", Lines: []string{"later"}, Phase: smtpc.PhaseRcpt}
	for _, tt := range []struct {
		name   string
		reply  smtpc.Reply
		change func(*queue.Job)
		want   []string
		not    []string
	}{
		{"failed", noUser, func(*queue.Job) {},
			[]string{"Reporting-MTA: dns; relay.example.org", "Arrival-Date: " + date(accepted), "Original-Envelope-Id: env 1", "Original-Recipient: rfc822; Old+x@example.com",
				"Final-Recipient: rfc822; bob@example.net", "Action: failed", "Status: 5.1.1", "Remote-MTA: dns; mx.example.net", "Diagnostic-Code: smtp; 550 5.1.1 no such user",
				"Last-Attempt-Date: ", "Auto-Submitted: auto-replied", "Content-Type: message/rfc822", "Good day."}, []string{"Will-Retry-Until"}},
		{"delayed", refused, func(*queue.Job) {},
			[]string{"Action: delayed", "Status: 4.2.1", "Will-Retry-Until: " + date(accepted.Add(retry.DefaultMaxAge)), "text/rfc822-headers"}, []string{"Good day."}},
		{"expired", refused, func(j *queue.Job) { j.Accepted = j.Accepted.Add(-retry.DefaultMaxAge) },
			[]string{"Action: failed", "Status: 4.4.7", "Good day."}, []string{"Will-Retry-Until"}},
		{"header wanted", noUser, func(j *queue.Job) { j.RET = "HDRS" }, []string{"text/rfc822-headers", "Subject: Hello"}, []string{"Good day."}},
		{"whole wanted", noUser, func(j *queue.Job) { j.RET = "FULL" }, []string{"message/rfc822", "Good day."}, nil},
	} {
		t.Run("E6-76 "+tt.name, func(t *testing.T) {
			job := testJob("bob@example.net")
			job.Accepted, job.ENVID = accepted, "env+201"
			job.Recipients[0].ORCPT = "rfc822;Old+2Bx@example.com"
			tt.change(&job)
			s := handleOne(t, refusing(t, tt.reply), job, &fakeMail{})
			if len(s.Notify) != 1 {
				t.Fatalf("got %d notifications, want 1", len(s.Notify))
			}
			e := s.Notify[0].Envelope
			if !e.ReversePath.IsNull() || len(e.Recipients) != 1 || e.Recipients[0].Path != job.ReversePath || e.Recipients[0].Notify[0] != "NEVER" {
				t.Errorf("got envelope %+v", e)
			}
			for _, want := range tt.want {
				if !strings.Contains(payloads(s), want) {
					t.Errorf("%q is not in\n%s", want, payloads(s))
				}
			}
			for _, not := range tt.not {
				if strings.Contains(payloads(s), not) {
					t.Errorf("%q is in\n%s", not, payloads(s))
				}
			}
		})
	}
}

// One notification reports on all recipients of an attempt, whatever became of each.
func TestE6_76_OneNotificationPerAttempt(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
		res := every(m, smtpc.Reply{Code: 250, Phase: smtpc.PhaseDot})
		res.Recipients[0], res.Recipients[1] = noUser, smtpc.Reply{Code: 450, Phase: smtpc.PhaseRcpt}
		return res, nil
	})
	w := testWorker(t, n, "example.net")
	job := testJob("bob@example.net", "carol@example.net", "dave@example.net")
	job.Accepted = time.Now().Add(-6 * time.Hour)
	job.Recipients[2].Notify = []string{"SUCCESS"}
	s := handleOne(t, w, job, &fakeMail{})
	if len(s.Notify) != 1 {
		t.Fatalf("got %d notifications, want 1", len(s.Notify))
	}
	for _, want := range []string{"Action: failed", "Action: delayed", "Action: relayed"} {
		if !strings.Contains(payloads(s), want) {
			t.Errorf("%q is not in it", want)
		}
	}
}

// What became of a message that wants TLS goes back under TLS (RFC 8689 §5).
func TestE6_76_NotificationKeepsRequireTLS(t *testing.T) {
	w := refusing(t, noUser)
	for _, wants := range []bool{false, true} {
		job := testJob("bob@example.net")
		job.Flags.RequireTLS = wants
		if s := handleOne(t, w, job, &fakeMail{}); len(s.Notify) != 1 || s.Notify[0].Envelope.Flags.RequireTLS != wants {
			t.Errorf("wants %v: got %+v", wants, s.Notify)
		}
	}
}

func TestE6_77_DoubleBounces(t *testing.T) {
	boss := path("postmaster@example.org")
	for _, tt := range []struct {
		name   string
		sink   address.Path
		kind   queue.Kind
		rcpt   string
		notify []string
		copies int
	}{
		{"discard", address.Path{}, queue.KindDSN, "bob@example.net", []string{"NEVER"}, 0},
		{"copy of our own", boss, queue.KindDSN, "bob@example.net", []string{"NEVER"}, 1},
		{"copy of somebody else's", boss, queue.KindMail, "bob@example.net", nil, 1},
		{"somebody else's, never", boss, queue.KindMail, "bob@example.net", []string{"NEVER"}, 0},
		{"the copy fails too", path("bob@example.net"), queue.KindDSN, "bob@example.net", []string{"NEVER"}, 0},
	} {
		t.Run("E6-77 "+tt.name, func(t *testing.T) {
			w := refusing(t, noUser, func(o *Options) { o.DoubleBounce = tt.sink })
			job := testJob(tt.rcpt)
			job.ReversePath, job.Kind, job.Recipients[0].Notify, job.Maker = address.Path{}, tt.kind, tt.notify, queue.NewID()
			s := handleOne(t, w, job, &fakeMail{})
			if len(s.Remaining) != 0 || len(s.Notify) != tt.copies {
				t.Fatalf("got %d remaining and %d copies, want 0 and %d", len(s.Remaining), len(s.Notify), tt.copies)
			}
			if got := value(t, w.metrics.doubleBounces); got != 1 {
				t.Errorf("got %v double bounces, want 1", got)
			}
			last := s.Facts[len(s.Facts)-1]
			if last.Type != queue.DoubleBounce || last.Recipient != tt.rcpt || last.Peer != string(job.Maker) || last.Text == "" {
				t.Errorf("got event %+v", last)
			}
			for _, n := range s.Notify {
				if e := n.Envelope; !e.ReversePath.IsNull() || e.Recipients[0].Path != tt.sink || e.Recipients[0].Notify[0] != "NEVER" {
					t.Errorf("got envelope %+v", e)
				}
				for _, want := range []string{"Subject: A mail without a sender could not be delivered", "To: <postmaster@example.org>", "Final-Recipient: rfc822; bob@example.net", "Good day."} {
					if !strings.Contains(string(n.Payload), want) {
						t.Errorf("%q is not in the copy", want)
					}
				}
			}
		})
	}
}

func TestE6_78_DelayNotice(t *testing.T) {
	later := smtpc.Reply{Code: 450, Enhanced: "4.2.1", Lines: []string{"later"}, Phase: smtpc.PhaseRcpt}
	for _, tt := range []struct {
		name   string
		header string
		age    time.Duration
		told   bool
		notify []string
		null   bool
		want   int
	}{
		{name: "old", age: 4 * time.Hour, want: 1},
		{name: "young", age: 3 * time.Hour},
		{name: "told before", age: 8 * time.Hour, told: true},
		{name: "DELAY", age: 4 * time.Hour, notify: []string{"DELAY"}, want: 1},
		{name: "FAILURE only", age: 4 * time.Hour, notify: []string{"FAILURE"}},
		{name: "NEVER", age: 4 * time.Hour, notify: []string{"NEVER"}},
		{name: "null reverse-path", age: 4 * time.Hour, null: true},
		{name: "bulk", age: 4 * time.Hour, header: "Precedence: bulk\r\n"},
		{name: "list by precedence", age: 4 * time.Hour, header: "Precedence:  List\r\n"},
		{name: "list by id", age: 4 * time.Hour, header: "List-Id: <announce.example.org>\r\n"},
		{name: "automatic", age: 4 * time.Hour, header: "Auto-Submitted: auto-generated\r\n"},
		{name: "said to be no automatic", age: 4 * time.Hour, header: "Auto-Submitted: no\r\n", want: 1},
	} {
		t.Run("E6-78 "+tt.name, func(t *testing.T) {
			job := testJob("bob@example.net")
			if tt.null {
				job.ReversePath = address.Path{}
			}
			job.Accepted, job.Delayed, job.Recipients[0].Notify = time.Now().Add(-tt.age), tt.told, tt.notify
			s := handleOne(t, refusing(t, later), job, &fakeMail{content: tt.header + testContent})
			if len(s.Notify) != tt.want || len(s.Remaining) != 1 {
				t.Errorf("got %d notices and %d remaining, want %d and 1", len(s.Notify), len(s.Remaining), tt.want)
			}
			if s.Delayed != (tt.age >= 4*time.Hour && !tt.told) {
				t.Errorf("got delayed %v: it would be told again, or never", s.Delayed)
			}
		})
	}
}

// A notification goes to the reverse-path of a client and to nobody that the content or a host names.
func TestE6_79_NoBackscatter(t *testing.T) {
	hostile := "From: victim@example.com\r\nReply-To: victim@example.com\r\nReturn-Path: <victim@example.com>\r\nErrors-To: victim@example.com\r\n\r\n.\r\n"
	reply := noUser
	reply.Lines = []string{"tell victim@example.com"}
	w := refusing(t, reply)
	job := testJob("bob@example.net")
	s := handleOne(t, w, job, &fakeMail{content: hostile})
	if len(s.Notify) != 1 || len(s.Notify[0].Envelope.Recipients) != 1 || s.Notify[0].Envelope.Recipients[0].Path != job.ReversePath {
		t.Errorf("got %+v", s.Notify)
	}
	job.ReversePath = address.Path{}
	if s := handleOne(t, w, job, &fakeMail{content: hostile}); len(s.Notify) != 0 {
		t.Errorf("null reverse-path: got %+v", s.Notify)
	}
}

// What a host says reaches events, reasons and notifications only without what could harm there.
func TestE6_80_TextOfHosts(t *testing.T) {
	reply := smtpc.Reply{Code: 450, Lines: []string{"\x1b[31mred\x00\u202e \r\nX-Evil: 1", strings.Repeat("é", 5000), "\xff\xfe"}, Phase: smtpc.PhaseRcpt}
	w := refusing(t, reply)
	job := testJob("bob@example.net")
	job.Accepted = time.Now().Add(-5 * time.Hour)
	s := handleOne(t, w, job, &fakeMail{})
	texts := []string{s.Reason}
	for _, e := range s.Facts {
		texts = append(texts, e.Text)
	}
	for _, text := range texts {
		if text == "" || len(text) > 1000 || strings.ContainsAny(text, "\x00\x1b\r\n\u202e") {
			t.Errorf("got %q", text)
		}
	}
	if strings.ContainsAny(payloads(s), "\x00\x1b\u202eé") || strings.Contains(payloads(s), "\nX-Evil") || len(payloads(s)) > 8000 {
		t.Errorf("got notification\n%s", payloads(s))
	}
}

// TestE6_82_ClassOfAReply: why a host refused is in the event and in the metrics; what was delivered has no class.
func TestE6_82_ClassOfAReply(t *testing.T) {
	for _, tt := range []struct {
		reply smtpc.Reply
		want  string
	}{
		{noUser, "invalid_recipient"},
		{smtpc.Reply{Code: 452, Enhanced: "4.2.2", Lines: []string{"over quota"}, Phase: smtpc.PhaseRcpt}, "mailbox_full"},
		{smtpc.Reply{Code: 250, Lines: []string{"over quota"}, Phase: smtpc.PhaseDot}, ""},
	} {
		w := refusing(t, tt.reply)
		s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
		if got := s.Facts[0].BounceClass; got != tt.want {
			t.Errorf("%v: got class %q, want %q", tt.reply, got, tt.want)
		}
		if tt.want != "" {
			if got := value(t, w.metrics.refusals.WithLabelValues(tt.want)); got != 1 {
				t.Errorf("%v: counted %v times", tt.reply, got)
			}
		}
	}
}

// Who is told that a message went through: the next hop tells it if it can, else we do, and NEVER is never.
func TestE4_62_Relayed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		notify []string
		dsn    bool
		want   bool
	}{
		{"nothing said", nil, false, false},
		{"SUCCESS", []string{"SUCCESS"}, false, true},
		{"SUCCESS and others", []string{"SUCCESS", "FAILURE"}, false, true},
		{"SUCCESS, next hop reports", []string{"SUCCESS"}, true, false},
		{"FAILURE", []string{"FAILURE", "DELAY"}, false, false},
		{"NEVER", []string{"NEVER"}, false, false},
	} {
		t.Run("E4-62 "+tt.name, func(t *testing.T) {
			n := newFakeNet()
			var got smtpc.Message
			n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
				got = m
				res := every(m, smtpc.Reply{Code: 250, Enhanced: "2.0.0", Lines: []string{"ok"}, Phase: smtpc.PhaseDot})
				res.DSN = tt.dsn
				return res, nil
			})
			w := testWorker(t, n, "example.net")
			job := testJob("bob@example.net")
			job.ENVID, job.RET, job.Recipients[0].Notify, job.Recipients[0].ORCPT = "e1", "HDRS", tt.notify, "rfc822;bob@example.net"
			s := handleOne(t, w, job, &fakeMail{})
			if (len(s.Notify) == 1) != tt.want {
				t.Fatalf("got %d notifications", len(s.Notify))
			}
			if tt.want {
				for _, want := range []string{"Action: relayed", "Status: 2.0.0", "Original-Envelope-Id: e1", "Remote-MTA: dns; mx.example.net"} {
					if !strings.Contains(payloads(s), want) {
						t.Errorf("%q is not in it", want)
					}
				}
				if strings.Contains(payloads(s), "Good day.") {
					t.Error("it returns the content, which is for failures (RFC 3461 §4.3)")
				}
			}
			if got.ENVID != job.ENVID || got.RET != job.RET || got.Recipients[0].ORCPT != job.Recipients[0].ORCPT || len(got.Recipients[0].Notify) != len(tt.notify) {
				t.Errorf("the next hop was given %+v", got)
			}
		})
	}
}
