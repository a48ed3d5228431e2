package sink_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postroad/cmd/internal/sink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, o sink.Options) *sink.Sink {
	t.Helper()
	s, err := sink.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

type client struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, s *sink.Sink) *client {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	return &client{t, conn, bufio.NewReader(conn)}
}

func (c *client) say(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c, format, args...); err != nil {
		c.t.Fatal(err)
	}
}

// expect reads replies, one for each code.
func (c *client) expect(codes ...string) {
	c.t.Helper()
	for _, code := range codes {
		for {
			line, err := c.r.ReadString('\n')
			if err != nil {
				c.t.Fatalf("waiting for %s: %v", code, err)
			}
			if !strings.HasPrefix(line, code) {
				c.t.Fatalf("got %q, want %s", line, code)
			}
			if line[3] == ' ' {
				break
			}
		}
	}
}

func TestMessageIsHandedOverAsSent(t *testing.T) {
	got := make(chan sink.Message, 1)
	s := start(t, sink.Options{Message: func(m *sink.Message) sink.Reply {
		kept := *m
		kept.Data = append([]byte(nil), m.Data...)
		kept.Recipients = append([]string(nil), m.Recipients...)
		got <- kept
		return ""
	}})
	c := dial(t, s)
	c.expect("220")
	c.say("EHLO client.example\r\nMAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME\r\nRCPT TO:<\"x> y\"@c.example>\r\nRCPT TO:<d@e.example>\r\nDATA\r\n")
	c.expect("250", "250", "250", "250", "354")
	body := "Subject: x\r\n\r\n..two dots\r\n" + strings.Repeat("long", 20_000) + "\r\n"
	c.say("%s.\r\n", strings.ReplaceAll(body, "\r\n..", "\r\n..."))
	c.expect("250")
	m := <-got
	want := sink.Message{
		Session: 1, Helo: "client.example", ReversePath: "a@b.example", Parameters: "SIZE=10 BODY=8BITMIME",
		Recipients: []string{`"x> y"@c.example`, "d@e.example"}, Data: []byte(body),
	}
	m.Remote = nil
	if d := cmp.Diff(want, m); d != "" {
		t.Error(d)
	}
	c.say("QUIT\r\n")
	c.expect("221")
	if s.Messages() != 1 {
		t.Errorf("got %d messages, want 1", s.Messages())
	}
}

func TestLineEndCutByTheBuffer(t *testing.T) {
	s := start(t, sink.Options{})
	c := dial(t, s)
	c.expect("220")
	for n := 32<<10 - 3; n < 32<<10+3; n++ {
		c.say("HELO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
		c.expect("250", "250", "250", "354")
		c.say("%s\r\n.\r\n", strings.Repeat("x", n))
		c.expect("250")
	}
}

func TestScriptedReplies(t *testing.T) {
	s := start(t, sink.Options{
		Recipient: func(_ *sink.Message, forward string) sink.Reply {
			if strings.HasPrefix(forward, "no@") {
				return "550 5.1.1 no such mailbox"
			}
			return ""
		},
		Message: func(m *sink.Message) sink.Reply {
			if m.ReversePath == "" {
				return "450 4.2.0 later"
			}
			return ""
		},
	})
	c := dial(t, s)
	c.expect("220")
	c.say("HELO c\r\nMAIL FROM:<>\r\nRCPT TO:<no@x.example>\r\nDATA\r\nRCPT TO:<yes@x.example>\r\nDATA\r\n")
	c.expect("250", "250", "550", "503", "250", "354")
	c.say("\r\n.\r\n")
	c.expect("450")
	c.say("MAIL FROM:<a@b>\r\nRCPT TO:<yes@x.example>\r\nDATA\r\n")
	c.expect("250", "250", "354")
	c.say("\r\n.\r\n")
	c.expect("250")
	if s.Messages() != 1 {
		t.Errorf("got %d messages, want 1", s.Messages())
	}
}

func TestLimits(t *testing.T) {
	s := start(t, sink.Options{MaxSize: 100, MaxConnections: 1})
	c := dial(t, s)
	c.expect("220")
	other := dial(t, s)
	other.expect("421")
	c.say("EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
	c.expect("250", "250", "250", "354")
	c.say("%s\r\n.\r\n", strings.Repeat("x", 200))
	c.expect("552")
	c.say("MAIL FROM:a@b\r\nMAIL FROM:<a@b>\r\nMAIL FROM:<a@b>\r\nBDAT 3\r\nRSET\r\nNOOP\r\n")
	c.expect("501", "250", "503", "502", "250", "250")
	c.say("%s\r\n", strings.Repeat("y", 5000))
	c.expect("500")
	if _, err := c.r.ReadByte(); err == nil {
		t.Error("the connection is open after a line that is too long")
	}
}

func TestStopEndsOpenConnections(t *testing.T) {
	s := start(t, sink.Options{})
	c := dial(t, s)
	c.expect("220")
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.r.ReadByte(); err == nil {
		t.Error("the connection is open after Stop")
	}
}

func BenchmarkMessages(b *testing.B) {
	s, err := sink.New(sink.Options{})
	if err != nil {
		b.Fatal(err)
	}
	s.Start()
	defer func() { _ = s.Stop(context.Background()) }()
	message := "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"
	body := strings.Repeat("0123456789012345678901234567890123456789012345678901234567890\r\n", 160) + ".\r\n"
	const clients = 16
	var wg sync.WaitGroup
	b.ResetTimer()
	for i := range clients {
		wg.Go(func() {
			conn, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				b.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			r := bufio.NewReader(conn)
			_, _ = r.ReadString('\n')
			for n := i; n < b.N; n += clients {
				_, _ = conn.Write([]byte(message))
				for range 3 {
					_, _ = r.ReadString('\n')
				}
				_, _ = conn.Write([]byte(body))
				_, _ = r.ReadString('\n')
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

func TestTellsOfConnections(t *testing.T) {
	var mu sync.Mutex
	var told []string
	tell := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, fmt.Sprintf(format, args...))
	}
	s := start(t, sink.Options{
		RoundTrip: time.Millisecond,
		Opened:    func(session uint64) { tell("opened %d", session) },
		Closed:    func(session uint64, helo string) { tell("closed %d of %s", session, helo) },
	})
	c := dial(t, s)
	c.say("EHLO a.example\r\nQUIT\r\n")
	for { // up to the reply to QUIT, before which it was told
		line, err := c.r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(line, "221 ") {
			break
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff([]string{"opened 1", "closed 1 of a.example"}, told); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
