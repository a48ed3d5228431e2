package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"postroad/cmd/internal/secrets"
	"postroad/cmd/internal/secrets/authority"
)

type secretsSchemaCmd struct {
	Kind string `arg:"" optional:"" help:"Only dkim, clients, tls, smarthosts, ca or acme."`
}

// Run describes.
func (c secretsSchemaCmd) Run(a *app) error {
	if c.Kind != "" && !isKind(c.Kind) {
		return usage("there are no secrets of the kind %q: want dkim, clients, tls, smarthosts, ca or acme", c.Kind)
	}
	var kinds []secrets.Kind
	for _, k := range secrets.Schema() {
		if c.Kind == "" || c.Kind == k.Name {
			kinds = append(kinds, k)
		}
	}
	if a.flags.JSON {
		return a.print(kinds)
	}
	if c.Kind == "" {
		a.say("Secrets lie below one mount and prefix of Vault (secret/postroad/ unless told otherwise), or below a directory (secrets.dir):\n\n")
	}
	for i := range kinds {
		if i > 0 {
			a.say("\n")
		}
		if err := a.describe(&kinds[i]); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) describe(k *secrets.Kind) error {
	a.say("%s\n  %s\n  in a directory: %s\n", k.Path, k.Meaning, k.Files)
	a.say("  read by: %s\n  written by: %s\n\n", orWord(strings.Join(k.Readers, ", "), "no role, only administrators"), k.Writer)
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	for _, f := range k.Fields {
		var marks []string
		if f.Required {
			marks = append(marks, "required")
		}
		if f.Secret {
			marks = append(marks, "secret")
		}
		_, _ = fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", f.Name, f.Form, strings.Join(marks, ", "), f.Meaning)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	a.say("\n  # example: %s\n", k.Path)
	for line := range strings.SplitSeq(strings.TrimSuffix(k.Example, "\n"), "\n") {
		a.say("  %s\n", line)
	}
	return nil
}

// defaultAuthority is the name of the authority unless told otherwise.
const defaultAuthority = "postroad"

type secretsCACmd struct {
	Name string `arg:"" optional:"" default:"postroad" help:"Name of the authority. Default: postroad."`
}

// listedRoot is a root, for JSON.
type listedRoot struct {
	Name        string    `json:"name"`
	Fingerprint string    `json:"fingerprint"`
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Newest      bool      `json:"newest"`
	PEM         string    `json:"pem"`
}

// Run prints the roots: the new one and those before it that have not ended. Private keys are not read.
func (c secretsCACmd) Run(a *app) error {
	s, err := a.secrets()
	if err != nil {
		return err
	}
	au, _, err := s.Authority(a.ctx, c.Name, false)
	if errors.Is(err, secrets.ErrNotThere) {
		return fmt.Errorf("there is no authority ca/%s: postroad secrets rotate --ca makes one", c.Name)
	}
	if err != nil {
		return err
	}
	bundle := au.Bundle(time.Now())
	roots, err := authority.ParseCertificates(bundle)
	if err != nil {
		return err
	}
	for i, root := range roots {
		if a.flags.JSON {
			one := listedRoot{root.Subject.CommonName, authority.Fingerprint(root), root.NotBefore, root.NotAfter, i == 0, string(authority.EncodeCertificate(root))}
			if err := a.print(one); err != nil {
				return err
			}
			continue
		}
		a.say("# %s until %s, %s\n%s", root.Subject, root.NotAfter.Format(time.DateOnly), authority.Fingerprint(root), authority.EncodeCertificate(root))
	}
	return nil
}
