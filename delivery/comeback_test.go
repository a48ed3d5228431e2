package delivery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"postroad/delivery/smtpc"
	"postroad/queue"
	"postroad/queue/address"
	"postroad/queue/verp"
)

// fakeOrigins know some mail.
type fakeOrigins struct {
	known map[queue.MessageID]queue.Origin
	err   error
	asked int
	spent map[string]int
}

func (f *fakeOrigins) Origin(_ context.Context, id queue.MessageID) (queue.Origin, error) {
	f.asked++
	if f.err != nil {
		return queue.Origin{}, f.err
	}
	o, ok := f.known[id]
	if !ok {
		return o, queue.ErrNotFound
	}
	return o, nil
}

func (f *fakeOrigins) Spend(_ context.Context, key string, n int, l queue.Limit) (queue.Spent, error) {
	if f.spent == nil {
		f.spent = make(map[string]int)
	}
	f.spent[key] += n
	return queue.Spent{OK: f.spent[key] <= l.Count}, nil
}

// heard is a Suppressor that remembers.
type heard []HardBounce

func (h *heard) Blocked(context.Context, *queue.Job) ([]*queue.Suppression, error) { return nil, nil }

func (h *heard) HardBounced(b HardBounce) { *h = append(*h, b) }

func testRing(fill byte) *verp.Ring {
	r := verp.New("bounces.example.org")
	r.SetKeys([]queue.SharedKey{{Secret: []byte(strings.Repeat(string(rune(fill)), 32)), Made: time.Now()}})
	return r
}

// comebackWorker knows one mail of alice to some recipients, address or address:NOTIFY, and hears of bounces.
func comebackWorker(t *testing.T, rcpts ...string) (*Worker, *fakeOrigins, *heard, queue.MessageID) {
	t.Helper()
	id := queue.NewID()
	o := queue.Origin{Sender: path("alice@example.org"), Client: "web", Class: "news", MessageID: "<1@example.org>"}
	for _, r := range rcpts {
		address, notify, _ := strings.Cut(r, ":")
		rcpt := queue.Recipient{Path: path(address)}
		if notify != "" {
			rcpt.Notify = strings.Split(notify, ",")
		}
		o.Recipients = append(o.Recipients, rcpt)
	}
	origins, h := &fakeOrigins{known: map[queue.MessageID]queue.Origin{id: o}}, &heard{}
	w := workerWith(t, newFakeNet(), func(o *Options) {
		o.Bounces = &Bounces{Ring: testRing('k'), Origins: origins, Forward: true, Wanted: func(class string) bool { return class == "news" }}
		o.Suppressor = h
	})
	return w, origins, h, id
}

// cameBack is a job for what was sent to an address.
func cameBack(to address.Path) queue.Job {
	j := testJob(to.String())
	j.ReversePath, j.Incoming, j.Recipients[0].Notify = address.Path{}, true, []string{"NEVER"}
	return j
}

func dsn(action, status, final, diagnostic string) string {
	return "Subject: Undelivered\r\nContent-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nsorry\r\n" +
		"--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example.net\r\nOriginal-Envelope-Id: env1\r\n\r\nOriginal-Recipient: rfc822; Bob@example.net\r\n" +
		"Final-Recipient: rfc822; " + final + "\r\nAction: " + action + "\r\nStatus: " + status + "\r\nDiagnostic-Code: smtp; " + diagnostic + "\r\n\r\n" +
		"--b\r\nContent-Type: text/rfc822-headers\r\n\r\nSubject: Hello\r\nFrom: security@example.org\r\n\r\n--b--\r\n"
}

