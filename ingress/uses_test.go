package ingress

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postroad/queue"
)

// diary remembers uses; it can be slow or broken.
type diary struct {
	mu     sync.Mutex
	noted  []queue.Use
	err    error
	closed chan struct{} // nil: NoteUse does not wait
}

func (d *diary) NoteUse(ctx context.Context, u queue.Use) error {
	if d.closed != nil {
		select {
		case <-d.closed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.noted = append(d.noted, u)
	}
	return d.err
}

func (d *diary) all() []queue.Use {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]queue.Use(nil), d.noted...)
}

// TestLoginsAreNoted: by every mechanism, with the id of the password or a sign of the certificate, and not when a login fails.
func TestLoginsAreNoted(t *testing.T) {
	d := &diary{}
	q := &fakeQueue{}
	o := testOptions(q)
	for _, option := range []string{"implicit", "auth=optional", "client-certificate"} {
		if err := dialogueOption(&o, q, option); err != nil {
			t.Fatal(err)
		}
	}
	o.Uses = d
	s := startServer(t, o)
	login := func(steps ...string) {
		t.Helper()
		p := &player{t: t, queue: q, server: s, isImplicit: true}
		if err := p.dial(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = p.conn.Close() }()
		for _, step := range append([]string{"S: 220 *", "EHLO client.test"}, steps...) {
			if err := p.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			if err := p.step(step); err != nil {
				t.Fatalf("%s: %v", step, err)
			}
		}
	}
	seen := func(n int) queue.Use {
		t.Helper()
		waitFor(t, "a note", func() bool { return len(d.all()) >= n })
		return d.all()[n-1]
	}
	began := time.Now()
	login("C: AUTH PLAIN AHdlYjAxAHdyb25nIGhvcnNlIDE=", "S: 535 *", "C: AUTH PLAIN AHdlYjAxAGNvcnJlY3QgaG9yc2U=", "S: 235 *")
	u := seen(1)
	if u.Client != "web01" || len(u.Password) != 8 || !strings.HasPrefix(u.Address, "127.0.0.1") || u.Last.Before(began) || u.Last.After(time.Now()) {
		t.Errorf("got %+v", u)
	}
	login("C: AUTH EXTERNAL d2ViMDI=", "S: 235 *")
	if u := seen(2); u.Client != "web02" || !strings.HasPrefix(u.Password, "certificate:") || len(u.Password) != len("certificate:")+16 {
		t.Errorf("got %+v", u)
	}
	login("SCRAM passing correct horse", "S: 235 *")
	if u := seen(3); u.Client != "passing" || len(u.Password) != 8 {
		t.Errorf("got %+v", u)
	}
	login("C: AUTH PLAIN AHdlYjAxAGNvcnJlY3QgaG9yc2U=", "S: 235 *") // again, without a hash
	login("SCRAM web02 correct horse", "S: 235 *")
	if u := seen(4); u.Client != "web02" || strings.HasPrefix(u.Password, "certificate:") {
		t.Errorf("got %+v, want web02 by its password, and web01 not twice within ten minutes", u)
	}
}

// TestNotesHoldNobodyUp: while notes cannot be written, logins are not slower, what waits is bounded, and the server stops.
func TestNotesHoldNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{closed: make(chan struct{})}
		w := newUseWriter(d, slog.New(slog.DiscardHandler))
		w.start()
		began := time.Now()
		for i := range 3 * maxWaitingUses {
			w.note(queue.Use{Client: "web1", Password: strings.Repeat("x", i), Last: time.Now()})
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("notes took %s", took)
		}
		if n := len(w.waiting); n != maxWaitingUses {
			t.Errorf("%d wait, want %d", n, maxWaitingUses)
		}
		w.end()
		if took := time.Since(began); took > noteTimeout {
			t.Errorf("the end took %s", took)
		}
	})
}

// TestNotesAreFew: once in ten minutes for a pair, at once for another pair, and again when one has failed.
func TestNotesAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{}
		log := &strings.Builder{}
		w := newUseWriter(d, slog.New(slog.NewTextHandler(log, nil)))
		w.start()
		defer w.end()
		note := func(client, password string) int {
			w.note(queue.Use{Client: client, Password: password, Last: time.Now()})
			synctest.Wait()
			return len(d.all())
		}
		for i, want := range []int{1, 1, 2, 3} {
			if got := note([]string{"web1", "web1", "web1", "web2"}[i], []string{"new", "new", "old", "new"}[i]); got != want {
				t.Errorf("note %d: got %d written, want %d", i, got, want)
			}
		}
		time.Sleep(noteEvery)
		if got := note("web1", "new"); got != 4 {
			t.Errorf("after ten minutes: got %d written, want 4", got)
		}
		d.mu.Lock()
		d.err = errors.New("the queue is away")
		d.mu.Unlock()
		note("web3", "new")
		note("web3", "new")
		if n := strings.Count(log.String(), "cannot be noted"); n != 1 {
			t.Errorf("got %d lines, want 1:\n%s", n, log)
		}
		d.mu.Lock()
		d.err = nil
		d.mu.Unlock()
		if got := note("web3", "new"); got != 5 {
			t.Errorf("after a failure: got %d written, want 5", got)
		}
		for i := range maxNotedUses {
			w.note(queue.Use{Client: "flood", Password: string(rune(i + 1000)), Last: time.Now()})
		}
		if len(w.noted) > maxNotedUses {
			t.Errorf("%d pairs are remembered, want %d at most", len(w.noted), maxNotedUses)
		}
	})
}
