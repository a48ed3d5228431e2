package main

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"postroad/cmd/internal/dkim"
	"postroad/cmd/internal/secrets"
	"postroad/cmd/internal/secrets/acme"
	"postroad/cmd/internal/secrets/authority"
)

type secretsACMECmd struct {
	Name        string        `arg:"" help:"Of the secret tls/NAME, which listeners read."`
	Names       []string      `placeholder:"NAMES" help:"What the certificate is for: host names, with commas. Default: what the present one is for."`
	Directory   string        `placeholder:"URL" default:"https://acme-v02.api.letsencrypt.org/directory" help:"Directory of the authority. Default: that of Let's Encrypt."`
	CA          string        `name:"ca" type:"path" placeholder:"FILE" help:"Roots to trust for that URL besides the system's, in PEM: for an authority of your own."`
	Email       string        `placeholder:"ADDRESS" help:"Told to the authority when the account is made, for its warnings."`
	AcceptTerms bool          `help:"Agree to the terms of the authority. No account is made without, if it has terms."`
	EABKID      string        `name:"eab-kid" placeholder:"ID" help:"Where the authority wants accounts bound to one that it knows: the key identifier that it has given you."`
	EABKeyFile  string        `name:"eab-key-file" type:"path" placeholder:"FILE" help:"And the key in base64, in a file of mode 0600."`
	Account     string        `placeholder:"NAME" help:"Of the secret acme/NAME with the account's key, which is made when there is none. Default: the host in the directory's URL."`
	Force       bool          `help:"Do it also when more than a third of the present certificate's life is left."`
	TakeOver    bool          `help:"Replace a certificate of the built-in authority: clients that know only that refuse the new one."`
	DNSWait     time.Duration `name:"dns-wait" placeholder:"AGE" default:"5m" help:"How long a record may take to all name servers of its zone. Default: 5m."`
	Wait        time.Duration `placeholder:"AGE" default:"60s" help:"How long to wait until all ingress nodes serve the new certificate. Default: 60s."`
	DryRun      bool          `help:"Only say what would happen. The authority's directory and the name servers are asked."`
}

// check finds what is wrong with the command line.
func (c *secretsACMECmd) check() error {
	for i, name := range c.Names {
		clean, err := authority.CheckName(name)
		if err == nil && isAddress(clean) {
			err = fmt.Errorf("%s is an address, which no record in the DNS can prove", name)
		}
		if err == nil && slices.Contains(c.Names[:i], clean) {
			err = fmt.Errorf("%s is named twice", name)
		}
		if err != nil {
			return usage("--names: %w", err)
		}
		c.Names[i] = clean
	}
	u, err := url.Parse(c.Directory)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "":
		return usage("--directory: %q is no URL that begins with https://", c.Directory)
	case (c.EABKID == "") != (c.EABKeyFile == ""):
		return usage("--eab-kid and --eab-key-file go together")
	case c.DNSWait <= 0 || c.Wait < 0:
		return usage("--dns-wait must be positive, --wait not negative")
	}
	if c.Account == "" {
		c.Account = strings.ReplaceAll(u.Host, ":", "-")
	}
	return nil
}

// Run has a certificate issued, if it is time.
func (c *secretsACMECmd) Run(a *app) error {
	if err := c.check(); err != nil {
		return err
	}
	s, err := a.secrets()
	if err != nil {
		return err
	}
	// From here on it is a rotation like others.
	run := &renewal{secretsRotateCmd: &secretsRotateCmd{Wait: c.Wait, DryRun: c.DryRun}, a: a, secrets: s, now: time.Now()}
	run.report.DryRun = c.DryRun
	p, err := c.prepare(run)
	if err == nil && p != nil {
		err = c.issue(run, p)
	}
	if err != nil {
		return fmt.Errorf("tls/%s is as it was: %w", c.Name, err)
	}
	if p == nil || c.DryRun {
		run.report.Complete = true
		if a.flags.JSON {
			return a.print(run.report)
		}
		return nil
	}
	run.pairs = []*newPair{p}
	if err := run.writePair(p, run.rowOf(p)); err != nil {
		return fmt.Errorf("store tls/%s: %w: give the command again", c.Name, err)
	}
	return run.end(run.awaitCertificates())
}

