package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
	"postroad/delivery/retry"
	"postroad/delivery/route"
	"postroad/delivery/smtpc"
	"postroad/queue"
	"postroad/queue/address"
)

// handleOne runs one job through the worker and gives its settlement.
func handleOne(t *testing.T, w *Worker, job queue.Job, m *fakeMail) queue.Settlement {
	t.Helper()
	w.handle(t.Context(), job, m)
	return m.only(t)
}

func TestDelivered(t *testing.T) {
	n := newFakeNet()
	n.set("mx.example.net", func(context.Context, smtpc.Options) (*fakeConn, error) {
		return &fakeConn{answer: ok, state: &tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256}}, nil
	})
	w := testWorker(t, n, "example.net")
	job := testJob("bob@example.net", "carol@example.net")
	job.Tries = 2
	s := handleOne(t, w, job, &fakeMail{})
	if len(s.Remaining) != 0 || len(s.Notify) != 0 || !s.Tried || len(s.Facts) != 2 {
		t.Fatalf("got %+v", s)
	}
	e := s.Facts[1]
	e.Duration = 0
	want := queue.Event{Type: queue.Delivered, Sender: "alice@example.org", Recipient: "carol@example.net", Site: "mx.example.net",
		Peer: "mx.example.net[198.51.100.1]:25", TLS: "TLS1.3 TLS_AES_128_GCM_SHA256 may", Attempt: 3, Code: 250, Enhanced: "2.0.0",
		Text: "taken", Size: int64(len(testContent))}
	if e != want {
		t.Errorf("got fact\n%+v, want\n%+v", e, want)
	}
}

// TestLateMailIsReturned: past the time that its sender set no host sees it (RFC 2852 §4.1), and the report says why.
func TestLateMailIsReturned(t *testing.T) {
	for _, isUnsigned := range []bool{false, true} {
		n := newFakeNet()
		n.serve("mx.example.net", ok)
		w := testWorker(t, n, "example.net")
		job := testJob("bob@example.net")
		job.Accepted, job.Unsigned, job.Reason = time.Now(), isUnsigned, "450 4.2.0 mailbox busy"
		job.Deadline = queue.Deadline{At: time.Now().Add(-time.Second).UTC(), Return: true}
		s := handleOne(t, w, job, &fakeMail{})
		if len(s.Remaining) > 0 || len(s.Notify) != 1 || n.dialled("mx.example.net") > 0 {
			t.Fatalf("got %+v, %d dials", s, n.dialled("mx.example.net"))
		}
		report := string(s.Notify[0].Payload)
		for _, want := range []string{"Status: 5.4.7\r\n", "Action: failed\r\n", "Deliver-By-Date: " + job.Deadline.At.Format(time.RFC1123Z)[:16], "450 4.2.0 mailbox busy"} {
			if !strings.Contains(report, want) {
				t.Errorf("report lacks %q:\n%s", want, report)
			}
		}
	}
}

func TestGoneMailIsNotSettled(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", ok)
	w := testWorker(t, n, "example.net")
	m := &fakeMail{openErr: fmt.Errorf("open: %w", queue.ErrGone)}
	w.handle(t.Context(), testJob("bob@example.net"), m)
	if m.tries != 0 || n.dialled("mx.example.net") != 0 {
		t.Errorf("got %d settlements and %d dials, want none", m.tries, n.dialled("mx.example.net"))
	}
	w.pool.closing.Wait()
	if len(w.gate.sites) != 0 {
		t.Error("its place at the site was not given back")
	}
}

