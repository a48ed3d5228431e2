package ingress

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// bareSession is a session of go-smtp without any guard, to pin what the
// library does by itself.
type bareSession struct {
	conn *smtp.Conn
	b    *bareBackend
}

type bareBackend struct {
	data   func(r io.Reader) error // default: reads everything
	reset  func()
	logout func(c *smtp.Conn)

	mu       sync.Mutex
	from, to []string
	content  []string
	dataErrs []error
}

func (b *bareBackend) NewSession(c *smtp.Conn) (smtp.Session, error) { return &bareSession{c, b}, nil }

func (s *bareSession) Reset() {
	if s.b.reset != nil {
		s.b.reset()
	}
}

func (s *bareSession) Logout() error {
	if s.b.logout != nil {
		s.b.logout(s.conn)
	}
	return nil
}

func (s *bareSession) Mail(from string, _ *smtp.MailOptions) error {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.from = append(s.b.from, from)
	return nil
}

func (s *bareSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.to = append(s.b.to, to)
	return nil
}

func (s *bareSession) Data(r io.Reader) error {
	if s.b.data != nil {
		return s.b.data(r)
	}
	content, err := io.ReadAll(r)
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if err != nil {
		s.b.dataErrs = append(s.b.dataErrs, err)
		return err
	}
	s.b.content = append(s.b.content, string(content))
	return nil
}

func (s *bareSession) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *bareSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(string, string, string) error { return nil }), nil
}

// bare starts go-smtp alone and connects to it.
func bare(t *testing.T, b *bareBackend, configure func(*smtp.Server)) *client {
	t.Helper()
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return bareOn(t, b, socket, configure)
}

func bareOn(t *testing.T, b *bareBackend, socket net.Listener, configure func(*smtp.Server)) *client {
	t.Helper()
	serveBare(t, b, socket, configure)
	return dial(t, socket.Addr().String())
}

// barePiped is bare in memory, for bubbles too.
func barePiped(t *testing.T, b *bareBackend, configure func(*smtp.Server)) *client {
	t.Helper()
	l := newPipeListener()
	serveBare(t, b, l, configure)
	return piped(t, l)
}

func serveBare(t *testing.T, b *bareBackend, socket net.Listener, configure func(*smtp.Server)) {
	t.Helper()
	s := smtp.NewServer(b)
	s.Domain = "bare.test"
	s.ErrorLog = log.New(io.Discard, "", 0)
	if configure != nil {
		configure(s)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(socket) })
	t.Cleanup(func() {
		_ = s.Close()
		_ = socket.Close()
		serving.Wait()
	})
}

// client speaks SMTP line by line.
type client struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func dial(t testing.TB, address string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t: t, conn: conn, r: bufio.NewReader(conn)}
}

// say sends text as it is.
func (c *client) say(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, text); err != nil {
		c.t.Fatalf("say %.60q: %v", text, err)
	}
}

// hear reads one reply, all its lines, and compares the start of the last one.
func (c *client) hear(want string) string {
	c.t.Helper()
	got, err := c.reply(30 * time.Second)
	if err != nil {
		c.t.Fatalf("got %q, %v, want %s", got, err, want)
	}
	if !strings.HasPrefix(got, want) {
		c.t.Fatalf("got %q, want %s", got, want)
	}
	return got
}

func (c *client) reply(patience time.Duration) (string, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return line, err
		}
		if len(line) < 4 || line[3] != '-' {
			return strings.TrimSuffix(line, "\r\n"), nil
		}
	}
}

// talk says lines and hears the starts of their replies, in turn.
func (c *client) talk(turns ...string) {
	c.t.Helper()
	for i, text := range turns {
		if i%2 == 0 {
			c.say(text + "\r\n")
		} else {
			c.hear(text)
		}
	}
}

// begin goes as far as 354.
func (c *client) begin() {
	c.t.Helper()
	c.hear("220")
	c.talk("EHLO client.test", "250", "MAIL FROM:<a@from.test>", "250", "RCPT TO:<b@to.test>", "250", "DATA", "354")
}

// quiet checks that nothing comes for a while.
func (c *client) quiet(d time.Duration) {
	c.t.Helper()
	if got, err := c.reply(d); err == nil {
		c.t.Fatalf("got %q, want silence", got)
	}
}

// closed checks that the server closes without a further word.
func (c *client) closed() {
	c.t.Helper()
	if got, err := c.reply(30 * time.Second); !isEnd(err) {
		c.t.Fatalf("got %q, %v, want the end", got, err)
	}
}

func isEnd(err error) bool {
	_, isNet := errors.AsType[*net.OpError](err)
	timeout, isTimeout := errors.AsType[net.Error](err)
	return errors.Is(err, io.EOF) || isNet && !(isTimeout && timeout.Timeout())
}

// ours starts our server and connects to it.
func ours(t *testing.T, q *fakeQueue, configure func(*Options)) *client {
	t.Helper()
	o := testOptions(q)
	if configure != nil {
		configure(&o)
	}
	return dial(t, startServer(t, o).Addrs()[0].String())
}

// oursPiped is ours in memory, for bubbles too.
func oursPiped(t *testing.T, q *fakeQueue, configure func(*Options)) *client {
	t.Helper()
	o := testOptions(q)
	if configure != nil {
		configure(&o)
	}
	l := newPipeListener()
	ownListener(t, o, l)
	return piped(t, l)
}

// piped connects in memory.
func piped(t testing.TB, l *pipeListener) *client {
	t.Helper()
	conn := l.dial()
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t: t, conn: conn, r: bufio.NewReader(conn)}
}

func (b *bareBackend) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprintf("from %q to %q content %q errors %v", b.from, b.to, b.content, b.dataErrs)
}

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }
