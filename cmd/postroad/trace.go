package main

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"postroad/cmd/internal/ops"
	"postroad/queue"
)

type traceCmd struct {
	ID        string        `arg:"" optional:"" help:"Message id, as in the 250 reply, the log and Received."`
	Sender    string        `placeholder:"ADDRESS" help:"Reverse-path."`
	Recipient string        `placeholder:"ADDRESS" help:"Forward-path."`
	MessageID string        `placeholder:"TEXT" help:"Message-ID header field, with its angle brackets."`
	Client    string        `placeholder:"NAME" help:"Account or network that sent it."`
	Since     time.Duration `placeholder:"AGE" help:"How far to look back. Default: to the message's own time, or a day."`
}

// Run tells the story.
func (t traceCmd) Run(a *app) error {
	if t == (traceCmd{}) {
		return usage("say which message: an id, --sender, --recipient, --message-id, --client, or --since for all")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	filter := ops.TraceFilter{ID: t.ID, Sender: t.Sender, Recipient: t.Recipient, MessageID: t.MessageID, Client: t.Client}
	if t.Since > 0 {
		filter.Since = time.Now().Add(-t.Since)
	}
	if a.flags.JSON {
		return printEvents(a, c.Trace(a.ctx, filter))
	}
	if t.ID == "" {
		return t.many(a, c.Trace(a.ctx, filter))
	}
	return story(a, c, filter)
}

// printEvents prints one object a line.
func printEvents(a *app, events iter.Seq2[queue.Event, error]) error {
	for event, err := range events {
		if err != nil {
			return err
		}
		if err := a.print(event); err != nil {
			return err
		}
	}
	return nil
}

// many prints events of several messages as they come, each with its id.
func (t traceCmd) many(a *app, events iter.Seq2[queue.Event, error]) error {
	n := 0
	for event, err := range events {
		if err != nil {
			return err
		}
		n++
		a.say("%s  %s\n", event.ID, eventLine(event))
	}
	if n == 0 {
		return fmt.Errorf("nothing matches in the time that was searched (--since looks back further)")
	}
	return nil
}

// story prints what happened to one message, and what will happen next.
func story(a *app, c *ops.Client, filter ops.TraceFilter) error {
	events, err := collect(c.Trace(a.ctx, filter))
	if err != nil {
		return err
	}
	// Processes publish on their own, so facts of the same moment may come in any order.
	slices.SortStableFunc(events, func(a, b queue.Event) int { return a.Time.Compare(b.Time) })
	for _, event := range events {
		line := eventLine(event)
		if !strings.EqualFold(string(event.ID), filter.ID) {
			line += "  (" + string(event.ID) + ")"
		}
		a.say("%s\n", line)
	}
	entries, err := collect(c.List(a.ctx, ops.Selection{ID: filter.ID}, 0))
	if err != nil {
		return err
	}
	now := time.Now()
	for _, entry := range entries {
		a.say("now: %s\n", nextLine(entry, now))
	}
	if len(events) == 0 && len(entries) == 0 {
		return fmt.Errorf("%s: %w, and no events of it are left", filter.ID, queue.ErrNotFound)
	}
	return nil
}

// collect gathers a stream.
func collect[T any](items iter.Seq2[T, error]) ([]T, error) {
	var list []T
	for item, err := range items {
		if err != nil {
			return list, err
		}
		list = append(list, item)
	}
	return list, nil
}
