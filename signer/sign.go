package signer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"postroad/queue"
	"postroad/signer/keyring"
)

const (
	// signTimeout bounds the reading and signing of one content.
	signTimeout = 5 * time.Minute

	missingKeyDelay = 5 * time.Minute // somebody has to make a key
	badKeyDelay     = 5 * time.Minute // somebody has to repair a key
	failureDelay    = time.Minute     // may pass by itself
)

// work is what is done with one mail in hand; *queue.Signing does it.
type work interface {
	Open(ctx context.Context) (io.ReadCloser, error)
	Signed(ctx context.Context, signatures string) error
	Later(ctx context.Context, delay time.Duration, reason string) error
	Hold(ctx context.Context) error
	GiveUp(ctx context.Context, reason string) error
}

var _ work = (*queue.Signing)(nil)

// attempt is one mail in the signer's hand.
type attempt struct {
	s    *Signer
	id   queue.MessageID
	kind queue.Kind
	env  queue.Envelope
	hold time.Time // its sender wants it to wait until then; zero: not at all
	work work
	log  *slog.Logger
}

func (s *Signer) handle(ctx context.Context, w *queue.Signing) {
	s.attempt(ctx, &attempt{id: w.ID, kind: w.Kind, env: w.Envelope, hold: w.HoldUntil, work: w})
}

// attempt signs one mail, counts and logs what became of it.
func (s *Signer) attempt(ctx context.Context, a *attempt) {
	s.metrics.inHand.Inc()
	defer s.metrics.inHand.Dec()
	a.s, a.log = s, s.o.Logger.With("msg_id", string(a.id))
	result := resultLeft
	defer func() {
		if p := recover(); p != nil {
			a.log.Error("signing panicked, the mail is left to be taken again", "panic", p, "stack", string(debug.Stack()))
			result = resultLeft
		}
		s.metrics.messages.WithLabelValues(result).Inc()
	}()
	result = a.run(ctx)
}

// run decides what becomes of the mail, does it, and returns the result.
func (a *attempt) run(ctx context.Context) string {
	if a.env.Incoming {
		return a.pass(ctx, "anybody may have sent it: it came to an address for bounces")
	}
	if time.Now().Before(a.hold) {
		return a.wait(ctx) // it is signed with the keys of the day on which it goes out
	}
	d := a.s.rules.Decide(a.kind, a.env.HeaderFrom, a.env.Client, a.env.Class)
	if d.Refused {
		a.s.metrics.refused.WithLabelValues(string(d.Otherwise)).Inc()
	}
	if d.OnlyUnsigned && d.signs() {
		switch signed, err := a.isSigned(ctx); {
		case err != nil:
			a.log.Warn("content was not read, the mail is left to be taken again", "err", err)
			return resultLeft
		case signed:
			return a.pass(ctx, "it bears a DKIM signature already")
		}
	}
	c, err := a.s.choose(ctx, d)
	if err == nil || answered(err) {
		a.s.reach.answer()
	}
	return a.end(ctx, c, err)
}

// end does what has been chosen.
func (a *attempt) end(ctx context.Context, c choice, err error) string {
	unsigned, isUnsigned := errors.AsType[*verdict](err)
	if ctx.Err() == nil {
		a.s.noteLookup(c.domain, err)
	}
	switch {
	case err == nil:
		return a.sign(ctx, c)
	case isUnsigned && unsigned.do == Pass:
		return a.pass(ctx, unsigned.reason)
	case isUnsigned:
		return a.later(ctx, c.domain, missingKeyDelay, unsigned.reason)
	case errors.Is(err, keyring.ErrBadKey):
		return a.later(ctx, c.domain, badKeyDelay, err.Error())
	case ctx.Err() != nil:
		return resultLeft
	case a.s.reach.fail(c.domain, err, a.s.isCut):
		return resultLeft
	default:
		return a.later(ctx, c.domain, failureDelay, fmt.Sprintf("keys of %s are out of reach: %v", c.domain, err))
	}
}

// sign makes the signatures and hands them to the queue.
func (a *attempt) sign(ctx context.Context, c choice) string {
	began := time.Now()
	text, made, err := a.signatures(ctx, c)
	took := time.Since(began)
	unsignable, isUnsignable := errors.AsType[unsignableError](err)
	failed, isFailed := errors.AsType[*keyError](err)
	switch {
	case isUnsignable:
		return a.pass(ctx, unsignable.Error())
	case isFailed && ctx.Err() != nil:
		return resultLeft
	case isFailed:
		a.s.degraded.note(c.domain, reasonUnreachable, "its keys do not sign")
		return a.later(ctx, c.domain, failureDelay, failed.Error())
	case err != nil:
		a.log.Warn("content was not read, the mail is left to be taken again", "err", err)
		return resultLeft
	case len(made) == 0:
		return a.pass(ctx, "it bears the signatures of "+c.domain+" already")
	}
	a.s.noteSigned(c.domain, a.env.HeaderFrom)
	a.s.metrics.seconds.Observe(took.Seconds())
	if err := a.work.Signed(ctx, text); err != nil {
		a.log.Warn("signatures were not stored, the mail is left to be taken again", "err", err)
		return resultLeft
	}
	for _, k := range made {
		a.s.metrics.signatures.WithLabelValues(string(k.Algorithm), c.kindOf(k)).Inc()
	}
	text = describe(made)
	if c.reason != "" {
		text += " (" + c.reason + ")"
	}
	a.record(text, took)
	a.log.Debug("mail signed", "domain", c.domain, "signatures", len(made), "took", took)
	return resultSigned
}