// What the hosts of a domain say before a mail can be offered (rows 44, 54).
func TestGreetings(t *testing.T) {
	refusal := func(code int) error {
		return &smtpc.Error{Phase: smtpc.PhaseGreeting, Reply: &smtpc.Reply{Code: code, Lines: []string{"go away"}, Phase: smtpc.PhaseGreeting}}
	}
	unreachable := &smtpc.Error{Phase: smtpc.PhaseConnect, Err: errors.New("refused")}
	tests := []struct {
		name      string
		one, two  error
		delivered bool
		bounced   bool
		code      int
	}{
		{name: "both well", delivered: true, code: 250},
		{name: "first not reached", one: unreachable, delivered: true, code: 250},
		{name: "first says 554", one: refusal(554), delivered: true, code: 250},
		{name: "first says 521", one: refusal(521), delivered: true, code: 250},
		{name: "both say 554", one: refusal(554), two: refusal(554), code: 554},
		{name: "both say 521", one: refusal(521), two: refusal(521), bounced: true, code: 521},
		{name: "521 and 556", one: refusal(521), two: refusal(556), bounced: true, code: 521},
		{name: "521 and not reached", one: refusal(521), two: unreachable, code: 451},
		{name: "not reached and 521", one: unreachable, two: refusal(521), code: 451},
		{name: "421 and 554", one: refusal(421), two: refusal(554), code: 554},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newFakeNet()
			for host, err := range map[string]error{"one.example.net": tt.one, "two.example.net": tt.two} {
				n.set(host, func(context.Context, smtpc.Options) (*fakeConn, error) {
					if err != nil {
						return nil, err
					}
					return &fakeConn{answer: ok}, nil
				})
			}
			w := workerWith(t, n, func(o *Options) {
				o.Resolver = mxtest.Records{
					MX:    map[string][]mx.MX{"example.net": {{Host: "one.example.net", Preference: 1}, {Host: "two.example.net", Preference: 2}}},
					Hosts: map[string][]string{"one.example.net": {"198.51.100.1"}, "two.example.net": {"198.51.100.2"}},
				}
			})
			s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
			if got := s.Facts[0].Type == queue.Delivered; got != tt.delivered {
				t.Errorf("got delivered %v, want %v", got, tt.delivered)
			}
			if got := len(s.Notify) == 1; got != tt.bounced {
				t.Errorf("got bounced %v, want %v", got, tt.bounced)
			}
			if s.Facts[0].Code != tt.code {
				t.Errorf("got code %d, want %d", s.Facts[0].Code, tt.code)
			}
		})
	}
}

