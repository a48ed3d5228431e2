package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/smtp"
	"os"
	"strings"
	"testing"
	"time"
)

// freeAddress is one that nobody listens on: of loopback too, but hardly one that somebody else comes upon when it is free again.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.N(250), rand.N(250), 1+rand.N(250)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// awaiting is a listener whose TLS comes when the test gives it.
func awaiting(t *testing.T) (Listener, chan *tls.Config) {
	given := make(chan *tls.Config, 1)
	return Listener{Address: freeAddress(t), Implicit: true, Await: func(ctx context.Context) (*tls.Config, error) {
		select {
		case c := <-given:
			return c, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}, given
}

func TestListenerAwaitsItsTLS(t *testing.T) {
	late, given := awaiting(t)
	o := testOptions(&fakeQueue{})
	o.Listeners = append(o.Listeners, late)
	s := startServer(t, o)
	addrs := s.Addrs()
	if len(addrs) != 2 || addrs[0] == nil || addrs[1] != nil {
		t.Fatalf("got addresses %v, want only the first", addrs)
	}
	if c, err := net.Dial("tcp", late.Address); err == nil {
		_ = c.Close()
		t.Error("somebody listens on the address that awaits its TLS")
	}
	c, err := smtp.Dial(addrs[0].String())
	if err != nil {
		t.Fatalf("the other listener: %v", err)
	}
	_ = c.Close()
	taken, err := net.Listen("tcp", late.Address) // the port is gone when it wants it
	if err != nil {
		t.Fatal(err)
	}
	given <- selfSigned("relay.test")
	time.Sleep(50 * time.Millisecond)
	_ = taken.Close()
	waitFor(t, "the listener", func() bool { return s.Addrs()[1] != nil })
	conn, err := tls.Dial("tcp", late.Address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	banner := make([]byte, 3)
	if _, err := conn.Read(banner); err != nil || string(banner) != "220" {
		t.Errorf("got %q, %v, want a greeting", banner, err)
	}
}

func TestListenerThatNeverOpens(t *testing.T) {
	never, _ := awaiting(t)
	refused := never
	refused.Address = freeAddress(t)
	refused.Await = func(context.Context) (*tls.Config, error) { return nil, errors.New("there is no such role") }
	o := testOptions(&fakeQueue{})
	o.Listeners = []Listener{never, refused}
	stopServer(t, startServer(t, o)) // ends
	o = testOptions(&fakeQueue{})
	o.Listeners = []Listener{never}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	stopServer(t, s) // without Start
	taken, err := net.Listen("tcp", never.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	if _, err := New(o); err == nil || !strings.Contains(err.Error(), never.Address) {
		t.Errorf("the port is taken: got %v, want an error at once", err)
	}
}

// TestGivenSocketAwaits: a socket that a supervisor has opened is closed even when its TLS never comes.
func TestGivenSocketAwaits(t *testing.T) {
	l, _ := awaiting(t)
	socket, err := net.Listen("tcp", l.Address)
	if err != nil {
		t.Fatal(err)
	}
	l.Socket = socket
	o := testOptions(&fakeQueue{})
	o.Listeners = []Listener{l}
	stopServer(t, startServer(t, o))
	if _, err := socket.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want %v", err, net.ErrClosed)
	}
}

// TestGivenSocketTurnsAway: while its TLS is awaited nobody is left without an answer, and afterwards all are served.
func TestGivenSocketTurnsAway(t *testing.T) {
	for _, isImplicit := range []bool{false, true} {
		l, given := awaiting(t)
		l.Implicit = isImplicit
		socket, err := net.Listen("tcp", l.Address)
		if err != nil {
			t.Fatal(err)
		}
		l.Socket = socket
		o := testOptions(&fakeQueue{})
		o.Listeners = []Listener{l}
		s := startServer(t, o)
		said := func() string {
			c, err := net.Dial("tcp", l.Address)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			if isImplicit && s.Addrs()[0] != nil {
				c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
			}
			text := make([]byte, 200)
			n, err := c.Read(text)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("nobody answers")
			}
			return string(text[:n])
		}
		want := "421 4.3.2 not ready yet"
		if isImplicit {
			want = ""
		}
		for range 3 {
			if got := said(); !strings.HasPrefix(got, want) || want == "" && got != "" {
				t.Errorf("implicit %t: got %q, want %q", isImplicit, got, want)
			}
		}
		given <- selfSigned("relay.test")
		waitFor(t, "the listener", func() bool { return s.Addrs()[0] != nil })
		for range 3 {
			if got := said(); !strings.HasPrefix(got, "220 ") {
				t.Errorf("implicit %t: got %q, want a greeting", isImplicit, got)
			}
		}
	}
}
