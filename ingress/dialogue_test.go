package ingress

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xdg-go/scram"

	"postroad/queue"
)

// TestDialogue plays every file of testdata/dialogue against a server over
// TCP. A line of a file is one of
//
//	# comment
//	OPTION name=value   server options, see dialogueOption; first lines of the file
//	C: text             the client says text and CRLF
//	C= "raw"            the client sends a Go string as it is
//	C* n "raw"          … n times
//	C> text             as C:, but sent together with the next C line
//	S: text             the server says text; * stands for anything
//	EHLO name           the client says so and reads all of a 250 reply
//	HAVE text           a line of the last EHLO reply or REPLY is text, behind the code; * stands for anything
//	HAVENT text         none is
//	REPLY code          the server says a reply of several lines, all with the code
//	STARTTLS            the client makes its handshake
//	SCRAM user password the client logs in by SCRAM-SHA-256; the 235 is left to S:
//	STOP                the server begins to stop
//	AGAIN               the client connects once more
//	EOF                 the server closes
//	CLOSE               the client closes
//	KEPT n              so many messages are accepted, within a while
//	FLOWS text          the queue has read text, a Go string, of a payload, within a while
//	ENV name=value      what the last accepted envelope says, see envelopeField
//	HAS text            the last accepted payload holds text, a Go string
//	HASNT text          it does not
//
// A file without OPTION tls, implicit or clear is played in clear and under TLS.
func TestDialogue(t *testing.T) {
	files, err := filepath.Glob("testdata/dialogue/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("got no dialogues: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimRight(string(script), "\n"), "\n")
			play := playDialogue
			if strings.Contains(string(script), "OPTION idle-timeout=") { // in fake time
				testTLS()
				testClientCertificate()
				play = func(t *testing.T, lines []string) {
					synctest.Test(t, func(t *testing.T) { playDialogueOn(t, lines, newPipeListener()) })
				}
			}
			play(t, lines)
			for _, line := range lines {
				if line == "OPTION tls" || line == "OPTION implicit" || line == "OPTION clear" {
					return
				}
			}
			t.Run("tls", func(t *testing.T) { play(t, append([]string{"OPTION implicit"}, lines...)) })
		})
	}
}

// dialogueOption sets what a dialogue asks for.
func dialogueOption(o *Options, q *fakeQueue, option string) error {
	name, value, _ := strings.Cut(option, "=")
	number, _ := strconv.Atoi(value)
	switch name {
	case "max-recipients":
		o.MaxRecipients = number
	case "max-bytes":
		o.MaxMessageBytes = int64(number)
	case "max-hops":
		o.MaxHops = number
	case "max-header-bytes":
		o.MaxHeaderBytes = number
	case "max-header-fields":
		o.MaxHeaderFields = number
	case "max-errors":
		o.MaxErrors = number
	case "max-idle":
		o.MaxIdleCommands = number
	case "idle-timeout":
		d, err := time.ParseDuration(value)
		o.IdleTimeout = d
		return err
	case "pass-long-lines":
		o.PassLongLines = true
	case "untrusted":
		o.Listeners[0].TrustedNetworks = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	case "tls":
		o.Listeners[0].TLS = testTLS()
	case "implicit":
		o.Listeners[0].TLS, o.Listeners[0].Implicit = testTLS(), true
	case "full":
		q.isFull = true
	case "clear": // see TestDialogue
	case "auth":
		o.Accounts = testAccounts()
		o.Listeners[0].Auth = map[string]AuthMode{"optional": AuthOptional, "required": AuthRequired}[value]
		o.Listeners[0].TrustedNetworks = nil
	case "auth-in-clear":
		o.Listeners[0].AuthInClear = true
	case "normalize":
		o.Listeners[0].NormalizeLines = true
	case "proxy":
		o.Listeners[0].ProxyNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		o.Listeners[0].TrustedNetworks = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	case "null-mx":
		o.TakesNoMail = func(_ context.Context, domain string) bool { return domain == value }
	case "banner":
		o.Listeners[0].Banner = value
	case "recipients":
		o.Policy.Recipients = strings.Split(value, ",")
	case "submits":
		class := o.Policy.Classes[NetworkClass]
		class.Submits = true
		o.Policy.Classes[NetworkClass] = class
	case "hide-received":
		class := o.Policy.Classes[NetworkClass]
		class.Submits, class.HideReceived = true, true
		o.Policy.Classes[NetworkClass] = class
	case "client-certificate": // the client shows that of testClientCertificate
		o.Listeners[0].TLS = o.Listeners[0].TLS.Clone()
		o.Listeners[0].TLS.ClientAuth = tls.RequestClientCert
	case "idempotent":
		class := o.Policy.Classes[NetworkClass]
		class.Idempotent = true
		o.Policy.Classes[NetworkClass] = class
	case "max-hold", "max-hold-hosts":
		d, err := time.ParseDuration(value)
		name := map[string]string{"max-hold": NetworkClass, "max-hold-hosts": "host"}[name]
		class := o.Policy.Classes[name]
		class.MaxHold = d
		o.Policy.Classes[name] = class
		return err
	case "limit", "limit-reject":
		class := o.Policy.Classes[NetworkClass]
		class.PerClient = queue.Limit{Count: number, Window: time.Hour}
		class.RejectOverLimit = name == "limit-reject"
		o.Policy.Classes[NetworkClass] = class
	case "rewrite":
		o.Rewriter = testRules()
	case "accept":
		errs := map[string]error{"full": queue.ErrFull, "unavailable": queue.ErrUnavailable, "inner": errInner,
			"envelope": queue.ErrEnvelopeTooLarge}
		q.accept = func(context.Context, io.Reader) error { return errs[value] }
	default:
		return fmt.Errorf("unknown option %s", option)
	}
	return nil
}

