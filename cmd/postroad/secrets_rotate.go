package main

import (
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"postroad/cmd/internal/secrets"
	"postroad/cmd/internal/secrets/authority"
	"postroad/ingress/account"
)

type secretsRotateCmd struct {
	CA         bool          `name:"ca" help:"Make a new root. The old one vouches for it, so that clients that know only the old one verify what the new one issues."`
	ServerCert []string      `name:"server-cert" placeholder:"NAME" help:"Make a new key and certificate for tls/NAME; again for more. With pki/ROLE the nodes renew now what Vault issues to them."`
	Client     []string      `placeholder:"NAME" help:"Give a client a new password; again for more. The old one stays good for the grace."`
	Names      []string      `placeholder:"NAMES" help:"What the server's certificate is for: host names and addresses, with commas. Default: what the present one is for."`
	Grace      time.Duration `placeholder:"AGE" default:"24h" help:"How long old passwords stay good; 0 ends them now. Default: 24h."`
	Wait       time.Duration `placeholder:"AGE" default:"60s" help:"How long to wait until all ingress nodes serve a new certificate. Default: 60s."`
	Authority  string        `placeholder:"NAME" default:"postroad" help:"Name of the authority. Default: postroad."`

	Again       bool `help:"A client whose old password is still good is refused, because a third would end that. With this its newest one, which nobody has been given, is replaced, and the old one stays good."`
	TakeOver    bool `help:"Replace a certificate that somebody else has issued: clients that know only that authority will refuse ours."`
	DistrustOld bool `help:"With --ca: the new root stands alone, and clients that do not know it yet refuse servers. For a root whose key somebody else has."`
	DryRun      bool `help:"Only say what would happen."`
}

// check finds what is wrong with the command line.
func (r *secretsRotateCmd) check() error {
	for i, name := range r.Client {
		clean, err := clientName(name)
		if err != nil {
			return err
		}
		r.Client[i] = clean
	}
	for _, list := range [][]string{r.ServerCert, r.Client} {
		for i, name := range list {
			if slices.Contains(list[:i], name) {
				return usage("%s is named twice", name)
			}
		}
	}
	for _, name := range r.Names {
		if _, err := authority.CheckName(name); err != nil {
			return usage("--names: %w", err)
		}
	}
	switch {
	case !r.CA && len(r.ServerCert) == 0 && len(r.Client) == 0:
		return usage("say what is to be rotated: --ca, --server-cert NAME, --client NAME, or several of them")
	case len(r.Names) > 0 && len(r.ServerCert) != 1:
		return usage("--names goes with one --server-cert")
	case r.DistrustOld && !r.CA:
		return usage("--distrust-old goes with --ca")
	case r.Grace < 0 || r.Wait < 0:
		return usage("--grace and --wait must not be negative")
	}
	return nil
}

// renewal is one run of the command. All that can be refused is refused by prepare, before anything is written.
type renewal struct {
	*secretsRotateCmd
	a       *app
	secrets *secrets.Secrets
	clients secrets.ClientStore
	now     time.Time

	root    *authority.Authority // that issues: the new one, or the present one; nil: there is none
	rootWas *authority.Authority // before; nil: there was none
	rootAt  secrets.Version
	pairs   []*newPair
	steps   []*step
	report  renewalReport
}

// newPair is a server's certificate that is to be put in place.
type newPair struct {
	name   string
	before *x509.Certificate // nil: there was none
	at     secrets.Version
	pair   *authority.Pair
}

// step is one thing to be done, in their order.
type step struct {
	row  *renewalRow
	flag string // that does this step alone
	do   func() error
}

// Run rotates.
func (r *secretsRotateCmd) Run(a *app) error {
	if err := r.check(); err != nil {
		return err
	}
	if isIssued, err := r.isIssued(); err != nil {
		return err
	} else if isIssued {
		return r.renew(a)
	}
	s, err := a.secrets()
	if err != nil {
		return err
	}
	run := &renewal{secretsRotateCmd: r, a: a, secrets: s, now: time.Now()}
	run.report.DryRun = r.DryRun
	if err := run.prepare(); err != nil {
		return fmt.Errorf("nothing is changed: %w", err)
	}
	if r.DryRun {
		if a.flags.JSON {
			return a.print(run.report)
		}
		return nil
	}
	err = run.write()
	if err == nil {
		err = run.awaitCertificates()
	}
	return run.end(err)
}

