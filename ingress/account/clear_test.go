package account

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// inClear is a client of whom somebody wrote nothing but the password.
func inClear(t testing.TB, name, revision, password string) *Client {
	t.Helper()
	c, err := Decode(name, revision, map[string]any{"password": password})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestPasswordInClear: it is good for every mechanism, and shows from outside what every record shows.
func TestPasswordInClear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(t)
		b.change("plain", func(c *Client) { *c = *inClear(t, "plain", "", goodPassword) })
		a := newAuth(t, b, nil)
		peer := from("192.0.2.1")
		mustLogIn(t, a, peer, "plain", goodPassword)
		mustRefuse(t, a, peer, "plain", wrongPassword, ErrCredentials)
		x, err := speak(t, a, SCRAM256, peer, nil, "Plain", goodPassword, "")
		if err != nil {
			t.Fatal(err)
		}
		if id, isNewest := x.Verifier(); id != "plain" || !isNewest || !x.Client().InClear() || x.Client().Passwords[0].SCRAM != nil {
			t.Errorf("got %q, %v, want plain, the newest, and the record as it was", id, isNewest)
		}
		if _, err := speak(t, a, SCRAM256, peer, nil, "plain", wrongPassword, ""); !errors.Is(err, ErrCredentials) {
			t.Errorf("got %v, want %v", err, ErrCredentials)
		}
		one := inClear(t, "plain", "", goodPassword)
		salt := a.madeUp("plain").Salt
		first, err := one.Passwords[0].clear.verifier(salt)
		again, _ := one.Clone().Passwords[0].clear.verifier(salt)
		if err != nil || first != again || string(first.Salt) != string(salt) || first.Iterations != GeneratedIterations {
			t.Errorf("got %v, %v, want one verifier with the salt of unknown names", first, err)
		}

		b.change("plain", func(c *Client) { *c = *inClear(t, "plain", "", "another horse") })
		mustRefuse(t, a, peer, "plain", goodPassword, ErrCredentials)
		mustLogIn(t, a, peer, "plain", "another horse")
		b.change("plain", func(c *Client) { c.Disabled = true })
		mustRefuse(t, a, peer, "plain", "another horse", ErrDisabled)
	})
}

// TestPasswordInClearEnds: with a new password the old one gets a verifier for its grace.
func TestPasswordInClearEnds(t *testing.T) {
	now := time.Now()
	for _, grace := range []time.Duration{time.Hour, 0} {
		c := inClear(t, "plain", "7", goodPassword)
		dropped, err := c.SetPassword("another horse", Generated, now, grace)
		if err != nil || c.InClear() {
			t.Fatalf("got %+v, %v, want no password in clear", c, err)
		}
		if grace == 0 {
			if len(c.Passwords) != 1 || len(dropped) != 1 || !dropped[0].InClear() {
				t.Errorf("got %+v, dropped %+v, want only the new one", c.Passwords, dropped)
			}
			continue
		}
		if len(c.Passwords) != 2 || !c.Passwords[0].SCRAM.sameSalt(c.Passwords[1].SCRAM) || c.Passwords[1].ID != "plain" {
			t.Fatalf("got %+v, want two passwords with one salt", c.Passwords)
		}
		text, err := encodeRecord(c)
		if err != nil || strings.Contains(string(text), "horse") {
			t.Fatalf("got %s, %v, want verifiers", text, err)
		}
		b := newBook(t)
		b.change("plain", func(to *Client) { *to = *c })
		for _, password := range []string{goodPassword, "another horse"} {
			if _, err := speak(t, newAuth(t, b, nil), SCRAM256, from("192.0.2.1"), nil, "plain", password, ""); err != nil {
				t.Errorf("%s: got %v", password, err)
			}
		}
	}
}

// TestPasswordInClearStays: another change leaves it where it is, for those who read it there.
func TestPasswordInClearStays(t *testing.T) {
	secrets, log := t.TempDir(), &lines{}
	d, err := NewDir(DirOptions{Path: secrets, Refresh: time.Nanosecond, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), inClear(t, "plain", "", goodPassword)); err != nil {
		t.Fatal(err)
	}
	c, err := d.Latest(t.Context(), "plain")
	if err != nil {
		t.Fatal(err)
	}
	changed := c.Clone()
	changed.Class = "service"
	if err := d.Put(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	c, err = d.Latest(t.Context(), "plain")
	if err != nil || !c.InClear() || c.Class != "service" {
		t.Fatalf("got %+v, %v, want the password in clear, and the class", c, err)
	}
	if fields, err := decodeFile(t, filepath.Join(secrets, "clients", "plain.json")); err != nil || fields.Fields()["password"] != goodPassword {
		t.Errorf("got %v, %v", fields, err)
	}
	if log.count("client read") != 2 || log.count("revision=- ") != 2 || log.count(c.Revision()) != 0 {
		t.Errorf("the log shows by what the password can be guessed:\n%s", log.text.String())
	}
}
