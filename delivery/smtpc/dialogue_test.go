package smtpc

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/xdg-go/scram"

	"postroad/queue"
)

// TestDialogue plays every file of testdata/dialogue against a client over TCP. A file has three parts: what is asked of
// the client, what the host does, and behind a line --- what the client makes of it. The first part has lines
//
//	# comment
//	OPTION name=value   see dialogueOption
//
// and the second
//
//	S: text             the host says text and CRLF
//	S= "raw"            the host says a Go string as it is
//	C: text             the client says text; * stands for anything
//	BODY "raw"          the client sends this content and a dot; without a string: any content
//	CHUNK "raw"         the client sends these octets
//	STARTTLS            the host makes its handshake
//	SCRAM user password the host runs SCRAM-SHA-256 from AUTH to before the 235
//	DRIP "raw"          the host says an endless repetition of a Go string, an octet at a time, until the client has left
//	SILENT              the host says nothing until the client has left
//	STUCK               the host reads nothing until the client has left
//	EOF                 the client leaves without another word
//	CLOSE               the host hangs up, and takes the next connection; RESET: it does so with a RST
//
// The third part is what outcome prints.
func TestDialogue(t *testing.T) {
	files, err := filepath.Glob("testdata/dialogue/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("got no dialogues: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			script, want, _ := strings.Cut(string(text), "---\n")
			if diff := cmp.Diff(want, playDialogue(t, script)); diff != "" {
				t.Errorf("outcome (-want +got):\n%s", diff)
			}
		})
	}
}

// asked is what a dialogue asks of the client.
type asked struct {
	o     Options
	m     Message
	body  string
	sends int
}

// playDialogue gives the outcome.
func playDialogue(t *testing.T, script string) string {
	t.Helper()
	a := asked{o: Options{Hostname: "relay.test"}, m: message(t), body: "Subject: test\r\n\r\nHello.\r\n", sends: 1}
	var steps []string
	for line := range strings.Lines(script) {
		line = strings.TrimSuffix(line, "\n")
		option, isOption := strings.CutPrefix(line, "OPTION ")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case isOption:
			if err := dialogueOption(t, &a, option); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		default:
			steps = append(steps, line)
		}
	}
	if len(a.m.Recipients) == 0 {
		a.m.Recipients = []queue.Recipient{{Path: path(t, "a@example.net")}}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{l: l}
	ended := make(chan error, 1)
	go func() { ended <- h.play(steps) }()
	got := a.outcome(t, l.Addr().(*net.TCPAddr))
	l.Close()
	if err := <-ended; err != nil {
		t.Errorf("the host: %v", err)
	}
	return got
}

