package smtpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

func TestContentOnTheWire(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"plain", "a\r\nb\r\n", "a\r\nb\r\n"},
		{"dots at line starts", ".\r\n..\r\nx.y\r\n.end\r\n", "..\r\n...\r\nx.y\r\n..end\r\n"},
		{"empty", "", ""},
		{"one dot", ".", "..\r\n"},
		{"no line end at the end", "a\r\nb", "a\r\nb\r\n"},
		{"blank lines", "\r\n\r\n.\r\n\r\n", "\r\n\r\n..\r\n\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, size := range []int{1, 2, 3, 100} {
				var s stuffer
				var out []byte
				for piece := range strings.SplitSeq(cut(tt.in, size), "\x00") {
					var err error
					if out, err = s.append(out, []byte(piece)); err != nil {
						t.Fatal(err)
					}
				}
				out, err := s.end(out)
				if got := string(out); err != nil || got != tt.want+".\r\n" {
					t.Errorf("pieces of %d: got %q, %v", size, got, err)
				}
			}
		})
	}
}

// cut puts NUL between pieces of size.
func cut(s string, size int) string {
	var b strings.Builder
	for i := 0; i < len(s); i += size {
		if i > 0 {
			b.WriteByte(0)
		}
		b.WriteString(s[i:min(i+size, len(s))])
	}
	return b.String()
}

// A content with a bare CR or LF is not sent, wherever it stands (smuggling).
func TestBareLineEnds(t *testing.T) {
	for _, in := range []string{"\n", "\r", "a\nb\r\n", "a\rb\r\n", "\r\r\n", "a\r\n\n", "a\r\n.\n", "\r\n\r", "\n.\r\n"} {
		for _, size := range []int{1, 2, 100} {
			var s stuffer
			var err error
			for piece := range strings.SplitSeq(cut(in, size), "\x00") {
				if _, err = s.append(nil, []byte(piece)); err != nil {
					break
				}
			}
			if err == nil {
				_, err = s.end(nil)
			}
			if !errors.Is(err, ErrBareLineEnd) {
				t.Errorf("%q in pieces of %d: got %v", in, size, err)
			}
		}
	}
}

func TestContentReader(t *testing.T) {
	broken := errors.New("broken")
	tests := []struct {
		name string
		r    io.Reader
		size int64
		is   error
	}{
		{"whole", strings.NewReader("12345678"), 8, nil},
		{"size not known", strings.NewReader("12345678"), 0, nil},
		{"octet by octet", iotest.OneByteReader(strings.NewReader("12345678")), 8, nil},
		{"data with EOF", iotest.DataErrReader(strings.NewReader("12345678")), 8, nil},
		{"too short", strings.NewReader("1234567"), 8, ErrBody},
		{"too long", strings.NewReader("123456789"), 8, ErrBody},
		{"error", io.MultiReader(strings.NewReader("1234"), iotest.ErrReader(broken)), 8, broken},
		{"cut off", io.MultiReader(strings.NewReader("1234"), iotest.ErrReader(io.ErrUnexpectedEOF)), 0, io.ErrUnexpectedEOF},
		{"stuck", stuck{}, 0, io.ErrNoProgress},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := content{r: tt.r, size: tt.size, buf: make([]byte, 3)}
			var got []byte
			var err error
			for err == nil && !c.last {
				if err = c.next(); err == nil {
					got = append(got, c.piece...)
				}
			}
			if tt.is == nil && (err != nil || string(got) != "12345678") {
				t.Errorf("got %q, %v", got, err)
			}
			if tt.is != nil && (!errors.Is(err, tt.is) || !errors.Is(err, ErrBody)) {
				t.Errorf("got error %v, want %v", err, tt.is)
			}
		})
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// A large content arrives as it is, and is written in pieces.
func TestLargeContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b strings.Builder
		for i := range 50_000 {
			fmt.Fprintf(&b, "%.*s line %d\r\n", i%3, "..", i)
		}
		p, o := play(t, strings.Replace(opening, "> 250-SIZE 1000000\n", "> 250-SIZE\n", 1)+
			"< MAIL FROM:<sender@example.org>\n< RCPT TO:<a@example.net>\n< DATA\n> 250 ok\n> 250 ok\n> 354 go\nbody\n> 250 kept"+quit)
		c := dial(t, o)
		m := message(t, "a@example.net")
		m.Body, m.Size = strings.NewReader(b.String()), 0
		if res, err := c.Send(t.Context(), m); err != nil || !res.Recipients[0].OK() {
			t.Errorf("got %v, %v", fates(res), err)
		}
		c.Close(t.Context())
		p.done.Wait()
		got := strings.ReplaceAll("\r\n"+p.bodies[0], "\r\n.", "\r\n")[2:]
		if got != b.String() {
			t.Error("content changed on the way")
		}
	})
}

// What the peer does while content is on its way.
func TestContentCutShort(t *testing.T) {
	const start = opening + "< MAIL FROM:<sender@example.org> SIZE=200000\n< RCPT TO:<a@example.net>\n< DATA\n> 250 ok\n> 250 ok\n> 354 go\n"
	tests := []struct {
		name, script, fate string
		is                 error
	}{
		{name: "stalls", script: "take 40000\nwait 3m1s", is: os.ErrDeadlineExceeded, fate: "local body 451 4.4.2 timed out (body)"},
		{name: "closes", script: "take 40000", fate: "local body 451 4.4.2 connection lost (body)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, o := play(t, start+tt.script)
				c := dial(t, o)
				m := message(t, "a@example.net")
				m.Body, m.Size = strings.NewReader(strings.Repeat("12345678\r\n", 20_000)), 200_000
				res, err := c.Send(t.Context(), m)
				if diff := cmp.Diff([]string{tt.fate}, fates(res)); diff != "" || err == nil || tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("error %v, fates (-want +got):\n%s", err, diff)
				}
				if res.InDoubt || c.Reusable() {
					t.Errorf("got in doubt %v, reusable %v", res.InDoubt, c.Reusable())
				}
				p.done.Wait()
			})
		})
	}
}

