package ingress

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"postroad/queue"
	"postroad/queue/embedded"
)

// realQueue is the queue itself, on an embedded server.
func realQueue(t testing.TB) *queue.Queue {
	t.Helper()
	logger := slog.New(slog.DiscardHandler)
	store, err := embedded.Start(embedded.Options{Dir: t.TempDir(), MaxBytes: queue.StoreBytes(1 << 30), Logger: logger,
		OnFatal: func(err error) { t.Errorf("store: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Stop(context.Background()) })
	q, err := queue.Open(t.Context(), queue.Options{Connect: store.Connect, Node: "test", MaxBytes: 1 << 30, Logger: logger, Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = q.Close(ctx)
	})
	return q
}

// signOne takes the one mail that waits for the signer.
func signOne(t *testing.T, q *queue.Queue) (queue.MessageID, queue.Envelope, []byte) {
	t.Helper()
	type taken struct {
		id      queue.MessageID
		env     queue.Envelope
		content []byte
		err     error
	}
	got := make(chan taken, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- q.Sign(ctx, 1, func(ctx context.Context, s *queue.Signing) {
			var m taken
			m.id, m.env = s.ID, s.Envelope
			content, err := s.Open(ctx)
			if err == nil {
				m.content, err = io.ReadAll(content)
				_ = content.Close()
			}
			if err == nil {
				err = s.Signed(ctx, "")
			}
			m.err = err
			got <- m
			cancel()
		})
	}()
	<-done
	select {
	case m := <-got:
		if m.err != nil {
			t.Fatal(m.err)
		}
		return m.id, m.env, m.content
	default:
		t.Fatal("no mail came to the signer")
		return "", queue.Envelope{}, nil
	}
}

func TestRealQueue(t *testing.T) {
	line := strings.Repeat("x", 70) + "\r\n"
	big := strings.Repeat(line, 8<<20/len(line))
	tests := []struct{ name, content string }{
		{"small", "From: a@from.test\r\nSubject: x\r\n\r\nhi\r\n"},
		{"in chunks", "From: a@from.test\r\nSubject: x\r\n\r\n" + big},
	}
	q := realQueue(t)
	s := startServer(t, testOptions(q))
	for _, tt := range tests {
		for _, way := range []string{"DATA", "BDAT"} {
			t.Run(tt.name+" by "+way, func(t *testing.T) {
				c := dial(t, s.Addrs()[0].String())
				c.hear("220")
				c.talk("EHLO client.test", "250", "MAIL FROM:<a@from.test>", "250", "RCPT TO:<b@to.test>", "250")
				if way == "DATA" {
					c.talk("DATA", "354")
					c.say(tt.content + ".\r\n")
				} else {
					half := len(tt.content) / 2
					c.say(fmt.Sprintf("BDAT %d\r\n%s", half, tt.content[:half]))
					c.hear("250")
					c.say(fmt.Sprintf("BDAT %d LAST\r\n%s", len(tt.content)-half, tt.content[half:]))
				}
				reply := c.hear("250 2.0.0 queued as ")
				id, env, content := signOne(t, q)
				if want := "250 2.0.0 queued as " + string(id); reply != want {
					t.Errorf("got %q, want %q", reply, want)
				}
				if env.HeaderFrom != "from.test" || env.Client != "net:127.0.0.0/8" {
					t.Errorf("got %+v", env)
				}
				if !bytes.HasSuffix(content, []byte(tt.content)) || !bytes.Contains(content, []byte("\tid "+string(id)+"\r\n")) {
					t.Errorf("got %d octets that are not the message", len(content))
				}
			})
		}
	}
}

func TestRealQueueKeepsNothingOfACutMessage(t *testing.T) {
	q := realQueue(t)
	s := startServer(t, testOptions(q))
	line := strings.Repeat("x", 70) + "\r\n"
	for _, size := range []int{100, 3 << 20} {
		c := dial(t, s.Addrs()[0].String())
		c.begin()
		c.say("Subject: x\r\n\r\n" + strings.Repeat(line, size/len(line)))
		_ = c.conn.Close()
	}
	waitFor(t, "the connections to end", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.conns) == 0
	})
	counts, err := q.Counts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if counts.Mails != 0 {
		t.Errorf("got %d mails, want none", counts.Mails)
	}
}

// BenchmarkAccept measures what ingress itself costs: the queue is none.
func BenchmarkAccept(b *testing.B) {
	line := strings.Repeat("x", 70) + "\r\n"
	for _, size := range []int{1 << 10, 10 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			s := startServer(b, testOptions(nullQueue{}))
			content := "From: a@from.test\r\nTo: b@to.test\r\nSubject: x\r\nDate: now\r\nMessage-ID: <1@from.test>\r\n\r\n" +
				strings.Repeat(line, size/len(line)) + ".\r\n"
			c := dial(b, s.Addrs()[0].String())
			c.hear("220")
			c.talk("EHLO c", "250")
			b.SetBytes(int64(len(content)))
			b.ReportAllocs()
			for b.Loop() {
				c.say("MAIL FROM:<a@from.test>\r\nRCPT TO:<b@to.test>\r\nDATA\r\n")
				c.hear("250")
				c.hear("250")
				c.hear("354")
				c.say(content)
				c.hear("250")
			}
		})
	}
}

// nullQueue accepts everything and keeps nothing.
type nullQueue struct{}

func (nullQueue) Spend(context.Context, string, int, queue.Limit) (queue.Spent, error) {
	return queue.Spent{OK: true}, nil
}

func (nullQueue) Seen(context.Context, [32]byte) (queue.MessageID, bool, error) {
	return "", false, nil
}

func (nullQueue) Remember(context.Context, [32]byte, queue.MessageID) error { return nil }

func (nullQueue) NewID() queue.MessageID { return queue.NewID() }
func (nullQueue) Full() bool             { return false }
func (nullQueue) Record(queue.Event)     {}
func (nullQueue) Accept(_ context.Context, _ queue.MessageID, _ queue.Envelope, payload io.Reader) error {
	_, err := io.CopyBuffer(onlyWriter{io.Discard}, payload, make([]byte, 32<<10))
	return err
}
