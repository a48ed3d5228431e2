package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/ops"
	"postroad/queue"
)

type suppressCmd struct {
	List   suppressListCmd   `cmd:"" help:"List who is not to be written to, why, and until when."`
	Add    suppressAddCmd    `cmd:"" help:"Write no more to these addresses or domains."`
	Remove suppressRemoveCmd `cmd:"" help:"Write to these again."`
}

type suppressListCmd struct {
	Target string  `arg:"" optional:"" help:"Address, or a domain for all that is in it."`
	Class  *string `placeholder:"NAME" help:"Only what is for mail of this class of clients; empty: only what is for everybody's."`
}

// Run lists.
func (s suppressListCmd) Run(a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	n := 0
	for entry, err := range c.Suppressions(a.ctx, s.Class, s.Target) {
		if err != nil {
			_ = table.Flush()
			return err
		}
		if a.flags.JSON {
			if err := a.print(entry); err != nil {
				return err
			}
			continue
		}
		if n == 0 {
			_, _ = fmt.Fprintln(table, "ADDRESS\tCLASS\tREASON\tUNTIL\tBY\tTEXT")
		}
		_, _ = fmt.Fprintln(table, suppressionLine(entry))
		if n++; n%1000 == 0 { // columns of a long list need not all be of one width
			if err := table.Flush(); err != nil {
				return err
			}
		}
	}
	if n == 0 && !a.flags.JSON {
		a.say("nobody that matches is suppressed\n")
	}
	return table.Flush()
}

// suppressionLine is one entry, its columns divided by tabs.
func suppressionLine(s queue.Suppression) string {
	class, until, reason := s.Class, "for ever", s.Reason
	if class == "" {
		class = "*"
	}
	if !s.Until.IsZero() {
		until = s.Until.Local().Format(time.DateOnly)
	}
	if s.Pending {
		until, reason = "not yet", fmt.Sprintf("%s (%d)", reason, s.Refusals)
	}
	return strings.Join([]string{clean(s.Address, 300), clean(class, 300), clean(reason, 300), until, clean(s.Owner, 300), clean(s.Text, 300)}, "\t")
}

// suppressTargets are common to add and remove.
type suppressTargets struct {
	Targets []string `arg:"" optional:"" help:"Addresses, or domains for all that is in them."`
	File    string   `placeholder:"FILE" help:"File with one of them a line; - is standard input. What follows # is left out."`
	Class   string   `placeholder:"NAME" help:"Class of the clients whose mail it concerns; not given: everybody's."`
	DryRun  bool     `help:"Only check and count."`
}

// maxSuppressLines bounds one file.
const maxSuppressLines = 2_000_000

// entries are the targets as entries that have nothing but an address and a class.
func (s suppressTargets) entries() ([]queue.Suppression, error) {
	targets := s.Targets
	if s.File != "" {
		file := os.Stdin
		if s.File != "-" {
			var err error
			if file, err = os.Open(s.File); err != nil {
				return nil, err
			}
			defer func() { _ = file.Close() }()
		}
		more, err := readTargets(file)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", s.File, err)
		}
		targets = append(targets, more...)
	}
	if len(targets) == 0 {
		return nil, usage("give addresses or domains, or a --file with them")
	}
	list := make([]queue.Suppression, len(targets))
	for i, t := range targets {
		list[i] = queue.Suppression{Address: t, Class: s.Class}
	}
	return list, nil
}

func readTargets(r io.Reader) ([]string, error) {
	var targets []string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if line = strings.TrimSpace(line); line != "" {
			targets = append(targets, line)
		}
		if len(targets) > maxSuppressLines {
			return nil, fmt.Errorf("more than %d lines", maxSuppressLines)
		}
	}
	return targets, lines.Err()
}

type suppressAddCmd struct {
	suppressTargets `embed:""`
	For             string `placeholder:"TIME" help:"How long, such as 12h or 90d; not given: for ever."`
	Reason          string `placeholder:"WORD" default:"operator" help:"Why, for those who find it."`
	Owner           string `placeholder:"NAME" env:"USER" help:"Who wants it. Default: the user who gives the command."`
}

// Run adds.
func (s suppressAddCmd) Run(a *app) error {
	list, err := s.entries()
	if err != nil {
		return err
	}
	var until time.Time
	if s.For != "" {
		d, err := config.ParseDuration(s.For)
		if err != nil || d <= 0 {
			return usage("--for: %q is no time: write 12h or 90d", s.For)
		}
		until = time.Now().Add(d)
	}
	for i := range list {
		list[i].Reason, list[i].Owner, list[i].Until = s.Reason, s.Owner, until
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	outcome, err := c.Suppress(a.ctx, ops.SuppressOrder{Entries: list, DryRun: s.DryRun})
	return a.showSuppressed(outcome, "suppressed", err)
}

type suppressRemoveCmd struct {
	suppressTargets `embed:""`
}

// Run removes.
func (s suppressRemoveCmd) Run(a *app) error {
	list, err := s.entries()
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	outcome, err := c.Unsuppress(a.ctx, ops.SuppressOrder{Entries: list, DryRun: s.DryRun})
	if err = a.showSuppressed(outcome, "taken off the list", err); err != nil {
		return err
	}
	if outcome.Count == 0 {
		return fmt.Errorf("none of them is on the list for this class: %w", queue.ErrNotFound)
	}
	return nil
}

// showSuppressed prints what became of an order, also of one that broke off.
func (a *app) showSuppressed(o ops.SuppressOutcome, what string, err error) error {
	if a.flags.JSON {
		if printErr := a.print(o); printErr != nil {
			return printErr
		}
	} else {
		would := ""
		if o.DryRun {
			would = "would be "
		}
		a.say("%s%s: %d\n", would, what, o.Count)
		if o.Absent > 0 {
			a.say("not on the list: %d\n", o.Absent)
		}
		for _, w := range o.Wrong {
			_, _ = fmt.Fprintf(a.err, "postroad: %s\n", clean(w.Error, 300))
		}
	}
	if err == nil && len(o.Wrong) > 0 {
		err = fmt.Errorf("%d were not taken", len(o.Wrong))
	}
	return err
}