// dialogueOption sets what a dialogue asks for.
func dialogueOption(t *testing.T, a *asked, option string) error {
	name, value, _ := strings.Cut(option, "=")
	first, rest, _ := strings.Cut(value, ":")
	switch name {
	case "tls": // may, encrypt, verify
		a.o.TLS = map[string]TLSMode{"may": TLSMay, "encrypt": TLSEncrypt, "verify": TLSVerify}[value]
		a.o.TLSConfig = &tls.Config{RootCAs: roots()}
	case "server-name":
		a.o.ServerName = value
	case "verify": // what VerifyConnection says: ok, or an error
		a.o.TLSConfig = &tls.Config{VerifyConnection: func(tls.ConnectionState) error {
			if value == "ok" {
				return nil
			}
			return errors.New(value)
		}}
	case "auth": // user:password
		a.o.Auth = &Auth{Username: first, Password: rest}
	case "mechanisms":
		a.o.Auth.Mechanisms = strings.Split(value, ",")
	case "need-requiretls":
		a.o.RequireTLS = true
	case "insecure":
		a.o.Auth.AllowInsecure = true
	case "timeout": // Step:duration
		d, err := time.ParseDuration(rest)
		reflect.ValueOf(&a.o.Timeouts).Elem().FieldByName(first).SetInt(int64(d))
		return err
	case "from":
		a.m.From = path(t, value)
	case "rcpt": // path[ NOTIFY=…][ ORCPT=…]
		r := queue.Recipient{}
		for i, word := range strings.Fields(value) {
			key, val, _ := strings.Cut(word, "=")
			switch {
			case i == 0:
				r.Path = path(t, word)
			case key == "NOTIFY":
				r.Notify = strings.Split(val, ",")
			case key == "ORCPT":
				r.ORCPT = val
			}
		}
		a.m.Recipients = append(a.m.Recipients, r)
	case "ret":
		a.m.RET = value
	case "envid":
		a.m.ENVID = value
	case "by": // time left and mode: 100s:R
		left, err := time.ParseDuration(first)
		a.m.Deadline = queue.Deadline{At: time.Now().Add(left), Return: strings.Contains(rest, "R"), Trace: strings.Contains(rest, "T")}
		return err
	case "flags":
		a.m.Flags = queue.Flags{EightBit: strings.Contains(value, "8bit"), SMTPUTF8: strings.Contains(value, "utf8"), RequireTLS: strings.Contains(value, "requiretls")}
	case "size": // promised, without a look at the body
		n, err := strconv.ParseInt(value, 10, 64)
		a.m.Size = n
		return err
	case "body":
		body, err := strconv.Unquote(value)
		a.body, a.m.Size = body, int64(len(body))
		return err
	case "copies": // of the body
		n, err := strconv.Atoi(value)
		a.body = strings.Repeat(a.body, n)
		a.m.Size = int64(len(a.body))
		return err
	case "sends":
		n, err := strconv.Atoi(value)
		a.sends = n
		return err
	case "chunking":
		a.o.Chunking = true
	case "max-reply":
		n, err := strconv.Atoi(value)
		a.o.MaxReplyBytes = n
		return err
	default:
		return errors.New("no such option")
	}
	return nil
}

// outcome runs the client and prints what it says.
func (a *asked) outcome(t *testing.T, addr *net.TCPAddr) string {
	t.Helper()
	var b strings.Builder
	c, err := Dial(t.Context(), "mx.test", addr.AddrPort(), a.o)
	if failure, ok := errors.AsType[*Error](err); ok {
		fmt.Fprintf(&b, "dial failed, permanent %t: %s\n", failure.Permanent(), fates(Result{Recipients: []Reply{failure.Fate()}})[0])
		return b.String()
	}
	defer c.Close(t.Context())
	for range a.sends {
		m := a.m
		m.Body = strings.NewReader(a.body)
		res, err := c.Send(t.Context(), m)
		for _, fate := range fates(res) {
			fmt.Fprintln(&b, fate)
		}
		if errors.Is(err, ErrStale) {
			fmt.Fprintln(&b, "stale")
		}
		if res.InDoubt {
			fmt.Fprintln(&b, "in doubt")
		}
		if !c.Reusable() {
			fmt.Fprintln(&b, "of no more use")
			break
		}
	}
	return b.String()
}

// host is the other side of a dialogue.
type host struct {
	l    net.Listener
	conn net.Conn
	r    *bufio.Reader
}

const dialoguePatience = 30 * time.Second

func (h *host) play(steps []string) error {
	defer func() { h.hangUp() }()
	for i, line := range steps {
		if h.conn == nil {
			if err := h.accept(); err != nil {
				return fmt.Errorf("step %d %s: %w", i+1, line, err)
			}
		}
		if err := h.conn.SetDeadline(time.Now().Add(dialoguePatience)); err != nil {
			return err
		}
		if err := h.step(line); err != nil {
			return fmt.Errorf("step %d %s: %w", i+1, line, err)
		}
	}
	return nil
}

func (h *host) accept() error {
	if err := h.l.(*net.TCPListener).SetDeadline(time.Now().Add(dialoguePatience)); err != nil {
		return err
	}
	conn, err := h.l.Accept()
	if err == nil {
		h.conn, h.r = conn, bufio.NewReader(conn)
	}
	return err
}

func (h *host) hangUp() {
	if h.conn != nil {
		h.conn.Close()
		h.conn = nil
	}
}

