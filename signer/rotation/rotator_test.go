package rotation

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postroad/signer/keyring"
)

// inBubble runs a test on a clock of its own, from 2000-01-01.
func inBubble(t *testing.T, test func(*testing.T)) {
	t.Helper()
	synctest.Test(t, test)
}

// TestWholeRotation follows a domain from a key made by hand to the end of its
// first rotation, by the clock.
func TestWholeRotation(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.hand("s1", keyring.RSA)
		b.lag["ns2"] = 10 * time.Minute
		b.queued["s1"] = 3
		time.Sleep(day)
		demand := b.demand()

		pass := b.run(demand)
		b.are("s1 active", "rsa-200001 generated", "ed25519-200001 generated")
		w := b.waits(pass, "rsa-200001", "ns1 has no record")
		if w.Err != nil || w.Report == nil || len(b.hooks) != 2 || b.hooks[0].Op != OpAdd || b.hooks[0].Name != "ed25519-200001._domainkey.example.com" {
			t.Errorf("got %+v and hooks %v, want both records published", w, b.hooks)
		}
		if at := pass.Again(time.Now()); !at.Equal(time.Now().Add(time.Minute)) {
			t.Errorf("again at %v, want in a minute", at)
		}
		time.Sleep(5 * time.Minute)
		b.waits(b.run(demand), "rsa-200001", "ns2 has no record: publish the record there; if it is published")
		time.Sleep(6 * time.Minute)
		b.waits(b.run(demand), "rsa-200001", "r1 has no record: it may remember that there was none")
		time.Sleep(30 * time.Minute)
		pass = b.run(demand)
		b.are("s1 active", "rsa-200001 published", "ed25519-200001 published")
		b.waits(pass, "rsa-200001", "remember for 1h0m0s")
		if again := b.run(demand); len(again.Done) != 0 {
			t.Errorf("did %v without need", again.Done)
		}
		if n := len(b.hooks); n != 4 { // again after 10 minutes, and no more
			t.Errorf("hook ran %d times, want 4", n)
		}
		time.Sleep(time.Until(pass.Again(time.Now())))
		pass = b.run(demand)
		b.are("s1 active", "rsa-200001 active", "ed25519-200001 active")
		b.waits(pass, "s1", "all signers know the new key")
		if !b.demand().IsZero() {
			t.Error("a rotation is under way, and a second one would begin")
		}
		time.Sleep(time.Until(pass.Again(time.Now())))
		pass = b.run(time.Time{}) // as a process does that was started anew
		b.are("s1 retiring", "rsa-200001 active", "ed25519-200001 active")
		if until := b.waits(pass, "s1", "has arrived or expired").Until; !until.Equal(time.Now().Add(12 * day)) {
			t.Errorf("waits until %v, want 12 days", until)
		}
		time.Sleep(12 * day)
		b.waits(b.run(time.Time{}), "s1", "until no queued mail bears its signature: there are 3")
		b.queued["s1"] = -1
		if w := b.waits(b.run(time.Time{}), "s1", "out of reach"); w.Err == nil {
			t.Error("got no error for a queue that is out of reach")
		}
		b.queued["s1"] = 0
		pass = b.run(time.Time{})
		b.are("s1 revoked", "rsa-200001 active", "ed25519-200001 active")
		if last := b.hooks[len(b.hooks)-1]; last != (Record{OpRevoke, "s1._domainkey.example.com", "v=DKIM1; p="}) {
			t.Errorf("got hook %v, want the record revoked", last)
		}
		if at := pass.Again(time.Now()); !at.Equal(time.Now().Add(30 * day)) {
			t.Errorf("again at %v, want in 30 days", at)
		}
		time.Sleep(30 * day)
		pass = b.run(time.Time{})
		b.are("s1 removed", "rsa-200001 active", "ed25519-200001 active")
		if last := b.hooks[len(b.hooks)-1]; last != (Record{OpDelete, "s1._domainkey.example.com", ""}) {
			t.Errorf("got hook %v, want the record deleted", last)
		}
		if !pass.Again(time.Now()).IsZero() {
			t.Errorf("waits for %v, want nothing", pass.Waiting)
		}
	})
}

