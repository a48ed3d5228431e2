package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"postroad/cmd/internal/secrets"
	"postroad/queue"
)

// renewalReport is what was done, for JSON.
type renewalReport struct {
	Rows      []*renewalRow `json:"secrets"`
	Passwords []newPassword `json:"passwords,omitempty"`
	Notes     []string      `json:"notes,omitempty"`
	GoOn      string        `json:"go_on,omitempty"` // the command for what is missing
	Complete  bool          `json:"complete"`
	DryRun    bool          `json:"dry_run,omitempty"`
}

type newPassword struct {
	Client   string `json:"client"`
	ID       string `json:"password_id"`
	Password string `json:"password"`
	Stored   bool   `json:"stored"` // false: nobody knows
}

// renewalRow is a line of the table that ends a rotation. It says what was read back, not what was meant.
type renewalRow struct {
	Secret       string    `json:"secret"`
	Old          string    `json:"old,omitempty"` // fingerprint, or id of a password
	New          string    `json:"new,omitempty"`
	Version      string    `json:"version,omitempty"`
	InForce      string    `json:"in_force,omitempty"`
	InForceSince time.Time `json:"in_force_since,omitzero"`
	Missing      string    `json:"missing,omitempty"` // what is not as it should be
	isStored     bool
}

func (r *renewal) row(kind, name string) *renewalRow {
	row := &renewalRow{Secret: kind + "/" + name}
	r.report.Rows = append(r.report.Rows, row)
	return row
}

// stored says that the secret was read back.
func (row *renewalRow) stored(v secrets.Version, inForce string) {
	row.Version, row.isStored, row.InForce = v.String(), true, inForce
	row.InForceSince = v.Modified
}

// nodesEvery is how often nodes are asked what they serve.
const nodesEvery = time.Second

// awaitCertificates waits until all ingress nodes that serve the new certificates have them in force. Without a running server nothing is
// known of that.
func (r *renewal) awaitCertificates() error {
	if len(r.pairs) == 0 {
		return nil
	}
	client, err := r.a.client()
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(r.a.ctx, max(r.Wait, nodesEvery))
	defer cancel()
	told := false
	for {
		nodes, err := client.Nodes(wait)
		if err != nil && wait.Err() == nil && !told {
			r.note("whether the certificate is in force is not known here; an ingress looks every 10 seconds (%v)", err)
			for _, p := range r.pairs {
				r.rowOf(p).InForce, r.rowOf(p).InForceSince = "not known", time.Time{}
			}
			return nil
		}
		isDone := true
		if err == nil {
			told = true
			for _, p := range r.pairs {
				isDone = r.rowOf(p).serve(nodes, p, time.Now()) && isDone
			}
		}
		if err == nil && isDone {
			return nil
		}
		select {
		case <-wait.Done():
			return r.notInForce()
		case <-time.After(nodesEvery):
		}
	}
}

func (r *renewal) rowOf(p *newPair) *renewalRow {
	for _, row := range r.report.Rows {
		if row.Secret == secrets.KindTLS+"/"+p.name {
			return row
		}
	}
	return &renewalRow{}
}

// serve notes where a certificate is in force, and reports that this is everywhere.
func (row *renewalRow) serve(nodes []queue.Node, p *newPair, now time.Time) bool {
	serving := certificatesOf(nodes, p.name)
	var late []string
	for node, fingerprint := range serving {
		if fingerprint != row.New {
			late = append(late, node)
		}
	}
	row.Missing = ""
	switch {
	case len(serving) == 0 && p.before == nil:
		row.InForce, row.InForceSince = "no node serves it yet", time.Time{}
		return true
	case len(serving) == 0:
		row.InForce, row.Missing = "on no node", "no ingress node says that it serves tls/"+p.name
		return false
	}
	row.InForce = fmt.Sprintf("on %d of %d nodes", len(serving)-len(late), len(serving))
	if len(late) > 0 {
		row.Missing = "not in force on " + strings.Join(late, ", ")
		return false
	}
	row.InForceSince = now
	return true
}

// notInForce says what is wrong when the time is over. What is stored stays, and what nodes serve meanwhile is good.
func (r *renewal) notInForce() error {
	for _, p := range r.pairs {
		row := r.rowOf(p)
		if row.InForce == "" { // no node was ever heard
			row.InForce, row.Missing = "not known", "no answer from the server"
		}
		if row.Missing != "" {
			row.InForceSince = time.Time{}
		}
	}
	return errors.New("a new certificate is stored and not in force everywhere. Nodes go on with the one before; their logs say why. " +
		"postroad secrets list tls tells when they follow: nothing need be done again")
}

