package account

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"unicode/utf8"
)

// maxResponse is the longest response (RFC 4954 §4: a line of 12288 octets, in base64).
const maxResponse = 12288 / 4 * 3

// step takes one response. It returns the step that follows, nil when the login
// is done.
type step func(ctx context.Context, response []byte) (challenge []byte, next step, err error)

// exchange runs the steps of a mechanism.
type exchange struct {
	*attempt
	step   step
	isDone bool
}

var _ Exchange = (*exchange)(nil)

// Next implements Exchange.
func (x *exchange) Next(ctx context.Context, response []byte) (challenge []byte, done bool, err error) {
	if x.step == nil {
		return nil, false, fmt.Errorf("%w: this login has ended", ErrMalformed)
	}
	run := x.step
	x.step = nil
	if len(response) > maxResponse {
		err = fmt.Errorf("%w: %d octets", ErrMalformed, len(response))
	} else {
		challenge, x.step, err = run(ctx, response)
	}
	if err != nil || x.step == nil {
		x.auth.metrics.logins.WithLabelValues(x.mechanism, result(err)).Inc()
	}
	x.isDone = err == nil && x.step == nil
	return challenge, x.isDone, err
}

// Client implements Exchange.
func (x *exchange) Client() *Client {
	if !x.isDone {
		return nil
	}
	return x.client
}

// Verifier implements Exchange.
func (x *exchange) Verifier() (id string, isNewest bool) { return x.verifier, x.isNewest }

// result is the metrics label of how a login ended.
func result(err error) string {
	switch {
	case err == nil:
		return "accepted"
	case errors.Is(err, ErrDisabled):
		return "disabled"
	case errors.Is(err, ErrNetwork):
		return "network"
	case errors.Is(err, ErrCredentials):
		return "refused"
	case errors.Is(err, ErrThrottled):
		return "throttled"
	case errors.Is(err, ErrMalformed):
		return "malformed"
	}
	return "unavailable"
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrMalformed, fmt.Errorf(format, args...))
}

// plain is RFC 4616: authzid NUL authcid NUL password.
func (t *attempt) plain(ctx context.Context, response []byte) ([]byte, step, error) {
	if response == nil {
		return nil, t.plain, nil // an empty challenge
	}
	parts := bytes.Split(response, []byte{0})
	if len(parts) != 3 {
		return nil, nil, malformed("want two NUL octets, got %d", len(parts)-1)
	}
	if !utf8.Valid(response) {
		return nil, nil, malformed("not UTF-8")
	}
	authzid, name, password := string(parts[0]), string(parts[1]), string(parts[2])
	if name == "" {
		return nil, nil, malformed("no name")
	}
	return nil, nil, t.byPassword(ctx, authzid, name, password)
}

// login is the mechanism of draft-murchison-sasl-login: two questions, two
// answers.
type login struct {
	*attempt
	user string
}

func (l *login) name(ctx context.Context, response []byte) ([]byte, step, error) {
	if response == nil {
		return []byte("Username:"), l.name, nil
	}
	if l.user = string(response); l.user == "" {
		return nil, nil, malformed("no name")
	}
	return []byte("Password:"), l.password, nil
}

func (l *login) password(ctx context.Context, response []byte) ([]byte, step, error) {
	if !utf8.ValidString(l.user) || !utf8.Valid(response) || bytes.IndexByte(response, 0) >= 0 {
		return nil, nil, malformed("not UTF-8")
	}
	return nil, nil, l.byPassword(ctx, "", l.user, string(response))
}