// TestAutomation leaves a domain alone for two years.
func TestAutomation(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBench(t, func(o *Options) { o.Policy.RotateEvery, o.Policy.KeepSpare = 90*day, true })
		b.hand("s1", keyring.RSA)
		for end := time.Now().Add(2 * 365 * day); time.Now().Before(end); {
			pass := b.run(time.Time{})
			if err := pass.Err(); err != nil {
				t.Fatal(err)
			}
			at := pass.Again(time.Now())
			if at.IsZero() || at.After(time.Now().Add(day)) {
				at = time.Now().Add(day)
			}
			time.Sleep(time.Until(at))
		}
		entries, err := b.store.Entries(t.Context(), domain)
		if err != nil {
			t.Fatal(err)
		}
		count := make(map[keyring.State]int)
		for _, e := range entries {
			count[e.State]++
		}
		if count[keyring.Active] != 2 || count[keyring.Published] != 2 || len(entries) != 2*10+1 {
			t.Errorf("got %v, want two keys that sign, two spares, and ten pairs in all", states(entries))
		}
	})
}

func TestAutomationNeedsADemandForAFreshDomain(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBench(t, func(o *Options) { o.Policy.RotateEvery, o.Policy.KeepSpare = 90*day, true })
		if pass := b.run(time.Time{}); len(pass.Done)+len(pass.Waiting) != 0 {
			t.Errorf("got %+v, want nothing", pass)
		}
		if _, err := b.r.New(t.Context(), "EXAMPLE.com."); err != nil {
			t.Fatal(err)
		}
		b.are("rsa-200001 generated", "ed25519-200001 generated")
		for range 3 {
			b.run(time.Time{})
			time.Sleep(2 * time.Hour)
		}
		b.are("rsa-200001 active", "ed25519-200001 active", "rsa-200001-2 generated", "ed25519-200001-2 generated")
	})
}

// TestRunRefuses spoils one thing at a time before the activation of a pair.
func TestRunRefuses(t *testing.T) {
	record := "rsa-200001._domainkey.example.com"
	for _, c := range []struct {
		name  string
		spoil func(*bench)
		want  string
	}{
		{"record gone", func(b *bench) { b.set(record) }, "ns1 has no record"},
		{"another key", func(b *bench) { b.set(record, keyring.Record(keyring.Key{Signer: b.pool[7]})) }, "ns1 has a record that has another key in p="},
		{"two records", func(b *bench) { b.set(record, "v=DKIM1; p=", "v=spf1 -all") }, "ns1 has 2 records"},
		{"a server is dead", func(b *bench) { b.dead["ns2"] = errors.New("timeout") }, "ns2 gave no answer (timeout)"},
		{"a resolver is dead", func(b *bench) { b.dead["r2"] = errors.New("timeout") }, "r2 gave no answer (timeout)"},
		{"private half of another key", func(b *bench) {
			b.store.keys[place(domain, "rsa-200001")].key.Signer = b.pool[7]
		}, "does not verify with the public half in the record"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				b := newBench(t, nil)
				b.hand("s1", keyring.RSA)
				demand := time.Now()
				b.run(demand)
				time.Sleep(time.Hour)
				b.run(demand)
				b.are("s1 active", "rsa-200001 published", "ed25519-200001 published")
				time.Sleep(3 * time.Hour)
				c.spoil(b)
				time.Sleep(3 * time.Hour)
				b.waits(b.run(demand), "rsa-200001", c.want)
				b.are("s1 active", "rsa-200001 published", "ed25519-200001 published")
			})
		})
	}
}

// TestLostPrivateHalf goes on without a key that was created halfway.
func TestLostPrivateHalf(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		if _, err := b.r.New(t.Context(), domain); err != nil {
			t.Fatal(err)
		}
		b.store.keys[place(domain, "ed25519-200001")].key.Signer = nil
		demand := time.Now()
		for range 3 {
			b.run(demand)
			time.Sleep(3 * time.Hour)
		}
		b.are("rsa-200001 removed", "ed25519-200001 removed", "rsa-200001-2 active", "ed25519-200001-2 active")
	})
}

func TestByHandWithoutPublisher(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBench(t, func(o *Options) { o.Publisher = nil })
		demand := time.Now()
		pass := b.run(demand)
		for _, w := range pass.Waiting {
			if w.Do == Publish {
				if w.ByHand == nil || w.ByHand.Op != OpAdd || w.ByHand.Value == "" {
					t.Errorf("got %+v, want the record to publish", w)
				}
				b.set(w.ByHand.Name, w.ByHand.Value)
			}
		}
		time.Sleep(time.Hour)
		b.run(demand)
		time.Sleep(time.Hour)
		b.run(demand)
		b.are("rsa-200001 active", "ed25519-200001 active")
		entries, err := b.store.Entries(t.Context(), domain)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.store.Change(t.Context(), entries[0], keyring.Retiring, ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(13 * day)
		pass = b.run(time.Time{})
		if len(pass.Done) != 1 || pass.Done[0].Do != Revoke || pass.Done[0].ByHand == nil || pass.Done[0].ByHand.Op != OpRevoke {
			t.Errorf("got %+v, want to be told to revoke the record", pass.Done)
		}
	})
}

