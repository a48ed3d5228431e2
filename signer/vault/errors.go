package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode"

	"github.com/hashicorp/vault/api"
)

// What requests end with. Errors that wrap none of these mean that Vault has
// refused what it was asked. The texts are for operators: never into a reply to
// a peer.
var (
	// ErrNotFound says that Vault has answered, and there is no such secret, or
	// that its current version is deleted.
	ErrNotFound = errors.New("it is not in vault")
	// ErrDenied says that Vault does not allow it, also not after a new login.
	ErrDenied = errors.New("vault does not allow it")
	// ErrUnavailable says that nothing can be said now: no answer, Vault is
	// sealed, overloaded or in trouble, or what answers is no Vault.
	ErrUnavailable = errors.New("vault is out of reach")
	// ErrChanged says that the secret is not as the caller thinks it is.
	ErrChanged = errors.New("the secret was changed by somebody else meanwhile")
)

// errNoAnswer is for what came back and is none of Vault's answers.
var errNoAnswer = errors.New("the answer is not what Vault says")

// explain says what was done, why it failed, and what to do.
func explain(ctx context.Context, doing, path string, err error) error {
	wrap := func(kind error, what, todo string) error {
		if todo != "" {
			todo = ": " + todo
		}
		return fmt.Errorf("%s %s: %w (%s)%s", doing, path, kind, brief(what), todo)
	}
	refused, is := errors.AsType[*api.ResponseError](err)
	switch {
	case !is && ctx.Err() != nil:
		return fmt.Errorf("%s %s: %w: %w", doing, path, ErrUnavailable, ctx.Err())
	case !is && errors.Is(err, context.DeadlineExceeded):
		return wrap(ErrUnavailable, "no answer in time", "")
	case !is:
		return wrap(ErrUnavailable, err.Error(), "")
	}
	text := fmt.Sprintf("%d %s", refused.StatusCode, strings.Join(refused.Errors, "; "))
	switch code := refused.StatusCode; {
	case code == http.StatusForbidden:
		return wrap(ErrDenied, text, "look at the policy of this role")
	case code == http.StatusNotFound && (len(refused.Errors) == 0 || refused.HTTPMethod == http.MethodPatch && strings.Join(refused.Errors, "") == ""):
		return fmt.Errorf("%s %s: %w", doing, path, ErrNotFound)
	case code == http.StatusNotFound:
		// A missing secret has no text. This must not pass for one.
		return wrap(ErrUnavailable, text, "no such engine: look at address, namespace and mount")
	case code == http.StatusBadRequest && strings.Contains(text, "check-and-set"):
		return fmt.Errorf("%s %s: %w", doing, path, ErrChanged)
	case code == http.StatusServiceUnavailable:
		return wrap(ErrUnavailable, text, "unseal it, or wait for its leader")
	case code == http.StatusTooManyRequests:
		return wrap(ErrUnavailable, text, "raise its rate limit quota")
	case code == http.StatusRequestTimeout, code == http.StatusPreconditionFailed, code >= 500, code < 400:
		return wrap(ErrUnavailable, text, "")
	}
	return fmt.Errorf("%s %s: vault refuses it (%s)", doing, path, brief(text))
}

// maxText bounds what others have written in our errors and logs.
const maxText = 200

// brief makes one short line of what Vault or a proxy has said.
func brief(text string) string {
	text = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)), " ")
	return shorten(text, maxText)
}

func shorten(text string, octets int) string {
	if len(text) <= octets {
		return text
	}
	return strings.ToValidUTF8(text[:octets], "") + "…"
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
