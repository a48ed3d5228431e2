package account

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// guess tries wrong passwords until it is throttled, and says how many were
// looked at.
func guess(t *testing.T, a *Authenticator, peer Peer, name string) int {
	t.Helper()
	for i := range 1000 {
		_, err := logIn(t.Context(), a, peer, name, fmt.Sprintf("guess %s %d", peer.Addr, i))
		if errors.Is(err, ErrThrottled) {
			return i
		}
		if !errors.Is(err, ErrCredentials) {
			t.Fatalf("got %v", err)
		}
	}
	t.Fatal("was never throttled")
	return 0
}

// TestGuessingFromOneAddress: the delay grows, then nothing is looked at any
// more, and is again after a while.
func TestGuessingFromOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs := &lines{}
		a := newAuth(t, newBook(t), func(o *Options) { o.Forgive = 10 * time.Minute; o.Logger = logs.logger() })
		peer := from("192.0.2.1")
		var last time.Duration
		for i := range 20 {
			took := mustRefuse(t, a, peer, fmt.Sprintf("name%d", i), fmt.Sprint("wrong", i), ErrCredentials)
			if took < last || took > 8*time.Second {
				t.Errorf("guess %d took %v after one of %v", i, took, last)
			}
			last = took
		}
		if last != 8*time.Second {
			t.Errorf("the last took %v, want 8s", last)
		}
		for range 100 {
			if took := mustRefuse(t, a, peer, "web1", goodPassword, ErrThrottled); took > 0 {
				t.Fatalf("took %v, want an answer at once", took)
			}
		}
		mustHaveHashed(t, a, 20)
		mustRefuse(t, a, from("::ffff:192.0.2.1"), "web1", goodPassword, ErrThrottled)
		mustLogIn(t, a, from("192.0.2.2"), "web1", goodPassword)
		if n := logs.count("too many failed logins from an address"); n != 1 {
			t.Errorf("got %d lines in the log, want 1", n)
		}
		time.Sleep(11 * time.Minute)
		mustLogIn(t, a, peer, "web1", goodPassword)
	})
}

// TestGuessingFromOneNetwork: the addresses of a /64 are one customer's.
func TestGuessingFromOneNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuth(t, newBook(t), nil)
		for i := range 30 {
			_, _ = logIn(t.Context(), a, from(fmt.Sprintf("2001:db8::%x", i+1)), "web1", fmt.Sprint("wrong", i))
		}
		mustRefuse(t, a, from("2001:db8::ffff"), "web1", goodPassword, ErrThrottled)
		mustLogIn(t, a, from("2001:db8:0:1::1"), "web1", goodPassword)
	})
}

// TestGuessingOfOneAccount from many addresses: from new addresses nothing is
// looked at any more, whoever has logged in before does not notice.
func TestGuessingOfOneAccount(t *testing.T) {
	for _, name := range []string{"web1", "nobody"} { // the same for both, or the answer would tell who is there
		synctest.Test(t, func(t *testing.T) {
			b := newBook(t)
			logs := &lines{}
			a := newAuth(t, b, func(o *Options) { o.Forgive = time.Hour; o.Logger = logs.logger() })
			if name == "web1" {
				mustLogIn(t, a, from("192.0.2.1"), name, goodPassword)
			}
			for i := range 50 {
				mustRefuse(t, a, from(fmt.Sprintf("203.0.113.%d", i)), name, fmt.Sprint("wrong", i), ErrCredentials)
			}
			mustRefuse(t, a, from("203.0.113.99"), name, "wrong", ErrThrottled)
			mustRefuse(t, a, from("203.0.113.99"), "other", "wrong", ErrCredentials)
			if n := logs.count("too many failed logins to an account"); n != 1 {
				t.Errorf("got %d lines in the log, want 1", n)
			}
			if name == "nobody" {
				return
			}
			mustLogIn(t, a, from("192.0.2.1"), name, goodPassword) // where it has logged in before
			mustLogIn(t, a, from("192.0.2.9"), name, goodPassword) // elsewhere: proven, and not guessing
			b.change(name, func(c *Client) { b.set(t, c, "another horse", Generated, time.Hour) })
			mustLogIn(t, a, from("192.0.2.1"), name, "another horse") // a new password, from where it is known
			mustLogIn(t, a, from("192.0.2.9"), name, "another horse")
		})
	}
}

