package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
	"postroad/delivery/route"
	"postroad/delivery/smtpc"
	"postroad/queue"
)

// picky is a host that takes so many recipients in a transaction and says 452 to further ones; it notes who got the message.
func picky(most int, taken *[]int) func(context.Context, int, smtpc.Message) (smtpc.Result, error) {
	return func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
		res := every(m, smtpc.Reply{Code: 250, Phase: smtpc.PhaseDot})
		for i := range res.Recipients {
			if i >= most {
				res.Recipients[i] = smtpc.Reply{Code: 452, Enhanced: "4.5.3", Phase: smtpc.PhaseRcpt}
			}
		}
		*taken = append(*taken, min(most, len(m.Recipients)))
		return res, nil
	}
}

func crowd(n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("r%d@example.net", i))
	}
	return list
}

func TestE4_57_65_RecipientsOverSeveralTransactions(t *testing.T) {
	later := smtpc.Reply{Code: 451, Phase: smtpc.PhaseMail}
	for _, tt := range []struct {
		name      string
		limits    smtpc.Limits
		answer    func(taken *[]int) func(context.Context, int, smtpc.Message) (smtpc.Result, error)
		taken     []int
		remaining int
		opens     int
		delay     time.Duration // 0: any
	}{
		{name: "E4-65 RCPTMAX", limits: smtpc.Limits{Recipients: 2},
			answer: func(n *[]int) func(context.Context, int, smtpc.Message) (smtpc.Result, error) { return picky(2, n) }, taken: []int{2, 2, 1}, opens: 3},
		{name: "E4-65 RCPTMAX and MAILMAX", limits: smtpc.Limits{Recipients: 2, Messages: 2},
			answer: func(n *[]int) func(context.Context, int, smtpc.Message) (smtpc.Result, error) { return picky(2, n) }, taken: []int{2, 2}, remaining: 1, opens: 2, delay: restDelay},
		{name: "E4-57 452 beyond two",
			answer: func(n *[]int) func(context.Context, int, smtpc.Message) (smtpc.Result, error) { return picky(2, n) }, taken: []int{2, 2, 1}, opens: 3},
		{name: "E4-57 452 to everybody is no matter of their number",
			answer: func(n *[]int) func(context.Context, int, smtpc.Message) (smtpc.Result, error) { return picky(0, n) }, taken: []int{0}, remaining: 5, opens: 1},
		{name: "E4-58 MAIL refused for now", limits: smtpc.Limits{Recipients: 2},
			answer: func(n *[]int) func(context.Context, int, smtpc.Message) (smtpc.Result, error) {
				return func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
					*n = append(*n, len(m.Recipients))
					return every(m, later), nil
				}
			}, taken: []int{2}, remaining: 5, opens: 1},
		{name: "E4-59 421 in the second transaction", limits: smtpc.Limits{Recipients: 2},
			answer: func(n *[]int) func(context.Context, int, smtpc.Message) (smtpc.Result, error) {
				return func(ctx context.Context, i int, m smtpc.Message) (smtpc.Result, error) {
					if i == 1 {
						return picky(2, n)(ctx, i, m)
					}
					r := smtpc.Reply{Code: 421, Phase: smtpc.PhaseMail}
					return every(m, r), &smtpc.Error{Phase: smtpc.PhaseMail, Reply: &r}
				}
			}, taken: []int{2}, remaining: 3, opens: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, taken := newFakeNet(), []int{}
			n.set("mx.example.net", func(context.Context, smtpc.Options) (*fakeConn, error) {
				return &fakeConn{limits: tt.limits, answer: tt.answer(&taken)}, nil
			})
			w, m := testWorker(t, n, "example.net"), &fakeMail{}
			s := handleOne(t, w, testJob(crowd(5)...), m)
			if len(s.Remaining) != tt.remaining || !slices.Equal(taken, tt.taken) || m.opens != tt.opens {
				t.Errorf("got %d remaining, transactions %v, the content %d times; want %d, %v, %d", len(s.Remaining), taken, m.opens, tt.remaining, tt.taken, tt.opens)
			}
			if tt.delay > 0 && s.Delay != tt.delay {
				t.Errorf("got delay %v, want %v", s.Delay, tt.delay)
			}
			if n.dialled("mx.example.net") != 1 {
				t.Errorf("got %d connections", n.dialled("mx.example.net"))
			}
		})
	}
}

func TestE4_65_ReuseEndsAtMailMax(t *testing.T) {
	n := newFakeNet()
	n.set("mx.example.net", func(context.Context, smtpc.Options) (*fakeConn, error) {
		return &fakeConn{limits: smtpc.Limits{Messages: 3}, answer: ok}, nil
	})
	w := testWorker(t, n, "example.net")
	for range 7 {
		handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
	}
	if got := n.dialled("mx.example.net"); got != 3 {
		t.Errorf("got %d connections for 7 messages, want 3", got)
	}
}