// failingConn fails writes once it has let n octets of content through.
type failingConn struct {
	net.Conn
	n *int
}

func (c failingConn) Write(p []byte) (int, error) {
	if len(p) > 200 || bytes.HasSuffix(p, []byte("\r\n.\r\n")) {
		if *c.n -= len(p); *c.n < 0 {
			return 0, syscall.EPIPE
		}
	}
	return c.Conn.Write(p)
}

// A peer may refuse and hang up before the content is through: its word
// counts. Without one it is in doubt only if the dot was on its way.
func TestRefusedWhileWriting(t *testing.T) {
	large, small := strings.Repeat("12345678\r\n", 20_000), "Subject: x\r\n\r\n"
	tests := []struct {
		name, body, script, fate string
		permanent, inDoubt       bool
	}{
		{name: "too big", body: large, script: "take 32768\n> 552 5.3.4 too big", fate: "body 552 5.3.4 too big", permanent: true},
		{name: "no word", body: large, script: "take 32768", fate: "local body 451 4.4.2 connection lost (body)"},
		{name: "silence", body: large, script: "take 32768\nwait 3s", fate: "local body 451 4.4.2 connection lost (body)"},
		{name: "no word, dot written", body: small, script: "", fate: "local body 451 4.4.2 connection lost (body)", inDoubt: true},
		{name: "refused, dot written", body: small, script: "> 451 4.3.0 no", fate: "body 451 4.3.0 no"},
		{name: "250 is no word for half a content", body: large, script: "take 32768\n> 250 kept", fate: "local body 451 4.4.2 connection lost (body)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, o := play(t, plainOpening+"< MAIL FROM:<sender@example.org>\n> 250 ok\n< RCPT TO:<a@example.net>\n> 250 ok\n< DATA\n> 354 go\n"+tt.script)
				inner := o.Dial
				o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := inner(ctx, network, addr)
					n := 0
					if len(tt.body) > pieceBytes {
						n = pieceBytes
					}
					return failingConn{Conn: conn, n: &n}, err
				}
				c := dial(t, o)
				m := message(t, "a@example.net")
				m.Body, m.Size = strings.NewReader(tt.body), int64(len(tt.body))
				res, err := c.Send(t.Context(), m)
				failure, ok := errors.AsType[*Error](err)
				if !ok || failure.Permanent() != tt.permanent || res.InDoubt != tt.inDoubt || c.Reusable() {
					t.Errorf("got %v, in doubt %v", err, res.InDoubt)
				}
				if diff := cmp.Diff([]string{tt.fate}, fates(res)); diff != "" {
					t.Errorf("fates (-want +got):\n%s", diff)
				}
				p.done.Wait()
			})
		})
	}
}

// A body that fails before MAIL costs the host nothing: the connection stays good.
func TestBodyFailsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := play(t, opening+quit)
		c := dial(t, o)
		gone := errors.New("the mail is gone")
		m := message(t, "a@example.net")
		m.Body = iotest.ErrReader(gone)
		res, err := c.Send(t.Context(), m)
		if !errors.Is(err, gone) || !errors.Is(err, ErrBody) || !c.Reusable() {
			t.Errorf("got %v, reusable %v", err, c.Reusable())
		}
		if diff := cmp.Diff([]string{"local mail 451 4.3.0 content not readable (mail)"}, fates(res)); diff != "" {
			t.Errorf("fates (-want +got):\n%s", diff)
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}

// FuzzStuffer: what the stuffer lets through comes out again at the other end, and only there ends the data.
func FuzzStuffer(f *testing.F) {
	for _, seed := range []string{"", ".", "a\r\n.\r\nb", "\r\n..\r\n", "a\n.\r\n", "\r\r\n"} {
		f.Add([]byte(seed), 3)
	}
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		if size < 1 {
			size = 1
		}
		var s stuffer
		var out []byte
		var err error
		for i := 0; i < len(in) && err == nil; i += size {
			out, err = s.append(out, in[i:min(i+size, len(in))])
		}
		if err == nil {
			out, err = s.end(out)
		}
		whole := bytes.ReplaceAll(in, []byte("\r\n"), nil)
		if bare := bytes.ContainsAny(whole, "\r\n"); bare != (err != nil) {
			t.Fatalf("bare %v, error %v", bare, err)
		}
		if err != nil {
			return
		}
		out = append([]byte("\r\n"), out...)
		if i := bytes.Index(out, []byte("\r\n.\r\n")); i != len(out)-len("\r\n.\r\n") {
			t.Fatalf("the data ends at %d of %d", i, len(out))
		}
		got := bytes.ReplaceAll(out[:len(out)-len(".\r\n")], []byte("\r\n."), []byte("\r\n"))[2:]
		if !bytes.Equal(bytes.TrimSuffix(got, []byte("\r\n")), bytes.TrimSuffix(in, []byte("\r\n"))) {
			t.Fatalf("got %q of %q", got, in)
		}
	})
}

func BenchmarkStuffer(b *testing.B) {
	piece := []byte(strings.Repeat("The quick brown fox jumps over the lazy dog, and so on to column 72.\r\n", 450))
	out := make([]byte, 0, 2*len(piece))
	b.SetBytes(int64(len(piece)))
	for b.Loop() {
		var s stuffer
		out, _ = s.append(out[:0], piece)
		if hasEightBit(out) {
			b.Fatal("8 bit")
		}
	}
}