// player is the client side of a dialogue.
type player struct {
	t          *testing.T
	server     *Server
	pipe       *pipeListener // instead of TCP, if it is there
	isImplicit bool
	conn       net.Conn
	r          *bufio.Reader
	queue      *fakeQueue
	held       string   // to be sent with the next line
	lines      []string // of the last EHLO or REPLY, without codes
}

func playDialogue(t *testing.T, script []string) {
	t.Helper()
	playDialogueOn(t, script, nil)
}

func playDialogueOn(t *testing.T, script []string, pipe *pipeListener) {
	t.Helper()
	q := &fakeQueue{}
	o := testOptions(q)
	o.Policy = Policy{Classes: map[string]Class{NetworkClass: {}, "host": {Submits: true}}}
	for len(script) > 0 && (strings.HasPrefix(script[0], "OPTION ") || strings.HasPrefix(script[0], "#")) {
		if option, isOption := strings.CutPrefix(script[0], "OPTION "); isOption {
			if err := dialogueOption(&o, q, option); err != nil {
				t.Fatal(err)
			}
		}
		script = script[1:]
	}
	p := &player{t: t, queue: q, pipe: pipe, isImplicit: o.Listeners[0].Implicit}
	if pipe != nil {
		p.server = ownListener(t, o, pipe)
	} else {
		p.server = startServer(t, o)
	}
	if err := p.dial(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.conn.Close() }()
	for i, line := range script {
		if err := p.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
			t.Fatal(err)
		}
		if err := p.step(line); err != nil {
			t.Fatalf("%s (step %d): %v", line, i+1, err)
		}
	}
}

func (p *player) dial() error {
	if p.pipe != nil {
		p.conn = p.pipe.dial()
	} else {
		conn, err := net.Dial("tcp", p.server.Addrs()[0].String())
		if err != nil {
			return err
		}
		p.conn = conn
	}
	p.r = bufio.NewReader(p.conn)
	if p.isImplicit {
		return p.handshake()
	}
	return nil
}

func (p *player) handshake() error {
	secure := tls.Client(p.conn, &tls.Config{InsecureSkipVerify: true, ServerName: "relay.test",
		Certificates: testClientCertificate().Certificates}) // shown only when it is asked for
	p.conn, p.r = secure, bufio.NewReader(secure)
	return secure.Handshake()
}

func (p *player) step(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "", "#":
		return nil
	case "C:":
		return p.send(rest + "\r\n")
	case "C>":
		p.held += rest + "\r\n"
		return nil
	case "C=":
		raw, err := strconv.Unquote(rest)
		if err != nil {
			return err
		}
		return p.send(raw)
	case "C*":
		count, text, _ := strings.Cut(rest, " ")
		n, err := strconv.Atoi(count)
		if err != nil {
			return err
		}
		raw, err := strconv.Unquote(text)
		if err != nil {
			return err
		}
		return p.send(strings.Repeat(raw, n))
	case "S:":
		return p.expect(rest)
	case "STARTTLS":
		return p.handshake()
	case "EHLO":
		if err := p.send("EHLO " + rest + "\r\n"); err != nil {
			return err
		}
		return p.expectReply("250")
	case "REPLY":
		return p.expectReply(rest)
	case "HAVE", "HAVENT":
		isThere := slices.ContainsFunc(p.lines, func(line string) bool { return matchLine(rest, line) })
		if isThere != (word == "HAVE") {
			return fmt.Errorf("got %q", p.lines)
		}
		return nil
	case "SCRAM":
		user, password, _ := strings.Cut(rest, " ")
		return p.scram(user, password)
	case "STOP":
		go func() { _ = p.server.Stop(context.Background()) }() // waited for by startServer's cleanup
		return nil
	case "AGAIN":
		_ = p.conn.Close()
		return p.dial()
	case "EOF":
		if b, err := p.r.ReadByte(); !errors.Is(err, io.EOF) {
			return fmt.Errorf("got %q, %v, want EOF", b, err)
		}
		return nil
	case "CLOSE":
		return p.conn.Close()
	}
	return p.check(word, rest)
}

