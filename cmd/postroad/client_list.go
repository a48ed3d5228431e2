package main

import (
	"errors"
	"fmt"
	"io/fs"
	"text/tabwriter"
	"time"

	"postroad/ingress/account"
)

type clientListCmd struct{}

// listedClient is a client without what verifies its passwords.
type listedClient struct {
	Name         string           `json:"name"`
	Class        string           `json:"class"`
	Disabled     bool             `json:"disabled"`
	Networks     []string         `json:"networks"`
	Senders      []string         `json:"senders"`
	Certificates []string         `json:"certificates"`
	Passwords    []listedPassword `json:"passwords"`
}

type listedPassword struct {
	ID       string     `json:"id"`
	Kind     string     `json:"kind"`
	Created  time.Time  `json:"created,omitzero"` // not known of a plain one
	NotAfter *time.Time `json:"not_after,omitempty"`
	Good     bool       `json:"good"`
	LastUsed *time.Time `json:"last_used,omitempty"` // as far as running servers know
}

func toList(c *account.Client, now time.Time) listedClient {
	l := listedClient{
		Name: c.Name, Class: c.Class, Disabled: c.Disabled,
		Networks: words(c.Networks), Senders: words(c.Senders), Certificates: words(c.Certificates), Passwords: []listedPassword{},
	}
	for _, p := range c.Passwords {
		one := listedPassword{ID: p.ID, Kind: "scram-sha-256", Created: p.Created, Good: p.ValidAt(now)}
		switch {
		case p.InClear():
			one.Kind = "plain"
		case p.SCRAM == nil:
			one.Kind = "argon2id"
		}
		if !p.NotAfter.IsZero() {
			one.NotAfter = &p.NotAfter
		}
		l.Passwords = append(l.Passwords, one)
	}
	return l
}

func words[T any](list []T) []string {
	out := make([]string, len(list))
	for i, entry := range list {
		out[i] = fmt.Sprint(entry)
	}
	return out
}

// Run lists. Records that cannot be read make it fail, after it has listed the others.
func (clientListCmd) Run(a *app) error {
	store, err := a.clients()
	if err != nil {
		return err
	}
	clients, err := store.List(a.ctx)
	if errors.Is(err, fs.ErrNotExist) && clients == nil {
		err = nil // nobody has added one
	}
	now := time.Now()
	seen := a.look()
	if a.flags.JSON {
		for _, c := range clients {
			one := toList(c, now)
			for i := range one.Passwords {
				one.Passwords[i].LastUsed = seen.lastUsed(c.Name, one.Passwords[i].ID)
			}
			if err := a.print(one); err != nil {
				return err
			}
		}
		return err
	}
	if len(clients) == 0 {
		if err == nil {
			a.tell("there are no clients; postroad client add NAME makes one\n")
		}
		return err
	}
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAME\tCLASS\tSTATE\tPASSWORDS\tNETWORKS\tSENDERS\tCERTIFICATES")
	for _, c := range clients {
		state := "enabled"
		if c.Disabled {
			state = "disabled"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Name, orWord(c.Class, "-"), state, passwordsOf(c, now, seen),
			listed(c.Networks, "any"), listed(c.Senders, "any"), listed(c.Certificates, "none"))
	}
	err = errors.Join(t.Flush(), err)
	tellClear(a, clients)
	return err
}

// tellClear warns of passwords that stand in the records themselves.
func tellClear(a *app, clients []*account.Client) {
	for _, c := range clients {
		if c.InClear() {
			a.tell("client %s: whoever may read its record knows its password; postroad client passwd %s sets one of which only a verifier is kept\n", c.Name, c.Name)
		}
	}
}

// passwordsOf says how old the passwords of a client are, how long the old one is good, and whether somebody still uses it.
func passwordsOf(c *account.Client, now time.Time, seen *sight) string {
	var good []account.Password
	for _, p := range c.Passwords {
		if p.ValidAt(now) {
			good = append(good, p)
		}
	}
	switch {
	case len(good) == 0 && len(c.Passwords) > 0:
		return "ended"
	case len(good) == 0:
		return "none"
	}
	if good[0].InClear() {
		return "plain"
	}
	text := age(now.Sub(good[0].Created)) + " old"
	if len(good) > 1 && good[1].NotAfter.IsZero() {
		text += ", and one before"
	} else if len(good) > 1 {
		text += ", the one before for " + age(good[1].NotAfter.Sub(now))
	}
	if len(good) > 1 {
		if last := seen.lastUsed(c.Name, good[1].ID); last != nil {
			text += ", used " + age(now.Sub(*last)) + " ago"
		}
	}
	return text
}
