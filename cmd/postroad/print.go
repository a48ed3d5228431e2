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
	"unicode"

	"postroad/cmd/internal/config"
	"postroad/queue"
)

const (
	listFormat = "%-27s  %-8s  %6s  %-30s  %5s  %5s  %-14s  %s"
	maxReason  = 100 // characters in a list
)

var listHeading = fmt.Sprintf(listFormat, "ID", "PLACE", "AGE", "DOMAIN", "RCPTS", "TRIES", "NEXT", "REASON")

// listLine is one job in one line.
func listLine(e queue.Entry, now time.Time) string {
	j := &e.Job
	reason := j.Reason
	if e.Why != "" {
		reason = strings.TrimSpace("held: " + e.Why + " " + reason)
	}
	return strings.TrimRight(fmt.Sprintf(listFormat, j.ID, e.Place, age(now.Sub(j.Accepted)), clean(j.Domain, 253),
		fmt.Sprint(len(j.Recipients)), fmt.Sprint(j.Tries), next(e, now), clean(reason, maxReason)), " ")
}

// next says when a job will go.
func next(e queue.Entry, now time.Time) string {
	switch e.Place {
	case queue.PlaceLater:
		if e.Job.Due.IsZero() {
			return "later"
		}
		if wait := e.Job.Due.Sub(now); wait > 0 {
			return "in " + age(wait)
		}
		return "due now"
	case queue.PlaceHeld:
		return "when released"
	case queue.PlaceIncoming, queue.PlaceSign:
		return "when signed"
	}
	return "now"
}

// nextLine says in a sentence what will happen to a job.
func nextLine(e queue.Entry, now time.Time) string {
	j := &e.Job
	who := fmt.Sprintf("%d recipients at %s", len(j.Recipients), clean(j.Domain, 253))
	if len(j.Recipients) == 1 {
		who = clean(j.Recipients[0].Path.String(), 320)
	}
	var what string
	switch e.Place {
	case queue.PlaceLater:
		what = fmt.Sprintf("waits; next try %s (%s)", j.Due.Local().Format(time.DateTime), next(e, now))
	case queue.PlaceHeld:
		what = "is held (" + clean(e.Why, maxReason) + "); postroad queue release " + string(j.ID) + " brings it back"
	case queue.PlaceIncoming, queue.PlaceSign:
		what = "is with the signer"
	default:
		what = "is ready or being delivered"
	}
	if j.Reason != "" {
		what += ": " + clean(j.Reason, 500)
	}
	if who == "0 recipients at " {
		return what
	}
	return who + " " + what
}

// showEntry prints all that is known of a job.
func showEntry(w io.Writer, e queue.Entry, now time.Time) error {
	j := &e.Job
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	line("id", "%s (%s), part %d of %d", j.ID, j.Kind, j.Part+1, max(j.Parts, 1))
	line("place", "%s since %s", e.Place, stamp(e.Since, now))
	line("next", "%s", nextLine(e, now))
	line("accepted", "%s", stamp(j.Accepted, now))
	if !j.HoldUntil.IsZero() {
		line("hold until", "%s", j.HoldUntil.Local().Format(time.DateTime))
	}
	if d := j.Deadline; !d.IsZero() {
		line("deliver by", "%s, then %s", d.At.Local().Format(time.DateTime), map[bool]string{true: "return it", false: "tell the sender"}[d.Return])
	}
	line("sender", "<%s>", clean(j.ReversePath.String(), 320))
	for _, r := range j.Recipients {
		line("recipient", "<%s>", clean(r.Path.String(), 320))
	}
	line("domain", "%s", clean(j.Domain, 253))
	line("size", "%s", octets(j.Size))
	line("tries", "%d", j.Tries)
	if !j.LastTry.IsZero() {
		line("last try", "%s", stamp(j.LastTry, now))
	}
	for _, optional := range []struct{ name, value string }{
		{"reason", j.Reason}, {"held for", e.Why}, {"client", j.Client}, {"class", j.Class}, {"author", j.HeaderFrom},
		{"envelope id", j.ENVID}, {"reports on", string(j.Maker)},
	} {
		if optional.value != "" {
			line(optional.name, "%s", clean(optional.value, 1000))
		}
	}
	for signature := range strings.SplitSeq(j.Signatures, "DKIM-Signature:") {
		if domain, selector := tag(signature, "d"), tag(signature, "s"); domain != "" {
			line("signed", "d=%s s=%s a=%s", domain, selector, tag(signature, "a"))
		}
	}
	_, _ = fmt.Fprintln(t)
	return t.Flush()
}

