package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"postroad/ingress/account"
)

type clientAddCmd struct {
	clientFlags `embed:""`
	Class       string   `placeholder:"WORD" help:"Limits go by it: host, user, service."`
	Sender      []string `placeholder:"ADDRESS" help:"Sender that it may use: user@domain, @domain, or .domain for every domain below it; again for more, any for all. Default: any."`
	Network     []string `placeholder:"NETWORK" help:"Where it may log in from, such as 10.0.0.0/8; again for more, any for everywhere. Default: any."`
	Certificate []string `placeholder:"NAME" help:"Client certificate that is as good as a password: a DNS name in it, or sha256: and its fingerprint; again for more, any removes them."`
	Host        bool     `help:"NAME is the full name of a host: the client gets its short name and class host, and may log in by a certificate for the full name."`
	NoPassword  bool     `help:"Make no password, for a client that has a certificate."`
}

// wish is what the command line wants of a client. What is nil stays as it is.
type wish struct {
	name         string
	class        string
	networks     []netip.Prefix
	senders      []account.Sender
	certificates []account.Certificate
}

// wish reads the command line.
func (c clientAddCmd) wish() (w wish, err error) {
	full := strings.ToLower(c.Name)
	name := full
	w.class = c.Class
	certificates := c.Certificate
	if c.Host {
		name, _, _ = strings.Cut(full, ".")
		if w.class == "" {
			w.class = "host"
		}
		if len(certificates) == 0 && name != full {
			certificates = []string{full}
		}
	}
	if w.name, err = clientName(name); err != nil {
		return w, err
	}
	if err := account.CheckClass(w.class); err != nil {
		return w, usage("--class: %w", err)
	}
	if w.networks, err = readAll("--network", c.Network, account.ParseNetwork); err != nil {
		return w, err
	}
	if w.senders, err = readAll("--sender", c.Sender, account.ParseSender); err != nil {
		return w, err
	}
	w.certificates, err = readAll("--certificate", certificates, account.ParseCertificate)
	return w, err
}

// readAll reads the values of a flag: nil when it was not given, empty for "any".
func readAll[T comparable](flag string, values []string, parse func(string) (T, error)) ([]T, error) {
	if len(values) == 0 {
		return nil, nil
	}
	list := []T{}
	for _, text := range values {
		if text == "any" {
			if len(values) > 1 {
				return nil, usage("%s any stands alone", flag)
			}
			return list, nil
		}
		value, err := parse(text)
		if err != nil {
			return nil, usage("%s %w", flag, err)
		}
		if !slices.Contains(list, value) {
			list = append(list, value)
		}
	}
	return list, nil
}

// apply changes a client as wished, and notes what changed.
func (w wish) apply(c *account.Client, r *clientReport) {
	if w.class != "" && w.class != c.Class {
		r.change("class: %s, was %s", w.class, orWord(c.Class, "none"))
		c.Class = w.class
	}
	applyList(&c.Networks, w.networks, "networks", "any", r)
	applyList(&c.Senders, w.senders, "senders", "any", r)
	applyList(&c.Certificates, w.certificates, "certificates", "none", r)
}

func applyList[T comparable](have *[]T, want []T, name, empty string, r *clientReport) {
	isSame := len(want) == len(*have)
	for _, entry := range want {
		isSame = isSame && slices.Contains(*have, entry)
	}
	if want == nil || isSame {
		return
	}
	r.change("%s: %s, was %s", name, listed(want, empty), listed(*have, empty))
	*have = want
}

// listed prints a list in one line.
func listed[T any](list []T, empty string) string {
	parts := make([]string, len(list))
	for i, entry := range list {
		parts[i] = fmt.Sprint(entry)
	}
	return orWord(strings.Join(parts, ", "), empty)
}