func TestHookFails(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.hookErr = errors.New("no token")
		demand := time.Now()
		for n := range 2 { // an error is no reason to wait
			pass := b.run(demand)
			if err := pass.Err(); err == nil || !strings.Contains(err.Error(), "publish rsa-200001 of example.com: add record rsa-200001._domainkey.example.com: no token") {
				t.Errorf("got %v, want what the hook said", err)
			}
			if len(b.hooks) != 2*(n+1) {
				t.Errorf("hook ran %d times in %d passes, want each time", len(b.hooks), n+1)
			}
		}
	})
}

// TestHookFailsAtTheEnd keeps a key where it is until its record is dealt with.
func TestHookFailsAtTheEnd(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.hand("s1", keyring.RSA)
		entries, err := b.store.Entries(t.Context(), domain)
		if err == nil {
			_, err = b.store.Change(t.Context(), entries[0], keyring.Retiring, "")
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range []keyring.State{keyring.Retiring, keyring.Revoked} {
			time.Sleep(31 * day)
			b.hookErr = errors.New("no token")
			if pass := b.run(time.Time{}); pass.Err() == nil || len(pass.Done) != 0 {
				t.Errorf("got %+v, want an error and nothing done", pass)
			}
			b.are("s1 " + string(to))
			b.hookErr = nil
			b.run(time.Time{})
		}
		b.are("s1 removed")
	})
}

func TestMove(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.hand("s1", keyring.RSA)
		if _, err := b.r.New(t.Context(), domain); err != nil {
			t.Fatal(err)
		}
		move := func(selector string, to keyring.State, force bool, want string) {
			t.Helper()
			pass, err := b.r.Move(t.Context(), domain, selector, to, force)
			if want == "" {
				if err != nil || len(pass.Done) != 1 || pass.Done[0].Entry.State != to {
					t.Errorf("%s to %s: got %+v, %v", selector, to, pass, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), want) || len(pass.Done) != 0 {
				t.Errorf("%s to %s: got %+v, %v, want %q", selector, to, pass.Done, err, want)
			}
		}
		const rsa, ed = "rsa-200001", "ed25519-200001"
		move(rsa, keyring.Active, true, "its record has to be published and checked first")
		move(rsa, keyring.Published, true, "not yet: until its record is everywhere")
		move("s1", keyring.Retiring, true, "no other RSA key of the domain is Active")
		time.Sleep(time.Hour)
		move(rsa, keyring.Published, false, "")
		move(rsa, keyring.Active, false, "not yet: until 2000-01-01 02:00:00Z: resolvers may remember")
		move(rsa, keyring.Active, true, "")
		move("s1", keyring.Retiring, false, "not yet: until it is 2000-01-01 01:02:00Z")
		time.Sleep(time.Hour)
		move("s1", keyring.Retiring, false, "")
		move("s1", keyring.Revoked, false, "not yet: until it is 2000-01-13 02:00:00Z")
		move("s1", keyring.Active, false, "")
		move("s1", keyring.Revoked, true, "retire it first; if somebody else has its private half")
		move("s1", keyring.Retiring, false, "")
		move("s1", keyring.Revoked, true, "not yet: until it is 2000-01-01 02:02:00Z (no signer has it any more)")
		time.Sleep(2 * time.Minute)
		move("s1", keyring.Revoked, true, "")
		move("s1", keyring.Active, true, "make a new key")
		move("s1", keyring.Removed, false, "not yet")
		move("s1", keyring.Removed, true, "")
		move(ed, keyring.Removed, false, "")
		move("s9", keyring.Active, true, "no DKIM key")
		if pass, err := b.r.Move(t.Context(), domain, rsa, keyring.Active, false); err != nil || len(pass.Done) != 0 {
			t.Errorf("to where it is: got %+v, %v", pass, err)
		}
		b.are("s1 removed", rsa+" active", ed+" removed")
		if _, err := b.r.Move(t.Context(), "a/b", rsa, keyring.Active, false); err == nil {
			t.Error("no domain: got no error")
		}
	})
}

func TestEndedContext(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := b.r.Run(ctx, domain, time.Now()); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
		if _, err := b.r.Run(t.Context(), "a/b", time.Now()); err == nil {
			t.Error("no domain: got no error")
		}
	})
}