// note says what happens, and keeps it for JSON.
func (r *renewal) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.report.Notes = append(r.report.Notes, text)
	if !r.a.flags.JSON {
		r.a.tell("%s\n", text)
	}
}

// would is note for what a dry run only says.
func (r *renewal) would(format string, args ...any) {
	if r.DryRun {
		r.note("would "+format, args...)
	}
}

// prepare reads what there is, makes what is to come, and refuses what would do harm.
func (r *renewal) prepare() error {
	if err := r.prepareRoot(); err != nil {
		return err
	}
	for _, name := range r.ServerCert {
		if err := r.prepareServer(name); err != nil {
			return err
		}
	}
	return r.prepareClients()
}

func (r *renewal) prepareRoot() error {
	if !r.CA && len(r.ServerCert) == 0 {
		return nil
	}
	var err error
	r.rootWas, r.rootAt, err = r.secrets.Authority(r.a.ctx, r.Authority, true)
	if errors.Is(err, secrets.ErrNotThere) {
		r.rootWas, err = nil, nil
	}
	if r.root = r.rootWas; err != nil || !r.CA {
		return err
	}
	switch {
	case r.rootWas == nil || r.DistrustOld:
		r.root, err = authority.New(r.now)
	case !r.now.Before(r.rootWas.Root.NotAfter):
		err = fmt.Errorf("the root has ended on %s and vouches for nothing any more: begin anew with --distrust-old", r.rootWas.Root.NotAfter.Format(time.DateOnly))
	default:
		r.root, err = r.rootWas.Successor(r.now)
		if errors.Is(err, authority.ErrTooMany) {
			err = fmt.Errorf("%w, and each handshake carries one certificate for each: give all clients what postroad secrets ca prints, then begin anew with --distrust-old", err)
		}
	}
	if err != nil {
		return fmt.Errorf("ca/%s: %w", r.Authority, err)
	}
	r.would("make a new root ca/%s: ECDSA P-256, until %s", r.Authority, r.root.Root.NotAfter.Format(time.DateOnly))
	switch {
	case r.rootWas == nil:
	case r.DistrustOld:
		r.note("clients that do not know the new root refuse servers as soon as these have its certificates")
	default:
		r.would("let the present one, %s, vouch for it; clients that know only that one verify as before, until %s", r.rootWas.Root.Subject.CommonName,
			r.rootWas.Root.NotAfter.Format(time.DateOnly))
	}
	row := r.row(secrets.KindAuthority, r.Authority)
	if r.rootWas != nil {
		row.Old = authority.Fingerprint(r.rootWas.Root)
	}
	r.steps = append(r.steps, &step{row: row, flag: "--ca", do: func() error { return r.writeRoot(row) }})
	return nil
}

