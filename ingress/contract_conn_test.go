package ingress

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"postroad/queue"
	"postroad/queue/address"
)

// countingListener counts the writes of its connections.
type countingListener struct {
	net.Listener
	writes atomic.Int64
}

type countingConn struct {
	net.Conn
	l *countingListener
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return countingConn{c, l}, err
}

func (c countingConn) Write(p []byte) (int, error) {
	c.l.writes.Add(1)
	return c.Conn.Write(p)
}

func TestS13OneWritePerBurst(t *testing.T) {
	listen := func(t *testing.T) *countingListener {
		socket, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return &countingListener{Listener: socket}
	}
	burst := func(t *testing.T, c *client, l *countingListener) (hello, recipients int64) {
		c.hear("220")
		l.writes.Store(0)
		c.talk("EHLO c", "250")
		hello = l.writes.Swap(0)
		c.say("MAIL FROM:<a@b>\r\n" + strings.Repeat("RCPT TO:<c@d>\r\n", 100) + "DATA\r\n")
		for range 101 {
			c.hear("250")
		}
		c.hear("354")
		return hello, l.writes.Load()
	}
	t.Run("library", func(t *testing.T) {
		l := listen(t)
		hello, recipients := burst(t, bareOn(t, &bareBackend{}, l, nil), l)
		if hello < 5 || recipients != 102 {
			t.Errorf("got %d and %d writes", hello, recipients)
		}
	})
	t.Run("fence", func(t *testing.T) {
		l := listen(t)
		s := ownListener(t, testOptions(&fakeQueue{}), l)
		hello, recipients := burst(t, dial(t, s.Addrs()[0].String()), l)
		if hello != 1 || recipients > 2 { // the burst may arrive in two pieces
			t.Errorf("got %d and %d writes, want one each", hello, recipients)
		}
	})
}

// ownListener runs a server on a listener of the test.
func ownListener(t testing.TB, o Options, l net.Listener) *Server {
	t.Helper()
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	s, err := newServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.listen(l, o.Listeners[0])
	s.Start()
	t.Cleanup(func() { stopServer(t, s) })
	return s
}

func TestS14CommandsWithoutEnd(t *testing.T) {
	t.Run("library", func(t *testing.T) {
		c := bare(t, &bareBackend{}, nil)
		c.hear("220")
		for range 300 {
			c.talk("NOOP", "250", "RCPT TO:<a@b>", "502")
		}
	})
	t.Run("fence", func(t *testing.T) {
		c := ours(t, &fakeQueue{}, nil)
		c.hear("220")
		for range DefaultOptions().MaxIdleCommands {
			c.talk("NOOP", "250")
		}
		c.talk("NOOP", "421 4.7.0")
		c.closed()
	})
	t.Run("fence, errors", func(t *testing.T) {
		c := ours(t, &fakeQueue{}, nil)
		c.hear("220")
		for range DefaultOptions().MaxErrors + 1 {
			c.talk("RCPT TO:<a@b>", "503")
		}
		c.hear("421 4.7.0")
		c.closed()
	})
}

func TestS15LogoutUnderLock(t *testing.T) {
	t.Run("library", func(t *testing.T) {
		isBlocked := make(chan bool, 1)
		b := &bareBackend{logout: func(c *smtp.Conn) {
			done := make(chan struct{})
			go func() { _ = c.Session(); close(done) }()
			select {
			case <-done:
				isBlocked <- false
			case <-time.After(100 * time.Millisecond):
				isBlocked <- true
			}
		}}
		c := bare(t, b, nil)
		c.hear("220")
		c.talk("EHLO c", "250", "QUIT", "221")
		if !<-isBlocked {
			t.Error("Logout does not run under the connection's lock any more")
		}
	})
	t.Run("fence", func(t *testing.T) {
		s, err := newServer(testOptions(&fakeQueue{}))
		if err != nil {
			t.Fatal(err)
		}
		defer s.cancel()
		ses := &session{srv: s, conn: &conn{srv: s, listener: &listener{}}}
		s.mu.Lock()
		defer s.mu.Unlock()
		ses.Reset()
		if err := ses.Logout(); err != nil {
			t.Error(err)
		}
	})
}

