package signer

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"postroad/queue"
	"postroad/signer/keyring"
)

func TestOptions(t *testing.T) {
	q, keys := &fakeQueue{}, &fakeSource{}
	for _, c := range []struct {
		name string
		o    Options
		good bool
	}{
		{"least", Options{Queue: q, Keys: keys}, true},
		{"all", Options{Queue: q, Keys: keys, MissingKey: Pass, OwnDomain: "relay.example", Window: 1, Expiry: 24 * time.Hour, AllowParent: true}, true},
		{"no queue", Options{Keys: keys}, false},
		{"no keys", Options{Queue: q}, false},
		{"policy", Options{Queue: q, Keys: keys, MissingKey: "drop"}, false},
		{"own domain", Options{Queue: q, Keys: keys, OwnDomain: "[192.0.2.1]"}, false},
		{"window", Options{Queue: q, Keys: keys, Window: -1}, false},
		{"expiry below a day", Options{Queue: q, Keys: keys, Expiry: time.Hour}, false},
		{"expiry below zero", Options{Queue: q, Keys: keys, Expiry: -time.Hour}, false},
	} {
		if _, err := New(c.o); (err == nil) != c.good {
			t.Errorf("%s: got %v, want good %t", c.name, err, c.good)
		}
	}
}

func TestMetricsRegister(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	o := Options{Queue: &fakeQueue{}, Keys: &fakeSource{}, Registerer: r}
	if _, err := New(o); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range families {
		names = append(names, f.GetName())
	}
	want := []string{"relay_signer_degraded", "relay_signer_in_hand_messages", "relay_signer_keys_out_of_reach", "relay_signer_messages_total",
		"relay_signer_refused_total", "relay_signer_relay_missing_total", "relay_signer_signing_seconds"}
	if diff := cmp.Diff(want, names); diff != "" { // signatures have no series before the first
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	if _, err := New(o); err == nil {
		t.Error("got no error of metrics that are registered already")
	}
}

func TestStop(t *testing.T) {
	t.Run("without start", func(t *testing.T) {
		s := newSigner(t, Options{})
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		s.Start()
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("waits for what is in hand", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			q := &fakeQueue{sign: func(ctx context.Context, _ int) error {
				<-ctx.Done()
				time.Sleep(10 * time.Second) // a handler at work
				return nil
			}}
			s := newSigner(t, Options{Queue: q})
			s.Start()
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := s.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
			}
			began := time.Now()
			if err := s.Stop(t.Context()); err != nil || time.Since(began) != 9*time.Second {
				t.Errorf("got %v after %v, want the rest of the ten seconds", err, time.Since(began))
			}
		})
	})
}

// TestQueueFails: taking mail begins again, ever more slowly.
func TestQueueFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		calls := 0
		q := &fakeQueue{sign: func(_ context.Context, window int) error {
			mu.Lock()
			defer mu.Unlock()
			calls++
			if window != 7 {
				t.Errorf("got window %d, want 7", window)
			}
			return queue.ErrUnavailable
		}}
		s := newSigner(t, Options{Queue: q, Window: 7})
		s.Start()
		time.Sleep(10 * time.Minute)
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if calls < 20 || calls > 35 {
			t.Errorf("got %d calls in ten minutes, want about 24", calls)
		}
	})
}

// TestOutage takes the source away under load: after a few lookups nothing is
// taken or moved any more, the source is asked now and then, and mail flows
// again soon after it is back.
func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &fakeSource{keys: map[string][]keyring.Key{"example.com": testKeys()[1:], "a.example": keysFor("a.example")}}
		var s *Signer
		var mu sync.Mutex
		done := make(map[string]int)
		// A queue that never runs dry: 2 mails a second.
		q := &fakeQueue{sign: func(ctx context.Context, _ int) error {
			for ctx.Err() == nil {
				w := &fakeWork{content: message}
				s.attempt(ctx, &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: "a.example"}, work: w})
				mu.Lock()
				done[w.done]++
				mu.Unlock()
				_ = sleep(ctx, 500*time.Millisecond)
			}
			return nil
		}}
		count := func(what string) int { mu.Lock(); defer mu.Unlock(); return done[what] }
		s = newSigner(t, Options{Queue: q, Keys: source})
		s.Start()
		time.Sleep(10 * time.Second)
		if count("signed") < 10 || count("later") != 0 {
			t.Errorf("before: got %d signed and %d held", count("signed"), count("later"))
		}

		source.setCut(errors.New("sealed"))
		time.Sleep(20 * time.Second)
		signed, asked := count("signed"), source.lookups()
		if value(t, s.metrics.outOfReach) != 1 {
			t.Error("the metric does not show the outage")
		}
		time.Sleep(time.Hour)
		if count("signed") != signed || count("later") != outageAfter-1 || count("") != 1 {
			t.Errorf("outage: got %d more signed, %d held, %d left, want 0, %d, 1", count("signed")-signed, count("later"), count(""), outageAfter-1)
		}
		if n := source.lookups() - asked; n < 90 || n > 180 {
			t.Errorf("asked %d times in the hour, want about 120", n)
		}

		source.setCut(nil)
		time.Sleep(time.Minute)
		if n := count("signed") - signed; n < 20 {
			t.Errorf("after: got %d signed within a minute, want mail to flow", n)
		}
		if value(t, s.metrics.outOfReach) != 0 {
			t.Error("the metric still shows an outage")
		}
		if err := s.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// TestOneDomainOutOfReach: lookups that fail between others that answer stop
// nothing.
func TestOneDomainOutOfReach(t *testing.T) {
	source := &fakeSource{keys: map[string][]keyring.Key{"example.com": testKeys()[:1]}, errs: map[string]error{"away.example": errors.New("timed out")}}
	s := newSigner(t, Options{Keys: source})
	stopped := false
	s.reach.begin(func() { stopped = true })
	for range 5 * outageAfter {
		for _, domain := range []string{"away.example", "example.com", "away.example", "nokey.example"} {
			s.attempt(t.Context(), &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: domain}, work: &fakeWork{content: message}})
		}
	}
	if _, cause := s.reach.lost(); cause != nil || stopped {
		t.Errorf("got an outage: %v", cause)
	}
}

// TestStopDuringOutage: the wait for the source ends at once.
func TestStopDuringOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &fakeSource{cut: errors.New("sealed")}
		var s *Signer
		q := &fakeQueue{sign: func(ctx context.Context, _ int) error {
			for range outageAfter {
				s.attempt(ctx, &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: "a.example"}, work: &fakeWork{}})
			}
			<-ctx.Done()
			return nil
		}}
		s = newSigner(t, Options{Queue: q, Keys: source})
		s.Start()
		time.Sleep(5 * time.Minute)
		began := time.Now()
		if err := s.Stop(t.Context()); err != nil || time.Since(began) != 0 {
			t.Errorf("got %v after %v, want an end at once", err, time.Since(began))
		}
	})
}

// TestOneDomainAlone: one domain whose keys cannot be had, and no other mail, stops nothing; nor does a source that is out of reach and has
// the keys of others in memory.
func TestOneDomainAlone(t *testing.T) {
	source := &fakeSource{keys: map[string][]keyring.Key{"example.com": testKeys()[:1]}, errs: map[string]error{"away.example": errors.New("not allowed")}}
	s := newSigner(t, Options{Keys: source})
	stopped := false
	s.reach.begin(func() { stopped = true })
	for range 2 * outageAfter {
		w := &fakeWork{content: message}
		s.attempt(t.Context(), &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: "away.example"}, work: w})
		if w.done != "later" {
			t.Fatalf("got %q, want it put aside", w.done)
		}
	}
	if _, cause := s.reach.lost(); cause != nil || stopped {
		t.Errorf("got an outage: %v", cause)
	}
	w := &fakeWork{content: message}
	s.attempt(t.Context(), &attempt{id: "id", kind: queue.KindMail, env: queue.Envelope{HeaderFrom: "example.com"}, work: w})
	if w.done != "signed" {
		t.Errorf("another domain: got %q, want it signed", w.done)
	}
}

// TestOtherKeysEndAnOutage: mail is taken again as soon as anybody's can be signed, whatever becomes of the domain that showed the outage.
func TestOtherKeysEndAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &fakeSource{cut: errors.New("sealed"), errs: map[string]error{"away.example": errors.New("not allowed")}}
		s := newSigner(t, Options{Keys: source})
		ended := make(chan struct{})
		go func() { s.awaitKeys(t.Context(), "away.example", source.cut); close(ended) }()
		time.Sleep(time.Hour)
		source.setCut(nil)
		began := time.Now()
		<-ended
		if waited := time.Since(began); waited > longestPause*2 {
			t.Errorf("it took %v", waited)
		}
	})
}
