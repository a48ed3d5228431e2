package main

import (
	"fmt"
	"strings"
	"time"

	"postroad/cmd/internal/dkim"
	"postroad/delivery/txt"
	"postroad/signer/keyring"
	"postroad/signer/rotation"
)

type dkimDNSCmd struct {
	Domain   string        `arg:"" help:"Domain."`
	Selector string        `arg:"" optional:"" help:"Only this key's."`
	Format   string        `default:"zone" placeholder:"FORMAT" help:"zone, nsupdate, terraform, terraform-generic, route53 or json."`
	TTL      time.Duration `default:"1h" help:"Of the records."`
}

// Run prints records.
func (d dkimDNSCmd) Run(a *app) error {
	k, err := a.dkimKeys(dkimWish{})
	if err != nil {
		return err
	}
	entries, err := k.of(a.ctx, d.Domain, d.Selector)
	if err != nil {
		return err
	}
	if a.flags.JSON {
		d.Format = txt.FormatJSON
	}
	return printRecordsFor(a, d.Format, d.TTL, entries)
}

func printRecords(a *app, format string, entries []keyring.Entry) error {
	return printRecordsFor(a, format, 0, entries)
}

// printRecordsFor prints what is to stand in the DNS: of a revoked key a record that says so, of a removed one none.
func printRecordsFor(a *app, format string, ttl time.Duration, entries []keyring.Entry) error {
	var records []txt.Record
	for _, e := range entries {
		value := e.Record
		switch e.State {
		case keyring.Removed:
			continue
		case keyring.Revoked:
			value = "v=DKIM1; p="
		}
		records = append(records, txt.Record{Name: rotation.Name(e.Domain, e.Selector), Value: value, TTL: ttl})
	}
	if len(records) == 0 {
		return fmt.Errorf("there is nothing to publish: all these keys are removed")
	}
	if err := txt.Format(a.out, format, records...); err != nil {
		return usage("%w (formats are %s)", err, strings.Join(txt.Formats(), ", "))
	}
	return nil
}

type dkimCheckCmd struct {
	Domain   string `arg:"" help:"Domain."`
	Selector string `arg:"" optional:"" help:"Only this key's."`
}

// Run checks records; one that is not as it should be makes it fail.
func (d dkimCheckCmd) Run(a *app) error {
	k, err := a.dkimKeys(dkimWish{})
	if err != nil {
		return err
	}
	entries, err := k.of(a.ctx, d.Domain, d.Selector)
	if err != nil {
		return err
	}
	dns, err := dkim.NewDNS(k.config, nil)
	if err != nil {
		return err
	}
	bad := false
	for _, e := range entries {
		if e.State == keyring.Removed && d.Selector == "" {
			continue
		}
		report := rotation.Check(a.ctx, dns, e, dkim.PolicyOf(k.config).Resolvers)
		bad = bad || !report.OK()
		if a.flags.JSON {
			err = a.print(report)
		} else {
			a.say("%s (%s)\n", report.String(), e.State)
		}
		if err != nil {
			return err
		}
	}
	if bad {
		return errSaid
	}
	return nil
}