func testdata(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile("report/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(data), "\n", "\r\n")
}

// What comes back becomes events about the mail of ours, suppression, and a word to its sender.
func TestE6_82_Comebacks(t *testing.T) {
	unknown := "550 5.1.1 <bob@example.net>: user unknown"
	arf := testdata(t, "arf.eml")
	for _, tt := range []struct {
		name    string
		mail    string
		rcpts   string // of the mail of ours
		all     bool   // the address names no recipient
		event   queue.EventType
		class   string
		rcpt    string // in the event
		hard    string // class that is suppressed
		told    string // action in what the sender gets; empty: nothing
		sender  string
		forget  bool // the origin
		noClass bool
		text    string // of the event, if it matters
	}{
		{name: "failed", mail: dsn("failed", "5.1.1", "bob@example.net", unknown), rcpts: "bob@example.net", event: queue.OutOfBandBounce, class: "invalid_recipient",
			rcpt: "bob@example.net", hard: "invalid_recipient", told: "failed"},
		{name: "failed elsewhere", mail: dsn("failed", "5.2.2", "bob@private.example", "552 5.2.2 mailbox full"), rcpts: "bob@example.net", event: queue.OutOfBandBounce, class: "mailbox_full",
			rcpt: "bob@example.net", hard: "mailbox_full", told: "failed"},
		{name: "failed for a time", mail: dsn("failed", "4.4.7", "bob@example.net", "expired"), rcpts: "bob@example.net", event: queue.OutOfBandBounce, class: "expired",
			rcpt: "bob@example.net", told: "failed"},
		{name: "one of several", mail: dsn("failed", "5.1.1", "bob@example.net", unknown), rcpts: "carol@example.net bob@example.net", all: true, event: queue.OutOfBandBounce, class: "invalid_recipient",
			rcpt: "bob@example.net", told: "failed"},
		{name: "the only one", mail: dsn("failed", "5.1.1", "bob@example.net", unknown), rcpts: "bob@example.net", all: true, event: queue.OutOfBandBounce, class: "invalid_recipient",
			rcpt: "bob@example.net", hard: "invalid_recipient", told: "failed"},
		{name: "none of several", mail: strings.ReplaceAll(dsn("failed", "5.1.1", "eve@example.net", "550 5.1.1 user unknown"), "Bob@", "Eve@"), rcpts: "carol@example.net bob@example.net", all: true,
			event: queue.OutOfBandBounce, class: "invalid_recipient", told: "failed"},
		{name: "delayed", mail: dsn("delayed", "4.2.1", "bob@example.net", "450 later"), rcpts: "bob@example.net", event: queue.OutOfBandReport, rcpt: "bob@example.net", told: "delayed"},
		{name: "delivered", mail: dsn("delivered", "2.0.0", "bob@example.net", "250 ok"), rcpts: "bob@example.net:SUCCESS", event: queue.OutOfBandReport, rcpt: "bob@example.net", told: "delivered"},
		{name: "delivered, not asked for", mail: dsn("delivered", "2.0.0", "bob@example.net", "250 ok"), rcpts: "bob@example.net", event: queue.OutOfBandReport, rcpt: "bob@example.net"},
		{name: "failed, NEVER", mail: dsn("failed", "5.1.1", "bob@example.net", unknown), rcpts: "bob@example.net:NEVER", event: queue.OutOfBandBounce, class: "invalid_recipient",
			rcpt: "bob@example.net", hard: "invalid_recipient"},
		{name: "failed, no FAILURE", mail: dsn("failed", "5.1.1", "bob@example.net", unknown), rcpts: "bob@example.net:SUCCESS,DELAY", event: queue.OutOfBandBounce, class: "invalid_recipient",
			rcpt: "bob@example.net", hard: "invalid_recipient"},
		{name: "failed, FAILURE", mail: dsn("failed", "5.1.1", "bob@example.net", unknown), rcpts: "bob@example.net:FAILURE", event: queue.OutOfBandBounce, class: "invalid_recipient",
			rcpt: "bob@example.net", hard: "invalid_recipient", told: "failed"},
		{name: "delayed, no DELAY", mail: dsn("delayed", "4.2.1", "bob@example.net", "450 later"), rcpts: "bob@example.net:FAILURE", event: queue.OutOfBandReport, rcpt: "bob@example.net"},
		{name: "one of several, NEVER is another", mail: dsn("failed", "5.1.1", "bob@example.net", unknown), rcpts: "carol@example.net:NEVER bob@example.net", all: true,
			event: queue.OutOfBandBounce, class: "invalid_recipient", rcpt: "bob@example.net", told: "failed"},
		{name: "none of several, one NEVER", mail: strings.ReplaceAll(dsn("failed", "5.1.1", "eve@example.net", "550 5.1.1 user unknown"), "Bob@", "Eve@"),
			rcpts: "carol@example.net:NEVER bob@example.net", all: true, event: queue.OutOfBandBounce, class: "invalid_recipient"},
		{name: "null sender", mail: dsn("failed", "5.1.1", "bob@example.net", unknown), rcpts: "bob@example.net", sender: "<>", event: queue.OutOfBandBounce, class: "invalid_recipient",
			rcpt: "bob@example.net", hard: "invalid_recipient"},
		{name: "origin forgotten", mail: dsn("failed", "5.1.1", "bob@example.net", unknown), rcpts: "bob@example.net", forget: true, event: queue.OutOfBandBounce, class: "invalid_recipient",
			rcpt: "bob@example.net"},
		{name: "complaint, origin forgotten", mail: arf, rcpts: "bob@example.net", forget: true, event: queue.Feedback, class: ClassComplaint, rcpt: "bob@example.net"},
		{name: "complaint, one of several", mail: arf, rcpts: "carol@example.net bob@example.net", all: true, event: queue.Feedback, class: ClassComplaint, rcpt: "bob@example.net"},
		{name: "complaint, class not known", mail: arf, rcpts: "bob@example.net", noClass: true, event: queue.Feedback, class: ClassComplaint, rcpt: "bob@example.net"},
		{name: "no report", mail: testdata(t, "exim.eml"), rcpts: "bob@example.net", event: queue.OutOfBandBounce, class: "invalid_recipient", rcpt: "bob@example.net", hard: "invalid_recipient", told: "failed"},
		{name: "text with a code", mail: "Subject: failure notice\r\n\r\nHi. This is the program at mx. <bob@example.net>: 550 #5.1.1 user unknown\r\n", rcpts: "bob@example.net",
			event: queue.OutOfBandBounce, class: "invalid_recipient", rcpt: "bob@example.net", hard: "invalid_recipient", told: "failed"},
		{name: "version", mail: "Subject: Re\r\n\r\nwe have updated to 5.4.1, see 5.12.24\r\n", rcpts: "bob@example.net", event: queue.OutOfBandReport, rcpt: "bob@example.net"},
		{name: "vacation", mail: testdata(t, "vacation.eml"), rcpts: "bob@example.net", event: queue.OutOfBandReport, rcpt: "bob@example.net"},
		{name: "vacation with a code", mail: "Subject: Away\r\nAuto-Submitted: auto-replied (vacation)\r\n\r\nI am away. My old address says 550 #5.1.1 user unknown\r\n", rcpts: "bob@example.net",
			event: queue.OutOfBandReport, rcpt: "bob@example.net", text: "automatic reply: Away"},
		{name: "complaint", mail: testdata(t, "arf.eml"), rcpts: "bob@example.net", event: queue.Feedback, class: ClassComplaint, rcpt: "bob@example.net", hard: ClassComplaint},
		{name: "no spam after all", mail: strings.Replace(testdata(t, "arf.eml"), "Feedback-Type: abuse", "Feedback-Type: not-spam", 1), rcpts: "bob@example.net", event: queue.Feedback, rcpt: "bob@example.net"},
		{name: "rubbish", mail: "\x00\xff\r\n\r\n", rcpts: "bob@example.net", event: queue.OutOfBandReport, rcpt: "bob@example.net"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, origins, h, id := comebackWorker(t, strings.Fields(tt.rcpts)...)
			if tt.sender == "<>" {
				o := origins.known[id]
				o.Sender = address.Path{}
				origins.known[id] = o
			}
			if tt.noClass {
				o := origins.known[id]
				o.Class = ""
				origins.known[id] = o
			}
			if tt.forget {
				id = queue.MessageID("01hzzzzzzzzzzzzzzzzzzzzzzz0") // of a while ago
			}
			var only address.Path
			if !tt.all {
				only = path("bob@example.net")
			}
			to, _ := w.o.Bounces.Ring.Path(id, only, time.Now())
			job := cameBack(to)
			job.Accepted = time.Now().Add(-freshReport)
			s := handleOne(t, w, job, &fakeMail{content: tt.mail})
			if len(s.Remaining) != 0 || len(s.Facts) != 2 || s.Facts[0].Type != queue.Delivered || s.Facts[0].ID != "" {
				t.Fatalf("got %+v", s)
			}
			if tt.text != "" && s.Facts[1].Text != tt.text {
				t.Errorf("got %q, want %q", s.Facts[1].Text, tt.text)
			}
			if e := s.Facts[1]; e.Type != tt.event || e.ID != id || e.BounceClass != tt.class || e.Recipient != tt.rcpt {
				t.Errorf("got event %+v", e)
			}
			if len(*h) > 1 || (len(*h) == 1) != (tt.hard != "") {
				t.Fatalf("got %+v to suppress", *h)
			}
			if tt.hard != "" && ((*h)[0].Class != tt.hard || (*h)[0].Recipient != path("bob@example.net") || (*h)[0].ID != id || !tt.forget && (*h)[0].MailClass != "news") {
				t.Errorf("got %+v to suppress", (*h)[0])
			}
			if len(s.Notify) > 1 || (len(s.Notify) == 1) != (tt.told != "") {
				t.Fatalf("got %d notifications", len(s.Notify))
			}
			for _, n := range s.Notify {
				if e := n.Envelope; !e.ReversePath.IsNull() || e.Recipients[0].Path != path("alice@example.org") || e.Recipients[0].Notify[0] != "NEVER" || e.Maker != job.ID {
					t.Errorf("got envelope %+v", e)
				}
				for _, want := range []string{"From: Mail Delivery <mailer-daemon@example.org>", "Action: " + tt.told, "Auto-Submitted: auto-replied"} {
					if !strings.Contains(string(n.Payload), want) {
						t.Errorf("%q is not in\n%s", want, n.Payload)
					}
				}
			}
		})
	}
}

