package vault

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"time"
)

// grant is what a login gives.
type grant struct {
	token     string
	ttl       time.Duration // 0: it never ends
	renewable bool
	foreign   bool // somebody else made the token and uses it too
}

// session is the token in use.
type session struct {
	grant
	generation int           // counts logins; 0 before the first
	first      time.Duration // ttl right after the login
	since      time.Time     // login, or last renewal
}

// over reports that the token is not good any more.
func (s *session) over(now time.Time) bool {
	return s.token == "" || s.ttl > 0 && now.Sub(s.since) >= s.ttl
}

const (
	// forcedEvery bounds the logins because of a 403: most of them tell of a
	// policy, and a new token changes nothing about that.
	forcedEvery = 10 * time.Second
	// watchEvery is how often a token file is looked at.
	watchEvery = 5 * time.Second
	// minPause and maxPause bound the waits between logins that fail.
	minPause = 500 * time.Millisecond
	maxPause = 10 * time.Second
)

var (
	errEnded     = fmt.Errorf("%w: not logged in yet, or the token has ended", ErrUnavailable)
	errTooSoon   = errors.New("the last new login was a moment ago and was of no use")
	errUnchanged = errors.New("nothing to do")
)

// current gives the generation of the token, or says why there is none. errEnded
// says that a login would do.
func (c *Client) current() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stopped:
		return 0, fmt.Errorf("%w: the client was stopped", ErrUnavailable)
	case !c.started:
		return 0, fmt.Errorf("%w: the client was not started", ErrUnavailable)
	case !c.session.over(time.Now()):
		return c.session.generation, nil
	case c.fault != nil:
		return 0, c.fault
	}
	return c.session.generation, errEnded
}

// remaining is how long the token is good, in seconds.
func (c *Client) remaining() float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	switch {
	case c.session.over(now):
		return 0
	case c.session.ttl == 0:
		return math.Inf(1)
	}
	return (c.session.ttl - now.Sub(c.session.since)).Seconds()
}

// login replaces the token of a generation; it does nothing when somebody else
// has done so meanwhile. A forced one comes from a 403.
func (c *Client) login(ctx context.Context, generation int, forced bool) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return fmt.Errorf("log in to Vault: %w: %w", ErrUnavailable, ctx.Err())
	}
	c.mu.Lock()
	now := time.Now()
	done := c.session.generation != generation
	early := forced && !done && now.Sub(c.forced) < forcedEvery && !c.forced.IsZero()
	if forced && !done && !early {
		c.forced = now
	}
	c.mu.Unlock()
	if done {
		return nil
	}
	if early {
		return errTooSoon
	}
	g, err := c.o.Login.login(ctx, c)
	c.metrics.login(err)
	c.health.noteLogin(err)
	c.mu.Lock()
	if c.fault = err; err == nil {
		c.session = session{grant: g, generation: generation + 1, first: g.ttl, since: now}
		c.setToken(g.token)
	}
	c.mu.Unlock()
	select {
	case c.woken <- struct{}{}:
	default:
	}
	return err
}

// renew makes the token live longer.
func (c *Client) renew(ctx context.Context) error {
	c.mu.Lock()
	generation := c.session.generation
	c.mu.Unlock()
	now := time.Now()
	got, err := c.send(ctx, c.api, call{method: http.MethodPut, path: "auth/token/renew-self", body: map[string]any{}})
	if err == nil && got.Auth == nil {
		err = errNoAnswer
	}
	if err != nil {
		err = explain(ctx, "renew token by", "auth/token/renew-self", err)
	}
	c.metrics.renewal(err)
	c.health.noteRequest(err)
	if err == nil && got.Auth.TTL < 1 {
		return c.login(ctx, generation, false) // it is in its last second
	}
	if err == nil {
		c.mu.Lock()
		if c.session.generation == generation {
			c.session.ttl = time.Duration(got.Auth.TTL) * time.Second
			c.session.renewable = got.Auth.Renewable
			c.session.since = now
		}
		c.mu.Unlock()
		return nil
	}
	if errors.Is(err, ErrUnavailable) {
		return err
	}
	return c.login(ctx, generation, false)
}

// relogin gets another token in good time.
func (c *Client) relogin(ctx context.Context) error {
	c.mu.Lock()
	generation := c.session.generation
	c.mu.Unlock()
	return c.login(ctx, generation, false)
}

// watch logs in again when what the login goes by has changed, and asks whether Vault is back when it was away.
func (c *Client) watch(ctx context.Context) error {
	c.probe(ctx)
	if !c.o.Login.changed() {
		return errUnchanged
	}
	return c.relogin(ctx)
}

// keep keeps the client logged in; err is how the first login ended.
func (c *Client) keep(ctx context.Context, err error) {
	failures := 0
	for {
		if err != nil {
			if failures++; failures == 1 {
				c.log.Error("login to Vault, or renewal of its token, does not succeed; it is tried again and again", "err", err)
			}
		}
		wait, step := c.plan(failures, time.Now())
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-c.woken: // a login of somebody else, or the own one: plan anew
			timer.Stop()
			err = nil
			if c.Ready() == nil {
				failures = c.recovered(failures)
			}
			continue
		case <-timer.C:
		}
		switch err = step(ctx); {
		case errors.Is(err, errUnchanged):
			err = nil
		case err == nil && c.Ready() == nil:
			failures = c.recovered(failures)
		}
	}
}

func (c *Client) recovered(failures int) int {
	if failures > 0 {
		c.log.Info("logged in to Vault again", "failures", failures)
	}
	return 0
}

// plan says what is to be done next, and when.
func (c *Client) plan(failures int, now time.Time) (time.Duration, func(context.Context) error) {
	c.mu.Lock()
	s := c.session
	c.mu.Unlock()
	pause := backOff(failures)
	if s.over(now) {
		return pause, c.relogin
	}
	wait, step := watchEvery, c.watch
	if s.ttl > 0 {
		due := s.since.Add(s.ttl*2/3 - rand.N(s.ttl/20+1)).Sub(now)
		if due = max(due, pause, minPause); due < wait {
			wait, step = due, c.renew
			// A token near the end of its longest life is extended by less and less.
			if !s.renewable || s.ttl <= s.first/2 {
				step = c.relogin
			}
		}
	}
	return wait, step
}

// backOff is how long to wait after so many failures.
func backOff(failures int) time.Duration {
	if failures == 0 {
		return 0
	}
	pause := min(minPause<<min(failures-1, 10), maxPause)
	return pause/2 + rand.N(pause/2)
}
