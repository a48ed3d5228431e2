package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// points are the moments at which a client can stall or vanish: what it has
// sent until then, and how many replies it has to read first.
var points = []struct {
	name, sent string
	replies    int
	kept       int // messages that count as accepted
	tls        bool
}{
	{name: "connected"},
	{name: "half a command", sent: "EHL"},
	{name: "greeted", sent: "EHLO c\r\n", replies: 1},
	{name: "sender", sent: "EHLO c\r\nMAIL FROM:<a@b>\r\n", replies: 2},
	{name: "recipient", sent: "EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n", replies: 3},
	{name: "data", sent: toData, replies: 4},
	{name: "half a header", sent: toData + "Subject: x", replies: 4},
	{name: "header", sent: toData + "Subject: x\r\n\r\n", replies: 4},
	{name: "half a body", sent: toData + "Subject: x\r\n\r\nhalf", replies: 4},
	{name: "CR", sent: toData + "Subject: x\r\n\r\nhalf\r", replies: 4},
	{name: "dot", sent: toData + "Subject: x\r\n\r\nhalf\r\n.", replies: 4},
	{name: "dot CR", sent: toData + "Subject: x\r\n\r\nhalf\r\n.\r", replies: 4},
	{name: "end", sent: toData + "Subject: x\r\n\r\nall\r\n.\r\n", replies: 4, kept: 1},
	{name: "chunk announced", sent: toBdat + "BDAT 100 LAST\r\n", replies: 3},
	{name: "half a chunk", sent: toBdat + "BDAT 100 LAST\r\nSubject: x\r\n\r\nhalf\r\n", replies: 3},
	{name: "between chunks", sent: toBdat + "BDAT 20\r\nSubject: x\r\n\r\nhalf\r\n", replies: 4},
	{name: "last chunk", sent: toBdat + "BDAT 20 LAST\r\nSubject: x\r\n\r\nhalf\r\n", replies: 3, kept: 1},
	{name: "handshake", sent: "EHLO c\r\nSTARTTLS\r\n", replies: 2, tls: true},
	{name: "half a handshake", sent: "EHLO c\r\nSTARTTLS\r\n\x16\x03\x01", replies: 1, tls: true},
}

const (
	toBdat = "EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
	toData = toBdat + "DATA\r\n"
)

// sayInTurn sends a point's text so that nothing stands behind EHLO, DATA or
// STARTTLS before its reply.
func sayInTurn(c *client, sent string, replies int) {
	c.t.Helper()
	hello, rest, hasHello := strings.Cut(sent, "EHLO c\r\n")
	if hasHello && hello == "" && rest != "" {
		c.say("EHLO c\r\n")
		c.hear("250")
		sent, replies = rest, replies-1
	}
	for _, word := range []string{"DATA\r\n", "STARTTLS\r\n"} {
		if head, tail, hasWord := strings.Cut(sent, word); hasWord && tail != "" && !strings.HasPrefix(tail, "\x16") {
			c.say(head + word)
			for range replies {
				c.hear("")
			}
			c.say(tail)
			return
		}
	}
	c.say(sent)
	for range replies {
		c.hear("")
	}
}

func TestClientVanishes(t *testing.T) {
	for _, reset := range []bool{false, true} {
		for _, p := range points {
			name := p.name + ", closes"
			if reset {
				name = p.name + ", resets"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				q := &fakeQueue{}
				o := testOptions(q)
				if p.tls {
					o.Listeners[0].TLS = testTLS()
				}
				s := startServer(t, o)
				c := dial(t, s.Addrs()[0].String())
				c.hear("220")
				sayInTurn(c, p.sent, p.replies)
				if p.kept > 0 {
					// The reply gets lost, the message does not.
					waitFor(t, "the message", func() bool { return len(q.all()) == p.kept })
				}
				if reset {
					if err := c.conn.(*net.TCPConn).SetLinger(0); err != nil {
						t.Fatal(err)
					}
				}
				_ = c.conn.Close()
				waitFor(t, "the connection to end", func() bool {
					s.mu.Lock()
					defer s.mu.Unlock()
					return len(s.conns) == 0 && len(s.addresses) == 0
				})
				stopServer(t, s)
				if got := len(q.all()); got != p.kept {
					t.Errorf("got %d messages, want %d", got, p.kept)
				}
			})
		}
	}
}

func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// pipeListener hands out ends of net.Pipe that claim to come from the loopback.
type pipeListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

type pipeConn struct{ net.Conn }

func (pipeConn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// dial makes a connection whose client end reads in the background, as a
// socket's buffer would, until it is told not to.
func (l *pipeListener) dial() net.Conn {
	ours, theirs := net.Pipe()
	l.conns <- pipeConn{theirs}
	return ours
}

// TestClientStalls lets a client fall silent at every point, in fake time: it
// must be gone after the idle timeout, and nothing may be kept.
func TestClientStalls(t *testing.T) {
	config := testTLS()
	for _, p := range points {
		t.Run(p.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &fakeQueue{}
				o := testOptions(q)
				o.IdleTimeout = 0 // the default: 5 min
				if p.tls {
					o.Listeners[0].TLS = config
				}
				l := newPipeListener()
				s := ownListener(t, o, l)
				conn := l.dial()
				defer func() { _ = conn.Close() }()
				heard := make(chan string, 1)
				go func() {
					all, _ := io.ReadAll(conn)
					heard <- string(all)
				}()
				start := time.Now()
				for _, line := range strings.SplitAfter(p.sent, "\n") {
					_, _ = io.WriteString(conn, line)
					synctest.Wait()
				}
				var all string
				select {
				case all = <-heard:
				case <-time.After(6 * time.Minute):
					t.Fatal("still connected after 6 minutes")
				}
				if took := time.Since(start); !p.tls && took < 5*time.Minute {
					t.Errorf("hung up after %v, want 5 minutes (RFC 5321 §4.5.3.2.7)", took)
				}
				if !p.tls && !strings.Contains(all, " 4.4.2 ") {
					t.Errorf("got %q, want 4.4.2 at the end", all)
				}
				if got := len(q.all()); got != p.kept {
					t.Errorf("got %d messages, want %d", got, p.kept)
				}
				stopServer(t, s)
			})
		})
	}
}

func TestClientDoesNotReadReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newPipeListener()
		s := ownListener(t, testOptions(&fakeQueue{}), l)
		conn := l.dial()
		defer func() { _ = conn.Close() }()
		time.Sleep(61 * time.Second) // the banner is not taken
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("got %v, want EOF after the write timeout", err)
		}
		stopServer(t, s)
	})
}

func TestTricklingCommandIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := testOptions(&fakeQueue{})
		o.IdleTimeout = time.Minute
		l := newPipeListener()
		s := ownListener(t, o, l)
		conn := l.dial()
		defer func() { _ = conn.Close() }()
		go func() { _, _ = io.Copy(io.Discard, conn) }()
		start := time.Now()
		for {
			if _, err := conn.Write([]byte("x")); err != nil {
				break
			}
			time.Sleep(10 * time.Second)
		}
		if took := time.Since(start); took > 2*time.Minute {
			t.Errorf("an octet every 10 s kept the connection for %v", took)
		}
		stopServer(t, s)
	})
}

func TestStopLetsTransactionsEnd(t *testing.T) {
	q := &fakeQueue{}
	s := startServer(t, testOptions(q))
	idle, open, sending := dial(t, s.Addrs()[0].String()), dial(t, s.Addrs()[0].String()), dial(t, s.Addrs()[0].String())
	idle.hear("220")
	open.hear("220")
	open.talk("EHLO c", "250", "MAIL FROM:<a@b>", "250")
	sending.begin()
	sending.say("Subject: x\r\n")

	stopped := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		stopped <- s.Stop(ctx)
	}()
	idle.hear("421 4.3.2")
	idle.closed()
	if _, err := net.Dial("tcp", s.Addrs()[0].String()); err == nil {
		t.Error("new connections are still taken")
	}
	sending.say("\r\nbody\r\n.\r\n")
	sending.hear("250 2.0.0 queued")
	sending.hear("421 4.3.2")
	sending.closed()
	open.talk("RCPT TO:<c@d>", "250", "DATA", "354", ".", "250", "NOOP", "421 4.3.2")
	open.closed()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if got := len(q.all()); got != 2 {
		t.Errorf("got %d messages, want 2", got)
	}
	stopServer(t, s) // again: nothing to do
}

func TestStopIsBounded(t *testing.T) {
	tests := []struct {
		name, sent string
		replies    int
		want       string
	}{
		{"idle transaction", "EHLO c\r\nMAIL FROM:<a@b>\r\n", 2, "421 4.3.2"},
		{"half a body", toData + "Subject: x\r\n\r\nhalf\r\n", 4, "421 4.3.2"},
		{"half a chunk", toBdat + "BDAT 100 LAST\r\nSubject: x\r\n\r\nhalf\r\n", 3, "421 4.3.2"},
		{"between chunks", toBdat + "BDAT 20\r\nSubject: x\r\n\r\nhalf\r\n", 4, "421 4.3.2"},
		{"queue hangs", toData + "Subject: x\r\n\r\nall\r\n.\r\n", 4, "451 4.3.0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &fakeQueue{}
				if tt.name == "queue hangs" {
					q.accept = func(ctx context.Context, _ io.Reader) error {
						<-ctx.Done()
						return ctx.Err()
					}
				}
				l := newPipeListener()
				s := ownListener(t, testOptions(q), l)
				c := piped(t, l)
				c.hear("220")
				sayInTurn(c, tt.sent, tt.replies)
				synctest.Wait() // it has read all
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				start := time.Now()
				stopped := make(chan error, 1)
				go func() { stopped <- s.Stop(ctx) }()
				c.hear(tt.want)
				if err := <-stopped; !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
				}
				if took := time.Since(start); took > 3*time.Second {
					t.Errorf("stop took %v", took)
				}
				if got := len(q.all()); got != 0 {
					t.Errorf("got %d messages, want none", got)
				}
				// The test's own stop would report the same error again.
				s.stopErr = nil
			})
		})
	}
}

func TestTLSSessionsStop(t *testing.T) {
	o := testOptions(&fakeQueue{})
	o.Listeners[0].TLS, o.Listeners[0].Implicit = testTLS(), true
	s := startServer(t, o)
	raw := dial(t, s.Addrs()[0].String())
	secure := tls.Client(raw.conn, &tls.Config{InsecureSkipVerify: true})
	c := &client{t: t, conn: secure, r: newReader(secure)}
	c.hear("220")
	silent := dial(t, s.Addrs()[0].String()) // never makes its handshake
	waitFor(t, "both connections", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.conns) == 2
	})
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() { _ = s.Stop(ctx); close(stopped) }()
	c.hear("421 4.3.2")
	cancel() // cuts the silent one off
	<-stopped
	s.stopErr = nil
	if got, err := silent.reply(30 * time.Second); !isEnd(err) {
		t.Errorf("got %q, %v, want the end", got, err)
	}
}