// TestSharedAddress: who guesses behind the same address as one of ours locks
// nobody out who has logged in from there.
func TestSharedAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		a := newAuth(t, b, func(o *Options) { o.Forgive = time.Hour })
		peer := from("192.0.2.1")
		mustLogIn(t, a, peer, "web1", goodPassword)
		guess(t, a, peer, "other")
		mustLogIn(t, a, peer, "web1", goodPassword)
		b.change("web1", func(c *Client) { b.set(t, c, "another horse", Generated, time.Hour) })
		mustLogIn(t, a, peer, "web1", "another horse")
		// Even when he guesses at this very account, what was proven passes.
		if n := guess(t, a, peer, "web1"); n != 20 {
			t.Errorf("%d guesses were looked at, want 20", n)
		}
		mustLogIn(t, a, peer, "web1", "another horse")
		mustLogIn(t, a, peer, "web1", goodPassword)
		// A password that was proven elsewhere does not pass here by itself: this
		// address is guessing, and may have guessed it.
		b.change("web2", func(c *Client) { b.set(t, c, goodPassword, Generated, 0) })
		mustLogIn(t, a, from("192.0.2.2"), "web2", goodPassword)
		mustRefuse(t, a, peer, "web2", goodPassword, ErrThrottled)
	})
}

// TestForgottenPassword: a host that was not told the new password repeats the
// old one for ever. It guesses nothing, so it costs one hash and harms nobody
// behind its address; and it is let in as soon as its password is right.
func TestForgottenPassword(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		a := newAuth(t, b, nil)
		peer := from("192.0.2.1")
		for range 500 {
			if took := mustRefuse(t, a, peer, "web1", wrongPassword, ErrCredentials); took != time.Second {
				t.Fatalf("took %v, want 1s", took)
			}
		}
		mustHaveHashed(t, a, 1)
		b.change("web1", func(c *Client) { b.set(t, c, wrongPassword, Generated, time.Hour) })
		mustLogIn(t, a, peer, "web1", wrongPassword)
		mustHaveHashed(t, a, 2)
	})
}

// TestRefusedByNetworkAlone: what is wrong from one address is right from
// another, and does not count against the account.
func TestRefusedByNetworkAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuth(t, newBook(t), func(o *Options) { o.Forgive = time.Hour })
		for i := range 80 {
			mustRefuse(t, a, from(fmt.Sprintf("203.0.113.%d", i)), "inside", goodPassword, ErrNetwork)
		}
		mustLogIn(t, a, from("10.1.1.1"), "inside", goodPassword)
		mustLogIn(t, a, from("::ffff:10.1.1.2"), "inside", goodPassword)
	})
}

// TestDelayedAnswers: one address cannot let many answers wait.
func TestDelayedAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuth(t, newBook(t), nil)
		var wg sync.WaitGroup
		for i := range maxDelayed {
			wg.Go(func() { mustRefuse(t, a, from("192.0.2.1"), "web1", fmt.Sprint("wrong", i), ErrCredentials) })
		}
		synctest.Wait()
		if took := mustRefuse(t, a, from("192.0.2.1"), "web1", "one more", ErrThrottled); took > 0 {
			t.Errorf("took %v, want an answer at once", took)
		}
		mustLogIn(t, a, from("192.0.2.2"), "web1", goodPassword)
		wg.Wait()
		if n := len(a.guard.delayed); n != 0 {
			t.Errorf("%d addresses are remembered as waiting", n)
		}
	})
}

