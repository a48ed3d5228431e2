package secrets

import (
	"testing"
	"time"

	"postroad/ingress/account"
)

// TestClientAddedAgain: a client that is removed and added again has another password, although its secret counts versions from 1 again.
func TestClientAddedAgain(t *testing.T) {
	s, _ := inVault(t)
	command, err := s.Clients()
	if err != nil {
		t.Fatal(err)
	}
	ingress := account.Records(clientRecords{s.vault})
	server, err := account.NewRemote(account.RemoteOptions{Records: ingress})
	if err != nil {
		t.Fatal(err)
	}
	add := func() string {
		t.Helper()
		c := &account.Client{Name: "web1"}
		if _, err := c.SetPassword(account.GeneratePassword(), account.Generated, time.Now(), 0); err != nil {
			t.Fatal(err)
		}
		if err := command.Put(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		return c.Passwords[0].ID
	}
	want := func(id string) {
		t.Helper()
		server.Changed("web1")
		c, err := server.Latest(t.Context(), "web1")
		if err != nil || len(c.Passwords) != 1 || c.Passwords[0].ID != id {
			t.Errorf("got %+v, %v, want password %s alone", c, err, id)
		}
	}
	want(add())
	if err := command.Remove(t.Context(), "web1"); err != nil {
		t.Fatal(err)
	}
	want(add())
	c, err := command.Latest(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	c = c.Clone()
	c.Disabled = true
	if err := command.Put(t.Context(), c); err != nil {
		t.Errorf("change it: %v", err)
	}
}