func orWord(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// Run adds or changes. Given the same again, it changes nothing.
func (c clientAddCmd) Run(a *app) error {
	w, err := c.wish()
	if err != nil {
		return err
	}
	store, err := a.clients()
	if err != nil {
		return err
	}
	password := account.GeneratePassword()
	var r *clientReport
	err = changeClient(a, store, w.name, c.DryRun, func(known *account.Client) (*account.Client, error) {
		r = &clientReport{Client: w.name, DryRun: c.DryRun}
		if known != nil {
			w.apply(known, r)
			if known.Disabled {
				r.note("it is disabled: postroad client enable %s", w.name)
			}
			if r.Action = "updated"; len(r.Changes) == 0 {
				r.Action = "unchanged"
				return nil, nil
			}
			return known, nil
		}
		if c.NoPassword {
			password = ""
		}
		return w.create(password, r)
	})
	if err != nil {
		return a.reportUnclear(r, err)
	}
	return a.report(r)
}

// create makes a new client; without a password it can log in by certificate only.
func (w wish) create(password string, r *clientReport) (*account.Client, error) {
	fresh := &account.Client{Name: w.name}
	w.apply(fresh, r)
	r.Action, r.Changes = "created", settings(fresh)
	if password == "" {
		if len(fresh.Certificates) == 0 {
			r.note("it has neither a password nor a certificate: it cannot log in")
		}
		return fresh, nil
	}
	if _, err := fresh.SetPassword(password, account.Generated, time.Now(), 0); err != nil {
		return nil, err
	}
	if !r.DryRun {
		r.Password, r.PasswordID = password, fresh.Passwords[0].ID
	}
	return fresh, nil
}

// settings are all that a client may do, one line each.
func settings(c *account.Client) []string {
	return []string{
		"class: " + orWord(c.Class, "none"),
		"networks: " + listed(c.Networks, "any"),
		"senders: " + listed(c.Senders, "any"),
		"certificates: " + listed(c.Certificates, "none"),
	}
}

type clientPasswdCmd struct {
	clientFlags `embed:""`
	Grace       time.Duration `placeholder:"AGE" default:"24h" help:"How long the old password stays good; 0 ends it now. Default: 24h."`
	Stdin       bool          `help:"Read the new password from standard input, one line. Otherwise one is made and printed."`
	SCRAM       bool          `name:"scram" help:"With --stdin: hash it for clients that insist on SCRAM, which guards it less well when the secrets are stolen."`
}

// Run sets a password.
func (p clientPasswdCmd) Run(a *app) error {
	name, err := clientName(p.Name)
	if err != nil {
		return err
	}
	if p.Grace < 0 {
		return usage("--grace must not be negative")
	}
	if p.SCRAM && !p.Stdin {
		return usage("--scram goes with --stdin: made passwords are good for SCRAM anyway")
	}
	store, err := a.clients()
	if err != nil {
		return err
	}
	password, kind := account.GeneratePassword(), account.Generated
	if p.Stdin {
		if password, err = readPassword(os.Stdin); err != nil {
			return err
		}
		if kind = account.Chosen; p.SCRAM {
			kind = account.ChosenSCRAM
		}
	}
	var r *clientReport
	err = changeClient(a, store, name, p.DryRun, func(c *account.Client) (*account.Client, error) {
		if c == nil {
			return nil, noClient(a, store, name)
		}
		r = &clientReport{Client: name, Action: "updated", DryRun: p.DryRun}
		if !p.Stdin && !p.DryRun {
			r.Password = password
		}
		return c, p.set(c, password, kind, r)
	})
	if err != nil {
		return a.reportUnclear(r, err)
	}
	return a.report(r)
}

// set gives the client its password, and notes what becomes of the others.
func (p clientPasswdCmd) set(c *account.Client, password string, kind account.Kind, r *clientReport) error {
	now := time.Now()
	dropped, err := c.SetPassword(password, kind, now, p.Grace)
	if err != nil {
		return err
	}
	r.change("the new password is good within a second")
	if !p.DryRun {
		r.PasswordID = c.Passwords[0].ID
	}
	if len(c.Passwords) > 1 {
		old := c.Passwords[1]
		r.OldPasswordID, r.OldGoodUntil = old.ID, old.NotAfter.Format(time.RFC3339)
		r.change("the old one (%s, of %s) stays good until %s", old.ID, day(old.Created), old.NotAfter.Local().Format(time.DateTime))
	}
	for _, d := range dropped {
		r.Dropped = append(r.Dropped, d.ID)
		why := "there is no grace"
		if p.Grace > 0 {
			why = "a client has two passwords at most"
		}
		r.change("the one before (%s, of %s) ends now: %s", d.ID, day(d.Created), why)
	}
	switch {
	case kind == account.Chosen:
		r.note("it is good for PLAIN and LOGIN; a client that insists on SCRAM needs --scram")
	case kind == account.ChosenSCRAM && len(c.Passwords) > 1 && c.Passwords[1].SCRAM != nil && c.Passwords[1].SCRAM.Iterations <= account.GeneratedIterations:
		r.note("it is hashed with the few iterations of the old password while both are good; set it again after the grace, or with --grace 0")
	}
	if c.Disabled {
		r.note("the client is disabled: postroad client enable %s", c.Name)
	}
	return nil
}

func day(t time.Time) string {
	if t.IsZero() { // a password that stands in the record itself
		return "an unknown day"
	}
	return t.Local().Format(time.DateOnly)
}

// maxPasswordLine is more than any password takes.
const maxPasswordLine = 4096

// readPassword reads one line.
func readPassword(in io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(in, maxPasswordLine)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the password: %w", err)
	}
	password := strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
	if err := account.CheckPassword(password); err != nil {
		return "", usage("%w", err)
	}
	return password, nil
}
