package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postroad/cmd/internal/dkim"
	"postroad/cmd/internal/ops"
	"postroad/queue"
	"postroad/signer/keyring"
	"postroad/signer/rotation"
)

// dkimMoveCmd brings one key into another state; its name says which.
type dkimMoveCmd struct {
	Domain   string `arg:"" help:"Domain."`
	Selector string `arg:"" help:"Selector of the key."`
	Force    bool   `help:"Do not wait for times and for queued mail. A key whose record is not seen never signs, force or not; a key is revoked when no signer that reaches its source of keys has it any more, force or not."`
	DryRun   bool   `help:"Only say what it waits for."`
}

// Run moves a key.
func (d dkimMoveCmd) Run(a *app) error { return d.move(a, nil, false) }

// deadFlags name servers that need not answer.
type deadFlags struct {
	AcceptDead []string `placeholder:"SERVER" help:"Name server of the zone, by host name or address, that need not answer because it is known to be down; again for more. When it comes back it must have the record. Others of the zone must answer, and none may say anything else."`
}

type dkimActivateCmd struct {
	dkimMoveCmd `embed:""`
	deadFlags   `embed:""`
}

// Run lets a key sign.
func (d dkimActivateCmd) Run(a *app) error { return d.move(a, d.AcceptDead, false) }

func (d dkimMoveCmd) move(a *app, acceptDead []string, forceStale bool) error {
	k, err := a.dkimKeys(dkimWish{acceptDead: acceptDead})
	if err != nil {
		return err
	}
	to := map[string]keyring.State{"activate": keyring.Active, "retire": keyring.Retiring, "revoke": keyring.Revoked, "remove": keyring.Removed}[a.command]
	before, err := k.entries(a.ctx, d.Domain)
	if err != nil {
		return err
	}
	entries, err := k.of(a.ctx, d.Domain, d.Selector)
	if err != nil {
		return err
	}
	e := entries[0]
	if d.DryRun {
		return d.dryRun(a, k, e, to, acceptDead)
	}
	pass := rotation.Pass{}
	switch {
	case to == keyring.Active && e.State == keyring.Generated:
		// What somebody has published by hand is seen here for the first time.
		if pass, err = k.rotator.Move(a.ctx, d.Domain, e.Selector, keyring.Published, d.Force); err != nil {
			return a.dkimPass(pass, err)
		}
	case to == keyring.Revoked:
		if d.Force && e.State == keyring.Retiring && !forceStale {
			if err := askStale(a, &e); err != nil {
				return err
			}
		}
		if err := awaitSettled(a, k, &e); err != nil {
			return err
		}
	}
	more, err := k.rotator.Move(a.ctx, d.Domain, e.Selector, to, d.Force)
	pass.Done, pass.Waiting = append(pass.Done, more.Done...), more.Waiting
	if err == nil && len(pass.Done) == 0 && !a.flags.JSON {
		a.say("%s of %s is %s already\n", e.Selector, d.Domain, to)
	}
	err = a.dkimPass(pass, err)
	k.inForce(a, before, pass)
	if to == keyring.Revoked && d.Force && err == nil {
		a.tellQueued(&e)
	}
	return err
}

// inForce lets mail wait no longer that waited for keys of a domain, when some sign now and none did before. Where no server runs nothing
// waits.
func (k *dkimKeys) inForce(a *app, before []keyring.Entry, pass rotation.Pass) {
	signs := func(e keyring.Entry) bool { return e.State == keyring.Active && e.Algorithm == keyring.RSA }
	n := slices.IndexFunc(pass.Done, func(d rotation.Action) bool { return d.Do == rotation.Activate && signs(d.Entry) })
	if n < 0 || slices.ContainsFunc(before, signs) {
		return
	}
	client, err := a.client()
	if err != nil {
		return
	}
	total := 0
	for _, author := range dkim.AuthorsOf(pass.Done[n].Domain, cmp.Or(k.config.Domain, k.config.Hostname)) {
		outcome, err := client.Do(a.ctx, ops.ActionRetry, ops.Order{Selection: ops.Selection{Author: author, Unsigned: true}})
		total += outcome.Count
		if err != nil {
			break // it comes by itself within five minutes
		}
	}
	if total > 0 {
		a.tell("%d jobs that waited for it are on their way\n", total)
	}
}