func TestE3_46_47_NoHosts(t *testing.T) {
	records := mxtest.Records{
		MX:    map[string][]mx.MX{"null.test": {{Host: ""}}, "self.test": {{Host: "relay.example.org", Preference: 1}}, "bare.test": nil},
		Hosts: map[string][]string{"relay.example.org": {"198.51.100.1"}, "private.test": {"10.0.0.1"}},
		Fail:  map[string]error{"broken.test": errors.New("SERVFAIL"), "relay.broken.test": errors.New("SERVFAIL")},
	}
	hop := func(text string) route.NextHop {
		n, err := route.ParseNextHop(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	table, err := route.NewTable([]route.Route{
		{Match: "fixed.test", NextHop: hop("smtp:[relay.missing.test]:25")},
		{Match: "fixedprivate.test", NextHop: hop("smtp:[private.test]:25")},
		{Match: "fixedbroken.test", NextHop: hop("smtp:[relay.broken.test]:25,smtp:[relay.missing.test]:25")},
	})
	if err != nil {
		t.Fatal(err)
	}
	w := workerWith(t, newFakeNet(), func(o *Options) { o.Resolver, o.Routes = records, table })
	tests := []struct {
		domain, enhanced string
		bounced          bool
	}{
		{"null.test", "5.1.10", true},
		{"missing.test", "5.1.2", true},
		{"self.test", "5.4.6", true},
		{"broken.test", "4.4.3", false},
		{"[192.0.2.1]", "5.1.2", true},
		{"fixed.test", "4.4.3", false}, // our configuration, not the sender's fault
		{"fixedprivate.test", "4.4.3", false},
		{"fixedbroken.test", "4.4.3", false},
	}
	for _, tt := range tests {
		t.Run(tt.domain, func(t *testing.T) {
			s := handleOne(t, w, testJob("bob@"+tt.domain), &fakeMail{})
			if got := len(s.Notify) == 1; got != tt.bounced || s.Facts[0].Enhanced != tt.enhanced {
				t.Errorf("got bounced %v with %s (%s), want %v with %s", got, s.Facts[0].Enhanced, s.Facts[0].Text, tt.bounced, tt.enhanced)
			}
		})
	}
}

func TestFixedHostsInOrder(t *testing.T) {
	n := newFakeNet()
	n.refuse("192.0.2.1", 0)
	n.serve("relay.test", ok)
	hop, err := route.ParseNextHop("smtp:[192.0.2.1]:2525,smtp:[relay.test]:26")
	if err != nil {
		t.Fatal(err)
	}
	table, err := route.NewTable([]route.Route{{Match: "*", NextHop: hop, AllowPrivate: true}})
	if err != nil {
		t.Fatal(err)
	}
	w := workerWith(t, n, func(o *Options) {
		o.Routes, o.Resolver = table, mxtest.Records{Hosts: map[string][]string{"relay.test": {"10.1.2.3"}}}
	})
	s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
	if got, want := s.Facts[0].Peer, "relay.test[10.1.2.3]:26"; got != want {
		t.Errorf("got peer %s, want %s", got, want)
	}
	if got := s.Facts[0].Site; got != hop.String() {
		t.Errorf("got site %s, want %s", got, hop)
	}
	handleOne(t, w, testJob("bob@example.com"), &fakeMail{}) // another domain, the same site
	if got := n.dialled("relay.test"); got != 1 {
		t.Errorf("got %d dials, want the connection to be used again", got)
	}
}

func TestReplies(t *testing.T) {
	reply := func(code int, phase smtpc.Phase) func(context.Context, int, smtpc.Message) (smtpc.Result, error) {
		return func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
			r := smtpc.Reply{Code: code, Lines: []string{"said so"}, Phase: phase}
			res := every(m, smtpc.Reply{Code: 250, Phase: smtpc.PhaseDot})
			res.Recipients[0] = r
			return res, nil
		}
	}
	for _, tt := range []struct {
		code      int
		remaining int
		notified  int
	}{{250, 0, 0}, {450, 1, 0}, {550, 0, 1}, {552, 1, 0}} {
		n := newFakeNet()
		n.serve("mx.example.net", reply(tt.code, smtpc.PhaseRcpt))
		if tt.code == 250 {
			n.serve("mx.example.net", ok)
		}
		w := testWorker(t, n, "example.net")
		s := handleOne(t, w, testJob("bob@example.net", "carol@example.net"), &fakeMail{})
		if len(s.Remaining) != tt.remaining || len(s.Notify) != tt.notified {
			t.Errorf("%d: got %d remaining and %d notifications", tt.code, len(s.Remaining), len(s.Notify))
		}
		if tt.remaining > 0 && (s.Delay != time.Minute || !s.Tried || s.Reason == "") {
			t.Errorf("%d: got %+v", tt.code, s)
		}
	}
}

func TestNotification(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
		return every(m, smtpc.Reply{Code: 550, Enhanced: "5.1.1", Lines: []string{"unknown"}, Phase: smtpc.PhaseRcpt}), nil
	})
	w := testWorker(t, n, "example.net")
	job := testJob("carol@example.net", "bob@example.net", "dave@example.net")
	job.Recipients[2].Notify = []string{"NEVER"}
	s := handleOne(t, w, job, &fakeMail{})
	if len(s.Notify) != 1 || len(s.Remaining) != 0 {
		t.Fatalf("got %d notifications and %d remaining, want one for all", len(s.Notify), len(s.Remaining))
	}
	note := s.Notify[0]
	if want := "failed bob@example.net\nfailed carol@example.net"; note.Key != want {
		t.Errorf("got key %q, want %q", note.Key, want)
	}
	if e := note.Envelope; !e.ReversePath.IsNull() || len(e.Recipients) != 1 || e.Recipients[0].Path != job.ReversePath || e.Maker != job.ID || e.HeaderFrom != "example.org" {
		t.Errorf("got envelope %+v", e)
	}
	for _, want := range []string{"Final-Recipient: rfc822; bob@example.net", "Remote-MTA: dns; mx.example.net", "Diagnostic-Code: smtp; 550 5.1.1 unknown", "Good day."} {
		if !strings.Contains(string(note.Payload), want) {
			t.Errorf("%q is not in the notification", want)
		}
	}
	if strings.Contains(string(note.Payload), "dave") {
		t.Error("it reports on a recipient with NOTIFY=NEVER")
	}

	job.ReversePath = address.Path{}
	if s := handleOne(t, w, job, &fakeMail{}); len(s.Notify) != 0 || len(s.Remaining) != 0 || len(s.Facts) != 6 {
		t.Errorf("null reverse-path: got %+v", s)
	}
	if got := value(t, w.metrics.doubleBounces); got != 3 {
		t.Errorf("got %v double bounces, want 3", got)
	}
}

