package signer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"postroad/queue"
	"postroad/signer/keyring"
)

// aging is a source whose keys are not confirmed any more.
type aging struct {
	fakeSource
	stale int
	since time.Time
}

func (a *aging) Stale() (int, time.Time) { return a.stale, a.since }
func (a *aging) Domains() int            { return 7 }

// texts are what conditions say, one a line.
func texts(list []queue.Condition) string {
	var b strings.Builder
	for _, c := range list {
		fmt.Fprintf(&b, "%s %s\n", c.About, c.Text)
	}
	return b.String()
}

func TestDegraded(t *testing.T) {
	source := &aging{since: time.Now(), fakeSource: fakeSource{
		keys: map[string][]keyring.Key{"example.com": testKeys()},
		errs: map[string]error{"bad.example": fmt.Errorf("key file x.pem has mode 0644: %w", keyring.ErrBadKey), "away.example": errors.New("timed out")},
	}}
	registry := prometheus.NewRegistry()
	s := newSigner(t, Options{Keys: source, Registerer: registry})
	sign := func(domains ...string) {
		t.Helper()
		for _, domain := range domains {
			s.attempt(t.Context(), &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: domain}, work: &fakeWork{content: message}})
		}
	}
	want := func(unreachable, noKey, badKey, stale int) {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[string]int)
		for _, family := range families {
			if family.GetName() != "relay_signer_degraded" {
				continue
			}
			for _, m := range family.GetMetric() {
				got[m.GetLabel()[0].GetValue()] = int(m.GetGauge().GetValue())
			}
		}
		if d := cmp.Diff(map[string]int{"unreachable": unreachable, "no_key": noKey, "bad_key": badKey, "stale": stale}, got); d != "" {
			t.Error(d)
		}
	}
	sign("example.com")
	want(0, 0, 0, 0)
	if got := s.Conditions(); len(got) > 0 || s.Summary() != "keys in memory: 7 domains" {
		t.Errorf("got %v and %q, want nothing", got, s.Summary())
	}
	sign("nokey.example", "other.example", "nokey.example", "bad.example", "away.example")
	source.stale = 1
	want(1, 2, 1, 1)
	got := texts(s.Conditions())
	for _, text := range []string{
		"nokey.example mail of nokey.example waits for its signature: there is no DKIM key for it\n",
		"other.example mail of other.example waits",
		"bad.example mail of bad.example waits for its signature: key file x.pem has mode 0644: unusable DKIM key\n",
		"away.example mail of away.example waits for its signature: its keys are out of reach\n",
		" mail is signed with keys in memory",
	} {
		if !strings.Contains(got, text) {
			t.Errorf("got\n%swant %q", got, text)
		}
	}
	if want := "keys in memory: 7 domains, out of reach: 1 domain, missing: 2 domains, unusable: 1 domain, not confirmed lately: 1 domain"; s.Summary() != want {
		t.Errorf("got %q, want %q", s.Summary(), want)
	}
	for _, domain := range []string{"nokey.example", "other.example", "bad.example", "away.example"} {
		source.mend(domain)
	}
	source.stale = 0
	sign("nokey.example", "other.example", "bad.example", "away.example")
	want(0, 0, 0, 0)
	if got := s.Conditions(); len(got) > 0 {
		t.Errorf("got %v after all were mended", got)
	}
}

func TestMailThatPassesIsNotDegraded(t *testing.T) {
	s := newSigner(t, Options{Keys: &fakeSource{}, MissingKey: Pass})
	s.attempt(t.Context(), &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: "nokey.example"}, work: &fakeWork{content: message}})
	if got := s.Conditions(); len(got) > 0 {
		t.Errorf("got %v where the policy is to pass", got)
	}
}

// TestMailThatNeedsNoKey: mail that is let pass, or bears our signatures already, ends what was said of its domain.
func TestMailThatNeedsNoKey(t *testing.T) {
	s := newSigner(t, Options{})
	missing := &verdict{do: Pass, reason: "no DKIM key", cause: keyring.ErrNoKey}
	for name, end := range map[string]error{"it passes": missing, "its keys are there": nil} {
		s.degraded.note("x.example", reasonNoKey, "there is no DKIM key for it")
		if s.noteLookup("x.example", end); len(s.Conditions()) > 0 {
			t.Errorf("%s: got %v", name, s.Conditions())
		}
	}
	s.degraded.note("x.example", reasonNoKey, "there is no DKIM key for it")
	s.noteLookup("x.example", &verdict{do: Pass, reason: "its client may not use it"})
	if len(s.Conditions()) != 1 {
		t.Error("mail of a client that may not use the domain says nothing of its keys")
	}
	s.degraded.note("x.example", reasonUnreachable, "its keys do not sign")
	if s.noteLookup("x.example", nil); len(s.Conditions()) != 1 {
		t.Error("keys that were found need not sign")
	}
}

// TestConditionOfAnOutage: it is there from the moment at which no mail is taken until keys are back, whatever the time.
func TestConditionOfAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &fakeSource{keys: map[string][]keyring.Key{"a.example": keysFor("a.example")}, cut: errors.New("sealed")}
		var s *Signer
		q := &fakeQueue{sign: func(ctx context.Context, _ int) error {
			for range outageAfter {
				s.attempt(ctx, &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: "a.example"}, work: &fakeWork{content: message}})
			}
			<-ctx.Done()
			return nil
		}}
		s = newSigner(t, Options{Queue: q, Keys: source})
		s.Start()
		time.Sleep(time.Hour)
		got := s.Conditions()
		if len(got) != 1 || got[0].About != queue.EveryDomain || got[0].Text != "keys are out of reach: sealed" || time.Since(got[0].Since) < 59*time.Minute {
			t.Errorf("got %+v, want one since an hour ago", got)
		}
		source.setCut(nil)
		time.Sleep(time.Minute)
		if got := s.Conditions(); len(got) > 0 {
			t.Errorf("got %+v after keys were back", got)
		}
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestDegradedIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d degraded
		for i := range maxDegraded + 10 {
			d.note(fmt.Sprint(i), reasonNoKey, "")
		}
		if n := d.counts()[reasonNoKey]; n != maxDegraded {
			t.Errorf("got %d domains, want %d", n, maxDegraded)
		}
		time.Sleep(degradedFor + sweepEvery)
		if n := d.counts()[reasonNoKey]; n != 0 {
			t.Errorf("got %d domains after their time, want none", n)
		}
	})
}

func TestConditionsNameTen(t *testing.T) {
	s := newSigner(t, Options{})
	for i := range 25 {
		s.degraded.note(fmt.Sprintf("d%02d.example", i), reasonNoKey, "there is no DKIM key for it")
	}
	got := s.Conditions()
	if len(got) != maxDegradedNamed+1 || got[maxDegradedNamed].About != "" || !strings.Contains(got[maxDegradedNamed].Text, "more domains") {
		t.Errorf("got %d conditions, want ten and one for the rest: %v", len(got), got)
	}
}
