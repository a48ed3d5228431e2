package account

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// scram is the server's side of SCRAM-SHA-256 (RFC 5802, RFC 7677). It is ours
// because an account may have two passwords: the proof is good when it fits one
// of them, and both have the salt that was shown.
type scram struct {
	*attempt
	isPlus   bool // SCRAM-SHA-256-PLUS
	mustBind bool // we offer that, so a client that could bind does

	view      view
	shown     *SCRAM // whose salt and iterations were shown
	gs2       string // header of the client's first message
	bound     []byte // what the channel binding must be
	nonce     string
	firstBare string // client-first-message-bare
	reply     string // server-first-message
}

const (
	nonceOctets    = 18
	maxNonceOctets = 256
	// firstStep is what the first answer takes, or a multiple of it. It comes
	// before anything is proven, and its time must not tell an account that is
	// remembered from one that is looked up, or from none. A look into a store
	// that is near takes less.
	firstStep = 20 * time.Millisecond
)

// first reads the client's first message and shows salt and iterations.
func (s *scram) first(ctx context.Context, response []byte) ([]byte, step, error) {
	if response == nil {
		return nil, s.first, nil // an empty challenge
	}
	if err := s.readFirst(string(response)); err != nil {
		return nil, nil, malformed("%w", err)
	}
	s.began = time.Now()
	// The salt must be that of the password which was set last.
	v, err := s.look(ctx, s.auth.options.Source.Latest)
	if err != nil {
		return nil, nil, err
	}
	// A proof costs next to nothing. From where the account is known it is
	// always heard, as a proven password is.
	if !s.auth.guard.knows(s.pair()) && !s.auth.guard.hears(s.pair()) {
		return nil, nil, ErrThrottled
	}
	s.view, s.shown = v, s.auth.madeUp(s.name)
	for _, p := range v.passwords {
		if p.SCRAM != nil {
			s.shown = p.SCRAM
			break
		}
	}
	raw := make([]byte, nonceOctets)
	_, _ = rand.Read(raw) // never fails
	s.nonce += base64.RawStdEncoding.EncodeToString(raw)
	s.reply = fmt.Sprintf("r=%s,s=%s,i=%d", s.nonce, base64.StdEncoding.EncodeToString(s.shown.Salt), s.shown.Iterations)
	took := time.Since(s.began)
	timer := time.NewTimer(firstStep - took%firstStep)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done(): // whoever asked has gone
	}
	return []byte(s.reply), s.final, nil
}

// readFirst takes client-first-message apart (RFC 5802 §7):
//
//	gs2-cbind-flag "," [ authzid ] "," [reserved-mext ","] username "," nonce ["," extensions]
func (s *scram) readFirst(message string) error {
	if !utf8.ValidString(message) || strings.ContainsRune(message, 0) {
		return errors.New("not UTF-8")
	}
	flag, rest, _ := strings.Cut(message, ",")
	authzid, bare, ok := strings.Cut(rest, ",")
	if !ok {
		return errors.New("no gs2 header")
	}
	s.gs2, s.firstBare = message[:len(message)-len(bare)], bare
	if err := s.readFlag(flag); err != nil {
		return err
	}
	fields := strings.Split(bare, ",")
	if len(fields) < 2 {
		return errors.New("no nonce")
	}
	if strings.HasPrefix(fields[0], "m=") {
		return errors.New("asks for an extension") // which must be refused: RFC 5802 §5.1
	}
	name, err := saslName(fields[0], "n=")
	if err != nil {
		return err
	}
	if authzid != "" {
		other, err := saslName(authzid, "a=")
		if err != nil {
			return err
		}
		if !sameName(other, name) {
			return errors.New("asks to act for another account")
		}
	}
	s.setName(name)
	nonce, ok := strings.CutPrefix(fields[1], "r=")
	if !ok || nonce == "" || len(nonce) > maxNonceOctets || strings.ContainsFunc(nonce, func(r rune) bool { return r < '!' || r > '~' }) {
		return errors.New("no nonce")
	}
	s.nonce = nonce
	return nil
}