// dryRun says what stands before the step.
func (d dkimMoveCmd) dryRun(a *app, k *dkimKeys, e keyring.Entry, to keyring.State, acceptDead []string) error {
	a.say("%s of %s is %s; it would become %s\n", e.Selector, e.Domain, e.State, to)
	if to != keyring.Active {
		client, err := a.client()
		if err != nil {
			return err
		}
		n, err := dkim.Count(client).Queued(a.ctx, e.Domain, e.Selector)
		if err != nil {
			return fmt.Errorf("count queued mail with its signature: %w", err)
		}
		a.say("queued with its signature: %d\n", n)
		return nil
	}
	dns, err := dkim.NewDNS(k.config, nil)
	if err != nil {
		return err
	}
	report := rotation.Check(a.ctx, dns, e, dkim.PolicyOf(k.config).Resolvers, acceptDead...)
	a.say("%s\n", report.String())
	return nil
}

// dkimPass prints what was done and what is waited for.
func (a *app) dkimPass(pass rotation.Pass, err error) error {
	if a.flags.JSON {
		return errors.Join(a.print(pass), err)
	}
	byHand := false
	for _, d := range pass.Done {
		a.say("done     %s\n", doneLine(&d))
		byHand = byHand || a.byHand(d.ByHand)
	}
	for _, w := range pass.Waiting {
		until := ""
		if !w.Until.IsZero() {
			until = fmt.Sprintf(" (look again %s)", w.Until.Local().Format(time.DateTime))
		}
		a.say("waiting  %s %s of %s: %s%s\n", w.Do, w.Selector, w.Domain, w.Reason, until)
		byHand = byHand || a.byHand(w.ByHand)
	}
	return err
}

func doneLine(d *rotation.Action) string {
	if d.Do == rotation.Create {
		return fmt.Sprintf("%s %s of %s (%s)", d.Do, d.Selector, d.Domain, d.Algorithm)
	}
	why := ""
	if n := len(d.Entry.History); n > 0 && d.Entry.History[n-1].Why != "" {
		why = " (" + d.Entry.History[n-1].Why + ")"
	}
	return fmt.Sprintf("%s %s of %s: %s is %s now%s", d.Do, d.Selector, d.Domain, d.From, d.To, why)
}

// byHand says what somebody has to publish.
func (a *app) byHand(r *rotation.Record) bool {
	if r == nil {
		return false
	}
	switch r.Op {
	case rotation.OpDelete:
		a.say("         delete the TXT record of %s\n", r.Name)
	default:
		a.say("         publish %s TXT \"%s\"\n", r.Name, r.Value)
	}
	return true
}

type dkimRotateCmd struct {
	Domain string `arg:"" help:"Domain."`
	DryRun bool   `help:"Only print the plan."`
	Due    bool   `help:"Begin no rotation: go on with what is under way, and do what signer.rotation asks for. For a timer."`
	Wait   bool   `help:"Go on until the new keys sign and the old ones do not, rather than say what is waited for."`

	deadFlags `embed:""`
	localFlag `embed:""`
}

// Run rotates.
func (d dkimRotateCmd) Run(a *app) error {
	k, err := a.dkimKeys(dkimWish{acceptDead: d.AcceptDead, local: d.Local})
	if err != nil {
		return err
	}
	entries, err := k.entries(a.ctx, d.Domain)
	if err != nil {
		return err
	}
	policy := dkim.PolicyOf(k.config)
	policy.Local = d.Local
	demand, err := rotation.Begin(entries, policy, time.Now())
	if err != nil {
		return err
	}
	if d.Due {
		demand = time.Time{}
	}
	if d.DryRun {
		return d.plan(a, entries, policy, demand)
	}
	for {
		pass, err := k.rotator.Run(a.ctx, d.Domain, demand)
		k.inForce(a, entries, pass)
		if printErr := a.dkimPass(pass, errors.Join(err, pass.Err())); printErr != nil || !d.Wait {
			return printErr
		}
		if entries, err = k.entries(a.ctx, d.Domain); err != nil {
			return err
		}
		isDone, err := isRotated(d.Domain, entries, policy, demand)
		again := pass.Again(time.Now())
		if err != nil || isDone || again.IsZero() {
			return err
		}
		select {
		case <-time.After(min(time.Until(again), 10*time.Second)):
		case <-a.ctx.Done():
			return a.ctx.Err()
		}
	}
}

// isRotated reports that no key has to begin or to end signing any more.
func isRotated(domain string, entries []keyring.Entry, policy rotation.Policy, demand time.Time) (bool, error) {
	steps, err := rotation.Next(domain, entries, policy, demand, time.Now())
	return !slices.ContainsFunc(steps, func(s rotation.Step) bool { return s.Do == rotation.Activate || s.Do == rotation.Retire }), err
}