func (r *renewal) prepareServer(name string) error {
	p := &newPair{name: name}
	chain, at, err := r.secrets.ServerPair(r.a.ctx, name)
	if p.at = at; err == nil {
		p.before = chain[0]
	} else if !errors.Is(err, secrets.ErrNotThere) {
		return err
	}
	request := authority.Request{Names: r.Names, Now: r.now}
	if p.before != nil {
		_, request.RSA = p.before.PublicKey.(*rsa.PublicKey)
		if len(r.Names) == 0 {
			request.Names = authority.Names(p.before)
		}
		if err := r.mayReplace(name, p.before); err != nil {
			return err
		}
	}
	if len(request.Names) == 0 {
		return usage("there is no tls/%s that names could be taken from: give --names", name)
	}
	issuer := "itself"
	if r.root == nil {
		p.pair, err = authority.SelfSigned(request)
		r.note("tls/%s: there is no authority ca/%s, so the certificate is signed by itself: clients that verify refuse it unless they are given it; --ca makes an authority", name, r.Authority)
	} else {
		p.pair, err = r.root.Issue(request)
		issuer = "ca/" + r.Authority
	}
	if err != nil {
		return fmt.Errorf("tls/%s: %w", name, err)
	}
	leaf := p.pair.Leaf
	r.would("make a new key and certificate tls/%s: %s, for %s, until %s, issued by %s", name, secrets.Algorithm(leaf), strings.Join(authority.Names(leaf), ", "),
		leaf.NotAfter.Format(time.DateOnly), issuer)
	r.pairs = append(r.pairs, p)
	row := r.row(secrets.KindTLS, name)
	if p.before != nil {
		row.Old = authority.Fingerprint(p.before)
	}
	r.steps = append(r.steps, &step{row: row, flag: "--server-cert " + name, do: func() error { return r.writePair(p, row) }})
	return nil
}

// mayReplace refuses to replace a certificate that clients verify by an authority that is not ours.
func (r *renewal) mayReplace(name string, before *x509.Certificate) error {
	switch {
	case r.TakeOver:
		return nil
	case authority.IsSelfSigned(before):
		r.note("tls/%s was signed by itself: clients that were given it must be given what comes now", name)
		return nil
	case r.root != nil && r.root.HasIssued(before) || r.rootWas != nil && r.rootWas.HasIssued(before):
		return nil
	}
	return fmt.Errorf("tls/%s was issued by %q, and clients that know only that authority would refuse one of ours: ask it for a new one, or give --take-over", name, before.Issuer)
}

func (r *renewal) prepareClients() error {
	if len(r.Client) == 0 {
		return nil
	}
	var err error
	if r.clients, err = r.secrets.Clients(); err != nil {
		return err
	}
	for _, name := range r.Client {
		c, err := r.clients.Latest(r.a.ctx, name)
		if errors.Is(err, account.ErrUnknown) || errors.Is(err, fs.ErrNotExist) {
			return noClient(r.a, r.clients, name)
		}
		if err != nil {
			return err
		}
		if _, _, err := r.password(c.Clone(), ""); err != nil {
			return err
		}
		row := r.row(secrets.KindClients, name)
		if len(c.Passwords) > 0 {
			row.Old = c.Passwords[0].ID
		}
		r.would("give client %s a new password", name)
		if r.DryRun && len(c.Passwords) > 0 {
			r.would("keep %s, its present one, good for %s", c.Passwords[0].ID, age(r.Grace))
		}
		r.steps = append(r.steps, &step{row: row, flag: "--client " + name, do: func() error { return r.writePassword(name, row) }})
	}
	return nil
}

// password gives a client its new one; "" only finds out whether that is possible.
func (r *renewal) password(c *account.Client, password string) (*account.Client, *clientReport, error) {
	now := time.Now()
	var good []account.Password
	for _, p := range c.Passwords {
		if p.ValidAt(now) {
			good = append(good, p)
		}
	}
	report := &clientReport{Client: c.Name, Action: "updated", DryRun: r.DryRun}
	if len(good) > 1 {
		newest, older := good[0], good[1]
		if !r.Again {
			return nil, nil, fmt.Errorf("client %s was given its newest password (%s) %s ago, and the one before (%s) is good until %s. A third would end that, which clients may still use: "+
				"wait for its end, or see that nobody uses it (postroad secrets list --old-passwords) and end it with postroad client passwd %s; if nobody was ever given the newest one, --again replaces it",
				c.Name, newest.ID, age(now.Sub(newest.Created)), older.ID, older.NotAfter.Local().Format(time.DateTime), c.Name)
		}
		older.NotAfter = time.Time{} // its grace begins anew
		c.Passwords = []account.Password{older}
		report.change("%s, which nobody was given, is replaced", newest.ID)
	}
	if password == "" {
		return c, report, nil
	}
	return c, report, clientPasswdCmd{Grace: r.Grace}.set(c, password, account.Generated, report)
}
