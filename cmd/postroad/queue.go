package main

import (
	"fmt"
	"time"

	"postroad/cmd/internal/ops"
	"postroad/queue"
)

type queueCmd struct {
	List    queueListCmd `cmd:"" help:"List what is in the queue: where it is, when it will go, and why it waits."`
	Show    queueShowCmd `cmd:"" help:"Show all that is known of one message."`
	Counts  countsCmd    `cmd:"" help:"Count what is in the queue, by place."`
	Retry   actionCmd    `cmd:"" help:"Try now what waits or is held."`
	Cancel  actionCmd    `cmd:"" help:"End without delivery and without a notification."`
	Hold    holdCmd      `cmd:"" help:"Put aside until it is released."`
	Return  returnCmd    `cmd:"" help:"Send back to the senders, with a notification."`
	Release actionCmd    `cmd:"" help:"Bring back what is held."`
	Resign  actionCmd    `cmd:"" help:"Send back to the signer, after a change of keys."`
}

// selectFlags select messages.
type selectFlags struct {
	Domain    string        `placeholder:"DOMAIN" help:"Of the recipients."`
	Sender    string        `placeholder:"ADDRESS" help:"Reverse-path."`
	Client    string        `placeholder:"NAME" help:"Account or network that sent it."`
	OlderThan time.Duration `placeholder:"AGE" help:"Since acceptance, such as 90m or 24h."`
	HeldFor   time.Duration `placeholder:"AGE" help:"Is held, and has been for so long."`
	SignedBy  string        `placeholder:"NAME" help:"Bears a signature of the key whose record has this name: selector._domainkey.domain; * for any key."`
	Author    string        `placeholder:"DOMAIN" help:"Of the author (From:); .DOMAIN for every domain below it."`
	Unsigned  bool          `help:"Waits for its signature, and neither its sender nor an operator wants it to wait."`
}

func (s selectFlags) selection(id string) ops.Selection {
	return ops.Selection{ID: id, Domain: s.Domain, Sender: s.Sender, Client: s.Client, OlderThan: s.OlderThan, HeldFor: s.HeldFor, SignedBy: s.SignedBy,
		Author: s.Author, Unsigned: s.Unsigned}
}

type queueListCmd struct {
	selectFlags `embed:""`
	Limit       int `placeholder:"N" help:"At most so many."`
}

// Run lists.
func (q queueListCmd) Run(a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	now, n := time.Now(), 0
	for entry, err := range c.List(a.ctx, q.selection(""), q.Limit) {
		if err != nil {
			return err
		}
		if a.flags.JSON {
			if err := a.print(entry); err != nil {
				return err
			}
			continue
		}
		if n == 0 {
			a.say("%s\n", listHeading)
		}
		n++
		a.say("%s\n", listLine(entry, now))
	}
	if n == 0 && !a.flags.JSON {
		a.say("nothing in the queue matches\n")
	}
	return nil
}

type queueShowCmd struct {
	ID string `arg:"" help:"Message id, as in the 250 reply, the log and Received."`
}

// Run shows one message.
func (q queueShowCmd) Run(a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	entries, err := collect(c.List(a.ctx, ops.Selection{ID: q.ID}, 0))
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return fmt.Errorf("%s is not in the queue: it is finished, or never was (postroad trace %s tells)", q.ID, q.ID)
	}
	for _, entry := range entries {
		if a.flags.JSON {
			err = a.print(entry)
		} else {
			err = showEntry(a.out, entry, time.Now())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type countsCmd struct{}

// Run counts.
func (countsCmd) Run(a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	counts, err := c.Counts(a.ctx)
	if err != nil {
		return err
	}
	if a.flags.JSON {
		return a.print(counts)
	}
	return showCounts(a.out, counts)
}

// orderFlags are common to all commands that move something.
type orderFlags struct {
	ID          string `arg:"" optional:"" help:"Message id."`
	selectFlags `embed:""`
	All         bool `help:"Everything in the queue."`
	DryRun      bool `help:"Only count what would move."`
}

func (o orderFlags) give(a *app, action ops.Action, why string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	selection := o.selection(o.ID)
	selection.All = o.All
	outcome, err := c.Do(a.ctx, action, ops.Order{Selection: selection, Why: why, DryRun: o.DryRun})
	if err != nil {
		return err
	}
	if a.flags.JSON {
		return a.print(outcome)
	}
	verb := "moved"
	if o.DryRun {
		verb = "would move"
	}
	a.say("%s: %s %d\n", action, verb, outcome.Count)
	if outcome.Count == 0 && o.ID != "" {
		return fmt.Errorf("%s: %w", o.ID, queue.ErrNotFound)
	}
	return nil
}

// actionCmd is a command without settings of its own; its name is the action.
type actionCmd struct {
	orderFlags `embed:""`
}

// Run gives the order.
func (c actionCmd) Run(a *app) error { return c.give(a, ops.Action(a.command), "") }

type holdCmd struct {
	orderFlags `embed:""`
	Why        string `placeholder:"WORD" default:"operator" help:"Reason, for those who find it held."`
}

// Run holds.
func (h holdCmd) Run(a *app) error { return h.give(a, ops.ActionHold, h.Why) }

type returnCmd struct {
	orderFlags `embed:""`
	Why        string `placeholder:"TEXT" default:"the operator sent it back" help:"Reason, for the senders."`
}

// Run sends back.
func (r returnCmd) Run(a *app) error { return r.give(a, ops.ActionReturn, r.Why) }