func (p *player) check(word, rest string) error {
	all := p.queue.all()
	switch word {
	case "KEPT":
		for deadline := time.Now().Add(30 * time.Second); strconv.Itoa(len(all)) != rest; all = p.queue.all() {
			if time.Now().After(deadline) {
				return fmt.Errorf("got %d messages accepted, want %s", len(all), rest)
			}
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	case "FLOWS":
		text, err := strconv.Unquote(rest)
		for deadline := time.Now().Add(30 * time.Second); err == nil && !p.queue.hasRead(text); {
			if time.Now().After(deadline) {
				return errors.New("it has not")
			}
			time.Sleep(5 * time.Millisecond)
		}
		return err
	case "ENV":
		name, want, _ := strings.Cut(rest, "=")
		if len(all) == 0 {
			return errors.New("nothing was accepted")
		}
		got, err := envelopeField(&all[len(all)-1].env, name)
		if err == nil && got != want {
			err = fmt.Errorf("got %q", got)
		}
		return err
	case "HAS", "HASNT":
		text, err := strconv.Unquote(rest)
		if err != nil || len(all) == 0 {
			return fmt.Errorf("%d accepted: %w", len(all), err)
		}
		payload := all[len(all)-1].payload
		if strings.Contains(payload, text) != (word == "HAS") {
			return fmt.Errorf("got payload %q", payload)
		}
		return nil
	}
	return errors.New("no such step")
}

// envelopeField prints a field of an envelope.
func envelopeField(env *queue.Envelope, name string) (string, error) {
	switch name {
	case "from":
		return env.ReversePath.String(), nil
	case "to":
		var all []string
		for i := range env.Recipients {
			all = append(all, env.Recipients[i].Path.String())
		}
		return strings.Join(all, ","), nil
	case "orcpt":
		return env.Recipients[0].ORCPT, nil
	case "client":
		return env.Client, nil
	case "class":
		return env.Class, nil
	case "remote":
		return env.RemoteAddr, nil
	case "hold":
		if env.HoldUntil.IsZero() {
			return "none", nil
		}
		return env.HoldUntil.Sub(env.Accepted).Round(10 * time.Second).String(), nil
	case "hold-until":
		return env.HoldUntil.UTC().Format(time.RFC3339), nil
	case "deadline":
		d := env.Deadline
		if d.IsZero() {
			return "none", nil
		}
		mode := map[bool]string{true: "R", false: "N"}[d.Return]
		if d.Trace {
			mode += "T"
		}
		return d.At.Sub(env.Accepted).Round(10*time.Second).String() + " " + mode, nil
	case "requiretls":
		return strconv.FormatBool(env.Flags.RequireTLS), nil
	case "tlsoptional":
		return strconv.FormatBool(env.Flags.TLSOptional), nil
	case "8bit":
		return strconv.FormatBool(env.Flags.EightBit), nil
	}
	return "", errors.New("no such field")
}

// expectReply reads a reply of any number of lines. RFC 5321 §4.2.1: the code
// stands on each of them.
func (p *player) expectReply(code string) error {
	p.lines = nil
	for {
		line, err := p.r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("got %q, %w", line, err)
		}
		line = strings.TrimSuffix(line, "\r\n")
		rest, hasCode := strings.CutPrefix(line, code)
		if !hasCode || rest == "" {
			return fmt.Errorf("got %q", line)
		}
		p.lines = append(p.lines, rest[1:])
		if rest[0] == ' ' {
			return nil
		}
	}
}

// scram logs in up to the last response.
func (p *player) scram(user, password string) error {
	client, err := scram.SHA256.NewClient(user, password, "")
	if err != nil {
		return err
	}
	talk := client.NewConversation()
	line, err := talk.Step("")
	command := "AUTH SCRAM-SHA-256 "
	for err == nil {
		if err = p.send(command + base64.StdEncoding.EncodeToString([]byte(line)) + "\r\n"); err != nil || talk.Done() {
			return err
		}
		command = ""
		if err = p.expectReply("334"); err != nil {
			return err
		}
		var challenge []byte
		if challenge, err = base64.StdEncoding.DecodeString(p.lines[0]); err == nil {
			line, err = talk.Step(string(challenge))
		}
	}
	return err
}

func (p *player) send(text string) error {
	_, err := io.WriteString(p.conn, p.held+text)
	p.held = ""
	return err
}

func (p *player) expect(want string) error {
	got, err := p.r.ReadString('\n')
	if err != nil {
		return fmt.Errorf("got %q, %w", got, err)
	}
	got = strings.TrimSuffix(got, "\r\n")
	if !matchLine(want, got) {
		return fmt.Errorf("got %q", got)
	}
	return nil
}

// matchLine compares with * for any text.
func matchLine(pattern, line string) bool {
	head, tail, hasStar := strings.Cut(pattern, "*")
	if !hasStar {
		return pattern == line
	}
	rest, hasHead := strings.CutPrefix(line, head)
	if !hasHead {
		return false
	}
	for i := len(rest); i >= 0; i-- {
		if matchLine(tail, rest[i:]) {
			return true
		}
	}
	return false
}
