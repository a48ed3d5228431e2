package smtpc

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"
)

// Mechanisms of SASL that an Auth may name.
const (
	ScramSHA256 = "SCRAM-SHA-256" // RFC 7677: the password is never shown
	Plain       = "PLAIN"         // RFC 4616
	Login       = "LOGIN"         // draft-murchison-sasl-login: for hosts that have nothing else
)

// DefaultMechanisms are those of an Auth that names none, in the order in which they are tried.
func DefaultMechanisms() []string { return []string{ScramSHA256, Plain, Login} }

// Auth says how to log in to the host (RFC 4954). A login that fails is temporary: it is our configuration that is wrong,
// not the mail.
type Auth struct {
	Username, Password string
	Mechanisms         []string // that may be used, in any case, the one to try first at the start; default: DefaultMechanisms
	// AllowInsecure permits to log in in clear text, or under TLS that does not prove who the host is. Otherwise only TLSVerify will do.
	AllowInsecure bool
}

const (
	// maxAuthCommand bounds AUTH with an initial response, as any command line (RFC 4954 §4, RFC 5321 §4.5.3.1.4).
	maxAuthCommand = 512
	// maxIterations bounds what a host can make us hash.
	maxIterations = 1_000_000
)

// check finds what can never work.
func (a *Auth) check() error {
	switch {
	case a == nil:
		return nil
	case a.Username == "" || a.Password == "":
		return errors.New("credentials: user name or password is empty")
	case strings.ContainsRune(a.Username+a.Password, 0):
		return errors.New("credentials: a NUL octet cannot be sent")
	}
	for _, m := range a.Mechanisms {
		if !slices.Contains(DefaultMechanisms(), strings.ToUpper(m)) {
			return fmt.Errorf("credentials: mechanism %.40q is none of %s", m, strings.Join(DefaultMechanisms(), ", "))
		}
	}
	return nil
}

// logIn does what Options.Auth wants.
func (c *Conn) logIn() *Error {
	a := c.o.Auth
	if a == nil {
		return nil
	}
	if !a.AllowInsecure && (c.tls == nil || c.o.TLS != TLSVerify) {
		return &Error{Phase: PhaseAuth, Err: ErrAuthInsecure}
	}
	failure := &Error{Phase: PhaseAuth, Err: fmt.Errorf("%w: it offers none of our mechanisms", ErrAuth)}
	for _, mechanism := range c.usable(a) {
		r, err := c.exchange(mechanism, a)
		switch {
		case err != nil:
			return &Error{Phase: PhaseAuth, Err: err}
		case r.OK():
			return nil
		}
		failure = &Error{Phase: PhaseAuth, Reply: &r, Err: ErrAuth}
		if r.Code != 504 && r.Code != 534 { // these speak of the mechanism, the others of us (RFC 4954 §4, §6)
			return failure
		}
	}
	return failure
}

// usable are the mechanisms that both sides have.
func (c *Conn) usable(a *Auth) []string {
	param, _ := c.ext.Param("AUTH")
	offered := strings.Fields(strings.ToUpper(param))
	want := a.Mechanisms
	if len(want) == 0 {
		want = DefaultMechanisms()
	}
	var usable []string
	for _, m := range want {
		if m = strings.ToUpper(m); slices.Contains(offered, m) {
			usable = append(usable, m)
		}
	}
	return usable
}

// exchange runs one mechanism and gives the last reply.
func (c *Conn) exchange(mechanism string, a *Auth) (Reply, error) {
	switch mechanism {
	case Plain:
		return c.begin(mechanism, "\x00"+a.Username+"\x00"+a.Password)
	case Login:
		// Its first challenge asks for the user name; hosts differ in whether they take that at once.
		r, err := c.askHidden("AUTH LOGIN", "AUTH LOGIN")
		if err == nil && isChallenge(r) {
			r, err = c.respond(a.Username)
		}
		if err == nil && isChallenge(r) {
			r, err = c.respond(a.Password)
		}
		return c.ended(r, err)
	}
	return c.scram(a)
}

// scram proves that we know the password, and wants the same of the host (RFC 5802 §5, RFC 7677).
func (c *Conn) scram(a *Auth) (Reply, error) {
	client, err := scram.SHA256.NewClient(a.Username, a.Password, "")
	if err != nil {
		return Reply{}, fmt.Errorf("%w: the password has a character that SASLprep does not allow", ErrAuth)
	}
	talk := client.NewConversation()
	first, err := talk.Step("")
	if err != nil {
		return Reply{}, fmt.Errorf("%w: %w", ErrAuth, err)
	}
	r, err := c.begin(ScramSHA256, first)
	for step := 0; err == nil && isChallenge(r) && step < 2; step++ {
		var challenge, response string
		if challenge, err = readChallenge(r); err == nil {
			response, err = talk.Step(challenge)
		}
		if err != nil { // RFC 4954 §4: a client gives up with "*"
			_, _ = c.askHidden("*", "*") // the connection is not used again
			return Reply{}, fmt.Errorf("%w: %s: %w", ErrAuth, ScramSHA256, err)
		}
		r, err = c.respond(response)
	}
	if err == nil && r.OK() && !talk.Valid() {
		return Reply{}, fmt.Errorf("%w: %s: the host did not prove that it knows the password", ErrAuth, ScramSHA256)
	}
	return c.ended(r, err)
}

// begin says AUTH with an initial response, or without one where the line would be too long.
func (c *Conn) begin(mechanism, initial string) (Reply, error) {
	command, coded := "AUTH "+mechanism, base64.StdEncoding.EncodeToString([]byte(initial))
	if len(command)+len(" ")+len(coded)+len("\r\n") <= maxAuthCommand {
		return c.askHidden(command+" "+coded, command+" "+hidden)
	}
	r, err := c.askHidden(command, command)
	if err == nil && isChallenge(r) {
		return c.respond(initial)
	}
	return r, err
}

func (c *Conn) respond(response string) (Reply, error) {
	return c.askHidden(base64.StdEncoding.EncodeToString([]byte(response)), hidden)
}

// askHidden sends a line of which a tap sees shown.
func (c *Conn) askHidden(line, shown string) (Reply, error) {
	return c.askAs(PhaseAuth, line, shown, c.o.Timeouts.Auth)
}

// ended refuses what can be no end of an exchange.
func (c *Conn) ended(r Reply, err error) (Reply, error) {
	if err == nil && r.Code/100 == 3 {
		err = fmt.Errorf("%w: %d at the end of the login", ErrProtocol, r.Code)
	}
	return r, err
}

func isChallenge(r Reply) bool { return r.Code == 334 }

// readChallenge decodes a 334. One that asks for too much work is refused before it is begun.
func readChallenge(r Reply) (string, error) {
	octets, err := base64.StdEncoding.DecodeString(strings.TrimSpace(strings.Join(r.Lines, "")))
	if err != nil {
		return "", errors.New("the challenge is not base64")
	}
	for field := range strings.SplitSeq(string(octets), ",") {
		if count, ok := strings.CutPrefix(field, "i="); ok {
			if n, err := strconv.Atoi(count); err != nil || n > maxIterations {
				return "", fmt.Errorf("the host asks for more than %d rounds of hashing", maxIterations)
			}
		}
	}
	return string(octets), nil
}