// prepare looks whether there is anything to do; nil: there is not.
func (c *secretsACMECmd) prepare(run *renewal) (*newPair, error) {
	p := &newPair{name: c.Name}
	row := run.row(secrets.KindTLS, c.Name)
	chain, at, err := run.secrets.ServerPair(run.a.ctx, c.Name)
	if errors.Is(err, secrets.ErrNotThere) {
		if len(c.Names) == 0 {
			return nil, usage("there is no tls/%s that names could be taken from: give --names", c.Name)
		}
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	p.before, p.at = chain[0], at
	row.Old = authority.Fingerprint(p.before)
	has := authority.Names(p.before)
	if len(c.Names) == 0 {
		if c.Names = has; slices.ContainsFunc(has, isAddress) {
			return nil, usage("tls/%s is for addresses too, which no record in the DNS can prove: give --names", c.Name)
		}
	}
	if !c.Force && run.now.Before(dueAt(p.before)) && sameNames(has, c.Names) {
		row.Version = at.String()
		run.note("tls/%s is good until %s; a new one is due at %s", c.Name, p.before.NotAfter.Local().Format(time.DateTime), dueAt(p.before).Local().Format(time.DateTime))
		return nil, nil
	}
	own, _, err := run.secrets.Authority(run.a.ctx, defaultAuthority, false)
	switch {
	case errors.Is(err, secrets.ErrNotThere):
	case err != nil:
		return nil, err
	case own.HasIssued(p.before) && !c.TakeOver:
		return nil, fmt.Errorf("it was issued by the built-in authority, and clients that know only that would refuse another one: give --take-over, or another NAME")
	}
	return p, nil
}

func isAddress(name string) bool { _, err := netip.ParseAddr(name); return err == nil }

// dueAt is when two thirds of a certificate's life are over.
func dueAt(c *x509.Certificate) time.Time {
	return c.NotAfter.Add(-c.NotAfter.Sub(c.NotBefore) / 3)
}

func sameNames(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// issue has the certificate issued; a dry run only asks whether that could be.
func (c *secretsACMECmd) issue(run *renewal, p *newPair) error {
	config, _, err := run.a.load()
	if err != nil {
		return err
	}
	proofs, err := dkim.NewProofs(config, c.DNSWait)
	if err != nil {
		return err
	}
	account := acme.Account{Email: c.Email, AcceptTerms: c.AcceptTerms, KID: c.EABKID}
	if account.MAC, err = c.eabKey(); err != nil {
		return err
	}
	o := acme.Options{Directory: c.Directory, CAFile: c.CA, DNS: proofs, Note: run.note}
	o.Key, err = run.secrets.AccountKey(run.a.ctx, c.Account)
	isNew := errors.Is(err, secrets.ErrNotThere)
	if isNew && !c.DryRun {
		o.Key, err = run.secrets.MakeAccountKey(run.a.ctx, c.Account)
	}
	if err != nil && !isNew {
		return err
	}
	client, err := acme.New(o)
	if err != nil {
		return err
	}
	defer client.Close()
	if c.DryRun {
		return c.rehearse(run, client, proofs, isNew)
	}
	if err := client.Login(run.a.ctx, account); err != nil {
		return err
	}
	p.pair, err = client.Issue(run.a.ctx, c.Names)
	return err
}

// rehearse asks all that can be asked without changing anything.
func (c *secretsACMECmd) rehearse(run *renewal, client *acme.Client, proofs *dkim.Proofs, isNew bool) error {
	terms, err := client.Terms(run.a.ctx)
	if err != nil {
		return err
	}
	if isNew {
		run.would("make an account at %s, acme/%s, and agree to %s", c.Directory, c.Account, orWord(terms, "no terms"))
	}
	for _, name := range c.Names {
		place, err := proofs.Place(run.a.ctx, "_acme-challenge."+strings.TrimPrefix(name, "*."))
		if err != nil {
			return err
		}
		run.would("prove %s by a TXT record of %s", name, place)
	}
	run.would("have a certificate tls/%s issued for %s by %s", c.Name, strings.Join(c.Names, ", "), c.Directory)
	return nil
}

// eabKey reads the key by which an account is bound to another one.
func (c *secretsACMECmd) eabKey() ([]byte, error) {
	if c.EABKeyFile == "" {
		return nil, nil
	}
	info, err := os.Stat(c.EABKeyFile)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("%s has mode %04o, so others can read it: chmod 0600 it", c.EABKeyFile, info.Mode().Perm())
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(c.EABKeyFile)
	}
	if err != nil {
		return nil, fmt.Errorf("--eab-key-file: %w", err)
	}
	text = bytes.TrimRight(bytes.TrimSpace(text), "=")
	key, err := base64.RawURLEncoding.DecodeString(strings.NewReplacer("+", "-", "/", "_").Replace(string(text)))
	if err != nil || len(key) == 0 {
		return nil, fmt.Errorf("--eab-key-file: %s holds no key in base64", c.EABKeyFile)
	}
	return key, nil
}