func TestS16ResetWhileDataRuns(t *testing.T) {
	t.Run("library", func(t *testing.T) {
		running, reset := make(chan struct{}), make(chan struct{})
		c := bare(t, &bareBackend{
			data: func(r io.Reader) error {
				close(running)
				<-reset // called while Data has not returned
				_, err := io.Copy(io.Discard, r)
				return err
			},
			reset: sync.OnceFunc(func() { close(reset) }),
		}, nil)
		c.hear("220")
		c.talk("EHLO c", "250", "MAIL FROM:<a@b>", "250", "RCPT TO:<c@d>", "250", "BDAT 0", "250")
		<-running
		c.talk("RSET", "250")
	})
	t.Run("fence", func(t *testing.T) {
		q := &fakeQueue{}
		c := ours(t, q, nil)
		c.hear("220")
		c.talk("EHLO c", "250")
		for range 20 {
			c.talk("MAIL FROM:<a@b>", "250", "RCPT TO:<old@d>", "250", "BDAT 0", "250", "BDAT 6\r\nA: b", "250", "RSET", "250",
				"MAIL FROM:<a@b>", "250", "RCPT TO:<new@d>", "250", "BDAT 6 LAST\r\nC: d", "250 2.0.0 queued")
		}
		for _, m := range q.all() {
			if got := m.env.Recipients; len(got) != 1 || got[0].Path != (address.Path{Local: "new", Domain: "d"}) ||
				!strings.HasSuffix(m.payload, "\r\nC: d\r\n\r\n") {
				t.Fatalf("got %v, %q", got, m.payload)
			}
		}
		if got := len(q.all()); got != 20 {
			t.Errorf("got %d messages, want 20", got)
		}
	})
}

func TestS17FailedHandshake(t *testing.T) {
	t.Run("library", func(t *testing.T) {
		c := bare(t, &bareBackend{}, func(s *smtp.Server) { s.TLSConfig = testTLS() })
		c.hear("220")
		c.talk("EHLO c", "250", "STARTTLS", "220")
		c.say("this is no handshake\r\n")
		for range 10 { // the alert comes first, in binary
			if got, _ := c.reply(10 * time.Second); strings.Contains(got, "550 5.0.0 Handshake error") {
				c.talk("NOOP", "250") // goes on in clear
				return
			}
		}
		t.Error("no reply in clear after a failed handshake any more")
	})
	t.Run("fence", func(t *testing.T) {
		c := ours(t, &fakeQueue{}, func(o *Options) { o.Listeners[0].TLS = testTLS() })
		c.hear("220")
		c.talk("EHLO c", "250", "STARTTLS", "220")
		c.say("this is no handshake\r\n")
		if got, err := c.reply(30 * time.Second); err == nil || strings.Contains(got, "550") {
			t.Errorf("got %q, %v, want the end", got, err)
		}
	})
}

func TestS18ConnectionLimits(t *testing.T) {
	t.Run("library", func(t *testing.T) {
		b := &bareBackend{}
		c := bare(t, b, nil)
		for range 20 {
			dial(t, c.conn.RemoteAddr().String()).hear("220")
		}
	})
	t.Run("fence, all", func(t *testing.T) {
		o := testOptions(&fakeQueue{})
		o.MaxConnections = 2
		limited(t, o, "421 4.3.2 too many connections")
	})
	t.Run("fence, address", func(t *testing.T) {
		o := testOptions(&fakeQueue{})
		o.MaxConnectionsPerAddress = 2
		limited(t, o, "421 4.7.0 too many connections from your address")
	})
}

// limited checks that the third connection is refused and that room is made
// when one leaves.
func limited(t *testing.T, o Options, want string) {
	t.Helper()
	s := startServer(t, o)
	to := s.Addrs()[0].String()
	first, second := dial(t, to), dial(t, to)
	first.hear("220")
	second.hear("220")
	third := dial(t, to)
	third.hear(want)
	third.closed()
	first.talk("QUIT", "221")
	first.closed()
	for {
		// The server counts it out a moment after it closed.
		c := dial(t, to)
		if got, err := c.reply(30 * time.Second); err != nil || !strings.HasPrefix(got, "421") {
			if !strings.HasPrefix(got, "220") {
				t.Errorf("got %q, %v, want 220", got, err)
			}
			return
		}
	}
}

