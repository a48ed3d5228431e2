package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"postroad/cmd/internal/dkim"
	"postroad/signer/keyring"
)

type dkimVerifyCmd struct {
	File string `arg:"" help:"File with the message as it arrived, header and all; - reads standard input."`
}

// Run verifies. A message without signatures fails as one does whose signatures are not all good.
func (d dkimVerifyCmd) Run(a *app) error {
	c, _, err := a.load()
	if err != nil {
		return err
	}
	dns, err := dkim.NewDNS(c, nil)
	if err != nil {
		return err
	}
	var in io.Reader = os.Stdin
	if d.File != "-" {
		f, err := os.Open(d.File)
		if err != nil {
			return fmt.Errorf("read message: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	signatures, err := dkim.Verify(a.ctx, dns, in)
	if err != nil {
		return err
	}
	return a.signatures(signatures)
}

// signatures prints what came of each signature; one that did not pass makes the command fail.
func (a *app) signatures(list []dkim.Signature) error {
	bad := false
	for _, s := range list {
		bad = bad || s.Result != dkim.Pass
		if a.flags.JSON {
			if err := a.print(s); err != nil {
				return err
			}
			continue
		}
		line := fmt.Sprintf("%-9s  d=%s s=%s a=%s", s.Result, clean(s.Domain, 253), clean(s.Selector, 253), clean(s.Algorithm, 30))
		if !s.Expires.IsZero() {
			line += "  expires " + s.Expires.Local().Format(time.DateTime)
		}
		if s.Why != "" {
			line += ": " + clean(s.Why, 500)
		}
		a.say("%s\n", line)
		for _, note := range s.Notes {
			a.say("           %s\n", note)
		}
	}
	if bad {
		return errSaid
	}
	return nil
}

type dkimTestSignCmd struct {
	Domain   string `arg:"" help:"Domain."`
	Selector string `help:"Only with this key, which need not sign yet: it may be published or generated."`
}

// Run signs a sample and verifies it.
func (d dkimTestSignCmd) Run(a *app) error {
	k, err := a.dkimKeys(dkimWish{})
	if err != nil {
		return err
	}
	dns, err := dkim.NewDNS(k.config, nil)
	if err != nil {
		return err
	}
	keys, err := d.keys(a, k)
	if err != nil {
		return err
	}
	signatures, err := dkim.TestSign(a.ctx, k.config, dns, keys)
	if err != nil {
		return err
	}
	return a.signatures(signatures)
}

// keys are those that sign, or the one that is meant.
func (d dkimTestSignCmd) keys(a *app, k *dkimKeys) ([]keyring.Key, error) {
	name, ok := keyring.CleanDomain(d.Domain)
	if !ok {
		return nil, usage("%q is no domain name", d.Domain)
	}
	if d.Selector == "" {
		keys, err := k.store.Keys(a.ctx, name)
		if errors.Is(err, keyring.ErrNoKey) {
			err = fmt.Errorf("no key of %s signs: postroad dkim status %s shows what there is, --selector tries one that does not sign yet", name, name)
		}
		return keys, err
	}
	key, err := k.store.Load(a.ctx, name, strings.ToLower(d.Selector))
	if errors.Is(err, keyring.ErrNoKey) {
		err = fmt.Errorf("%s has no key %s, or its private half is destroyed: postroad dkim status %s --all shows what there is", name, d.Selector, name)
	}
	return []keyring.Key{key}, err
}
