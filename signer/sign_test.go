package signer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"postroad/queue"
	"postroad/queue/address"
	"postroad/signer/keyring"
)

// TestDecisions is the table of what becomes of a mail.
func TestDecisions(t *testing.T) {
	keys := testKeys()
	source := func() *fakeSource {
		return &fakeSource{
			keys: map[string][]keyring.Key{
				"example.com":   keys,
				"relay.example": keysFor("relay.example"),
				"ed.example":    keysFor("ed.example")[1:],
				"broken.example": {{Domain: "broken.example", Selector: "r1", Algorithm: keyring.RSA,
					Signer: brokenKey{keys[0].Signer}}},
			},
			errs: map[string]error{
				"bad.example":    fmt.Errorf("key file x.pem has mode 0644: %w", keyring.ErrBadKey),
				"absent.example": errors.New("source timed out"),
			},
		}
	}
	cases := []struct {
		name    string
		options Options
		kind    queue.Kind
		from    string
		work    fakeWork
		result  string
		domain  string // of the signatures
		event   string
		reason  string // of Later
		delay   time.Duration
	}{
		{name: "signed", from: "example.com", result: resultSigned, domain: "example.com",
			event: "d=example.com s=r1 a=rsa-sha256, d=example.com s=e1 a=ed25519-sha256"},
		{name: "sub-domain", from: "news.example.com", result: resultHeld,
			reason: "no DKIM key for news.example.com", delay: 5 * time.Minute},
		{name: "sub-domain by parent", from: "a.news.example.com", options: Options{AllowParent: true}, result: resultSigned, domain: "example.com",
			event: "d=example.com s=r1 a=rsa-sha256, d=example.com s=e1 a=ed25519-sha256"},
		{name: "parent without key", from: "news.nokey.example", options: Options{AllowParent: true}, result: resultHeld,
			reason: "no DKIM key for news.nokey.example", delay: 5 * time.Minute},
		{name: "parent with bad key", from: "news.bad.example", options: Options{AllowParent: true}, result: resultHeld,
			reason: "key file x.pem has mode 0644: unusable DKIM key", delay: 5 * time.Minute},
		{name: "no key, hold", from: "nokey.example", options: Options{MissingKey: Hold}, result: resultHeld,
			reason: "no DKIM key for nokey.example", delay: 5 * time.Minute},
		{name: "no key, pass", from: "nokey.example", options: Options{MissingKey: Pass}, result: resultUnsigned,
			event: "unsigned: no DKIM key for nokey.example"},
		{name: "bad key is held even with pass", from: "bad.example", options: Options{MissingKey: Pass}, result: resultHeld,
			reason: "key file x.pem has mode 0644: unusable DKIM key", delay: 5 * time.Minute},
		{name: "one lookup fails", from: "absent.example", options: Options{MissingKey: Pass}, result: resultHeld,
			reason: "keys of absent.example are out of reach: source timed out", delay: time.Minute},
		{name: "Ed25519 alone", from: "ed.example", result: resultHeld, delay: 5 * time.Minute,
			reason: "ed.example has no RSA key, and Ed25519 must not sign alone: add an RSA key: unusable DKIM key"},
		{name: "key does not sign", from: "broken.example", result: resultHeld, delay: time.Minute,
			reason: "key r1 of broken.example did not sign: token removed"},
		{name: "no author domain", from: "", result: resultUnsigned, event: `unsigned: the author has no domain to sign for ("")`},
		{name: "author at an address", from: "[192.0.2.1]", result: resultUnsigned,
			event: `unsigned: the author has no domain to sign for ("[192.0.2.1]")`},
		{name: "message that cannot be signed", from: "example.com", work: fakeWork{content: "From: a\nTo: b\r\n\r\n"}, result: resultUnsigned,
			event: "unsigned: the message has an LF without CR"},
		{name: "signed already", from: "example.com", result: resultUnsigned,
			work:  fakeWork{content: "DKIM-Signature: d=example.com; s=r1\r\nDKIM-Signature: d=example.com; s=e1\r\n" + message},
			event: "unsigned: it bears the signatures of example.com already"},
		{name: "notification", kind: queue.KindDSN, from: "relay.example", options: Options{OwnDomain: "Relay.Example."}, result: resultSigned,
			domain: "relay.example", event: "d=relay.example s=r1 a=rsa-sha256, d=relay.example s=e1 a=ed25519-sha256"},
		{name: "notification in a customer's name", kind: queue.KindDSN, from: "example.com", options: Options{OwnDomain: "relay.example"},
			result: resultSigned, domain: "relay.example",
			event: "d=relay.example s=r1 a=rsa-sha256, d=relay.example s=e1 a=ed25519-sha256"},
		{name: "notification, own domain has no key, no parent", kind: queue.KindDSN, from: "x.example.com",
			options: Options{OwnDomain: "x.example.com", AllowParent: true}, result: resultHeld,
			reason: "no DKIM key for x.example.com", delay: 5 * time.Minute},
		{name: "notification without own domain", kind: queue.KindDSN, from: "example.com", result: resultUnsigned,
			event: "unsigned: no own domain is configured to sign notifications"},
		{name: "content out of reach", from: "example.com", work: fakeWork{openErr: queue.ErrUnavailable}, result: resultLeft},
		{name: "signatures not stored", from: "example.com", work: fakeWork{failErr: queue.ErrUnavailable}, result: resultLeft},
		{name: "not put aside", from: "nokey.example", work: fakeWork{failErr: queue.ErrUnavailable}, result: resultLeft},
		{name: "too old", from: "nokey.example", options: Options{MaxAge: time.Hour}, result: resultExpired, reason: "no DKIM key for nokey.example"},
		{name: "not passed on", from: "nokey.example", options: Options{MissingKey: Pass}, work: fakeWork{failErr: queue.ErrUnavailable},
			result: resultLeft},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			q := &fakeQueue{}
			c.options.Queue, c.options.Keys = q, source()
			s := newSigner(t, c.options)
			w := &c.work
			if w.content == "" {
				w.content = message
			}
			if c.kind == "" {
				c.kind = queue.KindMail
			}
			env := queue.Envelope{HeaderFrom: c.from, Client: "client", ReversePath: address.Path{Local: "alice", Domain: "example.com"}}
			s.attempt(t.Context(), &attempt{id: "id", kind: c.kind, env: env, work: w})

			if got := value(t, s.metrics.messages.WithLabelValues(c.result)); got != 1 {
				t.Errorf("result is not %q", c.result)
			}
			if got := value(t, s.metrics.inHand); got != 0 {
				t.Errorf("got %v in hand, want 0", got)
			}
			wantDone := map[string]string{resultSigned: "signed", resultUnsigned: "signed", resultHeld: "later", resultExpired: "given up", resultLeft: ""}[c.result]
			if w.done != wantDone || w.reason != c.reason || w.delay != c.delay {
				t.Errorf("got %q %q %v, want %q %q %v", w.done, w.reason, w.delay, wantDone, c.reason, c.delay)
			}
			var events []string
			if c.event != "" {
				events = []string{c.event}
			}
			if diff := cmp.Diff(events, q.texts()); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if c.domain == "" {
				if w.signatures != "" {
					t.Errorf("got signatures %q, want none", w.signatures)
				}
				return
			}
			for _, v := range mustVerify(t, w.signatures+w.content, keysFor(c.domain), 2) {
				if v.Domain != c.domain {
					t.Errorf("got d=%s, want %s", v.Domain, c.domain)
				}
			}
			if !w.closed {
				t.Error("content was not closed")
			}
		})
	}
}