func TestS19Auth(t *testing.T) {
	t.Run("library", func(t *testing.T) {
		c := bare(t, &bareBackend{}, func(s *smtp.Server) { s.AllowInsecureAuth = true })
		c.hear("220")
		c.talk("EHLO c", "250", "MAIL FROM:<a@b>", "250", "AUTH PLAIN ***", "454", "AUTH PLAIN AGEAYg==", "235")
	})
	t.Run("fence", func(t *testing.T) {
		c := ours(t, &fakeQueue{}, nil)
		c.hear("220")
		c.talk("EHLO c", "250", "AUTH PLAIN AGEAYg==", "502 5.5.1", "MAIL FROM:<a@b>", "250", "AUTH PLAIN ***", "502 5.5.1")
	})
}

// A chunk that the client cuts short by closing is taken by go-smtp for whole:
// io.Copy from its LimitedReader ends without an error at EOF.
func TestS20ChunkCutShort(t *testing.T) {
	const half = "BDAT 1000 LAST\r\nSubject: x\r\n\r\nhalf of it\r\n"
	cut := func(c *client) {
		c.hear("220")
		c.talk("EHLO c", "250", "MAIL FROM:<a@b>", "250", "RCPT TO:<c@d>", "250")
		c.say(half)
		if err := c.conn.(*net.TCPConn).CloseWrite(); err != nil {
			c.t.Fatal(err)
		}
	}
	t.Run("library", func(t *testing.T) {
		b := &bareBackend{}
		c := bare(t, b, nil)
		cut(c)
		c.hear("250")
		if len(b.content) != 1 {
			t.Errorf("got %v, want the half message accepted", b)
		}
	})
	t.Run("fence", func(t *testing.T) {
		q := &fakeQueue{}
		o := testOptions(q)
		s, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		c := dial(t, s.Addrs()[0].String())
		cut(c)
		c.closed()
		stopServer(t, s)
		if len(q.all()) != 0 {
			t.Errorf("got %v", q.all())
		}
	})
}

// The goroutine of go-smtp that runs Data for BDAT sends its result to the
// connection's channel of that moment: after a RSET that is the channel of the
// next message.
func TestS21ResultOfAnotherMessage(t *testing.T) {
	t.Run("library", func(t *testing.T) {
		old, fresh := make(chan struct{}), make(chan struct{})
		var calls atomic.Int64
		running := make(chan struct{}, 2)
		c := bare(t, &bareBackend{data: func(r io.Reader) error {
			first := calls.Add(1) == 1
			running <- struct{}{}
			_, _ = io.Copy(io.Discard, r)
			if first {
				<-old
				return &smtp.SMTPError{Code: 250, Message: "the old one"}
			}
			<-fresh
			return nil
		}}, nil)
		c.hear("220")
		c.talk("EHLO c", "250", "MAIL FROM:<a@b>", "250", "RCPT TO:<c@d>", "250", "BDAT 0", "250")
		<-running
		c.talk("RSET", "250", "MAIL FROM:<a@b>", "250", "RCPT TO:<c@d>", "250")
		c.say("BDAT 0 LAST\r\n")
		<-running
		close(old)
		c.hear("250 2.0.0 the old one") // the new message is still open
		close(fresh)
	})
	t.Run("fence", func(t *testing.T) {
		release := make(chan struct{})
		var calls atomic.Int64
		q := &fakeQueue{accept: func(_ context.Context, payload io.Reader) error {
			if calls.Add(1) == 1 {
				_, err := io.Copy(io.Discard, payload)
				<-release
				return err
			}
			return queue.ErrUnavailable
		}}
		c := ours(t, q, nil)
		c.hear("220")
		c.talk("EHLO c", "250", "MAIL FROM:<a@b>", "250", "RCPT TO:<c@d>", "250")
		c.say("BDAT 8\r\nA: b\r\n\r\n")
		c.hear("250 2.0.0 chunk")
		for _, verb := range []string{"RSET", "EHLO c"} {
			// The next message waits until the old one is done with.
			next := "MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 8 LAST\r\nA: b\r\n\r\n"
			if verb == "RSET" {
				c.say(verb + "\r\n" + next)
				c.quiet(50 * time.Millisecond)
				close(release)
				c.hear("250")
			} else {
				c.talk(verb, "250")
				c.say(next)
			}
			for _, want := range []string{"250 2.1.0", "250 2.1.5", "451 4.3.0 the queue did not"} {
				c.hear(want)
			}
			c.talk("MAIL FROM:<a@b>", "250", "RCPT TO:<c@d>", "250", "BDAT 0", "250 2.0.0 chunk")
		}
		if got := len(q.all()); got != 0 {
			t.Errorf("got %d messages", got)
		}
	})
}