// TestBruteForce: ten addresses send wrong passwords without pause, half of them
// for unknown names. What they cost is bounded, and others do not wait.
func TestBruteForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		b.change("person", func(c *Client) { b.set(t, c, goodPassword, Chosen, 0) })
		a := newAuth(t, b, nil)
		mustLogIn(t, a, from("192.0.2.1"), "web1", goodPassword)
		before := count(t, a.metrics.hashes)
		var stop, seen atomic.Int64
		var wg sync.WaitGroup
		for attacker := range 10 {
			for connection := range 20 {
				wg.Go(func() {
					for i := 0; stop.Load() == 0; i++ {
						name := []string{"web1", "nobody", "inside"}[i%3]
						_, _ = logIn(t.Context(), a, from(fmt.Sprintf("203.0.113.%d", attacker)), name, fmt.Sprint("wrong", connection, i))
						seen.Add(1)
						time.Sleep(100 * time.Millisecond)
					}
				})
			}
		}
		for range 60 {
			time.Sleep(time.Second)
			mustLogIn(t, a, from("192.0.2.1"), "web1", goodPassword)
		}
		mustLogIn(t, a, from("192.0.2.3"), "person", goodPassword) // for the first time
		stop.Store(1)
		wg.Wait()
		// Each address has ten until it is suspected, what its twenty connections had
		// on their way then, and what is forgiven in a minute.
		got, most := count(t, a.metrics.hashes)-before, 10*(10+20+6)+1
		t.Logf("%d attempts cost %d hashes, of %d at most", seen.Load(), got, most)
		if got > most || seen.Load() < 50_000 {
			t.Errorf("%d attempts cost %d hashes, want at most %d", seen.Load(), got, most)
		}
	})
}

// TestGuardBounds: more names and addresses than are remembered.
func TestGuardBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuth(t, newBook(t), nil)
		g := a.guard
		for i := range max(maxAddresses, maxAccounts, maxPairs) + 1000 {
			p := pair{addressKey(from(fmt.Sprintf("2001:db8:%x:%x::1", i/65536, i%65536)).Addr), fmt.Sprint("name", i)}
			g.failed(p, true)
			g.succeeded(p)
		}
		if g.addresses.len() != maxAddresses || g.accounts.len() != maxAccounts || g.pairs.len() != maxPairs {
			t.Errorf("remembered %d, %d, %d, want %d, %d, %d", g.addresses.len(), g.accounts.len(), g.pairs.len(), maxAddresses, maxAccounts, maxPairs)
		}
		time.Sleep(25 * time.Hour)
		g.failed(pair{}, true)
		g.succeeded(pair{})
		if g.addresses.len() != 1 || g.accounts.len() != 1 || g.pairs.len() != 1 {
			t.Errorf("a day later remembered %d, %d, %d, want 1 each", g.addresses.len(), g.accounts.len(), g.pairs.len())
		}
	})
}

func TestTable(t *testing.T) {
	now := time.Now()
	table := newTable[int, string](3, time.Minute)
	for i := range 4 {
		table.put(i, fmt.Sprint(i), now.Add(time.Duration(i)*time.Second))
	}
	if _, ok := table.get(0, now); ok || table.len() != 3 {
		t.Errorf("got %d entries and the first %t, want 3 without it", table.len(), ok)
	}
	table.put(1, "one", now.Add(30*time.Second))
	table.put(4, "4", now.Add(31*time.Second))
	if v, ok := table.get(1, now.Add(32*time.Second)); !ok || v != "one" {
		t.Errorf("got %q, %t: the one that was touched has gone", v, ok)
	}
	if _, ok := table.get(1, now.Add(90*time.Second)); ok || table.len() != 2 {
		t.Error("an entry outlived its time")
	}
	table.delete(4)
	table.delete(4)
	table.put(5, "5", now.Add(time.Hour))
	if table.len() != 1 {
		t.Errorf("got %d entries, want the newest alone", table.len())
	}
}
