// Package accounttest tests any account.Store against the contract of
// account.Source and account.Store.
//
//	accounttest.Run(t, func(t *testing.T) accounttest.Fixture { … })
package accounttest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"postroad/ingress/account"
)

// Fixture is a store and the ways to disturb what is behind it.
type Fixture struct {
	Store   account.Store
	Within  time.Duration // how long a change may take to show in Client
	Spoil   func(name string)
	Cut     func() // put the whole store out of reach
	Restore func()
}

// NewClient is a client with one password.
func NewClient(t *testing.T, name, password string) *account.Client {
	t.Helper()
	c := &account.Client{Name: name, Class: "host"}
	if _, err := c.SetPassword(password, account.Generated, time.Now(), 0); err != nil {
		t.Fatal(err)
	}
	return c
}

// Run tests the store that open makes, a new one for each case.
func Run(t *testing.T, open func(t *testing.T) Fixture) {
	cases := []struct {
		name string
		test func(*testing.T, Fixture)
	}{
		{"unknown", unknown},
		{"names that are none", hostileNames},
		{"stored and found", storedAndFound},
		{"latest shows a change at once", latest},
		{"changes show", changesShow},
		{"no change is lost", conflict},
		{"list", list},
		{"broken record is isolated", brokenIsolated},
		{"broken record leaves the old one in force", brokenLeavesOld},
		{"out of reach is not an answer", outOfReach},
		{"records in memory outlast an outage", outlastsOutage},
		{"ended context", endedContext},
		{"many at once", concurrent},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func put(t *testing.T, f Fixture, c *account.Client) {
	t.Helper()
	if err := f.Store.Put(t.Context(), c); err != nil {
		t.Fatalf("put %s: %v", c.Name, err)
	}
}

func unknown(t *testing.T, f Fixture) {
	put(t, f, NewClient(t, "web1", "secret"))
	for _, find := range []func(context.Context, string) (*account.Client, error){f.Store.Client, f.Store.Latest} {
		if c, err := find(t.Context(), "web2"); !errors.Is(err, account.ErrUnknown) || c != nil {
			t.Errorf("got %v, %v, want %v", c, err, account.ErrUnknown)
		}
	}
	if err := f.Store.Remove(t.Context(), "web2"); !errors.Is(err, account.ErrUnknown) {
		t.Errorf("remove: got %v, want %v", err, account.ErrUnknown)
	}
}

func hostileNames(t *testing.T, f Fixture) {
	put(t, f, NewClient(t, "web1", "secret"))
	for _, name := range []string{
		"", ".", "..", "../clients/web1", "web1/", "/", "x/../web1", "web..1", "*", "web1\x00", "web 1", "wéb1", "-web1", "web1.",
		"?version=1", "web1%2f", string(make([]byte, 300)),
	} {
		if _, err := f.Store.Client(t.Context(), name); !errors.Is(err, account.ErrUnknown) {
			t.Errorf("asked for %q: got %v, want %v", name, err, account.ErrUnknown)
		}
		if err := f.Store.Put(t.Context(), &account.Client{Name: name}); err == nil {
			t.Errorf("stored a client named %q", name)
		}
		if err := f.Store.Remove(t.Context(), name); !errors.Is(err, account.ErrUnknown) {
			t.Errorf("removed %q: got %v, want %v", name, err, account.ErrUnknown)
		}
	}
}

func storedAndFound(t *testing.T, f Fixture) {
	stored := NewClient(t, "web1.example.com", "secret")
	put(t, f, stored)
	for _, name := range []string{"web1.example.com", "WEB1.Example.COM"} {
		c := eventually(t, f, name, "the client", func(c *account.Client) bool { return c != nil })
		if c.Name != stored.Name || c.Class != "host" || len(c.Passwords) != 1 || c.Passwords[0].ID != stored.Passwords[0].ID || c.Revision() == "" {
			t.Errorf("got %+v, want what was stored, with a revision", c)
		}
	}
}

func latest(t *testing.T, f Fixture) {
	put(t, f, NewClient(t, "web1", "secret"))
	for i := range 20 {
		c, err := f.Store.Latest(t.Context(), "web1")
		if err != nil {
			t.Fatal(err)
		}
		changed := c.Clone()
		changed.Class = fmt.Sprintf("class-%d", i)
		put(t, f, changed)
		if c, err = f.Store.Latest(t.Context(), "web1"); err != nil || c.Class != changed.Class {
			t.Fatalf("got %v, %v, want class %s at once", c, err, changed.Class)
		}
	}
}

func changesShow(t *testing.T, f Fixture) {
	if _, err := f.Store.Client(t.Context(), "web1"); err == nil {
		t.Fatal("got a client that nobody stored")
	}
	put(t, f, NewClient(t, "web1", "secret"))
	c := eventually(t, f, "web1", "the client", func(c *account.Client) bool { return c != nil })
	changed := c.Clone()
	changed.Disabled = true
	put(t, f, changed)
	eventually(t, f, "web1", "the change", func(c *account.Client) bool { return c != nil && c.Disabled })
	if err := f.Store.Remove(t.Context(), "web1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, f, "web1", "no client", func(c *account.Client) bool { return c == nil })
}

func conflict(t *testing.T, f Fixture) {
	put(t, f, NewClient(t, "web1", "secret"))
	if err := f.Store.Put(t.Context(), NewClient(t, "web1", "other")); !errors.Is(err, account.ErrChanged) {
		t.Errorf("a second new client: got %v, want %v", err, account.ErrChanged)
	}
	first, err := f.Store.Latest(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	mine, yours := first.Clone(), first.Clone()
	mine.Class, yours.Class = "mine", "yours"
	put(t, f, mine)
	if err := f.Store.Put(t.Context(), yours); !errors.Is(err, account.ErrChanged) {
		t.Errorf("a change of what was changed: got %v, want %v", err, account.ErrChanged)
	}
	if err := f.Store.Remove(t.Context(), "web1"); err != nil {
		t.Fatal(err)
	}
	if err := f.Store.Put(t.Context(), yours); !errors.Is(err, account.ErrChanged) {
		t.Errorf("a change of what was removed: got %v, want %v", err, account.ErrChanged)
	}

	// Of many who change at the same time, each succeeds or is told.
	put(t, f, NewClient(t, "counted", "secret"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for done := 0; done < 3; {
				c, err := f.Store.Latest(t.Context(), "counted")
				if err != nil {
					t.Error(err)
					return
				}
				c = c.Clone()
				c.Class += "x"
				switch err := f.Store.Put(t.Context(), c); {
				case err == nil:
					done++
				case !errors.Is(err, account.ErrChanged):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if c, err := f.Store.Latest(t.Context(), "counted"); err != nil || len(c.Class) != len("host")+24 {
		t.Errorf("got %v, %v, want 24 changes", c, err)
	}
}

func list(t *testing.T, f Fixture) {
	for _, name := range []string{"b", "c.example", "a"} {
		put(t, f, NewClient(t, name, "secret"))
	}
	clients, err := f.Store.List(t.Context())
	if err != nil || len(clients) != 3 || clients[0].Name != "a" || clients[1].Name != "b" || clients[2].Name != "c.example" {
		t.Errorf("got %v, %v, want a, b, c.example", clients, err)
	}
	f.Spoil("b")
	clients, err = f.Store.List(t.Context())
	if err == nil || len(clients) != 2 {
		t.Errorf("got %v, %v, want the two that can be read, and an error", clients, err)
	}
}

func brokenIsolated(t *testing.T, f Fixture) {
	put(t, f, NewClient(t, "bad", "secret"))
	put(t, f, NewClient(t, "good", "secret"))
	f.Spoil("bad")
	_, err := f.Store.Client(t.Context(), "bad")
	if !errors.Is(err, account.ErrUnavailable) || errors.Is(err, account.ErrUnknown) {
		t.Errorf("got %v, want %v", err, account.ErrUnavailable)
	}
	eventually(t, f, "good", "the client", func(c *account.Client) bool { return c != nil })
}

func brokenLeavesOld(t *testing.T, f Fixture) {
	put(t, f, NewClient(t, "web1", "secret"))
	eventually(t, f, "web1", "the client", func(c *account.Client) bool { return c != nil })
	f.Spoil("web1")
	for range 3 {
		if c, err := f.Store.Latest(t.Context(), "web1"); err != nil || len(c.Passwords) != 1 {
			t.Fatalf("got %v, %v, want what was read before", c, err)
		}
		time.Sleep(f.Within)
	}
}

func outOfReach(t *testing.T, f Fixture) {
	put(t, f, NewClient(t, "web1", "secret"))
	f.Cut()
	for _, name := range []string{"web1", "web2"} {
		c, err := f.Store.Client(t.Context(), name)
		if !errors.Is(err, account.ErrUnavailable) || errors.Is(err, account.ErrUnknown) {
			t.Errorf("%s: got %v, %v, want %v", name, c, err, account.ErrUnavailable)
		}
	}
	f.Restore()
	eventually(t, f, "web1", "the client", func(c *account.Client) bool { return c != nil })
}

func outlastsOutage(t *testing.T, f Fixture) {
	put(t, f, NewClient(t, "web1", "secret"))
	eventually(t, f, "web1", "the client", func(c *account.Client) bool { return c != nil })
	f.Cut()
	for end := time.Now().Add(2 * f.Within); time.Now().Before(end); time.Sleep(f.Within / 10) {
		if c, err := f.Store.Client(t.Context(), "web1"); err != nil || c == nil {
			t.Fatalf("got %v, %v, want what was read before", c, err)
		}
	}
	f.Restore()
	if err := f.Store.Remove(t.Context(), "web1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, f, "web1", "no client", func(c *account.Client) bool { return c == nil })
}

func endedContext(t *testing.T, f Fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := f.Store.Client(ctx, "web1")
	if !errors.Is(err, context.Canceled) || !errors.Is(err, account.ErrUnavailable) {
		t.Errorf("got %v, want %v and %v", err, context.Canceled, account.ErrUnavailable)
	}
}

func concurrent(t *testing.T, f Fixture) {
	put(t, f, NewClient(t, "web1", "secret"))
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for n := range 100 {
				find := f.Store.Client
				if n%10 == 0 {
					find = f.Store.Latest
				}
				if c, err := find(t.Context(), "web1"); err != nil || c.Name != "web1" {
					t.Errorf("got %v, %v, want the client", c, err)
					return
				}
				if _, err := find(t.Context(), fmt.Sprintf("x%d-%d", i, n)); !errors.Is(err, account.ErrUnknown) {
					t.Errorf("got %v, want %v", err, account.ErrUnknown)
					return
				}
			}
		})
	}
	wg.Wait()
}

// eventually asks for a client until it is as wanted, nil for an unknown one.
func eventually(t *testing.T, f Fixture, name, want string, is func(*account.Client) bool) *account.Client {
	t.Helper()
	// What a change takes to show, and some time for a busy machine.
	for end := time.Now().Add(f.Within + time.Minute); ; time.Sleep(f.Within/20 + time.Millisecond) {
		c, err := f.Store.Client(t.Context(), name)
		if (err == nil || errors.Is(err, account.ErrUnknown)) && is(c) {
			return c
		}
		if time.Now().After(end) {
			t.Fatalf("client %s: got %v, %v, want %s", name, c, err, want)
		}
	}
}