// readFlag reads how the client binds to the channel (RFC 5802 §6).
func (s *scram) readFlag(flag string) error {
	kind, asked := strings.CutPrefix(flag, "p=")
	switch {
	case s.isPlus && !asked:
		return errors.New("does not bind to the channel, as this mechanism must")
	case !s.isPlus && asked:
		return errors.New("binds to the channel in a mechanism that does not")
	case !asked && flag != "n" && flag != "y":
		return errors.New("no gs2 header")
	case flag == "y" && s.mustBind:
		return errors.New("could bind to the channel and was not told that we can: somebody has changed our offer")
	case !asked:
		return nil
	case kind != bindingKind:
		return fmt.Errorf("unknown kind of channel binding %q: want %s", brief(kind), bindingKind)
	}
	var err error
	s.bound, err = binding(s.peer.TLS)
	return err
}

// saslName undoes the escapes of commas and equal signs (RFC 5802 §5.1).
func saslName(field, tag string) (string, error) {
	text, ok := strings.CutPrefix(field, tag)
	if !ok || text == "" {
		return "", fmt.Errorf("no name after %s", tag)
	}
	var b strings.Builder
	for text != "" {
		plain, rest, found := strings.Cut(text, "=")
		b.WriteString(plain)
		if !found {
			break
		}
		switch {
		case strings.HasPrefix(rest, "2C"):
			b.WriteByte(',')
		case strings.HasPrefix(rest, "3D"):
			b.WriteByte('=')
		default:
			return "", errors.New("an equal sign in the name is not escaped")
		}
		text = rest[2:]
	}
	return b.String(), nil
}

// final reads the proof, and answers with our own.
func (s *scram) final(ctx context.Context, response []byte) ([]byte, step, error) {
	message := string(response)
	end := strings.LastIndex(message, ",p=")
	if end < 0 {
		return nil, nil, malformed("no proof")
	}
	decode := base64.StdEncoding.Strict().DecodeString
	proof, err := decode(message[end+len(",p="):])
	if err != nil {
		return nil, nil, malformed("no proof")
	}
	fields := strings.Split(message[:end], ",")
	text, isBinding := strings.CutPrefix(fields[0], "c=")
	bound, err := decode(text)
	if !isBinding || err != nil {
		return nil, nil, malformed("no channel binding")
	}
	if len(fields) < 2 || fields[1] != "r="+s.nonce {
		return nil, nil, malformed("another nonce")
	}
	s.began = time.Now()
	if subtle.ConstantTimeCompare(bound, append([]byte(s.gs2), s.bound...)) != 1 {
		return nil, nil, s.refuse(ctx, fmt.Errorf("%w: another channel binding: somebody is in between", ErrCredentials), true)
	}
	signature, verifier, err := s.prove(ctx, proof, s.firstBare+","+s.reply+","+message[:end])
	if err != nil {
		return nil, nil, err
	}
	done := func(_ context.Context, response []byte) ([]byte, step, error) {
		if len(response) > 0 {
			return nil, nil, malformed("something after the end")
		}
		s.accept(s.view, verifier)
		return nil, nil, nil
	}
	// In SMTP what comes with success is one more challenge (RFC 4954 §4).
	return []byte("v=" + base64.StdEncoding.EncodeToString(signature)), done, nil
}

// prove finds the password that the proof is of.
func (s *scram) prove(ctx context.Context, proof []byte, message string) (signature []byte, verifier string, err error) {
	// A password may have been set, or have ended, since the salt was shown.
	v, err := s.look(ctx, s.auth.options.Source.Latest)
	if err != nil {
		return nil, "", err
	}
	s.view = v
	for _, p := range v.passwords {
		if p.SCRAM == nil || !p.SCRAM.sameSalt(s.shown) {
			continue
		}
		if signature, ok := p.SCRAM.proof(proof, message); ok {
			return signature, p.ID, nil
		}
	}
	return nil, "", s.refuse(ctx, s.reason(v), true)
}

// reason also tells those who meet an account that cannot do SCRAM.
func (s *scram) reason(v view) error {
	if v.denied == nil && len(v.passwords) > 0 && s.shown.StoredKey == (SCRAM{}).StoredKey {
		return fmt.Errorf("%w: the account has no password for SCRAM, only for PLAIN and LOGIN", ErrCredentials)
	}
	return s.attempt.reason(v)
}

// bindingKind is the one kind of channel binding that we know. It is the default
// of TLS 1.3 (RFC 9266); under older versions clients expect others, which
// crypto/tls does not give, so there is no PLUS.
const bindingKind = "tls-exporter"

func canBind(state *tls.ConnectionState) bool {
	if state == nil || state.Version < tls.VersionTLS13 {
		return false
	}
	_, err := binding(state)
	return err == nil
}

func binding(state *tls.ConnectionState) ([]byte, error) {
	return state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
}
