package main

import (
	"errors"
	"fmt"
	"time"

	"postroad/cmd/internal/secrets"
	"postroad/cmd/internal/secrets/authority"
	"postroad/ingress/account"
)

// readLimit bounds the look at what was written, which is taken also when the command is interrupted.
const readLimit = 15 * time.Second

// write does all steps in their order, up to the first that fails. Servers show certificates of the new root only when that is stored, and
// what they show is good for clients of the old one: at no moment is there anything that a client would refuse.
func (r *renewal) write() error {
	for _, s := range r.steps {
		if err := r.a.ctx.Err(); err != nil {
			return fmt.Errorf("interrupted: %w", err)
		}
		if err := s.do(); err != nil {
			return err
		}
	}
	return nil
}

// notOurs explains why something else was read back than was written.
func notOurs(writeErr error, row *renewalRow) error {
	row.New = ""
	if writeErr != nil {
		return writeErr // so it has not happened
	}
	return fmt.Errorf("%s is not what was written a moment ago: somebody else has changed it", row.Secret)
}

func (r *renewal) writeRoot(row *renewalRow) error {
	row.New = authority.Fingerprint(r.root.Root)
	_, writeErr := r.secrets.StoreAuthority(r.a.ctx, r.Authority, r.root, r.rootAt)
	if writeErr != nil && !errors.Is(writeErr, secrets.ErrMaybe) {
		return writeErr
	}
	ctx, cancel := r.a.finish()
	defer cancel()
	stored, at, err := r.secrets.Authority(ctx, r.Authority, true)
	if err != nil {
		return errors.Join(writeErr, fmt.Errorf("read back what was written: %w", err))
	}
	if authority.Fingerprint(stored.Root) != row.New {
		return notOurs(writeErr, row)
	}
	row.stored(at, "for what it issues")
	r.note("ca/%s: new root %s", r.Authority, stored.Root.Subject.CommonName)
	if err := r.secrets.ForgetRoots(ctx, r.Authority); err != nil {
		r.note("the key of the old root, which nobody needs any more, is still in an old version of the secret: %v: destroy that by hand", err)
	}
	return nil
}

func (r *renewal) writePair(p *newPair, row *renewalRow) error {
	row.New = authority.Fingerprint(p.pair.Leaf)
	_, writeErr := r.secrets.StorePair(r.a.ctx, p.name, p.pair, p.at)
	if writeErr != nil && !errors.Is(writeErr, secrets.ErrMaybe) {
		return writeErr
	}
	ctx, cancel := r.a.finish()
	defer cancel()
	leaf, at, err := r.secrets.CheckPair(ctx, p.name)
	if err != nil {
		return errors.Join(writeErr, fmt.Errorf("read back what was written: %w", err))
	}
	if authority.Fingerprint(leaf) != row.New {
		return notOurs(writeErr, row)
	}
	row.stored(at, "")
	r.note("tls/%s: new %s certificate until %s", p.name, secrets.Algorithm(leaf), leaf.NotAfter.Format(time.DateOnly))
	r.a.notify(topicTLS, p.name)
	return nil
}

// writePassword sets a password and prints it at once: it is in force, and nobody else knows it.
func (r *renewal) writePassword(name string, row *renewalRow) error {
	password := account.GeneratePassword()
	var report *clientReport
	var wanted *account.Client
	writeErr := changeClient(r.a, r.clients, name, false, func(c *account.Client) (*account.Client, error) {
		if c == nil {
			return nil, noClient(r.a, r.clients, name)
		}
		var err error
		wanted, report, err = r.password(c, password)
		return wanted, err
	})
	if writeErr != nil && !errors.Is(writeErr, errUnclear) || wanted == nil {
		return writeErr
	}
	ctx, cancel := r.a.finish()
	defer cancel()
	row.New = wanted.Passwords[0].ID
	e, err := r.secrets.Client(ctx, name, time.Now())
	if err != nil {
		// It may be in force, and then nobody could log in with it unless it is told.
		r.report.Passwords = append(r.report.Passwords, newPassword{name, row.New, password, false})
		return errors.Join(writeErr, fmt.Errorf("read back what was written: %w", err))
	}
	if len(e.Passwords) == 0 || e.Passwords[0].ID != row.New {
		return notOurs(writeErr, row)
	}
	row.stored(e.Version, r.howSoon())
	report.PasswordID = row.New
	if !r.a.flags.JSON {
		r.a.tellReport(report)
	}
	r.report.Passwords = append(r.report.Passwords, newPassword{name, row.New, password, true})
	return r.printPassword(name, password)
}

// howSoon is when every node knows of a new password: nodes look when somebody comes with one that they do not know.
func (r *renewal) howSoon() string {
	if r.secrets.IsVault() {
		return "within a second on all nodes"
	}
	return "on all nodes"
}

// printPassword prints it on standard output, where nothing else goes: alone, or behind its client's name when there are several.
func (r *renewal) printPassword(name, password string) error {
	if r.a.flags.JSON {
		return nil // in the report
	}
	line := password
	if len(r.Client) > 1 {
		line = name + " " + password
	}
	if _, err := fmt.Fprintln(r.a.out, line); err != nil {
		return fmt.Errorf("print the password of %s, which is in force now and seen by nobody (--again makes another): %w", name, err)
	}
	return nil
}
