package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"postroad/cmd/internal/ops"
)

type siteCmd struct {
	List    siteListCmd    `cmd:"" help:"List sites that are suspended, dead or slowed down: by whom, why, how long, and how much waits."`
	Suspend siteSuspendCmd `cmd:"" help:"Send nothing to a site or domain for a time. What is being sent comes to its end; the rest waits."`
	Resume  siteResumeCmd  `cmd:"" help:"End what keeps mail from a site or domain, or slows it down. What waits is pulled forward."`
}

type siteListCmd struct{}

// Run lists.
func (siteListCmd) Run(a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	list, err := c.Sites(a.ctx)
	if err != nil {
		return err
	}
	if a.flags.JSON {
		for _, s := range list {
			if err := a.print(s); err != nil {
				return err
			}
		}
		return nil
	}
	return showSites(a.out, list, time.Now())
}

func showSites(w io.Writer, list []ops.Site, now time.Time) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "no site is suspended, dead or slowed down")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "SITE OR DOMAIN\tWAITING\tSTATE")
	for _, s := range list {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", clean(s.Name, 253), countText(s.Waiting), stateText(s.SiteState, now))
	}
	return t.Flush()
}

type siteSuspendCmd struct {
	Name string `arg:"" help:"Site, as events name it, or domain of recipients."`
	orderedBy
	For time.Duration `required:"" placeholder:"TIME" help:"How long, such as 2h."`
}

// Run suspends.
func (s siteSuspendCmd) Run(a *app) error {
	if s.Reason == "" {
		return usage("say why, with --reason: others find it")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	change, err := c.Suspend(a.ctx, ops.SiteOrder{Name: s.Name, Owner: s.owner(), Reason: s.Reason, For: s.For, DryRun: s.DryRun})
	if err != nil {
		return err
	}
	return sayChange(a, change, "suspended")
}

type siteResumeCmd struct {
	Name string `arg:"" help:"Site or domain, as site list names it."`
	orderedBy
}

// Run resumes.
func (s siteResumeCmd) Run(a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	change, err := c.Resume(a.ctx, ops.SiteOrder{Name: s.Name, Owner: s.owner(), DryRun: s.DryRun})
	if err != nil {
		return err
	}
	return sayChange(a, change, "resumed")
}
