package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-smtp"

	"postroad/queue"
)

// The tests of this file hold what go-smtp does by itself ("library") beside
// what our guard makes of it ("fence"), one pitfall each. When an upgrade
// changes the library, they tell whether the fence can go.

func TestS1ContentIsNotReadAsCommands(t *testing.T) {
	t.Run("library", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := barePiped(t, &bareBackend{}, func(s *smtp.Server) { s.ReadTimeout = 100 * time.Millisecond })
			c.begin()
			c.say("Subject: x\r\n")
			c.hear("554 5.0.0 Error: transaction failed")
			c.say("NOOP\r\n") // a line of the body
			c.hear("250")
		})
	})
	t.Run("fence", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			q := &fakeQueue{}
			c := oursPiped(t, q, func(o *Options) { o.IdleTimeout = 100 * time.Millisecond })
			c.begin()
			c.say("Subject: x\r\n")
			c.hear("451 4.4.2")
			_, _ = io.WriteString(c.conn, "NOOP\r\n") // the server may be gone already
			c.closed()
			if len(q.all()) != 0 {
				t.Error("got a message")
			}
		})
	})
}

func TestS2CarriageReturnBeforeCRLF(t *testing.T) {
	const text = "foo\r\r\n.\r\n"
	t.Run("library", func(t *testing.T) {
		b := &bareBackend{}
		c := bare(t, b, nil)
		c.begin()
		c.say(text)
		c.quiet(100 * time.Millisecond)
		c.say("\r\n.\r\n")
		c.hear("250")
	})
	t.Run("fence", func(t *testing.T) {
		c := ours(t, &fakeQueue{}, nil)
		c.begin()
		c.say(text)
		c.hear("550 5.6.0 bare CR")
		c.closed()
	})
}

func TestS3BareLineEnds(t *testing.T) {
	for _, text := range []string{"a\nb\r\n", "a\rb\r\n"} {
		t.Run(fmt.Sprintf("library %q", text), func(t *testing.T) {
			b := &bareBackend{}
			c := bare(t, b, nil)
			c.begin()
			c.say(text + ".\r\n")
			c.hear("250")
			c.talk("MAIL FROM:<a@b>", "250", "RCPT TO:<a@b>", "250")
			c.say(fmt.Sprintf("BDAT %d LAST\r\n%s", len(text), text))
			c.hear("250")
			if len(b.content) != 2 || b.content[0] != text || b.content[1] != text {
				t.Errorf("got %v", b)
			}
		})
		t.Run(fmt.Sprintf("fence %q", text), func(t *testing.T) {
			c := ours(t, &fakeQueue{}, nil)
			c.begin()
			c.say(text + ".\r\n")
			c.hear("550 5.6.0 bare")
			c.closed()
		})
	}
}

func TestS4SteadySender(t *testing.T) {
	// steady sends lines until something is said.
	steady := func(c *client, pause time.Duration) string {
		for range 40 {
			_, _ = io.WriteString(c.conn, "x\r\n")
			if reply, err := c.reply(pause); err == nil {
				return reply
			}
		}
		return ""
	}
	t.Run("library", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := barePiped(t, &bareBackend{}, func(s *smtp.Server) { s.ReadTimeout = 170 * time.Millisecond })
			c.begin()
			if got := steady(c, 50*time.Millisecond); !strings.HasPrefix(got, "554") {
				t.Errorf("got %q, want 554 in spite of a steady sender", got)
			}
		})
	})
	t.Run("fence", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			q := &fakeQueue{}
			c := oursPiped(t, q, func(o *Options) { o.IdleTimeout = 200 * time.Millisecond })
			c.begin()
			for range 8 {
				c.say("x\r\n")
				time.Sleep(60 * time.Millisecond)
			}
			c.say(".\r\n")
			c.hear("250 2.0.0 queued")
		})
	})
	t.Run("the whole message is bounded", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := oursPiped(t, &fakeQueue{}, func(o *Options) { o.MessageTimeout = 150 * time.Millisecond })
			c.begin()
			if got := steady(c, 20*time.Millisecond); !strings.HasPrefix(got, "451 4.4.2") {
				t.Errorf("got %q", got)
			}
		})
	})
}

