// Package check speaks SMTP to a server as a client does, keeps the transcript, and judges each step: what a person does with swaks, openssl
// and telnet, and a script with an exit status.
//
//	r := check.SMTP(ctx, check.Options{
//		Server: "relay.example.com:587", TLS: check.StartTLS,
//		User: "web1", Password: password,
//		Recipients: []string{"me@example.com"}, // sends a mail; without, it stops after the login
//		Say: func(l check.Line) { fmt.Println(l) },
//	})
//	r.Good // and r.Verdicts, r.TLS, r.Transcript
//
// Relay checks that a server refuses mail from strangers, TLS looks at certificates and protocols only. What a server says is bounded, cleaned
// and waited for with a deadline at each step, so that not even a hostile one can hang the check or flood a terminal. Passwords are in no
// transcript, in whatever coding they are sent.
package check

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// TLSMode is how the connection becomes a TLS one.
type TLSMode string

// The modes.
const (
	NoTLS       TLSMode = "none"
	StartTLS    TLSMode = "starttls"
	ImplicitTLS TLSMode = "implicit" // from the first octet
)

// Stage is how far a check goes. The stages are those of swaks.
type Stage int

// The stages. With STARTTLS there are two EHLO; FirstHelo is the one in clear.
const (
	Connect Stage = iota + 1
	FirstHelo
	Handshake
	Helo
	Auth
	Mail
	Rcpt
	Data
)

var stageNames = map[string]Stage{
	"connect": Connect, "banner": Connect, "first-helo": FirstHelo, "first-ehlo": FirstHelo, "tls": Handshake, "starttls": Handshake,
	"helo": Helo, "ehlo": Helo, "auth": Auth, "mail": Mail, "from": Mail, "rcpt": Rcpt, "to": Rcpt, "data": Data,
}

// ParseStage reads the name of a stage; swaks' other names for them are good too.
func ParseStage(text string) (Stage, error) {
	if s, ok := stageNames[strings.ToLower(text)]; ok {
		return s, nil
	}
	return 0, fmt.Errorf("%q is no place to stop: want connect, first-helo, tls, helo, auth, mail, rcpt or data", text)
}

// Codes are reply codes that are expected: 550, or 5xx for all of a kind. Empty: success.
type Codes []string

// ParseCodes reads codes with commas between them.
func ParseCodes(text string) (Codes, error) {
	var list Codes
	for code := range strings.SplitSeq(text, ",") {
		code = strings.ToLower(strings.TrimSpace(code))
		digits := strings.ReplaceAll(code, "x", "0")
		n, err := strconv.Atoi(digits)
		if isKind := len(code) == 3 && strings.HasSuffix(code, "xx"); err != nil || len(code) != 3 || n < 200 || n > 599 || digits != code && !isKind {
			return nil, fmt.Errorf("%q is no reply code: want three digits such as 550, or 5xx", code)
		}
		list = append(list, code)
	}
	return list, nil
}

func (c Codes) match(code int) bool {
	return c.names(code) || slices.Contains(c, strconv.Itoa(code)[:1]+"xx")
}

// names reports whether c has this very code.
func (c Codes) names(code int) bool { return slices.Contains(c, strconv.Itoa(code)) }

func (c Codes) String() string { return strings.Join(c, " or ") }

// Options say what to check. A zero field takes its default.
type Options struct {
	Server string  // host:port; required
	TLS    TLSMode // default: NoTLS

	CAs         *x509.CertPool   // who may sign the server's certificate; default: whom the system trusts
	Name        string           // what the certificate must be for; default: the host of Server
	MinLeft     time.Duration    // a certificate that ends sooner is not good; default: it must be good now
	Certificate *tls.Certificate // the client's own; default: none

	Hello     string // name for EHLO; default: that of this machine
	User      string // logs in; default: does not, unless there is a Certificate
	Password  string
	Mechanism string // the only one to use; default: the best that is offered
	// AuthInClear shows the password even without TLS, or to a server whose certificate is not good.
	AuthInClear bool

	Sender     string   // reverse-path; "<>" is none; default: postroad-check at Hello
	Recipients []string // who get a mail; default: nobody
	Stop       Stage    // the last one; default: what the fields above ask for
	// Expect are codes of a refusal, or of the last reply. The check is good when the server says one of them.
	Expect Codes

	Timeout time.Duration // of each step, 10 s; replies are waited for no longer, however they trickle
	Say     func(Line)    // gets the transcript line by line; default: nobody
}