// What the sender gets is a report of ours: with the parameters of his mail, and what came back in nothing but its third part.
func TestE4_62_RemoteReportReachesTheSender(t *testing.T) {
	w, _, _, id := comebackWorker(t, "bob@example.net")
	to, _ := w.o.Bounces.Ring.Path(id, path("bob@example.net"), time.Now())
	s := handleOne(t, w, cameBack(to), &fakeMail{content: dsn("failed", "5.1.1", "bob@example.net", "550 5.1.1 user unknown")})
	for _, want := range []string{"Original-Envelope-Id: env1", "Original-Recipient: rfc822; Bob@example.net", "Final-Recipient: rfc822; bob@example.net", "Status: 5.1.1",
		"Remote-MTA: dns; mx.example.net", "Diagnostic-Code: smtp; 550 5.1.1 user unknown", "X-Postroad-Queue-ID: " + string(id), "Content-Type: text/rfc822-headers", "Subject: Hello"} {
		if !strings.Contains(payloads(s), want) {
			t.Errorf("%q is not in\n%s", want, payloads(s))
		}
	}
	header, _, _ := strings.Cut(payloads(s), "\r\n\r\n")
	if strings.Contains(header, "security@") || strings.Contains(payloads(s), "sorry") {
		t.Errorf("what came back is where it should not be:\n%s", payloads(s))
	}
}