func TestS5InnerErrors(t *testing.T) {
	secret := errors.New("nats://user:password@queue\r\n250 OK")
	t.Run("library", func(t *testing.T) {
		c := bare(t, &bareBackend{data: func(r io.Reader) error {
			_, _ = io.Copy(io.Discard, r)
			return fmt.Errorf("%w: %w", &smtp.SMTPError{Code: 451, Message: "wrapped"}, secret)
		}}, nil)
		c.begin()
		c.say(".\r\n")
		c.hear("554 5.0.0 250 OK") // the last line of several, ours to choose for the inner error
	})
	t.Run("fence", func(t *testing.T) {
		tests := []struct {
			err  error
			code int
		}{
			{secret, 451},
			{fmt.Errorf("a: %w", queue.ErrFull), 452},
			{fmt.Errorf("a: %w", queue.ErrUnavailable), 451},
			{fmt.Errorf("a: %w", queue.ErrEnvelopeTooLarge), 552},
			{fmt.Errorf("a: %w", errNUL), 550},
			{fmt.Errorf("a: %w", smtp.ErrDataReset), 451},
			{fmt.Errorf("a: %w", context.Canceled), 451},
			{errNoEnd, 451},
		}
		for _, tt := range tests {
			got := smtpError(tt.err)
			if got.Code != tt.code || got.EnhancedCode[0] != tt.code/100 || strings.Contains(got.Message, "password") {
				t.Errorf("%v: got %v, want %d", tt.err, got, tt.code)
			}
		}
	})
}

func TestS6ShutdownReachesIdleClients(t *testing.T) {
	t.Run("library", func(t *testing.T) {
		s := smtp.NewServer(&bareBackend{})
		socket, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		serving.Go(func() { _ = s.Serve(socket) })
		c := dial(t, socket.Addr().String())
		c.hear("220")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want it to wait for an idle client", err)
		}
		if err := s.Close(); !errors.Is(err, smtp.ErrServerClosed) {
			t.Errorf("got %v, want %v", err, smtp.ErrServerClosed)
		}
		c.talk("NOOP", "250") // still served
		_ = c.conn.Close()
		serving.Wait()
	})
	t.Run("fence", func(t *testing.T) {
		o := testOptions(&fakeQueue{})
		o.IdleTimeout = 0 // the default: 5 min, longer than stopServer waits
		s := startServer(t, o)
		c := dial(t, s.Addrs()[0].String())
		c.hear("220")
		stopServer(t, s)
		c.hear("421 4.3.2")
		c.closed()
	})
}

func TestS7SecondMail(t *testing.T) {
	t.Run("library", func(t *testing.T) {
		b := &bareBackend{}
		c := bare(t, b, nil)
		c.hear("220")
		c.talk("EHLO c", "250", "MAIL FROM:<a@b>", "250", "RCPT TO:<c@d>", "250", "MAIL FROM:<e@f>", "250", "DATA", "354", ".", "250")
		if len(b.from) != 2 || len(b.to) != 1 {
			t.Errorf("got %v", b)
		}
	})
	t.Run("fence", func(t *testing.T) {
		q := &fakeQueue{}
		c := ours(t, q, nil)
		c.hear("220")
		c.talk("EHLO c", "250", "MAIL FROM:<a@b>", "250", "RCPT TO:<c@d>", "250", "MAIL FROM:<e@f>", "503 5.5.1", "DATA", "354", ".", "250")
		if got := q.only(t).env.ReversePath.String(); got != "a@b" {
			t.Errorf("got %s, want a@b", got)
		}
	})
}

func TestS8ExactlyTheLimit(t *testing.T) {
	const content = "12345678\r\n"
	t.Run("library", func(t *testing.T) {
		c := bare(t, &bareBackend{}, func(s *smtp.Server) { s.MaxMessageBytes = int64(len(content)) })
		c.begin()
		c.say(content + ".\r\n")
		c.hear("552")
	})
	t.Run("fence", func(t *testing.T) {
		c := ours(t, &fakeQueue{}, func(o *Options) { o.MaxMessageBytes = int64(len(content)) })
		c.begin()
		c.say(content + ".\r\n")
		c.hear("250")
	})
}