// What differs in source (address and name), TLS, login or REQUIRETLS has connections of its own; what does not shares them.
func TestE4_61_KeyOfReuse(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", ok)
	w := testWorker(t, n, "example.net")
	base := poolKey{site: "mx.example.net", source: "out1"}
	keys := []poolKey{base}
	for _, change := range []func(*poolKey){
		func(k *poolKey) { k.site = "mx.example.com" },
		func(k *poolKey) { k.hosts = hostsKey([]target{{host: "mx.example.com"}}) },
		func(k *poolKey) { k.source = "" },
		func(k *poolKey) { k.tls = smtpc.TLSVerify },
		func(k *poolKey) { k.policy = "example.net sts" },
		func(k *poolKey) { k.login = "smarthost" },
		func(k *poolKey) { k.requireTLS = true },
	} {
		k := base
		change(&k)
		keys = append(keys, k)
	}
	for _, k := range keys {
		w.metrics.open.Inc()
		w.pool.put(&pooled{conn: &fakeConn{answer: ok}, key: k, opened: time.Now(), messages: 2}, nil)
	}
	for _, k := range keys {
		c := w.pool.take(k)
		if c == nil || c.key != k {
			t.Fatalf("key %+v: got %+v", k, c)
		}
		if again := w.pool.take(k); again != nil {
			t.Errorf("key %+v: got another's connection %+v", k, again.key)
		}
		w.pool.discard(c, nil)
	}
}

// A connection is kept only after a clean end, and not past its count or its age.
func TestE4_61_WhatIsKept(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name  string
		conn  *fakeConn
		age   time.Duration
		keeps bool
	}{
		{"clean", &fakeConn{n: 1}, 0, true},
		{"broken", &fakeConn{n: 1, broken: true}, 0, false},
		{"its count", &fakeConn{n: 5}, 0, false},
		{"the host's count", &fakeConn{n: 2, limits: smtpc.Limits{Messages: 2}}, 0, false},
		{"a host's count above ours", &fakeConn{n: 4, limits: smtpc.Limits{Messages: 9}}, 0, true},
		{"its age", &fakeConn{n: 1}, maxConnAge, false},
	} {
		t.Run("E4-61 "+tt.name, func(t *testing.T) {
			w := testWorker(t, newFakeNet())
			w.metrics.open.Inc()
			w.pool.put(&pooled{conn: tt.conn, opened: now.Add(-tt.age), messages: 5}, nil)
			if got := w.pool.count == 1; got != tt.keeps {
				t.Errorf("got kept %v, want %v", got, tt.keeps)
			}
		})
	}
}

// One host that takes no mail says nothing of the others; when all say so it is final (RFC 7504 §4).
func TestE4_54_Greetings(t *testing.T) {
	greeting := func(code int) func(context.Context, smtpc.Options) (*fakeConn, error) {
		return func(context.Context, smtpc.Options) (*fakeConn, error) {
			r := smtpc.Reply{Code: code, Lines: []string{"no"}, Phase: smtpc.PhaseGreeting}
			return nil, &smtpc.Error{Phase: smtpc.PhaseGreeting, Reply: &r}
		}
	}
	refused := func(context.Context, smtpc.Options) (*fakeConn, error) {
		return nil, &smtpc.Error{Phase: smtpc.PhaseConnect, Err: errors.New("connection refused")}
	}
	taking := func(context.Context, smtpc.Options) (*fakeConn, error) { return &fakeConn{answer: ok}, nil }
	for _, tt := range []struct {
		name   string
		hosts  [2]func(context.Context, smtpc.Options) (*fakeConn, error)
		fate   queue.EventType
		dialed int // hosts asked
	}{
		{"554, then the next", [2]func(context.Context, smtpc.Options) (*fakeConn, error){greeting(554), taking}, queue.Delivered, 2},
		{"521, then the next", [2]func(context.Context, smtpc.Options) (*fakeConn, error){greeting(521), taking}, queue.Delivered, 2},
		{"554 of all", [2]func(context.Context, smtpc.Options) (*fakeConn, error){greeting(554), greeting(554)}, queue.TransientFailure, 2},
		{"521 and 556", [2]func(context.Context, smtpc.Options) (*fakeConn, error){greeting(521), greeting(556)}, queue.Bounce, 2},
		{"521 and 554", [2]func(context.Context, smtpc.Options) (*fakeConn, error){greeting(521), greeting(554)}, queue.TransientFailure, 2},
		{"521 and not reached", [2]func(context.Context, smtpc.Options) (*fakeConn, error){greeting(521), refused}, queue.TransientFailure, 2},
		{"421 and 521", [2]func(context.Context, smtpc.Options) (*fakeConn, error){greeting(421), greeting(521)}, queue.TransientFailure, 2},
	} {
		t.Run("E4-54 "+tt.name, func(t *testing.T) {
			n := newFakeNet()
			n.set("mx1.example.net", tt.hosts[0])
			n.set("mx2.example.net", tt.hosts[1])
			w := workerWith(t, n, func(o *Options) {
				o.Resolver = mxtest.Records{
					MX:    map[string][]mx.MX{"example.net": {{Host: "mx1.example.net", Preference: 1}, {Host: "mx2.example.net", Preference: 2}}},
					Hosts: map[string][]string{"mx1.example.net": {"198.51.100.1"}, "mx2.example.net": {"198.51.100.2"}},
				}
			})
			s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
			if len(s.Facts) != 1 || s.Facts[0].Type != tt.fate {
				t.Errorf("got %+v, want %s", s.Facts, tt.fate)
			}
			if got := n.dialled("mx1.example.net") + n.dialled("mx2.example.net"); got != tt.dialed {
				t.Errorf("got %d dials", got)
			}
		})
	}
}

