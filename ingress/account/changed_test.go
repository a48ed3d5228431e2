package account_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"postroad/ingress/account"
)

// TestChanged: who is told that a record has changed reads it at the next question, however young the last answer is, and even if a look was under
// way that had begun before the change.
func TestChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCupboard()
		writer, err := account.NewRemote(account.RemoteOptions{Records: c})
		if err != nil {
			t.Fatal(err)
		}
		reader, err := account.NewRemote(account.RemoteOptions{Records: c, Refresh: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		changed := reader.Changed
		disabled := func(is bool) {
			t.Helper()
			client, err := writer.Latest(t.Context(), "web")
			switch {
			case errors.Is(err, account.ErrUnknown):
				client = &account.Client{Name: "web"}
			case err != nil:
				t.Fatal(err)
			default:
				client = client.Clone()
			}
			client.Disabled = is
			if err := writer.Put(t.Context(), client); err != nil {
				t.Fatal(err)
			}
		}
		want := func(is bool) {
			t.Helper()
			time.Sleep(time.Millisecond) // this clock does not move by itself
			client, err := reader.Client(t.Context(), "web")
			if err != nil || client.Disabled != is {
				t.Errorf("got %+v, %v, want disabled %v", client, err, is)
			}
		}
		if _, err := reader.Client(t.Context(), "web"); !errors.Is(err, account.ErrUnknown) {
			t.Errorf("got %v, want %v", err, account.ErrUnknown)
		}
		disabled(false)
		changed("Web")
		want(false)
		disabled(true)
		time.Sleep(time.Second)
		want(false) // nobody has told
		changed("web")
		want(true)

		// A look that began before the change.
		changed("web")
		c.mu.Lock()
		c.slow = 500 * time.Millisecond
		c.mu.Unlock()
		done := make(chan struct{})
		go func() { _, _ = reader.Client(t.Context(), "web"); close(done) }()
		time.Sleep(100 * time.Millisecond)
		c.mu.Lock()
		c.slow = 0
		c.mu.Unlock()
		disabled(false)
		changed("web")
		<-done
		want(false)
		changed("a/b") // is no name
	})
}
