package cut

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers every line with itself.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String()
}

func link(t *testing.T) *Link {
	t.Helper()
	l, err := Listen(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func dial(t *testing.T, l *Link) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, bufio.NewReader(c)
}

func say(t *testing.T, c net.Conn, line string) {
	t.Helper()
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

func hear(c net.Conn, r *bufio.Reader, d time.Duration) (string, error) {
	if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
		return "", err
	}
	return r.ReadString('\n')
}

func TestFreezeHoldsBackAndThawDelivers(t *testing.T) {
	l := link(t)
	c, r := dial(t, l)
	say(t, c, "one")
	if got, err := hear(c, r, time.Minute); got != "one\n" {
		t.Fatalf("got %q, %v, want the line", got, err)
	}
	l.Freeze()
	l.Freeze() // twice does no harm
	say(t, c, "two")
	if got, err := hear(c, r, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %q, %v, want nothing while frozen", got, err)
	}
	c2, r2 := dial(t, l)
	say(t, c2, "three")
	if got, err := hear(c2, r2, 100*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("new connection: got %q, %v, want nothing while frozen", got, err)
	}
	l.Thaw()
	if got, err := hear(c, r, time.Minute); got != "two\n" {
		t.Errorf("got %q, %v, want what was under way", got, err)
	}
	if got, err := hear(c2, r2, time.Minute); got != "three\n" {
		t.Errorf("got %q, %v, want what was under way", got, err)
	}
}

func TestSeverClosesAndRefuses(t *testing.T) {
	l := link(t)
	c, r := dial(t, l)
	say(t, c, "one")
	if _, err := hear(c, r, time.Minute); err != nil {
		t.Fatal(err)
	}
	l.Sever()
	if _, err := hear(c, r, time.Minute); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want the connection closed", err)
	}
	c, r = dial(t, l)
	if _, err := hear(c, r, time.Minute); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("new connection: got %v, want it closed", err)
	}
	l.Thaw()
	c, r = dial(t, l)
	say(t, c, "two")
	if got, err := hear(c, r, time.Minute); got != "two\n" {
		t.Errorf("got %q, %v, want the line after Thaw", got, err)
	}
}

func TestCloseWhileFrozen(t *testing.T) {
	l := link(t)
	c, _ := dial(t, l)
	l.Freeze()
	say(t, c, "one")
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}