func TestDelayNotice(t *testing.T) {
	n := newFakeNet()
	n.refuse("mx.example.net", 0)
	w := testWorker(t, n, "example.net")
	job := testJob("bob@example.net")
	job.Accepted = time.Now().Add(-5 * time.Hour)
	s := handleOne(t, w, job, &fakeMail{})
	if len(s.Notify) != 1 || !s.Delayed || len(s.Remaining) != 1 || !strings.HasPrefix(s.Notify[0].Key, "delayed ") {
		t.Errorf("got %+v", s)
	}
	s = handleOne(t, w, job, &fakeMail{content: "Precedence: bulk\r\n" + testContent})
	if len(s.Notify) != 0 || !s.Delayed {
		t.Errorf("automatic mail: got %+v", s)
	}
}

func TestExpired(t *testing.T) {
	n := newFakeNet()
	n.refuse("mx.example.net", 0)
	w := testWorker(t, n, "example.net")
	job := testJob("bob@example.net")
	job.Accepted = time.Now().Add(-retry.DefaultMaxAge)
	s := handleOne(t, w, job, &fakeMail{})
	if len(s.Remaining) != 0 || len(s.Notify) != 1 || s.Facts[0].Type != queue.Expiration || !strings.Contains(string(s.Notify[0].Payload), "Status: 4.4.7") {
		t.Errorf("got %+v", s)
	}
}

// Once a peer has said 250 the worker does not give up.
// TestUnsignedIsNeverRelayed: what the signer gave up ends here with a notification, or goes back before its time.
func TestUnsignedIsNeverRelayed(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", ok)
	w := testWorker(t, n, "example.net")
	job := testJob("bob@example.net")
	job.Unsigned, job.Reason = true, "no DKIM key for example.org"
	if s := handleOne(t, w, job, &fakeMail{}); len(s.Remaining) != 1 || len(s.Notify) != 0 {
		t.Errorf("young: got %+v", s)
	}
	job.Accepted = time.Now().Add(-30 * 24 * time.Hour)
	if s := handleOne(t, w, job, &fakeMail{}); len(s.Remaining) != 0 || len(s.Notify) != 1 {
		t.Errorf("old: got %+v", s)
	}
	if n.dialled("mx.example.net") != 0 {
		t.Error("a host was dialled")
	}
}

func TestSettleIsRepeatedAfterAcceptance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet()
		n.serve("mx.example.net", ok)
		n.refuse("mx.example.com", 0)
		w := testWorker(t, n, "example.net", "example.com")
		fail := func(try int) error {
			if try <= 10 {
				return errors.New("no leader")
			}
			return nil
		}
		m := &fakeMail{settleErr: fail}
		w.handle(t.Context(), testJob("bob@example.net"), m)
		if m.only(t); m.tries != 11 {
			t.Errorf("got %d tries, want 11", m.tries)
		}
		m = &fakeMail{settleErr: fail}
		w.handle(t.Context(), testJob("bob@example.com"), m)
		if m.tries != 1 || len(m.settled) != 0 {
			t.Errorf("nothing was delivered: got %d tries, want 1", m.tries)
		}
	})
}

