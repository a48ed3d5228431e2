package account

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// attempt is one login: who comes from where, and what it came to.
type attempt struct {
	auth      *Authenticator
	mechanism string
	peer      Peer
	from      netip.Prefix
	began     time.Time // when the response came that decides

	name     string // clean, or as it came if it is no name
	client   *Client
	verifier string
	isNewest bool
	end      func() // of a try that counts as a failure until it is known
}

// view is what an attempt is measured by, at one look at the account.
type view struct {
	client    *Client    // nil: unknown
	revision  string     // of the client; empty: unknown
	denied    error      // why not even the right credentials are good
	passwords []Password // that are good now, newest first; none when it is denied
}

// look finds the account. Whatever is wrong with it, an attempt goes on to the
// end, so that it costs what it costs with a good one.
func (t *attempt) look(ctx context.Context, find func(context.Context, string) (*Client, error)) (view, error) {
	c, err := find(ctx, t.name)
	switch {
	case errors.Is(err, ErrUnknown):
		return view{denied: fmt.Errorf("%w: there is no such account", ErrCredentials)}, nil
	case err != nil && errors.Is(err, ErrUnavailable):
		return view{}, err
	case err != nil: // whatever a source says that it has no name for
		return view{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	v := view{client: c, revision: c.revision}
	switch {
	case c.Disabled:
		v.denied = ErrDisabled
	case !c.MayConnect(t.peer.Addr):
		v.denied = ErrNetwork
	default:
		now := time.Now()
		for _, p := range c.Passwords {
			if p.clear != nil {
				if p.SCRAM, err = p.clear.verifier(t.auth.madeUp(c.Name).Salt); err != nil {
					return view{}, fmt.Errorf("hash the password in the record: %w: %w", ErrUnavailable, err)
				}
			}
			if p.ValidAt(now) {
				v.passwords = append(v.passwords, p)
			}
		}
	}
	return v, nil
}

// setName takes the name from the client.
func (t *attempt) setName(name string) {
	if clean, ok := CleanName(name); ok {
		t.name = clean
		return
	}
	t.name = brief(strings.ToValidUTF8(name, "?")) // unknown to every source
}

func (t *attempt) pair() pair { return pair{t.from, t.name} }

// sameName holds for an authorization identity that is not asked for, or the
// name itself: nobody acts for others here.
func sameName(authzid, name string) bool { return authzid == "" || strings.EqualFold(authzid, name) }

// byPassword decides a login whose password is at hand.
func (t *attempt) byPassword(ctx context.Context, authzid, name, password string) error {
	t.began = time.Now()
	t.setName(name)
	if !sameName(authzid, name) {
		return t.refuse(ctx, fmt.Errorf("%w: asks to act for another account", ErrCredentials), true)
	}
	secret, err := prepare(password)
	if err != nil {
		return t.refuse(ctx, fmt.Errorf("%w: the password is none: %w", ErrCredentials, err), true)
	}
	v, err := t.look(ctx, t.auth.options.Source.Client)
	if err != nil {
		return err
	}
	key := t.auth.digest(t.name, secret)
	if p := t.auth.provenPassword(key, v); p != nil && t.auth.guard.admitsProven(t.pair()) {
		t.auth.metrics.proven.Inc()
		t.accept(v, p.ID)
		return nil
	}
	if !t.try() {
		return ErrThrottled
	}
	defer t.tried()
	p, isRepeated, err := t.search(ctx, key, v, secret)
	if err != nil {
		return err
	}
	if p == nil {
		// The record may have changed since it was looked at last.
		latest, err := t.look(ctx, t.auth.options.Source.Latest)
		if err != nil {
			return err
		}
		if latest.revision != v.revision {
			v = latest
			if p, isRepeated, err = t.search(ctx, key, v, secret); err != nil {
				return err
			}
		}
	}
	if p == nil {
		return t.refuse(ctx, t.reason(v), !isRepeated)
	}
	t.accept(v, p.ID)
	return nil
}

// try asks the guard for a look at the password.
func (t *attempt) try() (ok bool) {
	t.end, ok = t.auth.guard.try(t.pair())
	return ok
}

func (t *attempt) tried() {
	if t.end != nil {
		t.end()
		t.end = nil
	}
}

// reason says why a password was not good.
func (t *attempt) reason(v view) error {
	switch {
	case v.denied != nil:
		return v.denied
	case len(v.passwords) == 0:
		return fmt.Errorf("%w: the account has no password that is good now", ErrCredentials)
	}
	return fmt.Errorf("%w: wrong password", ErrCredentials)
}

// search finds the password that is right, if there is one. It hashes unless the
// answer is known. isRepeated says that the same wrong password came before: who
// repeats himself is not guessing.
func (t *attempt) search(ctx context.Context, key digest, v view, secret string) (p *Password, isRepeated bool, err error) {
	a := t.auth
	if a.wasRefused(key, v) {
		return nil, true, nil
	}
	asked := time.Now()
	if err := a.hashes.enter(ctx, t.from); err != nil {
		if errors.Is(err, errCrowded) {
			return nil, false, fmt.Errorf("%w: %w", ErrThrottled, err)
		}
		return nil, false, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer a.hashes.leave()
	a.metrics.wait.Observe(time.Since(asked).Seconds())
	// Others may have come with the same credentials meanwhile.
	if p := a.provenPassword(key, v); p != nil {
		return p, false, nil
	}
	if a.wasRefused(key, v) {
		return nil, true, nil
	}
	a.metrics.hashes.Inc()
	if p, err = a.hash(t.name, v.passwords, secret); err != nil {
		return nil, false, fmt.Errorf("hash the password: %w: %w", ErrUnavailable, err)
	}
	a.remember(key, v, p)
	return p, false, nil
}

// hash finds the password that the secret is. An account without any costs a
// hash too: the same as with the passwords that we generate.
func (a *Authenticator) hash(name string, passwords []Password, secret string) (*Password, error) {
	if len(passwords) == 0 {
		_, err := a.madeUp(name).salted(secret)
		return nil, err
	}
	var salted []byte // for all of them, they go by the same salt
	for i := range passwords {
		p := &passwords[i]
		switch {
		case p.SCRAM != nil:
			if salted == nil {
				var err error
				if salted, err = p.SCRAM.salted(secret); err != nil {
					return nil, err
				}
			}
			if p.SCRAM.matches(salted) {
				return p, nil
			}
		case p.Argon2id != nil && p.Argon2id.matches(secret):
			return p, nil
		}
	}
	return nil, nil
}

// madeUp is what SCRAM shows for an account that has nothing to show. It is the
// same each time, and looks like what SetPassword makes.
func (a *Authenticator) madeUp(name string) *SCRAM {
	return &SCRAM{Iterations: GeneratedIterations, Salt: mac(a.options.SaltKey, name)[:saltOctets]}
}

// accept ends a login well.
func (t *attempt) accept(v view, verifier string) {
	t.client, t.verifier = v.client, verifier
	t.isNewest = verifier == "" || verifier == v.client.Passwords[0].ID
	t.auth.guard.succeeded(t.pair())
}

// refuse ends a login. It takes its time: the client's, not ours.
func (t *attempt) refuse(ctx context.Context, reason error, counts bool) error {
	g := t.auth.guard
	if counts {
		g.failed(t.pair(), !errors.Is(reason, ErrNetwork))
	}
	t.tried()
	defer g.hold(t.pair())()
	took := time.Since(t.began)
	timer := time.NewTimer(g.wait(t.pair(), took) - took)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return reason
}

// digest stands for a name and a password in memory. It tells nothing without
// the key, which dies with the process.
type digest [sha256.Size]byte

func (a *Authenticator) digest(name, secret string) digest {
	h := hmac.New(sha256.New, a.key)
	_ = binary.Write(h, binary.BigEndian, uint64(len(name)))
	h.Write([]byte(name))
	h.Write([]byte(secret))
	return digest(h.Sum(nil))
}

// provenPassword finds the password that these credentials were right for, if it
// is still one of the account and good now.
func (a *Authenticator) provenPassword(key digest, v view) *Password {
	a.mu.Lock()
	text, ok := a.proven.get(key, time.Now())
	a.mu.Unlock()
	if !ok {
		return nil
	}
	i := slices.IndexFunc(v.passwords, func(p Password) bool { return p.text() == text })
	if i < 0 {
		return nil
	}
	a.mu.Lock()
	a.proven.put(key, text, time.Now())
	a.mu.Unlock()
	return &v.passwords[i]
}

// wasRefused tells whether these credentials were wrong for this very record.
func (a *Authenticator) wasRefused(key digest, v view) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	revision, ok := a.refused.get(key, now)
	if ok = ok && revision == v.revision; ok {
		a.refused.put(key, revision, now)
	}
	return ok
}

// remember keeps what a hash has shown. What was refused for the address alone
// may be right from another.
func (a *Authenticator) remember(key digest, v view, p *Password) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	switch {
	case p != nil:
		a.proven.put(key, p.text(), now)
		a.refused.delete(key)
	case !errors.Is(v.denied, ErrNetwork):
		a.refused.put(key, v.revision, now)
	}
}