// end prints the table and says how to go on.
func (r *renewal) end(err error) error {
	var left []string
	for _, s := range r.steps {
		if !s.row.isStored {
			left = append(left, s.flag)
			if s.row.Missing == "" {
				s.row.Missing = "not done"
				if s.row.New != "" {
					s.row.Missing = "not seen in " + r.secrets.Where()
				}
				s.row.InForceSince = time.Time{}
			}
		}
	}
	r.report.Complete = err == nil
	if len(left) > 0 {
		r.report.GoOn = r.goOn(left)
	}
	if r.a.flags.JSON {
		return errors.Join(r.a.print(r.report), err)
	}
	r.a.tell("\n")
	r.table()
	r.tellUncertain()
	if len(left) > 0 {
		r.a.tell("\nwhat has a version in this table is done. Go on with this, not with the whole command again, which may replace what is new:\n  %s\n", r.report.GoOn)
	}
	if len(left) == 0 {
		r.tellNext()
	}
	return err
}

// goOn is the command for what is left.
func (r *renewal) goOn(left []string) string {
	words := append([]string{"postroad secrets rotate"}, left...)
	line := strings.Join(words, " ")
	if strings.Contains(line, "--server-cert") && len(r.Names) > 0 {
		line += " --names " + strings.Join(r.Names, ",")
	}
	hasCA, hasServer := slices.Contains(left, "--ca"), strings.Contains(line, "--server-cert")
	// A root that stands alone has issued nothing that is in force: what is, comes from somebody else now.
	isAlone := r.DistrustOld && !hasCA && r.rootWas != nil
	if r.TakeOver || isAlone && hasServer {
		line += " --take-over"
	}
	if r.DistrustOld && hasCA {
		line += " --distrust-old"
	}
	if r.Again && strings.Contains(line, "--client") {
		line += " --again"
	}
	if r.Authority != defaultAuthority {
		line += " --authority " + r.Authority
	}
	if strings.Contains(line, "--client") && r.Grace != 24*time.Hour {
		line += " --grace " + r.Grace.String()
	}
	return line
}

func (r *renewal) table() {
	t := tabwriter.NewWriter(r.a.err, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "SECRET\tOLD\tNEW\tVERSION\tIN FORCE\tSINCE")
	for _, row := range r.report.Rows {
		since := "-"
		if !row.InForceSince.IsZero() {
			since = row.InForceSince.Local().Format(time.DateTime)
		}
		inForce := orWord(row.InForce, "-")
		if row.Missing != "" {
			inForce += " (MISSING: " + row.Missing + ")"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", row.Secret, shortPrint(row.Old), shortPrint(row.New), orWord(row.Version, "-"), inForce, since)
	}
	_ = t.Flush()
}

// shortPrint is enough of a fingerprint for people.
func shortPrint(text string) string {
	const digits = 16
	if sum, is := strings.CutPrefix(text, "sha256:"); is && len(sum) > digits {
		return "sha256:" + sum[:digits] + "…"
	}
	return orWord(text, "-")
}

// tellUncertain prints passwords of which nobody knows whether they are in force.
func (r *renewal) tellUncertain() {
	for _, p := range r.report.Passwords {
		if !p.Stored {
			r.a.tell("\nnobody answers whether the new password of %s is in force. If postroad secrets list --json clients shows %s as its newest, it is this one:\n", p.Client, p.ID)
			_ = r.printPassword(p.Client, p.Password)
		}
	}
}

// tellNext says what remains to be done elsewhere.
func (r *renewal) tellNext() {
	if r.CA && r.rootWas != nil && !r.DistrustOld {
		r.a.tell("\nclients that know only an old root verify as before, until it ends. Give them the new one at leisure: postroad secrets ca\n")
	} else if r.CA {
		r.a.tell("\ngive clients the root: postroad secrets ca\n")
	}
	if len(r.Client) > 0 && r.Grace > 0 {
		r.a.tell("\nboth passwords are good for %s. Who still uses the old one: postroad secrets list --old-passwords\n", age(r.Grace))
	}
}
