package main

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"text/tabwriter"
	"time"

	"postroad/cmd/internal/dkim"
	"postroad/cmd/internal/ops"
	"postroad/queue"
	"postroad/signer/keyring"
	"postroad/signer/rotation"
)

type dkimStatusCmd struct {
	Domain string `arg:"" optional:"" help:"Only this domain's keys."`
	Check  bool   `help:"Ask all name servers and the resolvers for the records too."`
	Signed bool   `help:"Look through the events of the last day for the last signature of each key, which takes its time on a busy relay."`
	All    bool   `help:"Also keys that are removed."`
}

// keyStatus is one key, for JSON too.
type keyStatus struct {
	Domain     string            `json:"domain"`
	Selector   string            `json:"selector"`
	Algorithm  keyring.Algorithm `json:"algorithm"`
	Bits       int               `json:"bits"`
	State      keyring.State     `json:"state"`
	Since      time.Time         `json:"since,omitzero"`       // of its state
	Made       time.Time         `json:"made,omitzero"`        // zero: nobody wrote it down
	Next       string            `json:"next,omitempty"`       // next step
	NextAt     time.Time         `json:"next_at,omitzero"`     // at the earliest
	NextWaits  string            `json:"next_waits,omitempty"` // what for
	Queued     *int              `json:"queued,omitempty"`     // nil: not known
	LastSigned time.Time         `json:"last_signed,omitzero"`
	Record     *rotation.Report  `json:"record,omitempty"` // with --check
}

// Run shows keys. A record that is not as it should be is shown and no failure: that is dkim check.
func (d dkimStatusCmd) Run(a *app) error {
	k, err := a.dkimKeys(dkimWish{})
	if err != nil {
		return err
	}
	entries, listErr := k.entries(a.ctx, d.Domain)
	rows := statusOf(k, entries, d.All, time.Now())
	if len(rows) == 0 && listErr == nil {
		a.tell("there are no keys: postroad dkim new DOMAIN makes some\n")
		return nil
	}
	if err := d.complete(a, k, entries, rows); err != nil {
		return err
	}
	if a.flags.JSON {
		for i := range rows {
			if err := a.print(rows[i]); err != nil {
				return err
			}
		}
		return listErr
	}
	return errors.Join(listErr, d.table(a, rows, time.Now()))
}

// statusOf puts entries into rows, each with its next step.
func statusOf(k *dkimKeys, entries []keyring.Entry, all bool, now time.Time) []keyStatus {
	byDomain := make(map[string][]keyring.Entry)
	for _, e := range entries {
		byDomain[e.Domain] = append(byDomain[e.Domain], e)
	}
	policy := dkim.PolicyOf(k.config)
	next := make(map[string]rotation.Step) // by name of the record
	due := make(map[string]time.Time)
	for domain, some := range byDomain {
		steps, err := rotation.Next(domain, some, policy, time.Time{}, now)
		if err != nil {
			continue // the policy is wrong, and config check says so
		}
		for _, s := range steps {
			if name := rotation.Name(domain, s.Selector); next[name].Do == "" {
				next[name] = s
			}
		}
		if at, is := rotation.Due(some, policy, now); is {
			due[domain] = at
		}
	}
	var rows []keyStatus
	for _, e := range entries {
		if e.State == keyring.Removed && !all {
			continue
		}
		row := keyStatus{Domain: e.Domain, Selector: e.Selector, Algorithm: e.Algorithm, Bits: e.Bits, State: e.State, Since: e.Since()}
		if len(e.History) > 0 {
			row.Made = e.History[0].At
		}
		step := next[rotation.Name(e.Domain, e.Selector)]
		switch at, isDue := due[e.Domain]; {
		case e.State == keyring.Active && isDue && at.After(now):
			row.Next, row.NextAt = "replace", at
		case step.Do != "":
			row.Next, row.NextAt = string(step.Do), step.Earliest
			if len(step.Gates) > 0 {
				row.NextWaits = step.Gates[0].Text
			}
		case e.State == keyring.Published:
			row.NextWaits = "it is the spare"
		}
		rows = append(rows, row)
	}
	return rows
}

