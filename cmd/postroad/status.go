package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/ops"
	"postroad/queue"
)

type statusCmd struct{}

// Help is the long text.
func (statusCmd) Help() string {
	return "Shows the nodes, the queue, the oldest mail, what is deferred, keys, Vault and the queue servers of the whole cluster, and first of all what " +
		"is wrong and what to do about it.\n\nExit status: 0 all is well, 1 something needs attention or the server cannot be asked, 2 wrong command line or configuration."
}

// Run shows the cluster.
func (statusCmd) Run(a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	st, err := c.Status(a.ctx)
	if err != nil {
		return err
	}
	if a.flags.JSON {
		err = a.print(st)
	} else {
		err = showStatus(a.out, st, time.Now())
	}
	if err == nil && !st.Well {
		err = errSaid
	}
	return err
}

const (
	statusWidth  = 100 // columns
	maxNodeLines = 30
)

// showStatus prints a status for people: what needs attention first.
func showStatus(w io.Writer, st *ops.Status, now time.Time) error {
	p := &page{w: w, now: now}
	p.line("%s", verdict(st, now))
	p.attention(st.Attention)
	p.nodes(st)
	if st.Queue != nil {
		p.queue(st.Queue)
		p.deferred(&st.Queue.Waiting)
	}
	p.keys(st)
	p.routes(st)
	if st.Queue != nil {
		p.servers(st)
	}
	return p.err
}

// verdict is the first line.
func verdict(st *ops.Status, now time.Time) string {
	if st.Well {
		text := fmt.Sprintf("all well: %s", count(len(st.Nodes), "node"))
		if o := st.Queue; o != nil {
			text += ", " + count(int(waiting(o.Counts)), "job") + " in the queue"
			if o.Oldest != nil {
				text += ", oldest mail " + age(now.Sub(o.Oldest.Accepted))
			}
		}
		return text
	}
	needs := "things need"
	if len(st.Attention) == 1 {
		needs = "thing needs"
	}
	line := fmt.Sprintf("%d %s attention: ", len(st.Attention), needs)
	for i, a := range st.Attention {
		next := clean(firstClause(a.Text), 60)
		if more := fmt.Sprintf("and %d more", len(st.Attention)-i); i > 0 && len(line)+len(next)+len(more) > statusWidth {
			return line + more
		}
		line += next + "; "
	}
	return strings.TrimSuffix(line, "; ")
}

// firstClause leaves the particulars to the list.
func firstClause(text string) string {
	text, _, _ = strings.Cut(text, ": ")
	text, _, _ = strings.Cut(text, " (http")
	return text
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// waiting is what is in the queue, wherever it is.
func waiting(c queue.Counts) uint64 {
	n := c.Incoming + c.Sign + c.Ready + c.Held
	for _, later := range c.Later {
		n += later
	}
	return n
}

// page prints parts one after the other and keeps the first error.
type page struct {
	w   io.Writer
	now time.Time
	err error
}

func (p *page) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, strings.TrimRight(fmt.Sprintf(format, args...), " "))
	}
}

func (p *page) heading(text string) { p.line("\n%s", text) }

// table prints rows of cells in columns.
func (p *page) table(rows [][]string) {
	if p.err != nil {
		return
	}
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		_, _ = fmt.Fprintln(t, "  "+strings.Join(row, "\t"))
	}
	_ = t.Flush()
	for line := range strings.Lines(b.String()) {
		p.line("%s", clean(strings.TrimRight(line, " \n"), statusWidth))
	}
}

// wrapped prints a text in lines that fit, indented.
func (p *page) wrapped(first, rest, text string) {
	line := first
	for word := range strings.FieldsSeq(clean(text, 1000)) {
		if len(line)+len(word) >= statusWidth && strings.TrimSpace(line) != "" {
			p.line("%s", line)
			line = rest
		}
		line += word + " "
	}
	p.line("%s", line)
}

func (p *page) attention(list []ops.Attention) {
	for i, a := range list {
		p.wrapped(fmt.Sprintf("\n%d. ", i+1), "   ", a.Text)
		var facts []string
		if !a.Since.IsZero() {
			facts = append(facts, "since "+stamp(a.Since, p.now))
		}
		if len(a.Nodes) > 0 {
			facts = append(facts, "on "+strings.Join(a.Nodes, ", "))
		}
		if len(facts) > 0 {
			p.wrapped("   ", "   ", strings.Join(facts, " "))
		}
		if a.Do != "" {
			p.wrapped("   to do: ", "          ", a.Do)
		}
	}
}

