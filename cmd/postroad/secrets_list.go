package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"postroad/cmd/internal/secrets"
	"postroad/queue"
)

type secretsCmd struct {
	List   secretsListCmd   `cmd:"" help:"List all secrets: versions, ages, ends, states, and when clients used their passwords last. Never a secret itself."`
	Schema secretsSchemaCmd `cmd:"" help:"Describe the tree of secrets: every field, and who may read it."`
	Rotate secretsRotateCmd `cmd:"" help:"Replace the authority, certificates of servers and passwords of clients, any of them, and see them in force."`
	ACME   secretsACMECmd   `cmd:"" name:"acme" help:"Have a certificate of a server issued by a public authority, or your own one, by ACME with a record in the DNS; does nothing until it is due. For a timer."`
	CA     secretsCACmd     `cmd:"" name:"ca" help:"Print the roots that clients should trust, in PEM."`
}

type secretsListCmd struct {
	Kind         string `arg:"" optional:"" help:"Only dkim, clients, tls, smarthosts, ca or acme."`
	OldPasswords bool   `help:"Only clients that have used an old password since they have a new one: when, from which address, and at which node."`
}

// listedSecret is an entry with what the cluster knows of it.
type listedSecret struct {
	secrets.Entry
	LastUse *queue.Use  `json:"last_use,omitempty"` // of a client, with whichever password
	Uses    []queue.Use `json:"uses,omitempty"`
	UseIs   string      `json:"use_is,omitempty"` // known, never or unknown: no server answers
	InForce []string    `json:"in_force,omitempty"`
	Serves  int         `json:"serving_nodes,omitempty"` // that have a certificate of this name
}

// Run lists.
func (l secretsListCmd) Run(a *app) error {
	if l.Kind = strings.Trim(l.Kind, "/"); l.Kind != "" && !isKind(l.Kind) {
		return usage("there are no secrets of the kind %q: want dkim, clients, tls, smarthosts, ca or acme", l.Kind)
	}
	if l.OldPasswords && l.Kind != "" && l.Kind != secrets.KindClients {
		return usage("--old-passwords is about clients")
	}
	s, err := a.secrets()
	if err != nil {
		return err
	}
	if l.OldPasswords {
		return a.oldPasswords(s)
	}
	now := time.Now()
	entries, listErr := s.Entries(a.ctx, l.Kind, now)
	seen := a.look()
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	var problems []string
	for i := range entries {
		one := seen.of(&entries[i])
		if a.flags.JSON {
			if err := a.print(one); err != nil {
				return err
			}
			continue
		}
		if i == 0 {
			_, _ = fmt.Fprintln(t, "KIND\tNAME\tVERSION\tAGE\tEXPIRES\tSTATE\tLAST USE")
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", one.Kind, one.Name, one.Version, ageOf(one.Since, now), endOf(one.Expires, now),
			seen.state(&one), seen.lastUse(&one, now))
		if one.Problem != "" {
			problems = append(problems, one.Problem)
		}
	}
	if len(entries) == 0 && listErr == nil && !a.flags.JSON {
		a.tell("there are no secrets in %s; postroad secrets schema tells what can be there\n", s.Where())
	}
	err = errors.Join(t.Flush(), listErr)
	for _, p := range problems {
		a.tell("postroad: %s\n", clean(p, 500))
	}
	if len(problems) > 0 && err == nil {
		err = errSaid
	}
	return err
}

func isKind(name string) bool {
	for _, k := range secrets.Schema() {
		if k.Name == name {
			return true
		}
	}
	return false
}

func ageOf(since, now time.Time) string {
	if since.IsZero() {
		return "-"
	}
	return age(now.Sub(since))
}

func endOf(end, now time.Time) string {
	switch {
	case end.IsZero():
		return "-"
	case end.After(now):
		return "in " + age(end.Sub(now))
	}
	return age(now.Sub(end)) + " ago"
}

// state is that of the entry; of a certificate also where it is in force.
func (seen *sight) state(e *listedSecret) string {
	if e.Kind != secrets.KindTLS || e.Problem != "" {
		return orWord(e.State, "-")
	}
	switch {
	case seen.err != nil:
		return "-"
	case e.Serves == 0:
		return "no node serves it"
	}
	return fmt.Sprintf("in force on %d of %d nodes", len(e.InForce), e.Serves)
}