// The facts tell what is in doubt, recipient by recipient (RFC 1047).
func TestE4_60_InDoubtIsTold(t *testing.T) {
	n := newFakeNet()
	n.serve("mx.example.net", func(_ context.Context, _ int, m smtpc.Message) (smtpc.Result, error) {
		err := &smtpc.Error{Phase: smtpc.PhaseDot, Err: errors.New("connection reset"), InDoubt: true}
		res := every(m, err.Fate())
		res.InDoubt = true
		res.Recipients[0].InDoubt = true
		res.Recipients[1] = smtpc.Reply{Code: 550, Phase: smtpc.PhaseRcpt}
		return res, err
	})
	s := handleOne(t, testWorker(t, n, "example.net"), testJob("a@example.net", "b@example.net"), &fakeMail{})
	if len(s.Facts) != 2 || !s.Facts[0].InDoubt || s.Facts[1].InDoubt {
		t.Errorf("got %+v", s.Facts)
	}
	if len(s.Remaining) != 1 || s.Delay < minDelay {
		t.Errorf("got %d remaining, delay %v", len(s.Remaining), s.Delay)
	}
}

// A host that offers CHUNKING and does not know BDAT is asked for it once.
func TestE4_56_BrokenChunking(t *testing.T) {
	n := newFakeNet()
	var chunking []bool
	n.set("mx.example.net", func(_ context.Context, o smtpc.Options) (*fakeConn, error) {
		chunking = append(chunking, o.Chunking)
		return &fakeConn{answer: func(ctx context.Context, i int, m smtpc.Message) (smtpc.Result, error) {
			if !o.Chunking {
				return ok(ctx, i, m)
			}
			err := &smtpc.Error{Phase: smtpc.PhaseDot, Err: errors.Join(smtpc.ErrChunking, smtpc.ErrProtocol)}
			return every(m, err.Fate()), err
		}}, nil
	})
	w := testWorker(t, n, "example.net")
	if s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{}); len(s.Remaining) != 1 {
		t.Errorf("first: got %+v", s)
	}
	if s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{}); len(s.Remaining) != 0 {
		t.Errorf("second: got %+v", s)
	}
	w = workerWith(t, n, func(o *Options) { o.Resolver, o.NoChunking = w.o.Resolver, true })
	handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
	if !slices.Equal(chunking, []bool{true, false, false}) {
		t.Errorf("got chunking %v: want it once, and not where it is turned off", chunking)
	}
}

// TestLoginThatStillServes: who tries a refused login again may do so on a connection that was made before. It serves, so the others need not wait.
func TestLoginThatStillServes(t *testing.T) {
	ca := newAuthority(t)
	h := startSmartHost(t, ca, false, "relay:pw")
	w := loginWorker(t, ca, h, &secretsOf{user: "relay", pass: "pw"}, smtpc.TLSVerify, route.Route{Auth: "provider"})
	a := w.newAttempt(testJob("bob@example.net"), &fakeMail{})
	if isReady, err := a.prove(t.Context()); !isReady {
		t.Fatal(err)
	}
	for i := range 3 {
		if d := handleOne(t, w, testJob("bob@example.net"), &fakeMail{}); len(d.Remaining) > 0 {
			t.Errorf("mail %d: got %q", i, d.Reason)
		}
		if i == 0 { // another connection was refused, and the time for which that is remembered is over
			w.refusedLogins.list = map[string]refusedOne{a.loginKey(): {pause: firstRefusal, said: "535 no"}}
		}
	}
	if connections, _, _ := h.seen(); connections != 1 {
		t.Errorf("got %d connections, want one that serves all", connections)
	}
}