// What is told of mail that wants TLS on its whole way wants it too (RFC 8689 §5).
func TestE5_71_RemoteReportWantsTLS(t *testing.T) {
	w, origins, _, id := comebackWorker(t, "bob@example.net")
	o := origins.known[id]
	o.RequireTLS = true
	origins.known[id] = o
	to, _ := w.o.Bounces.Ring.Path(id, path("bob@example.net"), time.Now())
	s := handleOne(t, w, cameBack(to), &fakeMail{content: dsn("failed", "5.1.1", "bob@example.net", "550 5.1.1 user unknown")})
	if len(s.Notify) != 1 || !s.Notify[0].Envelope.Flags.RequireTLS {
		t.Errorf("got %+v", s.Notify)
	}
}

// Mail from anybody is believed nothing: no suppression, no event about a mail of ours and no mail to anybody without a token.
func TestE6_79_ComebackWithoutAToken(t *testing.T) {
	w, _, h, id := comebackWorker(t, "bob@example.net")
	foreign, _ := testRing('x').Path(id, path("bob@example.net"), time.Now())
	mailbox := path("fbl@bounces.example.org")
	arf := testdata(t, "arf.eml")
	for _, job := range []queue.Job{cameBack(foreign), cameBack(mailbox)} {
		for _, content := range []string{dsn("failed", "5.1.1", "bob@example.net", "550 no"), arf, strings.Replace(arf, "bounces+tok@bounces.example.org", foreign.String(), 1)} {
			s := handleOne(t, w, job, &fakeMail{content: content})
			if len(s.Notify) != 0 || len(s.Remaining) != 0 || len(s.Facts) != 1 || s.Facts[0].ID != "" || len(*h) != 0 {
				t.Errorf("%s: got %+v and %v", job.Recipients[0].Path, s, *h)
			}
		}
	}
	// A mailbox for feedback finds the token in the report, or in the message in it.
	good, _ := w.o.Bounces.Ring.Path(id, path("bob@example.net"), time.Now())
	for _, content := range []string{
		strings.Replace(arf, "bounces+tok@bounces.example.org", good.String(), 1),
		strings.Replace(arf, "From: <somespammer@example.net>", "Return-Path: <"+good.String()+">", 1),
	} {
		*h = nil
		s := handleOne(t, w, cameBack(mailbox), &fakeMail{content: content})
		if len(s.Facts) != 2 || s.Facts[1].ID != id || len(*h) != 1 {
			t.Errorf("got %+v and %v", s, *h)
		}
	}
}