func TestInDoubtIsDeferred(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
		err := &smtpc.Error{Phase: smtpc.PhaseDot, Err: errors.New("connection reset"), InDoubt: true}
		res := every(m, err.Fate())
		res.InDoubt = true
		return res, err
	})
	w := testWorker(t, n, "example.net")
	s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
	if len(s.Remaining) != 1 || !s.Tried {
		t.Errorf("got %+v", s)
	}
	if got := value(t, w.metrics.inDoubt); got != 1 {
		t.Errorf("got %v in doubt, want 1", got)
	}
	w.pool.closing.Wait()
	if !n.conns[0].closed {
		t.Error("the connection was kept")
	}
}

func TestContentErrorIsNotThePeersFault(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
		err := &smtpc.Error{Phase: smtpc.PhaseBody, Err: smtpc.ErrBody}
		return every(m, err.Fate()), err
	})
	w := testWorker(t, n, "example.net")
	m := &fakeMail{}
	w.handle(t.Context(), testJob("bob@example.net"), m)
	if m.tries != 0 {
		t.Errorf("got %+v, want the job to be handed out again", m.settled)
	}
}

// Row E5-67: clear text where the handshake fails and no policy forbids it, and the failure is remembered.
func TestE5_67_TLSFallBack(t *testing.T) {
	n := newFakeNet()
	var modes []smtpc.TLSMode
	n.set("mx.example.net", func(_ context.Context, o smtpc.Options) (*fakeConn, error) {
		modes = append(modes, o.TLS)
		if o.TLS != smtpc.TLSNone {
			return nil, &smtpc.Error{Phase: smtpc.PhaseStartTLS, Err: fmt.Errorf("%w: bad certificate", smtpc.ErrTLSHandshake)}
		}
		return &fakeConn{answer: func(ctx context.Context, n int, m smtpc.Message) (smtpc.Result, error) {
			res, _ := ok(ctx, n, m)
			return res, errors.New("closed") // so that the next one dials
		}}, nil
	})
	w := testWorker(t, n, "example.net")
	for range 2 {
		if s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{}); s.Facts[0].Type != queue.Delivered {
			t.Fatalf("got %+v", s)
		}
	}
	if want := []smtpc.TLSMode{smtpc.TLSMay, smtpc.TLSNone, smtpc.TLSNone}; fmt.Sprint(modes) != fmt.Sprint(want) {
		t.Errorf("got modes %v, want %v: the failure is remembered", modes, want)
	}
	w.o.TLS = smtpc.TLSVerify
	for range deadAfter + 1 {
		if s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{}); len(s.Remaining) != 1 || s.Facts[0].Enhanced != "4.7.5" {
			t.Fatalf("verify: got %+v, want it deferred", s)
		}
	}
	if w.gate.deadSites() != 0 {
		t.Error("TLS that fails for those who want it made the site dead for all")
	}
}

// A host that allows five connections gets about five, and is not taken for dead.
func TestConnectionLimitOfThePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet()
		var mu sync.Mutex
		open := 0
		n.set("mx.example.net", func(context.Context, smtpc.Options) (*fakeConn, error) {
			mu.Lock()
			defer mu.Unlock()
			if open == 5 {
				return nil, &smtpc.Error{Phase: smtpc.PhaseGreeting, Reply: &smtpc.Reply{Code: 421, Lines: []string{"too many connections"}, Phase: smtpc.PhaseGreeting}}
			}
			open++
			onEnd := func() {
				mu.Lock()
				defer mu.Unlock()
				open--
			}
			return &fakeConn{onEnd: onEnd, answer: func(ctx context.Context, n int, m smtpc.Message) (smtpc.Result, error) {
				time.Sleep(100 * time.Millisecond)
				return ok(ctx, n, m)
			}}, nil
		})
		w := testWorker(t, n, "example.net")
		handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
		l := newLane(w, 250)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { l.run(ctx) })
		for range 2000 {
			l.ready <- testJob("bob@example.net")
		}
		time.Sleep(5 * time.Minute)
		if w.gate.deadSites() != 0 {
			t.Error("the site was taken for dead")
		}
		cancel()
		wg.Wait()
		w.pool.close()
		if got := len(l.done["example.net"]); got < 1950 { // 50 a second; who meets the limit twice is put off by the schedule
			t.Errorf("%d of 2000 were delivered in five minutes", got)
		}
		if got := n.dialled("mx.example.net"); got > 200 {
			t.Errorf("got %d dials", got)
		}
	})
}