// signatures opens the content and reads it within signTimeout.
func (a *attempt) signatures(ctx context.Context, c choice) (string, []keyring.Key, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	content, err := a.work.Open(ctx)
	if err != nil {
		return "", nil, fmt.Errorf("open content: %w", err)
	}
	defer content.Close()
	return a.s.signatures(ctx, c, content)
}

// isSigned opens the content and looks for any DKIM-Signature, whoever made it.
func (a *attempt) isSigned(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	content, err := a.work.Open(ctx)
	if err != nil {
		return false, fmt.Errorf("open content: %w", err)
	}
	defer content.Close()
	return a.s.isSigned(ctx, content)
}

// pass lets the mail go on unsigned.
func (a *attempt) pass(ctx context.Context, reason string) string {
	if err := a.work.Signed(ctx, ""); err != nil {
		a.log.Warn("mail was not passed on, it is left to be taken again", "err", err)
		return resultLeft
	}
	a.record("unsigned: "+reason, 0)
	a.log.Info("mail passed unsigned", "reason", reason)
	return resultUnsigned
}

// wait puts the mail aside until its sender wants it sent.
func (a *attempt) wait(ctx context.Context) string {
	if err := a.work.Hold(ctx); err != nil {
		a.log.Warn("mail was not put aside, it is left to be taken again", "err", err)
		return resultLeft
	}
	return resultHeld
}

// later puts the mail aside, or gives it up when its time is over. One line a minute for each domain tells of it.
func (a *attempt) later(ctx context.Context, domain string, delay time.Duration, reason string) string {
	if age := a.s.o.MaxAge; age > 0 && time.Since(a.began()) > age {
		return a.giveUp(ctx, reason)
	}
	if d := a.env.Deadline; d.Return {
		left := time.Until(d.At)
		if left <= 0 {
			return a.giveUp(ctx, reason)
		}
		delay = min(delay, left)
	}
	if err := a.work.Later(ctx, delay, reason); err != nil {
		a.log.Warn("mail was not put aside, it is left to be taken again", "err", err)
		return resultLeft
	}
	if a.s.notices.due(domain + "\x00" + reason) {
		a.log.Warn("mail waits for its signature", "domain", domain, "reason", reason, "delay", delay)
	}
	return resultHeld
}

// began is when the mail's time began to count.
func (a *attempt) began() time.Time {
	if a.hold.After(a.env.Accepted) {
		return a.hold
	}
	return a.env.Accepted
}

func (a *attempt) record(text string, took time.Duration) {
	a.s.o.Queue.Record(queue.Event{
		Type:     queue.Signed,
		ID:       a.id,
		Sender:   a.env.ReversePath.String(),
		Client:   a.env.Client,
		Text:     text,
		Duration: took,
	})
}

// describe names signatures for people.
func describe(keys []keyring.Key) string {
	parts := make([]string, 0, len(keys))
	for _, k := range keys {
		parts = append(parts, fmt.Sprintf("d=%s s=%s a=%s", k.Domain, k.Selector, k.Algorithm))
	}
	return strings.Join(parts, ", ")
}

// notices keeps a fact that holds for many mails from filling the log.
type notices struct {
	mu   sync.Mutex
	last map[string]time.Time
}

const (
	noticeInterval = time.Minute
	maxNotices     = 1000
)

func (n *notices) due(what string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	if at, known := n.last[what]; known && now.Sub(at) < noticeInterval {
		return false
	}
	if n.last == nil || len(n.last) >= maxNotices {
		n.last = make(map[string]time.Time)
	}
	n.last[what] = now
	return true
}

// giveUp sends the mail to its end: delivery tells the sender and does not relay it.
func (a *attempt) giveUp(ctx context.Context, reason string) string {
	if err := a.work.GiveUp(ctx, reason); err != nil {
		a.log.Warn("mail was not given up, it is left to be taken again", "err", err)
		return resultLeft
	}
	a.log.Warn("mail found no signature in its time", "reason", reason)
	return resultExpired
}