func (o Options) withDefaults() Options {
	if o.TLS == "" {
		o.TLS = NoTLS
	}
	if o.Name == "" {
		o.Name, _, _ = net.SplitHostPort(o.Server)
	}
	if o.Hello == "" {
		o.Hello, _ = os.Hostname()
	}
	if !isWord(o.Hello) {
		o.Hello = "localhost"
	}
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Say == nil {
		o.Say = func(Line) {}
	}
	if o.Stop == 0 {
		switch {
		case len(o.Recipients) > 0:
			o.Stop = Data
		case o.Sender != "":
			o.Stop = Mail
		case o.logsIn():
			o.Stop = Auth
		default:
			o.Stop = Helo
		}
	}
	if o.Sender == "" {
		o.Sender = "postroad-check@" + o.Hello
	}
	return o
}

func (o *Options) logsIn() bool { return o.User != "" || o.Certificate != nil }

// wrong finds what would put commands of its own into the dialogue.
func (o *Options) wrong() error {
	for _, text := range append([]string{o.User, o.Sender, o.Mechanism}, o.Recipients...) {
		if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fmt.Errorf("%q holds a control character", text)
		}
	}
	if o.Stop >= Rcpt && len(o.Recipients) == 0 {
		return fmt.Errorf("there is no recipient to go so far")
	}
	return nil
}

func isWord(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// State is what a verdict says.
type State string

// The states. A note does not make a check fail.
const (
	Good State = "good"
	Bad  State = "bad"
	Note State = "note"
)

// Verdict is the judgement of one step.
type Verdict struct {
	State State  `json:"state"`
	Step  string `json:"step"`
	Text  string `json:"text"`           // what was seen
	Hint  string `json:"hint,omitempty"` // what to do about it
	Code  int    `json:"code,omitempty"` // of the reply that it is about
}

// Line is one of the transcript.
type Line struct {
	From string `json:"from"` // client, server, or check for what is no line of the dialogue
	TLS  bool   `json:"tls,omitempty"`
	Text string `json:"text"`
}

// String prints it as swaks does: -> and <- in clear, ~> and <~ under TLS.
func (l Line) String() string {
	switch {
	case l.From == fromClient && l.TLS:
		return " ~> " + l.Text
	case l.From == fromClient:
		return " -> " + l.Text
	case l.From == fromServer && l.TLS:
		return "<~  " + l.Text
	case l.From == fromServer:
		return "<-  " + l.Text
	}
	return "=== " + l.Text
}

const (
	fromClient = "client"
	fromServer = "server"
	fromCheck  = "check"
)

// Report is what a check has found.
type Report struct {
	Server     string     `json:"server"`
	Address    string     `json:"address,omitempty"` // that answered
	Good       bool       `json:"good"`
	Verdicts   []Verdict  `json:"verdicts"`
	TLS        *TLSReport `json:"tls,omitempty"`
	Extensions []string   `json:"extensions,omitempty"` // of the last EHLO
	Mechanisms []string   `json:"auth,omitempty"`
	Transcript []Line     `json:"transcript"`
}

// finish decides whether all was good.
func (r *Report) finish() *Report {
	r.Good = len(r.Verdicts) > 0 && !slices.ContainsFunc(r.Verdicts, func(v Verdict) bool { return v.State == Bad })
	return r
}

// SMTP goes as far as the options say.
func SMTP(ctx context.Context, o Options) *Report {
	s := newSession(o)
	if s.open(ctx) {
		if s.dialogue() {
			s.expectAtEnd()
		}
		s.quit()
	}
	s.close()
	return s.r.finish()
}

// TLS looks at the certificate and at the protocols.
func TLS(ctx context.Context, o Options) *Report {
	o.User, o.Password, o.Recipients, o.Sender, o.Expect, o.Stop = "", "", nil, "", nil, Handshake
	r := SMTP(ctx, o)
	if r.TLS != nil {
		r.Verdicts = append(r.Verdicts, oldVersions(ctx, o))
		r.finish()
	}
	return r
}