// plan prints what a rotation will do.
func (d dkimRotateCmd) plan(a *app, entries []keyring.Entry, policy rotation.Policy, demand time.Time) error {
	steps, err := rotation.Next(d.Domain, entries, policy, demand, time.Now())
	if err != nil {
		return err
	}
	if a.flags.JSON {
		return a.print(steps)
	}
	for _, s := range steps {
		a.say("%s  %s\n", s.Earliest.Local().Format(time.DateTime), s)
	}
	switch {
	case rotation.InTransit(entries) && !d.Local:
		a.say("no keys are made: those of the domain are in the transit engine, and new ones are made there by hand, see docs/vault.md; --local makes them in the store\n")
	case len(steps) == 0:
		a.say("there is nothing to do\n")
	}
	return nil
}

type dkimCompromiseCmd struct {
	Domain   string        `arg:"" help:"Domain."`
	Selector string        `arg:"" help:"Selector of the key that somebody else may have."`
	Force    bool          `help:"Go on without a spare: make new keys; mail of the domain waits until the DNS has them."`
	Since    time.Duration `placeholder:"AGE" help:"List what was signed with it in this time. Default: since it is active, at most 7 days."`
	DryRun   bool          `help:"Only say what is queued with its signature."`
}

// Run replaces a compromised key.
func (d dkimCompromiseCmd) Run(a *app) error {
	k, err := a.dkimKeys(dkimWish{})
	if err != nil {
		return err
	}
	entries, err := k.of(a.ctx, d.Domain, d.Selector)
	if err != nil {
		return err
	}
	e := entries[0]
	if d.DryRun {
		return dkimMoveCmd{Domain: d.Domain}.dryRun(a, k, e, keyring.Revoked, nil)
	}
	pass, err := k.rotator.Compromise(a.ctx, d.Domain, e.Selector, d.Force)
	if err := a.dkimPass(pass, err); err != nil && len(pass.Done) == 0 {
		return err
	}
	again, againErr := resign(a, k, e)
	if !a.flags.JSON {
		a.say("signed again: %d jobs that were queued with its signature\n", again)
	}
	return errors.Join(err, againErr, d.list(a, e))
}

// resign sends what is queued with the signature of a key back to the signer, until no signer can have the old key any more.
func resign(a *app, k *dkimKeys, e keyring.Entry) (int, error) {
	client, err := a.client()
	if err != nil {
		return 0, err
	}
	order := ops.Order{Selection: ops.Selection{SignedBy: rotation.Name(e.Domain, e.Selector)}}
	total := 0
	for end := time.Now().Add(dkim.Settle(k.config)); ; {
		outcome, err := client.Do(a.ctx, ops.ActionResign, order)
		total += outcome.Count
		if err != nil {
			return total, fmt.Errorf("sign again what is queued: %w: repeat the command", err)
		}
		if outcome.Count == 0 && time.Now().After(end) {
			return total, nil
		}
		if !sleepFor(a.ctx, time.Second) {
			return total, a.ctx.Err()
		}
	}
}

func sleepFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// list prints what was signed with the key.
func (d dkimCompromiseCmd) list(a *app, e keyring.Entry) error {
	const most = 7 * 24 * time.Hour
	since := time.Now().Add(-most)
	if at := e.History; d.Since == 0 && len(at) > 0 && at[0].At.After(since) {
		since = at[0].At
	}
	if d.Since > 0 {
		since = time.Now().Add(-d.Since)
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	signature := fmt.Sprintf("d=%s s=%s ", e.Domain, e.Selector)
	n := 0
	for event, err := range client.Trace(a.ctx, ops.TraceFilter{Since: since}) {
		if err != nil {
			return fmt.Errorf("list what was signed with it: %w", err)
		}
		if event.Type != queue.Signed || !strings.Contains(event.Text, signature) {
			continue
		}
		if n++; a.flags.JSON {
			if err := a.print(event); err != nil {
				return err
			}
		} else {
			a.say("signed   %s  %s  %s\n", event.Time.Local().Format(time.DateTime), event.ID, clean(event.Sender, 320))
		}
	}
	if !a.flags.JSON {
		a.say("messages signed with it since %s: %d\n", since.Local().Format(time.DateTime), n)
	}
	return nil
}
