package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"
	"text/tabwriter"
	"time"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/dkim"
	"postroad/signer/keyring"
	"postroad/signer/rotation"
)

type dkimCmd struct {
	Status     dkimStatusCmd     `cmd:"" help:"Say of each key what it does, what comes next and when, and how much queued mail bears its signature."`
	New        dkimNewCmd        `cmd:"" help:"Make keys for a domain, and print the records that are to be published."`
	List       dkimListCmd       `cmd:"" help:"List keys with their states."`
	DNS        dkimDNSCmd        `cmd:"" name:"dns" help:"Print the records of a domain's keys, for a zone file or a tool."`
	Check      dkimCheckCmd      `cmd:"" help:"Ask all name servers and the resolvers for a domain's records and hold them against its keys."`
	Verify     dkimVerifyCmd     `cmd:"" help:"Verify the signatures of a message, as a receiver does."`
	TestSign   dkimTestSignCmd   `cmd:"" name:"test-sign" help:"Sign a sample with the keys of a domain and verify it against what the DNS says."`
	Activate   dkimActivateCmd   `cmd:"" help:"Let a key sign, once its record is seen everywhere."`
	Rotate     dkimRotateCmd     `cmd:"" help:"Replace the keys of a domain, step by step, each behind its gate; or go on with that."`
	Retire     dkimMoveCmd       `cmd:"" help:"Let a key sign no more; its record stays for mail that is on its way."`
	Revoke     dkimRevokeCmd     `cmd:"" help:"Empty the record of a retired key and destroy its private half."`
	Remove     dkimMoveCmd       `cmd:"" help:"Give up a key for good. Its selector is never used again."`
	Compromise dkimCompromiseCmd `cmd:"" help:"Replace a key that somebody else may have, at once; sign again what is queued."`
}

// dkimKeys is what the dkim commands work with.
type dkimKeys struct {
	config  *config.Config
	store   keyring.Store
	rotator *rotation.Rotator
}

// dkimWish is what a command wants of it besides.
type dkimWish struct {
	make       func(domain, selector string, algorithm keyring.Algorithm) (keyring.Key, error)
	acceptDead []string
	local      bool
}

// localFlag takes a domain out of the transit engine.
type localFlag struct {
	Local bool `help:"Make keys in the store also when those of the domain are in the transit engine, which they leave by that. Otherwise new ones are made there by hand."`
}

// dkimKeys opens the keys. A running server is asked only when something in its queue is to be counted or moved, and told of changes.
func (a *app) dkimKeys(wish dkimWish) (*dkimKeys, error) {
	c, _, err := a.load()
	if err != nil {
		return nil, err
	}
	s, err := a.secrets()
	if err != nil {
		return nil, err
	}
	k := &dkimKeys{config: c}
	if k.store, err = s.Keys(); err != nil {
		return nil, err
	}
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	k.rotator, err = dkim.New(dkim.Options{
		Config: c, Store: k.store, Sent: dkim.Count(client), By: whoami(), Make: wish.make, AcceptDead: wish.acceptDead, Local: wish.local,
		Changed: func(_ context.Context, domain string) { a.notify(topicDKIM, domain) },
	})
	return k, err
}

// whoami is who gives the command, for the history of keys.
func whoami() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		return name
	}
	return name + "@" + host
}

// entries are the keys of a domain.
func (k *dkimKeys) entries(ctx context.Context, domain string) ([]keyring.Entry, error) {
	name := ""
	if domain != "" {
		var ok bool
		if name, ok = keyring.CleanDomain(domain); !ok {
			return nil, usage("%q is no domain name", domain)
		}
	}
	return k.store.Entries(ctx, name)
}

// of are the keys of a domain, or the one with that selector.
func (k *dkimKeys) of(ctx context.Context, domain, selector string) ([]keyring.Entry, error) {
	entries, err := k.entries(ctx, domain)
	if err != nil {
		return nil, err
	}
	var out []keyring.Entry
	for _, e := range entries {
		if selector == "" || e.Selector == strings.ToLower(selector) {
			out = append(out, e)
		}
	}
	switch {
	case len(out) == 0 && selector != "":
		return nil, fmt.Errorf("%s has no key %s: postroad dkim list %s shows what there is", domain, selector, domain)
	case len(out) == 0:
		return nil, fmt.Errorf("%s has no keys: postroad dkim new %s makes some", domain, domain)
	}
	return out, nil
}