// Whoever has an address for bounces cannot fill the mailbox of the sender.
func TestE6_79_ForwardsAreBounded(t *testing.T) {
	w, _, _, id := comebackWorker(t, "bob@example.net")
	to, _ := w.o.Bounces.Ring.Path(id, path("bob@example.net"), time.Now())
	n := 0
	for range 2 * forwardLimit.Count {
		n += len(handleOne(t, w, cameBack(to), &fakeMail{content: dsn("failed", "5.1.1", "bob@example.net", "550 no")}).Notify)
	}
	if n != forwardLimit.Count {
		t.Errorf("got %d notifications, want %d", n, forwardLimit.Count)
	}
	w.o.Bounces.Forward = false
	if s := handleOne(t, w, cameBack(to), &fakeMail{content: dsn("failed", "5.1.1", "bob@example.net", "550 no")}); len(s.Notify) != 0 {
		t.Error("forwarded although that is off")
	}
}

// TestE6_81_OwnerHearsOfComebacks: of who is on a list its owner is told, of the others the sender.
func TestE6_81_OwnerHearsOfComebacks(t *testing.T) {
	w, origins, _, id := comebackWorker(t, "bob@example.net", "carol@example.net")
	o := origins.known[id]
	o.Recipients[1].Owner = path("boss@example.org")
	for name, want := range map[string]string{"bob@example.net": "alice@example.org", "carol@example.net": "boss@example.org"} {
		to, _ := w.o.Bounces.Ring.Path(id, path(name), time.Now())
		s := handleOne(t, w, cameBack(to), &fakeMail{content: dsn("failed", "5.1.1", name, "550 no")})
		if len(s.Notify) != 1 || s.Notify[0].Envelope.Recipients[0].Path.String() != want {
			t.Errorf("%s: got %+v, want one to %s", name, s.Notify, want)
		}
	}
}

// However many addresses of a mail of ours something comes to, the events are searched once.
func TestE6_82_OriginIsLookedUpOnce(t *testing.T) {
	w, origins, _, id := comebackWorker(t, "bob@example.net", "carol@example.net")
	bob, _ := w.o.Bounces.Ring.Path(id, path("bob@example.net"), time.Now())
	carol, _ := w.o.Bounces.Ring.Path(id, path("carol@example.net"), time.Now())
	job := cameBack(bob)
	job.Recipients = append(job.Recipients, queue.Recipient{Path: carol, Notify: []string{"NEVER"}})
	if s := handleOne(t, w, job, &fakeMail{content: dsn("failed", "5.1.1", "bob@example.net", "550 no")}); len(s.Facts) != 4 || origins.asked != 1 {
		t.Errorf("got %d facts and %d look-ups", len(s.Facts), origins.asked)
	}
}