func (h *host) step(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	raw, err := strconv.Unquote(rest)
	switch word {
	case "S:":
		_, err = io.WriteString(h.conn, rest+"\r\n")
	case "S=":
		if err == nil {
			_, err = io.WriteString(h.conn, raw)
		}
	case "C:":
		err = h.heard(rest)
	case "BODY":
		err = h.body(raw, rest == "")
	case "CHUNK":
		got := make([]byte, len(raw))
		if _, err = io.ReadFull(h.r, got); err == nil && string(got) != raw {
			err = fmt.Errorf("got %q", got)
		}
	case "STARTTLS":
		conn := tls.Server(h.conn, serverTLS())
		_ = conn.Handshake() // what the client makes of it is the test
		h.conn, h.r = conn, bufio.NewReader(conn)
		err = nil
	case "SCRAM":
		user, password, _ := strings.Cut(rest, " ")
		err = h.scram(user, password)
	case "DRIP":
		for i := 0; err == nil; i++ {
			_, err = h.conn.Write([]byte{raw[i%len(raw)]})
			time.Sleep(time.Millisecond)
		}
		err = nil
	case "SILENT":
		_, _ = io.Copy(io.Discard, h.r) // a reset is an end too
		err = nil
	case "STUCK":
		err = h.stuck()
	case "EOF":
		var got []byte
		if got, err = io.ReadAll(h.r); len(got) > 0 {
			err = fmt.Errorf("got %q", got)
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			err = errors.New("the client stays")
		} else {
			err = nil
		}
	case "RESET":
		err = h.conn.(*net.TCPConn).SetLinger(0)
		h.hangUp()
	case "CLOSE":
		h.hangUp()
		err = nil
	default:
		err = errors.New("no such step")
	}
	return err
}

// stuck waits for the client to leave without reading: until what is sent to it is refused.
func (h *host) stuck() error {
	for {
		if _, err := h.conn.Write([]byte("x")); err != nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (h *host) heard(want string) error {
	got, err := h.r.ReadString('\n')
	if err != nil {
		return fmt.Errorf("got %q, %w", got, err)
	}
	got, ok := strings.CutSuffix(got, "\r\n")
	before, behind, isPattern := strings.Cut(want, "*")
	if isPattern {
		ok = ok && strings.HasPrefix(got, before) && strings.HasSuffix(got, behind)
	} else {
		ok = ok && got == want
	}
	if !ok {
		return fmt.Errorf("got %q", got)
	}
	return nil
}

func (h *host) body(want string, anyWillDo bool) error {
	var b strings.Builder
	for {
		line, err := h.r.ReadString('\n')
		if err != nil {
			return err
		}
		if line == ".\r\n" {
			break
		}
		b.WriteString(line)
	}
	if got := b.String(); got != want && !anyWillDo {
		return fmt.Errorf("got %q", got)
	}
	return nil
}

// scram is the server's side of SCRAM-SHA-256, by the library.
func (h *host) scram(user, password string) error {
	client, err := scram.SHA256.NewClient(user, password, "")
	if err != nil {
		return err
	}
	stored, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: "salt of a test", Iters: 4096})
	if err != nil {
		return err
	}
	server, err := scram.SHA256.NewServer(func(string) (scram.StoredCredentials, error) { return stored, nil })
	if err != nil {
		return err
	}
	talk := server.NewConversation()
	for !talk.Done() {
		line, err := h.r.ReadString('\n')
		if err != nil {
			return err
		}
		octets, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(strings.TrimSpace(line), "AUTH SCRAM-SHA-256 "))
		if err != nil {
			return err
		}
		challenge, err := talk.Step(string(octets))
		if err != nil {
			_, err = io.WriteString(h.conn, "535 5.7.8 wrong\r\n")
			return err
		}
		if _, err := fmt.Fprintf(h.conn, "334 %s\r\n", base64.StdEncoding.EncodeToString([]byte(challenge))); err != nil {
			return err
		}
	}
	return h.heard("") // the empty answer to the last challenge
}