// tag finds a tag in a DKIM-Signature field.
func tag(signature, name string) string {
	for part := range strings.SplitSeq(signature, ";") {
		if key, value, ok := strings.Cut(strings.TrimSpace(part), "="); ok && key == name {
			return clean(value, 253)
		}
	}
	return ""
}

func showCounts(w io.Writer, c queue.Counts) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range []struct {
		name  string
		count uint64
	}{{"incoming", c.Incoming}, {"sign", c.Sign}, {"ready", c.Ready}, {"held", c.Held}} {
		_, _ = fmt.Fprintf(t, "%s\t%d\n", row.name, row.count)
	}
	byDelay := func(a, b queue.Class) int { return cmp.Compare(delayOf(a), delayOf(b)) }
	for _, class := range slices.SortedFunc(maps.Keys(c.Later), byDelay) {
		_, _ = fmt.Fprintf(t, "later %s\t%d\n", class, c.Later[class])
	}
	_, _ = fmt.Fprintf(t, "stored\t%s of %s\n", octets(int64(c.MailBytes)), config.Size(c.MaxBytes))
	return t.Flush()
}

// delayOf is the delay that a class is named after.
func delayOf(c queue.Class) time.Duration {
	d, _ := time.ParseDuration(string(c)) // 0 for a class that this version does not know
	return d
}

// verbs says what an event is, in one word.
var verbs = map[queue.EventType]string{
	queue.Reception:        "accepted",
	queue.Signed:           "signed",
	queue.Delivered:        "delivered",
	queue.TransientFailure: "deferred",
	queue.Bounce:           "bounced",
	queue.Expiration:       "expired",
	queue.Discarded:        "discarded",
	queue.AdminBounce:      "cancelled",
	queue.Admin:            "moved",
	queue.NotificationMade: "notified",
	queue.Finished:         "finished",
	queue.SetAside:         "set aside",
	queue.Shaping:          "shaping",
	queue.DoubleBounce:     "double",
	queue.OutOfBandBounce:  "came back",
	queue.OutOfBandReport:  "reported",
	queue.Feedback:         "complaint",
	queue.Suppressed:       "suppressed",
}

// eventLine is one fact in one line.
func eventLine(e queue.Event) string {
	verb, ok := verbs[e.Type]
	if !ok {
		verb = strings.ToLower(clean(string(e.Type), 20))
	}
	var parts []string
	add := func(format, value string) {
		if value != "" {
			parts = append(parts, fmt.Sprintf(format, clean(value, 500)))
		}
	}
	switch e.Type {
	case queue.Reception:
		parts = append(parts, "<"+clean(e.Sender, 320)+"> to <"+clean(e.Recipient, 320)+">")
		add("from %s", e.Peer)
		if e.Client != "" {
			add("(client %s)", e.Client)
		}
		if e.Size > 0 {
			parts = append(parts, octets(e.Size))
		}
		add("%s", e.TLS)
	case queue.NotificationMade:
		add("message %s", e.Peer)
		add("%s", e.Text)
	case queue.Finished:
		parts = append(parts, fmt.Sprintf("part %d", e.Part+1))
	default:
		add("<%s>", e.Recipient)
		add("by %s", e.Peer)
		add("from %s", e.Egress)
		add("%s", e.TLS)
		if e.Code > 0 {
			parts = append(parts, strings.TrimSpace(fmt.Sprintf("%d %s", e.Code, e.Enhanced)))
		}
		add("%s", e.Text)
		if e.BounceClass != "" {
			add("[%s]", e.BounceClass)
		}
		if e.InDoubt {
			parts = append(parts, "(in doubt: it may have taken it)")
		}
		if e.Attempt > 1 || e.Type == queue.TransientFailure {
			parts = append(parts, fmt.Sprintf("(try %d)", e.Attempt))
		}
		if !e.Due.IsZero() {
			parts = append(parts, "next try "+e.Due.Local().Format(time.DateTime))
		}
	}
	if e.Duration > 0 {
		parts = append(parts, "in "+e.Duration.Round(10*time.Microsecond).String())
	}
	return fmt.Sprintf("%s  %-9s  %s", e.Time.Local().Format("2006-01-02 15:04:05.000"), verb, strings.Join(parts, " "))
}

// clean keeps what others wrote from moving the cursor, and bounds it.
func clean(s string, most int) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n == most {
			b.WriteString("…")
			break
		}
		if !unicode.IsPrint(r) {
			r = ' '
		}
		b.WriteRune(r)
		n++
	}
	return b.String()
}

// age prints a time span in its two largest units at most.
func age(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// stamp prints a time and how long ago that is.
func stamp(t, now time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	return t.Local().Format(time.DateTime) + " (" + age(now.Sub(t)) + " ago)"
}

// octets prints a size for people.
func octets(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}
