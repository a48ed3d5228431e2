package vault

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Trouble says what is wrong between us and Vault at the moment.
type Trouble struct {
	Login bool      // the login does not succeed; otherwise requests with the token have no answer
	Err   error     // the first of its kind in a row
	Since time.Time // of the first in a row, of whatever kind
}

// IsSealed reports that Vault says it is sealed.
func (t Trouble) IsSealed() bool {
	return errors.Is(t.Err, ErrUnavailable) && strings.Contains(t.Err.Error(), "Vault is sealed")
}

// kind tells troubles apart that ask for different things to be done.
func (t Trouble) kind() string {
	if t.IsSealed() {
		return "sealed"
	}
	return resultOf(t.Err)
}

// Trouble reports what is wrong; false: nothing, or nothing was asked yet.
func (c *Client) Trouble() (Trouble, bool) {
	c.health.mu.Lock()
	defer c.health.mu.Unlock()
	if c.health.login.Err != nil {
		return c.health.login, true
	}
	return c.health.request, c.health.request.Err != nil
}

// isLoginTrouble reports that logins do not succeed, so that a refusal says nothing of what was asked for.
func (c *Client) isLoginTrouble() bool {
	t, is := c.Trouble()
	return is && t.Login
}

// Reachable says why no keys can be had for any domain at the moment: Vault is out of reach, and there are none in memory.
func (k *Keys) Reachable() error {
	t, is := k.client.Trouble()
	if !is || k.Domains() > 0 {
		return nil
	}
	return t.Err
}

// health remembers how logins and requests end.
type health struct {
	mu             sync.Mutex
	login, request Trouble
	noted          time.Time // the last one
}

// noteLogin notes how a login ended.
func (h *health) noteLogin(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.login.note(err, true)
}

// noteRequest notes how a request ended. A refusal is an answer.
func (h *health) noteRequest(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	if !errors.Is(err, ErrUnavailable) {
		err = nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.noted = time.Now()
	h.request.note(err, false)
}

func (t *Trouble) note(err error, login bool) {
	switch {
	case err == nil:
		*t = Trouble{}
	case t.Err == nil:
		*t = Trouble{Login: login, Err: err, Since: time.Now()}
	default:
		if next := (Trouble{Err: err}); next.kind() != t.kind() {
			t.Err = err
		}
	}
}

// probeAfter is how long after the last request that had no answer another one is made when nobody else makes one.
const probeAfter = 10 * time.Second

// probe finds out whether Vault is back.
func (c *Client) probe(ctx context.Context) {
	c.health.mu.Lock()
	due := c.health.request.Err != nil && time.Since(c.health.noted) > probeAfter
	c.health.mu.Unlock()
	if due {
		_, _ = c.do(ctx, "look up the own token by", call{method: http.MethodGet, path: "auth/token/lookup-self"})
	}
}

// Stale tells for how many domains keys are in use that Vault did not confirm lately, and since when that is so.
func (k *Keys) Stale() (domains int, since time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	for _, s := range k.known {
		if !s.isStale(now, k.o.Poll) {
			continue
		}
		domains++
		if at := s.read.Add(2 * k.o.Poll); since.IsZero() || at.Before(since) {
			since = at
		}
	}
	return domains, since
}

func (s *shelf) isStale(now time.Time, poll time.Duration) bool {
	return len(s.keys) > 0 && s.fault != nil && now.Sub(s.read) > 2*poll
}

// Domains is how many domains there are keys in memory for.
func (k *Keys) Domains() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, s := range k.known {
		if len(s.keys) > 0 {
			n++
		}
	}
	return n
}