// complete adds what others have to be asked for. What they do not tell is left open.
func (d dkimStatusCmd) complete(a *app, k *dkimKeys, entries []keyring.Entry, rows []keyStatus) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	tally, err := dkim.TallyOf(client.List(a.ctx, ops.Selection{SignedBy: dkim.AnyKey}, 0))
	if err != nil {
		a.tell("queued mail is not counted: %v\n", err)
	}
	var last map[string]time.Time
	if d.Signed {
		if last, err = lastSigned(a, client); err != nil {
			a.tell("last signatures are not known: %v\n", err)
		}
	}
	var dns *dkim.DNS
	if d.Check {
		if dns, err = dkim.NewDNS(k.config, nil); err != nil {
			return err
		}
	}
	byName := make(map[string]keyring.Entry)
	for _, e := range entries {
		byName[rotation.Name(e.Domain, e.Selector)] = e
	}
	for i := range rows {
		row := &rows[i]
		name := rotation.Name(row.Domain, row.Selector)
		if tally != nil {
			n := tally[name]
			row.Queued = &n
		}
		row.LastSigned = last[name]
		if dns != nil {
			report := rotation.Check(a.ctx, dns, byName[name], dkim.PolicyOf(k.config).Resolvers)
			row.Record = &report
		}
		if a.ctx.Err() != nil {
			return a.ctx.Err()
		}
	}
	return nil
}

// signatureText is how an event of the signer names a signature.
var signatureText = regexp.MustCompile(`d=(\S+) s=(\S+)`)

// lastSigned finds the last signature of each key within a day.
func lastSigned(a *app, client *ops.Client) (map[string]time.Time, error) {
	last := make(map[string]time.Time)
	for event, err := range client.Trace(a.ctx, ops.TraceFilter{Since: time.Now().Add(-24 * time.Hour)}) {
		if err != nil {
			return last, err
		}
		if event.Type != queue.Signed {
			continue
		}
		for _, found := range signatureText.FindAllStringSubmatch(event.Text, -1) {
			name := rotation.Name(found[1], found[2])
			if event.Time.After(last[name]) {
				last[name] = event.Time
			}
		}
	}
	return last, nil
}

func (d dkimStatusCmd) table(a *app, rows []keyStatus, now time.Time) error {
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	heading := "DOMAIN\tSELECTOR\tALGORITHM\tBITS\tSTATE\tFOR\tAGE\tQUEUED\t"
	if d.Signed {
		heading += "SIGNED\t"
	}
	if d.Check {
		heading += "RECORD\t"
	}
	_, _ = fmt.Fprintln(t, heading+"NEXT")
	for i := range rows {
		r := &rows[i]
		line := fmt.Sprintf("%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t", r.Domain, r.Selector, r.Algorithm, r.Bits, r.State,
			ageSince(r.Since, now), ageSince(r.Made, now), queued(r))
		if d.Signed {
			line += map[bool]string{true: "-", false: ageSince(r.LastSigned, now) + " ago"}[r.LastSigned.IsZero()] + "\t"
		}
		if d.Check {
			line += recordText(r.Record) + "\t"
		}
		_, _ = fmt.Fprintln(t, line+r.nextText(now))
	}
	return t.Flush()
}

func ageSince(at, now time.Time) string {
	if at.IsZero() {
		return "?"
	}
	return age(now.Sub(at))
}

func queued(r *keyStatus) string {
	if r.Queued == nil {
		return "?"
	}
	return fmt.Sprint(*r.Queued)
}

func recordText(r *rotation.Report) string {
	switch n := len(r.Problems); {
	case n == 0:
		return "ok"
	case n == 1:
		return clean(cmp.Or(r.Problems[0].Server, "-")+" "+r.Problems[0].Text, maxReason)
	default:
		return clean(cmp.Or(r.Problems[0].Server, "-")+" "+r.Problems[0].Text, maxReason) + fmt.Sprintf(" (and %d more)", n-1)
	}
}

// nextText says what comes next.
func (r *keyStatus) nextText(now time.Time) string {
	text := r.Next
	if wait := r.NextAt.Sub(now); text != "" && !r.NextAt.IsZero() && wait > 0 {
		text += " in " + age(wait)
	}
	if r.NextWaits != "" {
		if text != "" {
			text += ", when "
		}
		text += r.NextWaits
	}
	return cmp.Or(text, "-")
}
