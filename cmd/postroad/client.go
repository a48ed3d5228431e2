package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"time"

	"postroad/cmd/internal/secrets"
	"postroad/ingress/account"
)

type clientCmd struct {
	Add     clientAddCmd     `cmd:"" help:"Let a client log in, and print its password; or change what it may do."`
	List    clientListCmd    `cmd:"" help:"List the clients."`
	Passwd  clientPasswdCmd  `cmd:"" help:"Give a client a new password; the old one stays good for a while."`
	Disable clientDisableCmd `cmd:"" help:"Refuse a client until it is enabled again."`
	Enable  clientEnableCmd  `cmd:"" help:"Let a disabled client log in again."`
	Remove  clientRemoveCmd  `cmd:"" help:"Remove a client with its passwords."`
	Apply   clientApplyCmd   `cmd:"" help:"Bring the clients to what manifests say, as often as you like."`
}

// clientFlags are common to all commands that change a client.
type clientFlags struct {
	Name   string `arg:"" help:"Name of the client: letters, digits, and . - _ + @ between them."`
	DryRun bool   `help:"Only say what would be done."`
}

// clientReport is what was done, for JSON.
type clientReport struct {
	Client        string   `json:"client"`
	Action        string   `json:"action"` // created, updated, removed, unchanged
	Changes       []string `json:"changes,omitempty"`
	Password      string   `json:"password,omitempty"`
	PasswordID    string   `json:"password_id,omitempty"`
	OldPasswordID string   `json:"old_password_id,omitempty"`
	OldGoodUntil  string   `json:"old_good_until,omitempty"`
	Dropped       []string `json:"dropped_password_ids,omitempty"`
	Notes         []string `json:"notes,omitempty"`
	DryRun        bool     `json:"dry_run,omitempty"`
	Unclear       bool     `json:"unclear,omitempty"` // nobody answers whether it was done
}

func (r *clientReport) change(format string, args ...any) {
	r.Changes = append(r.Changes, fmt.Sprintf(format, args...))
}

func (r *clientReport) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// report prints what was done. A password is alone on standard output, so that a script can take it.
func (a *app) report(r *clientReport) error {
	if a.flags.JSON {
		return a.print(r)
	}
	a.tellReport(r)
	if r.Password != "" {
		_, err := fmt.Fprintln(a.out, r.Password)
		if err != nil {
			return fmt.Errorf("print the password, which is in force now and seen by nobody (postroad client passwd %s makes another): %w", r.Client, err)
		}
	}
	return nil
}

// reportUnclear prints a password that may be in force: nobody else knows it. It gives err back.
func (a *app) reportUnclear(r *clientReport, err error) error {
	if r == nil || !errors.Is(err, errUnclear) {
		return err
	}
	r.Unclear, r.Changes = true, nil
	r.Notes = nil
	if r.Password != "" {
		r.note("%s", uncertain(r.Client, r.PasswordID, "on standard output"))
	} else if r.PasswordID != "" {
		r.note("%s", uncertain(r.Client, r.PasswordID, "that was given"))
	}
	return errors.Join(err, a.report(r))
}

// tellReport says to people what was done.
func (a *app) tellReport(r *clientReport) {
	action := r.Action
	switch {
	case r.Unclear:
		action = "perhaps " + action
	case action == "unchanged":
		action = "nothing to change"
	case r.DryRun:
		action = "would be " + action
	}
	a.tell("client %s: %s\n", r.Client, action)
	for _, line := range slices.Concat(r.Changes, r.Notes) {
		a.tell("  %s\n", line)
	}
}

// tell writes text for people where it does not mix with what scripts read.
func (a *app) tell(format string, args ...any) {
	_, _ = fmt.Fprintf(a.err, format, args...)
}

// clients opens the store of accounts.
func (a *app) clients() (secrets.ClientStore, error) {
	s, err := a.secrets()
	if err != nil {
		return nil, err
	}
	return s.Clients()
}

// clientName checks a name from the command line.
func clientName(name string) (string, error) {
	clean, ok := account.CleanName(name)
	if !ok {
		return "", usage("%q is no name of a client: want letters, digits, and . - _ + @ between them", name)
	}
	return clean, nil
}

// maxTries bounds how often a change is begun anew because somebody else was faster.
const maxTries = 5

// changeClient changes a record. The change is made again when somebody else has changed the record meanwhile; it gets nil
// for a client that is not there. It leaves the record unstored by returning nil. Running servers are told of a change. When the answer to a
// change is lost, or the command is interrupted meanwhile, it looks whether it was made; errUnclear: nobody answers that either.
func changeClient(a *app, store secrets.ClientStore, name string, isDry bool, change func(*account.Client) (*account.Client, error)) error {
	for try := 1; ; try++ {
		c, err := store.Latest(a.ctx, name)
		if errors.Is(err, account.ErrUnknown) || errors.Is(err, fs.ErrNotExist) {
			c, err = nil, nil
		}
		if err != nil {
			return err
		}
		before := c
		if c != nil {
			c = c.Clone()
		}
		if c, err = change(c); err != nil || c == nil || isDry {
			return err
		}
		if err = store.Put(a.ctx, c); errors.Is(err, account.ErrUnavailable) {
			err = settle(a, store, before, c, err)
		}
		if !errors.Is(err, account.ErrChanged) || try == maxTries {
			if err == nil {
				a.notify(topicClients, name)
			}
			return err
		}
	}
}

