package ingress

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net/netip"
	"strings"

	"postroad/ingress/account"
)

// Accounts says who may log in. *account.Authenticator is one.
type Accounts interface {
	// Mechanisms are those that a client can use, the best first.
	Mechanisms(peer account.Peer) []string
	// Begin starts a login; the errors of account say what went wrong.
	Begin(mechanism string, peer account.Peer) (account.Exchange, error)
	// Current is a client that logged in before as it is now; an error says that it may not go on.
	Current(ctx context.Context, c *account.Client, addr netip.Addr) (*account.Client, error)
}

var _ Accounts = (*account.Authenticator)(nil)

// maxResponse is the longest line of a login (RFC 4954 §4).
const maxResponse = 12288

func (c *conn) peer() account.Peer { return account.Peer{Addr: c.remote.Addr(), TLS: c.tlsState} }

// mechanisms are those that are offered now, none where nobody can log in.
func (c *conn) mechanisms() []string {
	l := c.listener
	if l.Auth == AuthNone || !c.isTLS() && !l.AuthInClear {
		return nil
	}
	return c.srv.options.Accounts.Mechanisms(c.peer())
}

// commandAuth does a whole login (RFC 4954 §4). go-smtp sees nothing of it: it
// would read the responses as commands of its own.
func (c *conn) commandAuth(arg []byte) error {
	l := c.listener
	switch {
	case c.r < c.w:
		return errPipelined
	case l.Auth == AuthNone:
		return errNotImplemented
	case c.helo == "" || !c.isESMTP:
		return errNoHello
	case c.account != nil:
		return errAuthAlready
	case c.hasTransaction():
		return errNested
	case !c.isTLS() && !l.AuthInClear:
		return errAuthClear
	}
	word, initial, hasInitial := bytes.Cut(arg, []byte(" "))
	mechanism := strings.ToUpper(string(word))
	exchange, err := c.login(mechanism, initial, hasInitial)
	if err != nil {
		return c.loginFailed(mechanism, err)
	}
	client := exchange.Client()
	c.account, c.client, c.class = client, client.Name, client.Class
	c.wasUseful.Store(true)
	password, isNewest := c.noteLogin(exchange)
	c.srv.options.Logger.Info("client logged in", "client", c.client, "class", c.class, "remote", c.remote.String(), "mechanism", mechanism,
		"password_id", password, "newest", isNewest)
	c.reply(replyAuthDone)
	return nil
}

// login speaks with the client until the mechanism is done.
func (c *conn) login(mechanism string, initial []byte, hasInitial bool) (account.Exchange, error) {
	exchange, err := c.srv.options.Accounts.Begin(mechanism, c.peer())
	if err != nil {
		return nil, err
	}
	var response []byte // nil: none yet
	switch {
	case !hasInitial:
	case string(initial) == "=": // RFC 4954 §4: an empty one
		response = []byte{}
	default:
		if response, err = decodeResponse(initial); err != nil {
			return nil, err
		}
	}
	for {
		challenge, isDone, err := exchange.Next(c.srv.ctx, response)
		if err != nil {
			return nil, err
		}
		if isDone {
			return exchange, nil
		}
		c.out = append(c.out, "334 "...)
		c.out = base64.StdEncoding.AppendEncode(c.out, challenge)
		c.out = append(c.out, "\r\n"...)
		line, err := c.readLineOf(maxResponse)
		if errors.Is(err, errTooLongCommand) {
			return nil, errAuthLine
		}
		if err != nil {
			return nil, err
		}
		if string(line) == "*" {
			return nil, errAuthCancelled
		}
		if response, err = decodeResponse(line); err != nil {
			return nil, err
		}
	}
}

func decodeResponse(text []byte) ([]byte, error) {
	response := make([]byte, 0, base64.StdEncoding.DecodedLen(len(text)))
	response, err := base64.StdEncoding.Strict().AppendDecode(response, text)
	if err != nil {
		return nil, errAuthBase64
	}
	return response, nil
}

// isStillGood looks the account of this session up again: it may have been
// changed, disabled or removed since the login.
func (c *conn) isStillGood() bool {
	if c.account == nil {
		return true
	}
	now, err := c.srv.options.Accounts.Current(c.srv.ctx, c.account, c.remote.Addr())
	if err != nil {
		return false
	}
	c.account, c.class = now, now.Class
	return true
}

// loginFailed makes the reply to a login that was none, and ends a session that
// had too many of them.
func (c *conn) loginFailed(mechanism string, err error) error {
	r, isRefusal := errors.AsType[*refusal](err)
	if !isRefusal {
		switch {
		case errors.Is(err, account.ErrMechanism):
			r = errAuthMechanism
		case errors.Is(err, account.ErrMalformed):
			r = errAuthResponse
		case errors.Is(err, account.ErrThrottled):
			r = errAuthThrottled
		case errors.Is(err, account.ErrCredentials):
			r = errAuthFailed
		case errors.Is(err, account.ErrUnavailable), errors.Is(err, context.Canceled):
			r = errAuthLater // never 535: the client would think its password wrong
		default:
			return err // the connection
		}
	}
	c.srv.options.Logger.Info("login failed", "remote", c.remote.String(), "mechanism", mechanism, "code", r.code, "reason", r.text, "error", err.Error())
	if r.hangup {
		return r
	}
	if c.failures++; c.failures >= c.srv.options.MaxAuthFailures {
		c.reply(r)
		return errTooManyAuth
	}
	return r
}