func TestEvent(t *testing.T) {
	q := &fakeQueue{}
	s := newSigner(t, Options{Queue: q, Keys: &fakeSource{keys: map[string][]keyring.Key{"example.com": testKeys()[:1]}}})
	env := queue.Envelope{HeaderFrom: "example.com", Client: "web1", ReversePath: address.Path{Local: "alice", Domain: "example.org"}}
	s.attempt(t.Context(), &attempt{id: "id", kind: queue.KindMail, env: env, work: &fakeWork{content: message}})
	if len(q.events) != 1 {
		t.Fatalf("got %d events, want 1", len(q.events))
	}
	got := q.events[0]
	if got.Duration <= 0 {
		t.Errorf("got no duration")
	}
	got.Duration = 0
	want := queue.Event{Type: queue.Signed, ID: "id", Sender: "alice@example.org", Client: "web1", Text: "d=example.com s=r1 a=rsa-sha256"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	if got := value(t, s.metrics.signatures.WithLabelValues("rsa-sha256", kindAuthor)); got != 1 {
		t.Errorf("got %v signatures counted, want 1", got)
	}
}

func TestCandidates(t *testing.T) {
	for _, c := range []struct {
		author string
		parent bool
		want   []string
	}{
		{"example.com", false, []string{"example.com"}},
		{"Example.COM.", true, []string{"example.com"}},
		{"a.b.example.com", false, []string{"a.b.example.com"}},
		{"a.b.example.com", true, []string{"a.b.example.com", "b.example.com", "example.com"}},
		{"localhost", true, []string{"localhost"}},
		{"1.2.3.4.5.6.7.8.9.example.com", true, []string{"1.2.3.4.5.6.7.8.9.example.com", "2.3.4.5.6.7.8.9.example.com",
			"3.4.5.6.7.8.9.example.com", "4.5.6.7.8.9.example.com", "5.6.7.8.9.example.com", "6.7.8.9.example.com"}},
		{"", true, nil},
		{"../example.com", true, nil},
	} {
		if diff := cmp.Diff(c.want, candidates(c.author, c.parent)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.author, diff)
		}
	}
}