// errUnclear says that a change of a client may have been made or not.
var errUnclear = errors.New("nobody answers whether this has happened")

// settlePause is the wait for a change that was under way when the command was interrupted.
const settlePause = time.Second

// settle finds out whether a record was changed from before to want by a Put that ended with putErr: nil when it was, putErr when it was not.
func settle(a *app, store secrets.ClientStore, before, want *account.Client, putErr error) error {
	ctx, cancel := a.finish()
	defer cancel()
	for try := 1; ; try++ {
		c, err := store.Stored(ctx, want.Name)
		switch {
		case err == nil && isMade(before, want, c):
			return nil
		case err != nil && !errors.Is(err, account.ErrUnknown):
			return fmt.Errorf("%w: %w; %w", errUnclear, putErr, err)
		case try == 2:
			return putErr
		}
		select {
		case <-time.After(settlePause):
		case <-ctx.Done():
		}
	}
}

// isMade tells a record that was changed, and perhaps by others since, by its new password; or else by all that is in it.
func isMade(before, want, c *account.Client) bool {
	has := func(c *account.Client, id string) bool {
		return c != nil && slices.ContainsFunc(c.Passwords, func(p account.Password) bool { return p.ID == id })
	}
	if len(want.Passwords) > 0 && !has(before, want.Passwords[0].ID) {
		return has(c, want.Passwords[0].ID)
	}
	return reflect.DeepEqual(c.Fields(), want.Fields())
}

// finish is a context for what is to be done even when the command was interrupted meanwhile.
func (a *app) finish() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(a.ctx), readLimit)
}

// uncertain says of a password what to do with it when nobody answers whether it is in force. It is at the place that is named.
func uncertain(name, id, place string) string {
	return fmt.Sprintf("the password of client %s %s may be in force. It is if postroad secrets list --json clients shows %s as the newest one of %s; "+
		"if not, it was not changed: only then give the command again", name, place, id, name)
}

// noClient says that a client is not there, and which one was perhaps meant.
func noClient(a *app, store account.Store, name string) error {
	clients, _ := store.List(a.ctx) // what cannot be read is no suggestion
	names := make([]string, len(clients))
	for i, c := range clients {
		names[i] = c.Name
	}
	text := "there is no client " + name
	if near := nearest(name, names); near != "" {
		text += "; did you mean " + near + "?"
	} else if len(names) > 0 {
		text += " (postroad client list shows those that there are)"
	}
	return errors.New(text)
}

// nearest finds the name that was perhaps meant: one that begins the same, or differs by a slip or two.
func nearest(name string, names []string) string {
	best, least := "", 3
	for _, n := range names {
		slips := slipsBetween(name, n)
		if len(name) >= 3 && strings.HasPrefix(n, name) || len(n) >= 3 && strings.HasPrefix(name, n) {
			slips = min(slips, 2)
		}
		if slips < least && slips < max(len(name), len(n)) {
			best, least = n, slips
		}
	}
	return best
}

// slipsBetween counts the characters to add, leave out, change or swap.
func slipsBetween(a, b string) int {
	var before, last, row []int
	for i := -1; i < len(a); i++ {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			if i < 0 {
				row[j+1] = j + 1
				continue
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+1)
			if a[i] == b[j] {
				row[j+1] = min(row[j+1], last[j])
			}
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}

type clientDisableCmd struct {
	clientFlags `embed:""`
}

// Run disables.
func (c clientDisableCmd) Run(a *app) error { return switchClient(a, c.clientFlags, true) }

type clientEnableCmd struct {
	clientFlags `embed:""`
}

// Run enables.
func (c clientEnableCmd) Run(a *app) error { return switchClient(a, c.clientFlags, false) }

func switchClient(a *app, f clientFlags, disabled bool) error {
	name, err := clientName(f.Name)
	if err != nil {
		return err
	}
	store, err := a.clients()
	if err != nil {
		return err
	}
	r := &clientReport{Client: name, Action: "unchanged", DryRun: f.DryRun}
	err = changeClient(a, store, name, f.DryRun, func(c *account.Client) (*account.Client, error) {
		if c == nil {
			return nil, noClient(a, store, name)
		}
		if c.Disabled == disabled {
			return nil, nil
		}
		c.Disabled = disabled
		r.Action = "disabled"
		if !disabled {
			r.Action = "enabled"
		}
		return c, nil
	})
	if err != nil {
		return err
	}
	return a.report(r)
}

type clientRemoveCmd struct {
	clientFlags `embed:""`
}

// Run removes. A client that is not there is removed already.
func (c clientRemoveCmd) Run(a *app) error {
	name, err := clientName(c.Name)
	if err != nil {
		return err
	}
	store, err := a.clients()
	if err != nil {
		return err
	}
	r := &clientReport{Client: name, Action: "removed", DryRun: c.DryRun}
	if c.DryRun {
		// A record that cannot be read can be removed too.
		if _, err = store.Latest(a.ctx, name); !errors.Is(err, account.ErrUnknown) && !errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	} else if err = store.Remove(a.ctx, name); err == nil {
		a.notify(topicClients, name)
	}
	if errors.Is(err, account.ErrUnknown) || errors.Is(err, fs.ErrNotExist) {
		r.Action = "unchanged"
		r.note("%s", noClient(a, store, name))
		err = nil
	}
	if err != nil {
		return err
	}
	return a.report(r)
}
