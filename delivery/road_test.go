package delivery

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"postroad/delivery/mx/mxtest"
	"postroad/delivery/route"
	"postroad/queue"
	"postroad/queue/address"
	"postroad/queue/embedded"
)

// peer is a mail server on loopback. A local part that starts with three digits gets them as its reply to RCPT; one that
// starts with "drop" has the connection closed behind its dot, once.
type peer struct {
	l  net.Listener
	wg sync.WaitGroup

	mu          sync.Mutex
	open        map[net.Conn]bool
	connections int
	got         map[string][]string // contents by recipient
	dropped     bool
}

func startPeer(t *testing.T) *peer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{l: l, got: make(map[string][]string), open: make(map[net.Conn]bool)}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.open[c] = true
			p.connections++
			p.mu.Unlock()
			p.wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		for c := range p.open {
			c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *peer) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	say := func(s string) { fmt.Fprintf(c, "%s\r\n", s) }
	say("220 peer.test ESMTP")
	var rcpts []string
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(line)), " ")
		switch verb {
		case "EHLO":
			say("250-peer.test\r\n250-PIPELINING\r\n250 8BITMIME")
		case "MAIL", "RSET":
			rcpts = nil
			say("250 2.0.0 ok")
		case "RCPT":
			rcpt := line[strings.Index(line, "<")+1 : strings.Index(line, ">")]
			if rcpt[0] >= '4' && rcpt[0] <= '5' {
				say(rcpt[:3] + " " + rcpt[:1] + ".1.1 not this one")
				continue
			}
			rcpts = append(rcpts, rcpt)
			say("250 2.1.5 ok")
		case "DATA":
			if len(rcpts) == 0 {
				say("554 5.5.1 nobody to send to")
				continue
			}
			say("354 go on")
			if !p.take(r, rcpts) {
				return
			}
			say("250 2.0.0 taken")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("500 what?")
		}
	}
}

// take reads a content. It reports false when the connection is to be dropped.
func (p *peer) take(r *bufio.Reader, rcpts []string) bool {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			break
		}
		b.WriteString(strings.TrimPrefix(line, "."))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if strings.HasPrefix(rcpts[0], "drop") && !p.dropped {
		p.dropped = true
		return false
	}
	for _, rcpt := range rcpts {
		p.got[rcpt] = append(p.got[rcpt], b.String())
	}
	return true
}

func (p *peer) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.connections
}

func (p *peer) contents(rcpt string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.got[rcpt]
}