func (seen *sight) lastUse(e *listedSecret, now time.Time) string {
	switch {
	case e.Kind != secrets.KindClients:
		return "-"
	case e.LastUse == nil:
		return e.UseIs
	}
	text := age(now.Sub(e.LastUse.Last)) + " ago"
	if old := oldUse(&e.Entry, e.Uses); old != nil {
		text += fmt.Sprintf("; an old password %s ago", age(now.Sub(old.use.Last)))
	}
	return text
}

// notedEvery is how often uses of one password are noted: an earlier one may stand for a later one.
const notedEvery = 10 * time.Minute

// oldUsed is a use of a password after another one took its place.
type oldUsed struct {
	use    queue.Use
	old    secrets.Password
	newest secrets.Password
	isSure bool // it was noted after the newest was made, not just before
}

// oldUse finds the use of an old password that is good still. One that was noted shortly before the newest was made counts too: others
// after it may not have been noted.
func oldUse(e *secrets.Entry, uses []queue.Use) *oldUsed {
	for i, old := range e.Passwords {
		if i == 0 || !old.Good {
			continue
		}
		for _, u := range uses {
			newest := e.Passwords[0]
			if u.Password == old.ID && u.Last.After(newest.Created.Add(-notedEvery)) {
				return &oldUsed{use: u, old: old, newest: newest, isSure: u.Last.After(newest.Created)}
			}
		}
	}
	return nil
}

// listedOld is a line of the report, for JSON.
type listedOld struct {
	Client        string     `json:"client"`
	OldPassword   string     `json:"old_password"`
	GoodUntil     time.Time  `json:"good_until,omitzero"`
	LastUsed      time.Time  `json:"last_used"`
	Sure          bool       `json:"since_new"` // false: noted in the ten minutes before there was a new one
	Address       string     `json:"address"`
	Node          string     `json:"node"`
	NewPassword   string     `json:"new_password"`
	NewMade       time.Time  `json:"new_made"`
	NewLastUsed   *time.Time `json:"new_last_used,omitempty"`
	newUsedByText string
}

// oldPasswords reports who still uses the old one.
func (a *app) oldPasswords(s *secrets.Secrets) error {
	seen := a.look()
	if seen.err != nil {
		return fmt.Errorf("who uses which password is known to running servers only: %w", seen.err)
	}
	now := time.Now()
	entries, err := s.Entries(a.ctx, secrets.KindClients, now)
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	count, inGrace := 0, 0
	for i := range entries {
		e := &entries[i]
		if len(e.Passwords) > 1 && e.Passwords[1].Good {
			inGrace++
		}
		old := oldUse(e, seen.uses[e.Name])
		if old == nil {
			continue
		}
		one := old.listed(e.Name, seen.uses[e.Name], now)
		if count++; a.flags.JSON {
			if err := a.print(one); err != nil {
				return err
			}
			continue
		}
		if count == 1 {
			_, _ = fmt.Fprintln(t, "CLIENT\tOLD PASSWORD\tGOOD\tLAST USED\tFROM\tNODE\tTHE NEW ONE")
		}
		used := age(now.Sub(one.LastUsed)) + " ago"
		if !one.Sure {
			used += ", perhaps later"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", one.Client, one.OldPassword, endOf(one.GoodUntil, now), used, orWord(clean(one.Address, 60), "-"),
			orWord(clean(one.Node, 60), "-"), one.newUsedByText)
	}
	err = errors.Join(t.Flush(), err)
	if a.flags.JSON || err != nil {
		return err
	}
	switch {
	case count == 0 && inGrace == 0:
		a.tell("no client has an old password that is good\n")
	case count == 0:
		a.tell("%d clients have an old password that is good, and none has been seen with it since; uses are noted every ten minutes\n", inGrace)
	default:
		a.tell("%d of %d clients whose old password is good still use it\n", count, inGrace)
	}
	return nil
}

func (o *oldUsed) listed(client string, uses []queue.Use, now time.Time) listedOld {
	l := listedOld{
		Client: client, OldPassword: o.old.ID, GoodUntil: o.old.NotAfter, LastUsed: o.use.Last, Sure: o.isSure,
		Address: o.use.Address, Node: o.use.Node, NewPassword: o.newest.ID, NewMade: o.newest.Created,
	}
	used := "never used"
	for _, u := range uses {
		if u.Password == o.newest.ID {
			l.NewLastUsed = &u.Last
			used = "used " + age(now.Sub(u.Last)) + " ago"
		}
	}
	l.newUsedByText = fmt.Sprintf("%s old, %s", age(now.Sub(o.newest.Created)), used)
	return l
}
