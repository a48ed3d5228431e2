package queue

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// Waiting says what waits, and for what, as far as jobs were looked at: those that have waited longest where they are.
type Waiting struct {
	Jobs      uint64       `json:"jobs"`                // that wait; held ones are not among them
	Looked    int          `json:"looked"`              // of these
	Whole     bool         `json:"whole"`               // all were looked at
	Passed    int          `json:"passed,omitempty"`    // held jobs among them, which take time too
	Domains   []WaitDomain `json:"domains,omitempty"`   // of destinations: the 20 with the most jobs
	More      int          `json:"more,omitempty"`      // further domains
	Keys      []WaitKeys   `json:"keys,omitempty"`      // mail that waits for its signature: the 20 authors with the most
	KeysWhole bool         `json:"keys_whole"`          // there is no other mail that waits for its signature
	Scheduled int          `json:"scheduled,omitempty"` // jobs that their senders want to wait
	Held      []HeldMail   `json:"held,omitempty"`      // what only an operator brings back, by reason
	HeldWhole bool         `json:"held_whole"`          // all held jobs were looked at
}

// WaitDomain are the jobs that wait for one destination domain.
type WaitDomain struct {
	Domain string    `json:"domain"`
	Jobs   int       `json:"jobs"`
	Oldest time.Time `json:"oldest"`           // acceptance of the oldest mail
	Reason string    `json:"reason,omitempty"` // of the job that came last
}

// WaitKeys are mails of one author's domain that wait for their signature.
type WaitKeys struct {
	Author string    `json:"author"`
	Mails  int       `json:"mails"`
	Oldest time.Time `json:"oldest"`
	Reason string    `json:"reason,omitempty"`
}

// HeldMail are mails that are held for one reason.
type HeldMail struct {
	Why    string    `json:"why"`
	Mails  int       `json:"mails"`
	Oldest time.Time `json:"oldest"`
	Reason string    `json:"reason,omitempty"` // of the last one
	Decide bool      `json:"decide,omitempty"` // it is not held by an operator, who has to decide what becomes of it
	More   bool      `json:"more,omitempty"`   // there are more than these
}

// The bounds of a survey.
const (
	maxSurveyed   = 4000                    // waiting jobs looked at
	maxHeldLooked = 500                     // jobs held for each reason of our own, and for all others together
	maxSignLooked = 500                     // jobs on their way through the signer again
	surveyTime    = 1500 * time.Millisecond // for each of these
	surveyRows    = 20
)

// group gathers jobs under one name.
type group struct {
	jobs   int
	mails  map[MessageID]bool
	oldest time.Time
	reason string
}

type groups map[string]*group

func (g groups) add(name string, j *Job) {
	w := g[name]
	if w == nil {
		w = &group{mails: make(map[MessageID]bool)}
		g[name] = w
	}
	w.jobs++
	w.mails[j.ID] = true
	if w.oldest.IsZero() || j.Accepted.Before(w.oldest) {
		w.oldest = j.Accepted
	}
	if j.Reason != "" {
		w.reason = j.Reason
	}
}

// largest are the names with the most jobs.
func (g groups) largest() []string {
	names := slices.SortedFunc(maps.Keys(g), func(a, b string) int {
		return cmp.Or(cmp.Compare(g[b].jobs, g[a].jobs), strings.Compare(a, b))
	})
	return names[:min(len(names), surveyRows)]
}