type dkimNewCmd struct {
	Domain string `arg:"" help:"Domain to sign for."`
	Bits   int    `default:"2048" help:"Of RSA: 2048 or 4096. With 4096 each signature takes six times as long, and old resolvers may choke on the record."`
	Format string `default:"zone" placeholder:"FORMAT" help:"Of the records: zone, nsupdate, terraform, terraform-generic, route53 or json."`
	DryRun bool   `help:"Only say what would be made."`

	localFlag `embed:""`
}

// Run makes keys.
func (d dkimNewCmd) Run(a *app) error {
	if d.Bits != 2048 && d.Bits != 4096 {
		return usage("RSA keys of %d bits: want 2048 or 4096", d.Bits)
	}
	k, err := a.dkimKeys(dkimWish{make: d.make, local: d.Local})
	if err != nil {
		return err
	}
	if d.DryRun {
		return d.dryRun(a, k)
	}
	pass, err := k.rotator.New(a.ctx, d.Domain)
	if errors.Is(err, rotation.ErrTransit) {
		return fmt.Errorf("%w: see docs/vault.md; --local makes them in the store", err)
	}
	if err == nil {
		err = pass.Err()
	}
	var made []keyring.Entry
	for _, action := range pass.Done {
		made = append(made, action.Entry)
	}
	if a.flags.JSON {
		return errors.Join(err, a.print(made))
	}
	for _, e := range made {
		a.tell("made key %s of %s: %s, %d bits; it does not sign yet\n", e.Selector, e.Domain, e.Algorithm, e.Bits)
	}
	if err != nil || len(made) == 0 {
		return err
	}
	a.tell("publish these records, then: postroad dkim rotate %s\n", d.Domain)
	return printRecords(a, d.Format, made)
}

// dryRun shows the names that would be taken.
func (d dkimNewCmd) dryRun(a *app, k *dkimKeys) error {
	entries, err := k.entries(a.ctx, d.Domain)
	if err != nil {
		return err
	}
	if rotation.InTransit(entries) && !d.Local {
		return fmt.Errorf("%w: see docs/vault.md; --local makes them in the store", rotation.ErrTransit)
	}
	policy := dkim.PolicyOf(k.config)
	policy.Local = d.Local
	steps, err := rotation.Next(d.Domain, entries, policy, time.Now(), time.Now())
	if err != nil {
		return err
	}
	for _, s := range steps {
		if s.Do == rotation.Create {
			a.say("would make key %s of %s: %s\n", s.Selector, s.Domain, s.Algorithm)
		}
	}
	return nil
}

func (d dkimNewCmd) make(domain, selector string, algorithm keyring.Algorithm) (keyring.Key, error) {
	key, err := keyring.Make(domain, selector, algorithm)
	if err != nil || algorithm != keyring.RSA || d.Bits == 2048 {
		return key, err
	}
	key.Signer, err = rsa.GenerateKey(rand.Reader, d.Bits)
	return key, err
}

type dkimListCmd struct {
	Domain string `arg:"" optional:"" help:"Only this domain's."`
	All    bool   `help:"Also those that are removed."`
}

// Run lists keys.
func (d dkimListCmd) Run(a *app) error {
	k, err := a.dkimKeys(dkimWish{})
	if err != nil {
		return err
	}
	entries, listErr := k.entries(a.ctx, d.Domain)
	now := time.Now()
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	n := 0
	for _, e := range entries {
		if e.State == keyring.Removed && !d.All {
			continue
		}
		if a.flags.JSON {
			if err := a.print(e); err != nil {
				return err
			}
			continue
		}
		if n++; n == 1 {
			_, _ = fmt.Fprintln(t, "DOMAIN\tSELECTOR\tALGORITHM\tBITS\tSTATE\tFOR")
		}
		since := "?"
		if at := e.Since(); !at.IsZero() {
			since = age(now.Sub(at))
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\n", e.Domain, e.Selector, e.Algorithm, e.Bits, e.State, since)
	}
	if n == 0 && !a.flags.JSON && listErr == nil {
		a.tell("there are no keys: postroad dkim new DOMAIN makes some\n")
	}
	return errors.Join(listErr, t.Flush())
}