func TestE4_61_ConnectionReuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newFakeNet()
		n.serve("mx.example.net", ok)
		w := testWorker(t, n, "example.net")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { w.pool.reap(ctx) })
		deliver := func(want int) {
			t.Helper()
			handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
			if got := n.dialled("mx.example.net"); got != want {
				t.Fatalf("got %d dials, want %d", got, want)
			}
		}
		for range DefaultConnectionMessages {
			deliver(1)
		}
		deliver(2)
		time.Sleep(maxConnIdle - time.Second)
		deliver(2)
		time.Sleep(maxConnIdle + reapInterval)
		synctest.Wait()
		if w.pool.count != 0 || !n.conns[1].closed {
			t.Error("an idle connection was not closed")
		}
		for range 5 { // busy, but too old in the end
			deliver(3)
			time.Sleep(maxConnIdle - time.Second)
		}
		time.Sleep(time.Second)
		handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
		time.Sleep(reapInterval)
		deliver(4)
		cancel()
		wg.Wait()
		w.pool.close()
	})
}

func TestStaleConnectionIsNoFailure(t *testing.T) {
	n := newFakeNet()
	n.set("mx.example.net", func(context.Context, smtpc.Options) (*fakeConn, error) {
		return &fakeConn{answer: func(ctx context.Context, n int, m smtpc.Message) (smtpc.Result, error) {
			if n == 1 {
				return ok(ctx, n, m)
			}
			err := &smtpc.Error{Phase: smtpc.PhaseMail, Err: smtpc.ErrStale}
			return every(m, err.Fate()), err
		}}, nil
	})
	w := testWorker(t, n, "example.net")
	handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
	m := &fakeMail{}
	if s := handleOne(t, w, testJob("bob@example.net"), m); len(s.Remaining) != 0 {
		t.Errorf("got %+v", s)
	}
	if got := n.dialled("mx.example.net"); got != 2 || m.opens != 2 {
		t.Errorf("got %d dials and %d times the content, want 2 and 2", got, m.opens)
	}
}

func TestPanicDropsOneJob(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", func(context.Context, int, smtpc.Message) (smtpc.Result, error) { panic("bug") })
	w := testWorker(t, n, "example.net")
	m := &fakeMail{}
	w.handle(t.Context(), testJob("bob@example.net"), m)
	if m.tries != 0 || value(t, w.metrics.panics) != 1 {
		t.Errorf("got %d settlements", m.tries)
	}
	w.pool.closing.Wait()
	if len(w.gate.sites) != 0 {
		t.Error("its place at the site was not given back")
	}
}

func TestOptions(t *testing.T) {
	_, err := New(Options{Hostname: "not a host", Retry: retry.Policy{Schedule: retry.List(time.Second)}, Window: -1})
	for _, want := range []string{"no queue", "no resolver", "host name", "retry schedule", "above zero"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to say %q", err, want)
		}
	}
	reg := prometheus.NewRegistry()
	o := Options{Queue: fakeQueue{}, Hostname: "Relay.Example.ORG", Resolver: mxtest.Records{}, Registerer: reg}
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if w.o.Domain != "relay.example.org" || w.o.Window != DefaultWindow || w.o.Retry.MaxAge != retry.DefaultMaxAge {
		t.Errorf("got %+v", w.o)
	}
	if _, err := New(o); err == nil {
		t.Error("metrics registered twice without an error")
	}
}
