package rotation

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"postroad/queue"
)

// hindrance is something that is wrong, as long as it is.
type hindrance struct {
	text  string
	do    string // about it
	since time.Time
	said  bool // in the log
}

// begin notes it, and logs it when it is new; not without a log.
func (t *hindrance) begin(log *slog.Logger, now time.Time, what string, err error, do string, attrs ...any) {
	if t.text == "" {
		t.since = now
	}
	t.text, t.do = what+": "+briefly(err), do
	if log != nil && !t.said {
		t.said = true
		if do != "" {
			attrs = append(attrs, "do", do)
		}
		log.Error(what, append(attrs, "err", briefly(err))...)
	}
}

// end forgets it, and logs that if its beginning was.
func (t *hindrance) end(log *slog.Logger, message string, attrs ...any) {
	if t.said {
		log.Info(message, attrs...)
	}
	*t = hindrance{}
}

// maxConditions bounds what Conditions says of single domains.
const maxConditions = 20

// conditionPart is where the conditions of a Keeper belong.
const conditionPart = "dkim"

// waitsFor is what somebody has to see to before the keys of a domain can go on.
func (d *kept) waitsFor(now time.Time) (text, do string, since time.Time) {
	var waits []*wait
	for _, w := range d.waits {
		if w.text != "" && (!w.late || now.Sub(w.since) >= patience) {
			waits = append(waits, w)
		}
	}
	if len(waits) == 0 {
		return "", "", time.Time{}
	}
	slices.SortFunc(waits, func(a, b *wait) int { return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.text, b.text)) })
	text = waits[0].text
	if more := len(waits) - 1; more > 0 {
		text += fmt.Sprintf(" (and %d more of its keys)", more)
	}
	return text, waits[0].do, waits[0].since
}

// Conditions are what somebody has to see to now, oldest first: at most 20 of
// single domains, and how many more there are. None while no Run runs.
func (k *Keeper) Conditions() []queue.Condition {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	var all, some []queue.Condition
	add := func(list *[]queue.Condition, text, do string, since time.Time) {
		if text != "" {
			*list = append(*list, queue.Condition{Part: conditionPart, Text: text, Do: do, Since: since})
		}
	}
	add(&all, k.store.text, k.store.do, k.store.since)
	add(&all, k.list.text, k.list.do, k.list.since)
	if k.left > 0 {
		add(&all, fmt.Sprintf("the keys of %d domains are looked after, and those of %d more are not", maxDomains, k.left), "", k.began)
	}
	for name, d := range k.domains {
		switch {
		case k.store.text != "": // which is so of all
		case d.trouble.text != "":
			add(&some, d.trouble.text, d.trouble.do, d.trouble.since)
		default:
			text, do, since := d.waitsFor(now)
			add(&some, text, do, since)
		}
		for selector, s := range d.records {
			if text := s.complaint(); text != "" {
				add(&some, "record "+Name(name, selector)+": "+text, s.do, s.since)
			}
		}
	}
	slices.SortFunc(some, func(a, b queue.Condition) int { return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Text, b.Text)) })
	if left := len(some) - maxConditions; left > 0 {
		since := some[maxConditions].Since
		some = some[:maxConditions]
		add(&some, fmt.Sprintf("and %d more, of keys of other domains", left), "postroad dkim status --check", since)
	}
	return append(all, some...)
}