// What cannot be looked up now is not lost.
func TestComebackIsKeptInTrouble(t *testing.T) {
	w, origins, h, id := comebackWorker(t, "bob@example.net")
	to, _ := w.o.Bounces.Ring.Path(id, path("bob@example.net"), time.Now())
	origins.err = errors.New("queue away")
	m := &fakeMail{content: dsn("failed", "5.1.1", "bob@example.net", "550 no")}
	w.handle(t.Context(), cameBack(to), m)
	if len(m.settled) != 0 {
		t.Errorf("got %+v, want it handed out again", m.settled)
	}
	origins.err = fmt.Errorf("look up: %w", queue.ErrTooManyFacts)
	if s := handleOne(t, w, cameBack(to), &fakeMail{content: m.content}); len(s.Remaining) != 0 || len(s.Facts) != 2 || s.Facts[1].Type != queue.OutOfBandBounce || len(s.Notify) != 0 || len(*h) != 0 {
		t.Errorf("not to be found: got %+v, %v", s, *h)
	}
	if got := value(t, w.metrics.comebacks.WithLabelValues("unattributed")); got != 1 {
		t.Errorf("got %v counted", got)
	}
	origins.err, origins.known = nil, nil
	// The delivery of a mail that has waited for hours may be a moment ago: the age of what came back counts.
	early, _ := w.o.Bounces.Ring.Path("01jz000000"+id[10:], path("bob@example.net"), time.Now())
	for _, to := range []address.Path{to, early} {
		job := cameBack(to)
		job.Accepted = time.Now().Add(-freshReport / 2)
		if s := handleOne(t, w, job, &fakeMail{content: m.content}); len(s.Remaining) != 1 || s.Delay != minDelay || len(s.Facts) != 0 {
			t.Errorf("too soon: got %+v", s)
		}
		job.Accepted = time.Now().Add(-freshReport)
		if s := handleOne(t, w, job, &fakeMail{content: m.content}); len(s.Remaining) != 0 || len(s.Facts) != 2 || len(s.Notify) != 0 {
			t.Errorf("known to nobody: got %+v", s)
		}
	}
	w.o.Bounces.Ring = verp.New("bounces.example.org")
	if s := handleOne(t, w, cameBack(to), &fakeMail{}); len(s.Remaining) != 1 || s.Delay != noKeysDelay {
		t.Errorf("without keys: got %+v", s)
	}
}

// Which mail gets an address of ours, and that what fails at once still goes to its true sender.
func TestE6_82_ReversePathOnTheWire(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*queue.Job)
		noKeys bool
		off    bool
		want   string // own, or as it was
		named  bool
	}{
		{name: "class", change: func(*queue.Job) {}, want: "own", named: true},
		{name: "several recipients", change: func(j *queue.Job) {
			j.Recipients = append(j.Recipients, queue.Recipient{Path: path("carol@example.net")})
		}, want: "own"},
		{name: "other class", change: func(j *queue.Job) { j.Class = "other" }},
		{name: "null", change: func(j *queue.Job) { j.ReversePath = address.Path{} }},
		{name: "notification", change: func(j *queue.Job) { j.Kind = queue.KindDSN }},
		{name: "incoming", change: func(j *queue.Job) { j.Incoming = true }},
		{name: "no keys", change: func(*queue.Job) {}, noKeys: true},
		{name: "off", change: func(*queue.Job) {}, off: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var from address.Path
			n := newFakeNet()
			n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
				from = m.From
				return every(m, noUser), nil
			})
			w := testWorker(t, n, "example.net")
			if !tt.off {
				w.o.Bounces = &Bounces{Ring: testRing('k'), Origins: &fakeOrigins{}, Wanted: func(class string) bool { return class == "news" }}
			}
			if tt.noKeys {
				w.o.Bounces.Ring = verp.New("bounces.example.org")
			}
			job := testJob("bob@example.net")
			job.Class = "news"
			tt.change(&job)
			s := handleOne(t, w, job, &fakeMail{})
			if tt.want == "" {
				if from != job.ReversePath {
					t.Errorf("got reverse-path %v, want %v", from, job.ReversePath)
				}
				return
			}
			token, err := w.o.Bounces.Ring.Read(from)
			if err != nil || token.ID != job.ID || token.Names(path("bob@example.net")) != tt.named {
				t.Errorf("got reverse-path %v: %+v, %v", from, token, err)
			}
			if len(s.Notify) != 1 || s.Notify[0].Envelope.Recipients[0].Path != path("alice@example.org") {
				t.Errorf("got %+v, want a notification to the true sender", s.Notify)
			}
		})
	}
}