func TestS9LongLines(t *testing.T) {
	long := strings.Repeat("x", 3000)
	t.Run("library", func(t *testing.T) {
		c := bare(t, &bareBackend{}, nil)
		c.begin()
		c.say(long + "\r\n.\r\n")
		c.hear("554")
		c.hear("500")
		b := &bareBackend{}
		c = barePiped(t, b, nil) // what is said at once is read at once there: in one piece with the command it would be too long
		c.hear("220")
		c.talk("EHLO c", "250", "MAIL FROM:<a@b>", "250", "RCPT TO:<c@d>", "250", "BDAT 0", "250")
		c.say("BDAT 3000 LAST\r\n")
		c.say(long)
		c.hear("250")
	})
	t.Run("fence", func(t *testing.T) {
		c := ours(t, &fakeQueue{}, nil)
		c.begin()
		c.say(long + "\r\n.\r\n")
		c.hear("550 5.6.0 line longer")
		c.talk("MAIL FROM:<a@b>", "250", "RCPT TO:<c@d>", "250", "BDAT 3002 LAST\r\n"+long, "550 5.6.0", "NOOP", "250")
	})
	t.Run("fence, passed", func(t *testing.T) {
		c := ours(t, &fakeQueue{}, func(o *Options) { o.PassLongLines = true })
		c.begin()
		c.say(strings.Repeat("x", 100_000) + "\r\n.\r\n")
		c.hear("250")
	})
}

func TestS10QuotedLocalParts(t *testing.T) {
	const path = `"x> NOTIFY=NEVER y"@b.test`
	t.Run("library", func(t *testing.T) {
		b := &bareBackend{}
		c := bare(t, b, nil)
		c.hear("220")
		c.talk("EHLO c", "250", "MAIL FROM:<"+path+">", "250")
		if got := b.from[0]; got != "x> NOTIFY=NEVER y@b.test" {
			t.Errorf("got %s, want it without its quotes", got)
		}
	})
	t.Run("fence", func(t *testing.T) {
		q := &fakeQueue{}
		c := ours(t, q, nil)
		c.hear("220")
		c.talk("EHLO c", "250", "MAIL FROM:<"+path+">", "250", "RCPT TO:<"+path+">", "250", "DATA", "354", ".", "250")
		m := q.only(t)
		if got := m.env.Recipients[0].Path.String(); got != path || m.env.ReversePath.String() != path {
			t.Errorf("got %s, want %s", got, path)
		}
		if !strings.Contains(m.payload, "for <"+path+">") {
			t.Errorf("got %q", m.payload)
		}
	})
}

func TestS11Domains(t *testing.T) {
	t.Run("library", func(t *testing.T) {
		c := bare(t, &bareBackend{}, nil)
		c.hear("220")
		c.talk("EHLO c", "250", "MAIL FROM:<a@b..test>", "250", "RCPT TO:<a@b\x01.test>", "250", "RCPT TO:<Postmaster>", "501")
	})
	t.Run("fence", func(t *testing.T) {
		c := ours(t, &fakeQueue{}, nil)
		c.hear("220")
		c.talk("EHLO c", "250", "MAIL FROM:<a@b..test>", "501 5.1.7", "MAIL FROM:<>", "250", "RCPT TO:<a@b\x01.test>", "501 5.1.3",
			"RCPT TO:<Postmaster>", "250")
	})
}

func TestS12ReplyCodes(t *testing.T) {
	tests := []struct{ say, library, fence string }{
		{"MAIL FROM:<a@b>", "502 5.5.1", "503 5.5.1"},
		{"EHLO c", "250", "250"},
		{"RCPT TO:<a@b>", "502 5.5.1", "503 5.5.1"},
		{"DATA", "502 5.5.1", "503 5.5.1"},
		{"MAIL FROM:<a@b> X=y", "500 5.5.4", "555 5.5.4"},
		{"MAIL FROM:<a@b> RET=FULL", "504 5.5.4", "250 2.1.0"},
		{"RSET", "250 2.0.0", "250 2.0.0"},
		{"MAIL FROM:<a@b>", "250 2.0.0", "250 2.1.0"},
		{"RCPT TO:<a@b> X=y", "500 5.5.4", "555 5.5.4"},
		{"RCPT TO:<a@b>", "250 2.0.0", "250 2.1.5"},
		{"BDAT 0", "250 2.0.0", "250 2.0.0"},
		{"DATA", "502 5.5.1", "503 5.5.1"},
		{"FOO", "501 5.5.2", "500 5.5.1"},
		{"FOOBAR", "501 5.5.2", "500 5.5.1"},
		{"FROB", "500 5.5.2", "500 5.5.1"},
	}
	t.Run("library", func(t *testing.T) {
		c := bare(t, &bareBackend{}, nil)
		c.hear("220")
		for _, tt := range tests {
			c.talk(tt.say, tt.library)
		}
	})
	t.Run("fence", func(t *testing.T) {
		c := ours(t, &fakeQueue{}, nil)
		c.hear("220")
		for _, tt := range tests {
			c.talk(tt.say, tt.fence)
		}
	})
}