func (p *page) nodes(st *ops.Status) {
	p.heading("nodes")
	rows := [][]string{{"NAME", "ROLES", "VERSION", "UP", "SEEN", "STATE"}}
	for i, n := range st.Nodes {
		if i == maxNodeLines {
			rows = append(rows, []string{fmt.Sprintf("and %d more (--json has all)", len(st.Nodes)-i)})
			break
		}
		state := "well"
		switch {
		case n.Draining:
			state = "stopping"
		case len(n.Conditions) > 0:
			state = count(len(n.Conditions), "condition")
		}
		rows = append(rows, []string{clean(n.Name, 60), clean(strings.Join(n.Roles, ","), 40), clean(n.Version, 20), age(p.now.Sub(n.Started)),
			age(p.now.Sub(n.Seen)) + " ago", state})
	}
	p.table(rows)
}

func (p *page) queue(o *queue.Overview) {
	p.heading("queue")
	c := o.Counts
	share := 0.0
	if c.MaxBytes > 0 {
		share = 100 * float64(c.MailBytes) / float64(c.MaxBytes)
	}
	rows := [][]string{
		{"stored", fmt.Sprintf("%s of %s (%.0f %%)", octets(int64(c.MailBytes)), config.Size(c.MaxBytes), share)},
		{"jobs", fmt.Sprintf("%d incoming, %d to sign, %d ready, %d later, %d held", c.Incoming, c.Sign, c.Ready, o.Waiting.Jobs, c.Held)},
	}
	rows = append(rows, []string{"lanes", cmp.Or(nonzero(o.Lanes, strings.Compare), "all empty")})
	byDelay := func(a, b queue.Class) int { return cmp.Compare(delayOf(a), delayOf(b)) }
	if later := nonzero(c.Later, byDelay); later != "" {
		rows = append(rows, []string{"later", later})
	}
	if n := o.Waiting.Scheduled; n > 0 {
		rows = append(rows, []string{"scheduled", count(n, "job") + " of senders who want to wait"})
	}
	for _, h := range o.Waiting.Held {
		rows = append(rows, []string{"held", fmt.Sprintf("%s for %q, oldest %s", count(h.Mails, "mail"), clean(h.Why, 30), age(p.now.Sub(h.Oldest)))})
	}
	if n := len(o.Waiting.Held); n > 0 && !o.Waiting.HeldWhole {
		rows = append(rows, []string{"", "there are more: the first 500 for each reason were looked at"})
	}
	switch {
	case o.Oldest == nil && waiting(c) == 0 && !slices.ContainsFunc(o.Missing, func(m string) bool { return strings.HasPrefix(m, "oldest mail") }):
		rows = append(rows, []string{"oldest mail", "none"})
	case o.Oldest == nil:
		rows = append(rows, []string{"oldest mail", "not found"})
	default:
		rows = append(rows, []string{"oldest mail", fmt.Sprintf("%s, %s to %s", age(p.now.Sub(o.Oldest.Accepted)), placeOf(o.Oldest), clean(o.Oldest.Domain, 60))},
			[]string{"", string(o.Oldest.ID)})
		if o.Oldest.Reason != "" {
			rows = append(rows, []string{"", clean(o.Oldest.Reason, maxReason)})
		}
	}
	for _, m := range slices.Concat(o.Missing, o.Aside) {
		rows = append(rows, []string{"not known", clean(m, maxReason)})
	}
	p.table(rows)
}

// placeOf says where the oldest mail is.
func placeOf(o *queue.Oldest) string {
	switch o.Place {
	case queue.PlaceLater:
		return "later (" + string(o.Class) + ")"
	case queue.PlaceHeld:
		return "held (" + clean(o.Why, 30) + ")"
	case queue.PlaceIncoming, queue.PlaceSign:
		return "with the signer"
	}
	return string(o.Place)
}

// nonzero prints what there is some of.
func nonzero[K ~string](m map[K]uint64, order func(a, b K) int) string {
	var parts []string
	for _, k := range slices.SortedFunc(maps.Keys(m), order) {
		if m[k] > 0 {
			parts = append(parts, fmt.Sprintf("%s: %d", k, m[k]))
		}
	}
	return strings.Join(parts, ", ")
}

