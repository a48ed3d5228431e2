package ingress

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"postroad/queue/address"
)

// oneListener hands out one connection and then waits to be closed.
type oneListener struct {
	conn   chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *oneListener) Addr() net.Addr { return &net.TCPAddr{} }

// closeConn tells when it is closed.
type closeConn struct {
	scriptConn
	onClose func()
}

func (c closeConn) Close() error {
	c.onClose()
	return nil
}

// lineReader gives out a line per Read, so that content does not stand behind
// DATA before its reply.
type lineReader struct{ rest []byte }

func (r *lineReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	n := bytes.IndexByte(r.rest, '\n') + 1
	if n == 0 {
		n = len(r.rest)
	}
	n = copy(p, r.rest[:n])
	r.rest = r.rest[n:]
	return n, nil
}

// FuzzSession says anything to a server and checks what must hold whatever a
// client says: replies are lines, every 250 of a message has its message and
// the other way round, and only clean messages get in.
func FuzzSession(f *testing.F) {
	for _, seed := range []string{
		toData + "From: a@b\r\n\r\nhi\r\n.\r\nQUIT\r\n",
		toBdat + "BDAT 6\r\nA: b\r\nBDAT 4 LAST\r\n\r\nx\n",
		toBdat + "BDAT 6\r\nA: b\r\nRSET\r\n" + toBdat + "BDAT 0 LAST\r\n",
		toBdat + "BDAT 6\r\nA: b\r\nEHLO c\r\nNOOP\r\n",
		toBdat + "BDAT 99999999999 LAST\r\n",
		toData + "a\n.\r\nMAIL FROM:<x@y>\r\n",
		toData + "a\r\r\n.\r\n.\r\n",
		toData + "a\x00\r\n.\r\n" + toData + ".\r\n",
		"HELO c\r\nMAIL FROM:<>\r\nRCPT TO:<\"x> y\"@[IPv6:::1]>\r\nDATA\r\n..\r\n.\r\n",
		"EHLO c\r\nMAIL FROM:<@a,@b:ü@ü> SMTPUTF8 SIZE=1 BODY=8BITMIME RET=FULL ENVID=x\r\nRCPT TO:<postmaster> NOTIFY=NEVER ORCPT=utf-8;ü\r\n",
		"STARTTLS\r\nAUTH PLAIN x\r\nVRFY\r\nEXPN\r\nHELP\r\n\r\nX\r\n",
		toData + strings.Repeat("Received: x\r\n", 52) + ".\r\n",
	} {
		f.Add([]byte(seed), uint16(0))
		f.Add([]byte(seed), uint16(1))
	}
	f.Fuzz(func(t *testing.T, input []byte, pieces uint16) {
		q := &fakeQueue{}
		o := testOptions(q)
		o.MaxMessageBytes = 4000
		o.MaxHeaderBytes = 1000
		if err := o.complete(); err != nil {
			t.Fatal(err)
		}
		s, err := newServer(o)
		if err != nil {
			t.Fatal(err)
		}
		var replies bytes.Buffer
		var reader io.Reader = &lineReader{input}
		if pieces > 0 {
			// The hello comes alone: nothing may be behind it before its reply.
			hello, rest, _ := bytes.Cut(input, []byte("\n"))
			hello = input[:min(len(hello)+1, len(input))]
			reader = io.MultiReader(bytes.NewReader(hello), pieceReader{bytes.NewReader(rest), int(pieces)})
		}
		l := &oneListener{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
		ended := make(chan struct{})
		l.conn <- closeConn{scriptConn{reader, &replies}, sync.OnceFunc(func() { close(ended) })}
		s.listen(l, o.Listeners[0])
		s.Start()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatal("the session does not end")
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		checkSession(t, replies.String(), q.all())
	})
}

func checkSession(t *testing.T, replies string, kept []kept) {
	queued := 0
	for r := bufio.NewScanner(strings.NewReader(replies)); r.Scan(); {
		line := r.Text()
		if len(line) < 4 || line[0] < '2' || line[0] > '5' || line[3] != ' ' && line[3] != '-' || strings.ContainsAny(line, "\r\x00") {
			t.Fatalf("got reply %q", line)
		}
		if strings.Contains(line, textQueued) {
			queued++
		}
	}
	if queued != len(kept) {
		t.Fatalf("got %d messages and %d replies that say so:\n%s", len(kept), queued, replies)
	}
	for _, m := range kept {
		clean := strings.ReplaceAll(m.payload, "\r\n", "")
		if strings.ContainsAny(clean, "\r\n\x00") || !strings.HasPrefix(m.payload, "Received: from ") ||
			!strings.HasSuffix(m.payload, "\r\n") || !strings.Contains(m.payload, "\r\n\r\n") {
			t.Fatalf("got payload %q", m.payload)
		}
		paths := []address.Path{m.env.ReversePath}
		for _, r := range m.env.Recipients {
			paths = append(paths, r.Path)
		}
		for _, p := range paths {
			if again, err := address.Parse(p.String()); err != nil || again != p {
				t.Fatalf("got path %q: %v", p.String(), err)
			}
		}
		if len(paths) < 2 {
			t.Fatal("got no recipients")
		}
	}
}
