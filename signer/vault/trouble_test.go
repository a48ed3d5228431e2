package vault

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestTrouble(t *testing.T) {
	f := newFake(t)
	c := f.client(t)
	if got, is := c.Trouble(); is {
		t.Errorf("got %+v of a good Vault", got)
	}
	f.with(func() { f.sealed = true })
	_, _ = c.List(t.Context(), "")
	got, is := c.Trouble()
	if !is || got.Login || !got.IsSealed() || time.Since(got.Since) > time.Minute {
		t.Errorf("got %+v, %t, want that it is sealed", got, is)
	}
	_, _ = c.List(t.Context(), "")
	if again, _ := c.Trouble(); !again.Since.Equal(got.Since) {
		t.Errorf("got since %v, want %v: it has lasted", again.Since, got.Since)
	}
	f.with(func() { f.sealed = false })
	if _, err := c.Read(t.Context(), "none"); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if got, is := c.Trouble(); is {
		t.Errorf("got %+v after an answer", got)
	}
	f.with(func() { f.deny = "secret/" })
	if _, err := c.Read(t.Context(), "none"); !errors.Is(err, ErrDenied) {
		t.Fatal(err)
	}
	if got, is := c.Trouble(); is {
		t.Errorf("got %+v, want none: a refusal is an answer", got)
	}
}

func TestTroubleWithTheLogin(t *testing.T) {
	f := newFake(t)
	f.sealed = true
	c := f.client(t)
	if got, is := c.Trouble(); !is || !got.Login || !got.IsSealed() {
		t.Errorf("got %+v, %t, want a sealed Vault at the login", got, is)
	}
	f.with(func() { f.sealed = false })
	eventually(t, "no trouble", func() bool { _, is := c.Trouble(); return !is })
	o := f.options(t)
	o.Login = &AppRole{RoleID: fakeRole, SecretIDFile: secretFile(t, "wrong")}
	c, err := start(t, o)
	if err == nil {
		t.Fatal("logged in with a wrong secret")
	}
	if got, is := c.Trouble(); !is || !got.Login || got.IsSealed() || !errors.Is(got.Err, ErrDenied) || !strings.Contains(got.Err.Error(), "approle") {
		t.Errorf("got %+v, %t, want a refused login", got, is)
	}
}

// TestProbe: when nobody asks, the client finds out itself that Vault is back.
func TestProbe(t *testing.T) {
	f := newFake(t)
	c := f.client(t)
	f.with(func() { f.sealed = true })
	_, _ = c.List(t.Context(), "")
	c.health.mu.Lock()
	c.health.noted = c.health.noted.Add(-2 * probeAfter)
	c.health.mu.Unlock()
	f.with(func() { f.sealed = false })
	c.probe(t.Context())
	if got, is := c.Trouble(); is {
		t.Errorf("got %+v after a look at a good Vault", got)
	}
	if n := f.count("GET auth/token/lookup-self"); n != 1 {
		t.Errorf("got %d looks, want 1", n)
	}
	c.probe(t.Context())
	if n := f.count("GET auth/token/lookup-self"); n != 1 {
		t.Errorf("got %d looks, want none of a Vault that is well", n)
	}
}