func (p *page) deferred(w *queue.Waiting) {
	if len(w.Domains) == 0 && (w.Whole || w.Jobs == 0) {
		return
	}
	heading := "deferred, by destination"
	switch {
	case w.Whole:
	case w.Passed > 0:
		heading += fmt.Sprintf(" (of the first %d of %d looked at, and %d held jobs passed)", w.Looked, w.Jobs, w.Passed)
	default:
		heading += fmt.Sprintf(" (of the first %d of %d looked at)", w.Looked, w.Jobs)
	}
	p.heading(heading)
	if len(w.Domains) == 0 {
		return
	}
	rows := [][]string{{"JOBS", "DOMAIN", "OLDEST", "REASON"}}
	for _, d := range w.Domains {
		rows = append(rows, []string{fmt.Sprint(d.Jobs), clean(d.Domain, 40), age(p.now.Sub(d.Oldest)), clean(d.Reason, maxReason)})
	}
	if w.More > 0 {
		rows = append(rows, []string{"", fmt.Sprintf("and %s more", count(w.More, "domain"))})
	}
	p.table(rows)
}

// keys tells of keys and of Vault, as the signers say.
func (p *page) keys(st *ops.Status) {
	var rows [][]string
	for _, n := range st.Nodes {
		if text := n.Facts["keys"]; text != "" {
			rows = append(rows, []string{"keys", clean(n.Name, 40) + ": " + clean(text, 200)})
		}
	}
	if st.Queue != nil {
		for _, k := range st.Queue.Waiting.Keys {
			rows = append(rows, []string{"waiting", fmt.Sprintf("%s by authors at %s, oldest %s: %s", count(k.Mails, "mail"), clean(k.Author, 60), age(p.now.Sub(k.Oldest)), clean(k.Reason, 200))})
		}
	}
	for _, n := range st.Nodes {
		if text := n.Facts["vault"]; text != "" {
			state := "in reach"
			for _, c := range n.Conditions {
				if c.Part == "secrets" {
					state = firstClause(c.Text) + " for " + age(p.now.Sub(c.Since))
				}
			}
			rows = append(rows, []string{"vault", clean(n.Name, 40) + ": " + clean(text, 60) + ": " + clean(state, 80)})
		}
	}
	if !slices.ContainsFunc(rows, func(row []string) bool { return row[0] == "vault" }) {
		rows = append(rows, []string{"vault", "no signer uses one"})
	}
	p.heading("keys")
	p.table(rows)
}

// routes tells by which routes the delivery processes go.
func (p *page) routes(st *ops.Status) {
	var rows [][]string
	for _, n := range st.Nodes {
		if text := n.Facts["routes"]; text != "" {
			rows = append(rows, []string{clean(n.Name, 40), clean(text, 80)})
		}
	}
	if len(rows) > 0 {
		p.heading("routes")
		p.table(rows)
	}
}

func (p *page) servers(st *ops.Status) {
	o := st.Queue
	p.heading("queue servers")
	if st.Embedded {
		p.line("  embedded in %s: one copy, no other servers", clean(st.Asked, 60))
	} else {
		rows := [][]string{{"STREAM", "LEADER", "COPIES", "STORED"}}
		for _, s := range o.Streams {
			rows = append(rows, []string{s.Name, clean(cmp.Or(s.Leader, "none"), 30), copies(s), stored(s)})
		}
		p.table(rows)
	}
	for _, l := range o.Leases {
		p.line("  lease %s: %s", clean(l.Name, 40), clean(l.Holder, 60))
	}
}

// copies says which servers have a stream, besides the one that leads it.
func copies(s queue.Stream) string {
	if len(s.Replicas) == 0 {
		return "1 of " + fmt.Sprint(max(1, s.Copies))
	}
	current, parts := 1, []string{}
	for _, r := range s.Replicas {
		switch {
		case r.Offline:
			parts = append(parts, r.Name+" away")
		case !r.Current:
			parts = append(parts, fmt.Sprintf("%s %d behind", r.Name, r.Lag))
		default:
			current++
		}
	}
	text := fmt.Sprintf("%d of %d current", current, s.Copies)
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, ", ")
	}
	return clean(text, 60)
}

func stored(s queue.Stream) string {
	text := octets(int64(s.Bytes))
	if s.MaxBytes > 0 {
		text += " of " + config.Size(s.MaxBytes).String()
	}
	return text
}