// testRoad is a queue on an embedded server, a signer that signs nothing, and a worker whose only route is to the peer.
func testRoad(t *testing.T, p *peer) *queue.Queue {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), MaxBytes: queue.StoreBytes(64 << 20), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	q, err := queue.Open(t.Context(), queue.Options{Connect: s.Connect, Node: "test", MaxBytes: 64 << 20, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := q.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	hop, err := route.ParseNextHop(fmt.Sprintf("smtp:[127.0.0.1]:%d", p.l.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	table, err := route.NewTable([]route.Route{{Match: "*", NextHop: hop}})
	if err != nil {
		t.Fatal(err)
	}
	o := DefaultOptions()
	o.Queue, o.Hostname, o.Domain, o.Routes, o.Resolver, o.Logger = q, "relay.example.org", "example.org", table, mxtest.Records{}, log
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	w.Start()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = q.Sign(ctx, 8, func(ctx context.Context, s *queue.Signing) { _ = s.Signed(ctx, "DKIM-Signature: none\r\n") })
	})
	t.Cleanup(func() {
		if err := w.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		cancel()
		wg.Wait()
	})
	return q
}

func accept(t *testing.T, q *queue.Queue, sender address.Path, rcpts ...string) queue.MessageID {
	t.Helper()
	env := queue.Envelope{ReversePath: sender, Accepted: time.Now()}
	for _, r := range rcpts {
		env.Recipients = append(env.Recipients, queue.Recipient{Path: path(r)})
	}
	id := q.NewID()
	if err := q.Accept(t.Context(), id, env, strings.NewReader(testContent)); err != nil {
		t.Fatal(err)
	}
	return id
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// jobs lists what is in the queue.
func jobs(t *testing.T, q *queue.Queue) []queue.Entry {
	t.Helper()
	var entries []queue.Entry
	for e, err := range q.List(t.Context(), queue.Selection{}, 0) {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	return entries
}

// The real queue, the real client, a peer over TCP: delivered, deferred, bounced, and the sender told.
func TestRoad(t *testing.T) {
	p := startPeer(t)
	q := testRoad(t, p)
	for i := range 20 {
		accept(t, q, path("alice@example.org"), fmt.Sprintf("bob%d@example.net", i))
	}
	accept(t, q, path("alice@example.org"), "carol@example.com", "550no@example.com", "450later@example.com", "dave@example.com")

	eventually(t, "20 mails", func() bool {
		for i := range 20 {
			if len(p.contents(fmt.Sprintf("bob%d@example.net", i))) != 1 {
				return false
			}
		}
		return true
	})
	if got, want := p.contents("bob3@example.net")[0], "DKIM-Signature: none\r\n"+testContent; got != want {
		t.Errorf("got content %q, want %q", got, want)
	}
	eventually(t, "the notification", func() bool { return len(p.contents("alice@example.org")) == 1 })
	note := p.contents("alice@example.org")[0]
	for _, want := range []string{"Final-Recipient: rfc822; 550no@example.com", "Status: 5.1.1", "Remote-MTA: dns; 127.0.0.1", "Good day."} {
		if !strings.Contains(note, want) {
			t.Errorf("%q is not in the notification:\n%s", want, note)
		}
	}
	if strings.Contains(note, "Final-Recipient: rfc822; 450") || strings.Contains(note, "carol@") {
		t.Errorf("the notification says too much:\n%s", note)
	}
	eventually(t, "one job to wait", func() bool {
		list := jobs(t, q)
		return len(list) == 1 && list[0].Place == queue.PlaceLater
	})
	e := jobs(t, q)[0]
	if j := e.Job; len(j.Recipients) != 1 || j.Recipients[0].Path.Local != "450later" || j.Tries != 1 || e.Class != "1m" || !strings.Contains(j.Reason, "450 4.1.1 not this one") {
		t.Errorf("got waiting job %+v in %s", j, e.Class)
	}
	if got := len(p.contents("carol@example.com")); got != 1 {
		t.Errorf("carol got it %d times", got)
	}
	if n := p.count(); n > 20 {
		t.Errorf("%d connections for 22 mails", n)
	}
}

// A message of the null reverse-path that fails ends quietly.
func TestDoubleBounceEnds(t *testing.T) {
	p := startPeer(t)
	q := testRoad(t, p)
	id := accept(t, q, address.Path{}, "550no@example.com")
	var types []queue.EventType
	eventually(t, "the end", func() bool {
		types = nil
		for e, err := range q.Trace(t.Context(), queue.TraceFilter{ID: id}) {
			if err != nil {
				t.Fatal(err)
			}
			types = append(types, e.Type)
		}
		return len(types) > 0 && types[len(types)-1] == queue.Finished
	})
	if len(jobs(t, q)) != 0 || len(p.contents("550no@example.com")) != 0 {
		t.Errorf("got events %v, jobs %v", types, jobs(t, q))
	}
	if !strings.Contains(fmt.Sprint(types), string(queue.Bounce)) {
		t.Errorf("got events %v, want a bounce", types)
	}
}

// A connection that is lost behind the dot leaves the mail in doubt: it is sent again.
func TestLostBehindTheDot(t *testing.T) {
	p := startPeer(t)
	q := testRoad(t, p)
	id := accept(t, q, path("alice@example.org"), "drop@example.com")
	eventually(t, "the deferral", func() bool {
		list := jobs(t, q)
		return len(list) == 1 && list[0].Place == queue.PlaceLater
	})
	if n, err := q.Retry(t.Context(), queue.Selection{ID: id}); err != nil || n != 1 {
		t.Fatalf("retry: %d, %v", n, err)
	}
	eventually(t, "the second try", func() bool { return len(p.contents("drop@example.com")) == 1 && len(jobs(t, q)) == 0 })
}