// panickyWork panics where a fault of ours might.
type panickyWork struct{ fakeWork }

func (*panickyWork) Open(context.Context) (io.ReadCloser, error) { panic("fault") }

func TestPanicLeavesMail(t *testing.T) {
	var log bytes.Buffer
	s := newSigner(t, Options{Keys: &fakeSource{keys: map[string][]keyring.Key{"example.com": testKeys()}},
		Logger: slog.New(slog.NewTextHandler(&log, nil))})
	w := &panickyWork{}
	s.attempt(t.Context(), &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: "example.com"}, work: w})
	if w.done != "" || value(t, s.metrics.messages.WithLabelValues(resultLeft)) != 1 || !strings.Contains(log.String(), "fault") {
		t.Errorf("got %q, log %q, want the mail left", w.done, log.String())
	}
}

// TestNotices: many mails held for one reason make one line a minute.
func TestNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := newSigner(t, Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		hold := func(domain string) {
			s.attempt(t.Context(), &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: domain}, work: &fakeWork{}})
		}
		lines := func() int { return strings.Count(log.String(), "\n") }
		for range 100 {
			hold("a.example")
		}
		hold("b.example")
		if lines() != 2 {
			t.Errorf("got %d lines, want 2", lines())
		}
		time.Sleep(noticeInterval)
		hold("a.example")
		if lines() != 3 {
			t.Errorf("got %d lines, want 3", lines())
		}
		for i := range 3 * maxNotices {
			hold(fmt.Sprintf("x%d.example", i))
		}
		if n := len(s.notices.last); n > maxNotices {
			t.Errorf("remembers %d notices, want at most %d", n, maxNotices)
		}
	})
}

// TestTimes: what the sender wants of the time of his mail.
func TestTimes(t *testing.T) {
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when bubbles begin
	testKeys()
	returned := func(d time.Duration) queue.Deadline { return queue.Deadline{At: now.Add(d), Return: true} }
	for _, c := range []struct {
		name     string
		from     string
		accepted time.Duration // before now
		hold     time.Duration // from now
		deadline queue.Deadline
		work     fakeWork
		done     string
		most     time.Duration // of Later
	}{
		{name: "held", from: "example.com", hold: time.Hour, done: "on hold"},
		{name: "held, no key yet", from: "nokey.example", hold: time.Hour, done: "on hold"},
		{name: "not put aside", from: "example.com", hold: time.Hour, work: fakeWork{failErr: queue.ErrUnavailable}},
		{name: "released", from: "example.com", accepted: 10 * time.Hour, hold: -time.Second, done: "signed"},
		{name: "released, no key: its age counts from its release", from: "nokey.example", accepted: 10 * time.Hour, hold: -time.Second,
			done: "later", most: missingKeyDelay},
		{name: "released long ago, no key", from: "nokey.example", accepted: 10 * time.Hour, hold: -9 * time.Hour, done: "given up"},
		{name: "no key, time is left", from: "nokey.example", deadline: returned(time.Minute), done: "later", most: time.Minute},
		{name: "no key, late", from: "nokey.example", deadline: returned(-time.Second), done: "given up"},
		{name: "no key, late, to be told only", from: "nokey.example", deadline: queue.Deadline{At: now.Add(-time.Second)}, done: "later",
			most: missingKeyDelay},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSigner(t, Options{MaxAge: 5 * time.Hour, Keys: &fakeSource{keys: map[string][]keyring.Key{"example.com": testKeys()}}})
				c.work.content = message
				env := queue.Envelope{HeaderFrom: c.from, Accepted: now.Add(-c.accepted), Deadline: c.deadline}
				a := &attempt{id: "id", kind: queue.KindMail, env: env, work: &c.work}
				if c.hold != 0 {
					a.hold = now.Add(c.hold)
				}
				s.attempt(t.Context(), a)
				if c.work.done != c.done || c.work.delay > c.most || c.most > 0 && c.work.delay < c.most-10*time.Second {
					t.Errorf("got %q after %s, want %q", c.work.done, c.work.delay, c.done)
				}
			})
		})
	}
}
