package check

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"
)

// The mechanisms, the best first.
const (
	external  = "EXTERNAL"
	scramPlus = "SCRAM-SHA-256-PLUS"
	scram256  = "SCRAM-SHA-256"
	plain     = "PLAIN"
	login     = "LOGIN"
)

// maxIterations bounds what a server can make us hash.
const maxIterations = 1_000_000

func (s *session) offers(mechanism string) bool { return slices.Contains(s.r.Mechanisms, mechanism) }

// auth logs in by the first mechanism that works: a password of a person may be hashed so that SCRAM cannot use it.
func (s *session) auth() bool {
	if !s.o.logsIn() {
		return true
	}
	if len(s.r.Mechanisms) == 0 {
		hint := "the listener takes no logins (auth: none)"
		if !s.isTLS {
			hint = "mostly they are offered under TLS only: --tls starttls; or the listener takes no logins"
		}
		s.bad("auth", hint, "the server offers no logins here")
		return false
	}
	list, why := s.usable()
	if len(list) == 0 {
		s.bad("auth", why, "no way to log in among %s", strings.Join(s.r.Mechanisms, " "))
		return false
	}
	for i, mechanism := range list {
		r, err := s.logIn(mechanism)
		if err != nil {
			return s.broken("auth", err)
		}
		isLast := i == len(list)-1
		switch {
		case r.ok():
			s.last = r
			s.judge(Good, "auth", r.code, "", "%s as %s: %s", mechanism, s.o.User, r)
			return true
		case isLast || r.code != 535 && r.code != 504 && r.code != 534:
			r.to = mechanism
			return s.answered("auth", r, false)
		}
		s.judge(Note, "auth", r.code, "if the next mechanism works, the password is not kept for SCRAM: postroad client passwd --scram changes that", "%s: %s", mechanism, r)
	}
	return false
}

// usable are the mechanisms to try, in order; one of each kind is enough.
func (s *session) usable() (list []string, why string) {
	mayShow := s.safe || s.o.AuthInClear
	want := []string{scramPlus, scram256, plain, login}
	if s.o.Password == "" && s.o.Certificate != nil {
		want = []string{external}
	}
	if s.o.Mechanism != "" {
		want = []string{strings.ToUpper(s.o.Mechanism)}
	}
	why = "the server offers nothing that this check knows"
	for _, m := range want {
		switch {
		case !s.offers(m):
		case m == scramPlus && !s.canBind():
		case (m == plain || m == login) && !mayShow:
			why = "the password would be shown to who listens, or to a wrong server: use TLS with a good certificate (--ca), or --auth-in-clear"
		case m == scram256 && slices.Contains(list, scramPlus), m == login && slices.Contains(list, plain):
		default:
			list = append(list, m)
		}
	}
	return list, why
}

func (s *session) canBind() bool {
	state, ok := s.tlsState()
	return ok && state.Version >= tls.VersionTLS13
}

// logIn speaks one mechanism (RFC 4954).
func (s *session) logIn(mechanism string) (reply, error) {
	s.hide(s.o.Password, encode(s.o.Password))
	switch mechanism {
	case plain:
		return s.sayHidden("AUTH PLAIN ", "\x00"+s.o.User+"\x00"+s.o.Password)
	case login:
		return s.byLogin()
	case external:
		if s.o.User == "" {
			return s.ask("AUTH EXTERNAL =")
		}
		return s.ask("AUTH EXTERNAL " + encode(s.o.User))
	case scramPlus, scram256:
		return s.byScram(mechanism)
	}
	return reply{}, fmt.Errorf("this check does not know the mechanism %s", mechanism)
}

// sayHidden sends a secret behind what may be shown.
func (s *session) sayHidden(command, secret string) (reply, error) {
	coded := encode(secret)
	s.hide(coded)
	if err := s.send(command+coded+"\r\n", command+"********"); err != nil {
		return reply{}, err
	}
	return s.read()
}

func (s *session) byLogin() (reply, error) {
	r, err := s.ask("AUTH LOGIN")
	if err != nil || r.code != 334 {
		return r, err
	}
	if r, err = s.ask(encode(s.o.User)); err != nil || r.code != 334 {
		return r, err
	}
	return s.sayHidden("", s.o.Password)
}

var errNoProof = errors.New("the server did not prove that it knows the password: it is not the right one, or takes any")

// byScram proves the password without showing it (RFC 5802, RFC 7677). The proof is hidden all the same: who has all messages can try passwords.
func (s *session) byScram(mechanism string) (reply, error) {
	conversation, err := s.conversation(mechanism)
	if err != nil {
		return reply{}, err
	}
	first, err := conversation.Step("")
	if err != nil {
		return reply{}, err
	}
	r, err := s.ask("AUTH " + mechanism + " " + encode(first))
	if err != nil || r.code != 334 {
		return r, err
	}
	challenge, err := decodeChallenge(r)
	if err != nil {
		return r, err
	}
	final, err := conversation.Step(challenge)
	if err != nil {
		return r, fmt.Errorf("the server's answer in %s is wrong: %w", mechanism, err)
	}
	if r, err = s.sayHidden("", final); err != nil || r.code != 334 && !r.ok() {
		return r, err
	}
	if r.ok() {
		return r, errNoProof
	}
	if challenge, err = decodeChallenge(r); err != nil {
		return r, err
	}
	if _, err = conversation.Step(challenge); err != nil || !conversation.Valid() {
		return r, errNoProof
	}
	return s.ask("")
}

// conversation binds the login to the connection where both can, and says so where only we could: then nobody has taken the offer away.
func (s *session) conversation(mechanism string) (*scram.ClientConversation, error) {
	client, err := scram.SHA256.NewClient(s.o.User, s.o.Password, "")
	if err != nil {
		return nil, errors.New("the password has a character that SASLprep does not allow")
	}
	switch {
	case mechanism == scramPlus:
		state, _ := s.tlsState()
		bound, err := scram.NewTLSExporterBinding(&state)
		if err != nil {
			return nil, err
		}
		return client.NewConversationWithChannelBinding(bound), nil
	case s.canBind() && !s.offers(scramPlus):
		return client.NewConversationAdvertisingChannelBinding(), nil
	}
	return client.NewConversation(), nil
}

// decodeChallenge reads a 334. One that asks for too much work is refused before it is begun.
func decodeChallenge(r reply) (string, error) {
	octets, err := base64.StdEncoding.DecodeString(strings.TrimSpace(r.raw))
	if err != nil {
		return "", errors.New("the server's challenge is not base64")
	}
	for field := range strings.SplitSeq(string(octets), ",") {
		if count, ok := strings.CutPrefix(field, "i="); ok {
			if n, err := strconv.Atoi(count); err != nil || n > maxIterations {
				return "", fmt.Errorf("the server asks for %q rounds of hashing: at most %d", clean(count), maxIterations)
			}
		}
	}
	return string(octets), nil
}

func encode(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