// survey looks at the jobs that wait, in the order in which they came where they are.
func (q *Queue) survey(ctx context.Context, o *Overview, far map[string]progress, floors map[string]uint64) error {
	w := &o.Waiting
	for _, n := range o.Counts.Later {
		w.Jobs += n
	}
	domains, keys := make(groups), make(groups)
	now := time.Now()
	sort := func(r ref, j *Job) bool {
		switch {
		case r.place == PlaceHeld: // see surveyHeld
			return false
		case j.HoldUntil.After(now):
			w.Scheduled++
		case j.Unsigned:
			keys.add(j.HeaderFrom, j)
		default:
			domains.add(j.Domain, j)
		}
		return true
	}
	var err error
	if w.Whole = w.Jobs == 0; !w.Whole {
		// Not later.>: the server would match that against all subjects of a block for each job.
		later := look{stream: streamLater, filter: ">", most: maxSurveyed, floors: floors}
		if later.from, err = q.firstWaiting(ctx, far); err == nil {
			w.Looked, w.Passed, w.Whole, err = q.lookThrough(ctx, later, sort)
		}
	}
	_, _, signWhole, signErr := q.lookThrough(ctx, look{stream: streamJobs, filter: "sign.>", most: maxSignLooked, floors: floors}, sort)
	for _, name := range domains.largest() {
		g := domains[name]
		w.Domains = append(w.Domains, WaitDomain{Domain: name, Jobs: g.jobs, Oldest: g.oldest, Reason: g.reason})
	}
	w.More = len(domains) - len(w.Domains)
	for _, name := range keys.largest() {
		g := keys[name]
		w.Keys = append(w.Keys, WaitKeys{Author: name, Mails: len(g.mails), Oldest: g.oldest, Reason: g.reason})
	}
	w.KeysWhole = w.Whole && signWhole && len(w.Keys) == len(keys)
	return errors.Join(err, signErr, q.surveyHeld(ctx, w))
}

// firstWaiting is the position in LATER of the first job that waits: before it there may be held ones, however many. 1 when it is not found.
func (q *Queue) firstWaiting(ctx context.Context, far map[string]progress) (uint64, error) {
	at := uint64(math.MaxUint64)
	for _, d := range durables() {
		if d.stream != streamLater || far[d.name].unfinished() == 0 {
			continue
		}
		first, err := q.first(ctx, d, far[d.name].floor+1)
		if err != nil {
			return 1, err
		}
		if first != nil {
			at = min(at, first.seq)
		}
	}
	if at == math.MaxUint64 {
		return 1, nil
	}
	return at, nil
}

// surveyHeld looks at the jobs that only an operator brings back. What is held for our own reasons is looked for by itself: however many an
// operator holds, they do not hide it.
func (q *Queue) surveyHeld(ctx context.Context, w *Waiting) error {
	own := []string{HoldReturned, holdUnreadable}
	var errs []error
	w.HeldWhole = true
	for _, why := range append(own, "") {
		filter := "held.>"
		if why != "" {
			filter = "held." + encodeToken(why) + ".>"
		}
		held := make(groups)
		_, _, whole, err := q.lookThrough(ctx, look{stream: streamLater, filter: filter, most: maxHeldLooked}, func(r ref, j *Job) bool {
			isOther := why == "" && slices.Contains(own, r.detail)
			if !isOther {
				held.add(r.detail, j)
			}
			return !isOther
		})
		w.HeldWhole = w.HeldWhole && whole
		errs = append(errs, err)
		for _, name := range held.largest() {
			g := held[name]
			w.Held = append(w.Held, HeldMail{Why: name, Mails: len(g.mails), Oldest: g.oldest, Reason: g.reason, Decide: why != "", More: !whole})
		}
	}
	return errors.Join(errs...)
}

// look says which jobs of a stream to look at.
type look struct {
	stream, filter string
	from           uint64            // position to begin at
	most           int               // jobs that count
	floors         map[string]uint64 // what lies at or below its consumer's ack floor is finished
}

// lookThrough calls fn with the jobs that match, for a short time, until so many have counted, as fn says of each. It reports how many did and
// how many did not, and whether that is all of them.
func (q *Queue) lookThrough(ctx context.Context, l look, fn func(ref, *Job) (counts bool)) (looked, passed int, whole bool, err error) {
	limit := time.Now().Add(max(surveyTime, q.o.leeway))
	for from := max(1, l.from); ; {
		batch, err := q.getBatch(ctx, l.stream, l.filter, map[string]any{"seq": from})
		if err != nil || len(batch) == 0 {
			return looked, passed, err == nil, err
		}
		for _, m := range batch {
			from = m.seq + 1
			r, err := parseRef(m.subject)
			if err != nil || m.seq <= l.floors[r.consumer()] {
				continue
			}
			j, err := readJob(m.data, r)
			if err != nil { // held as unreadable
				j = Job{ID: r.id, Domain: r.domain, Reason: err.Error()}
			}
			if fn(r, &j) {
				looked++
			} else {
				passed++
			}
		}
		if looked >= l.most || time.Now().After(limit) {
			return looked, passed, false, nil
		}
	}
}
