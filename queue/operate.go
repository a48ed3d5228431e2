package queue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postroad/queue/failpoint"
)

// Place is where a job is.
type Place string

// The places of a job.
const (
	PlaceIncoming Place = "incoming" // mail that the signer has not finished with: no job yet
	PlaceSign     Place = "sign"
	PlaceReady    Place = "ready"
	PlaceLater    Place = "later"
	PlaceHeld     Place = "held"
)

// Selection names jobs for operators. All that is set must match; the zero Selection is everything.
type Selection struct {
	ID        MessageID
	Domain    string        // of the recipients
	Sender    string        // reverse-path as it prints
	Client    string        // account
	OlderThan time.Duration // since acceptance
	HeldFor   time.Duration // is held, and has been for so long
	SignedBy  string        // name of a DKIM record, selector._domainkey.domain: jobs that bear a signature of its key; *: of any
	Author    string        // domain of the author (From:), or .domain for every domain below it
	Unsigned  bool          // waits for its signature, and neither its sender nor an operator wants it to wait
}

func (s *Selection) matches(j *Job) bool {
	return (s.ID == "" || s.ID == j.ID) &&
		(s.Domain == "" || s.Domain == j.Domain) &&
		(s.Sender == "" || s.Sender == j.ReversePath.String()) &&
		(s.Client == "" || s.Client == j.Client) &&
		(s.OlderThan == 0 || time.Since(j.Accepted) >= s.OlderThan) &&
		(s.SignedBy == "" || j.isSignedBy(s.SignedBy)) &&
		(s.Author == "" || isBy(j.HeaderFrom, s.Author)) &&
		(!s.Unsigned || j.Unsigned && !j.HoldUntil.After(time.Now()))
}

// isBy compares an author's domain with Selection.Author.
func isBy(domain, author string) bool {
	if strings.HasPrefix(author, ".") {
		return len(domain) > len(author) && strings.EqualFold(domain[len(domain)-len(author):], author)
	}
	return strings.EqualFold(domain, author)
}

// isSignedBy looks for a signature of the key whose record has that name (RFC 6376 §3.5, §3.6.2.1).
func (j *Job) isSignedBy(record string) bool {
	if record == "*" {
		return j.Signatures != ""
	}
	selector, domain, _ := strings.Cut(record, "._domainkey.")
	for field := range strings.SplitSeq(j.Signatures, "DKIM-Signature:") {
		isDomain, isSelector := false, false
		for tag := range strings.SplitSeq(field, ";") {
			name, value, _ := strings.Cut(tag, "=")
			value = strings.TrimSpace(value)
			switch strings.TrimSpace(name) {
			case "d":
				isDomain = strings.EqualFold(value, domain)
			case "s":
				isSelector = strings.EqualFold(value, selector)
			}
		}
		if isDomain && isSelector {
			return true
		}
	}
	return false
}

func (s *Selection) filter() string {
	domain, id := "*", "*"
	if s.Domain != "" {
		domain = encodeToken(s.Domain)
	}
	if s.ID != "" {
		id = string(s.ID)
	}
	return "*.*." + domain + "." + id + ".*.*"
}

// Entry is one job as operators see it. Job.Due says when it will go.
type Entry struct {
	Place Place     `json:"place"`
	Why   string    `json:"why,omitempty"`   // of a hold
	Class Class     `json:"class,omitempty"` // of a wait
	Since time.Time `json:"since"`           // when it came here
	Job   Job       `json:"job"`
	ref   ref
}

// List yields the jobs that match, at most limit of them (0: all), in no particular order. What moves meanwhile may be
// missed or seen twice.
func (q *Queue) List(ctx context.Context, sel Selection, limit int) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		n := 0
		counted := func(e Entry, err error) bool {
			n++
			return yield(e, err) && (limit == 0 || n < limit)
		}
		// What the signer has not finished with bears no signature.
		if sel.SignedBy == "" && sel.HeldFor == 0 && !q.listIncoming(ctx, sel, counted) {
			return
		}
		for _, stream := range []string{streamJobs, streamLater} {
			if !q.listJobs(ctx, stream, sel, counted) {
				return
			}
		}
	}
}

// listJobs yields what a stream has and reports whether to go on. What lies below its consumer's ack floor is finished
// work that an unclean stop brought back.
func (q *Queue) listJobs(ctx context.Context, stream string, sel Selection, yield func(Entry, error) bool) bool {
	floors, err := q.floors(ctx, stream)
	if err != nil {
		return yield(Entry{}, err)
	}
	for offset := 0; ; {
		info, err := q.listPage(ctx, stream, sel.filter(), offset)
		if err != nil {
			return yield(Entry{}, err)
		}
		for subject := range info.State.Subjects {
			e, err := q.entry(ctx, stream, subject, floors)
			if errors.Is(err, errAbsent) {
				continue // it moved meanwhile
			}
			if err == nil && !(sel.matches(&e.Job) && sel.isHeldFor(&e)) {
				continue
			}
			if !yield(e, err) {
				return false
			}
		}
		n := len(info.State.Subjects)
		if offset += n; n == 0 || offset >= info.Total {
			return true
		}
	}
}

func (q *Queue) entry(ctx context.Context, stream, subject string, floors map[string]uint64) (Entry, error) {
	r, err := parseRef(subject)
	if err != nil {
		return Entry{}, err
	}
	s, err := q.get(ctx, stream, subject)
	if err != nil {
		return Entry{}, err
	}
	if s.seq <= floors[r.consumer()] {
		return Entry{}, errAbsent
	}
	e := Entry{Place: r.place, Since: s.time, ref: r}
	j, err := readJob(s.data, r)
	if err != nil { // held as unreadable: what the subject says is all we know
		j = Job{ID: r.id, Part: r.part, Move: r.move, Domain: r.domain, Reason: err.Error()}
	}
	e.Job = j
	switch r.place {
	case PlaceHeld:
		e.Why = r.detail
	case PlaceLater:
		e.Class = Class(r.detail)
	}
	return e, nil
}

// consumer is the one that hands out what lies at a spot; a hold has none.
func (s spot) consumer() string {
	switch s.place {
	case PlaceSign:
		return signConsumer
	case PlaceReady:
		return laneConsumer(s.detail)
	case PlaceLater:
		return timerConsumer(Class(s.detail))
	}
	return ""
}

// floors are the ack floors of a stream's consumers.
func (q *Queue) floors(ctx context.Context, stream string) (map[string]uint64, error) {
	out := make(map[string]uint64)
	for _, d := range durables() {
		if d.stream != stream {
			continue
		}
		f, err := q.ackFloor(ctx, stream, d.name)
		if err != nil {
			return nil, err
		}
		out[d.name] = f
	}
	return out, nil
}

// listIncoming yields the parts of mails that the signer has not finished with.
func (q *Queue) listIncoming(ctx context.Context, sel Selection, yield func(Entry, error) bool) bool {
	floor, err := q.ackFloor(ctx, streamMail, signerConsumer)
	if err != nil {
		return yield(Entry{}, err)
	}
	id := "*"
	if sel.ID != "" {
		id = string(sel.ID)
	}
	for _, kind := range []Kind{KindMail, KindDSN} {
		for seq := floor + 1; ; {
			s, err := q.next(ctx, streamMail, string(kind)+"."+id+".m", seq)
			if errors.Is(err, errAbsent) {
				break
			}
			if err != nil {
				return yield(Entry{}, err)
			}
			seq = s.seq + 1
			if !q.yieldIncoming(kind, s, sel, yield) {
				return false
			}
		}
	}
	return true
}

func (q *Queue) yieldIncoming(kind Kind, s *stored, sel Selection, yield func(Entry, error) bool) bool {
	_, id, err := parseMailSubject(s.subject)
	if err != nil {
		return yield(Entry{}, err)
	}
	head, _, err := decodeMail(s.data)
	if err != nil {
		return yield(Entry{}, err)
	}
	sg := Signing{ID: id, Kind: kind, Envelope: head.Envelope, head: head, seq: s.seq}
	for _, j := range sg.jobs() {
		if sel.matches(&j) && !yield(Entry{Place: PlaceIncoming, Since: s.time, Job: j}, nil) {
			return false
		}
	}
	return true
}

// Retry makes matching jobs that wait or are held ready now, also those that their senders wanted to be held, and returns how many it moved. Like all commands over a
// selection it may be interrupted and given again.
func (q *Queue) Retry(ctx context.Context, sel Selection) (int, error) {
	return q.each(ctx, sel, "retry", func(e *Entry) bool { return e.Place == PlaceLater || e.Place == PlaceHeld && !sel.Unsigned },
		func(e *Entry) spot {
			if now := time.Now(); e.Job.HoldUntil.After(now) {
				e.Job.HoldUntil = now
			}
			e.letGo()
			return q.nextSpot(&e.Job)
		})
}

// Hold moves matching jobs to held.<why>, from where only an operator brings them back. A job that a worker has in hand at
// this moment may escape it.
func (q *Queue) Hold(ctx context.Context, sel Selection, why string) (int, error) {
	if why == "" {
		return 0, errors.New("hold: give a reason")
	}
	return q.each(ctx, sel, "hold", func(e *Entry) bool { return e.Place != PlaceHeld },
		func(*Entry) spot { return heldSpot(why) })
}

// Release brings held jobs back to where they are tried.
func (q *Queue) Release(ctx context.Context, sel Selection) (int, error) {
	return q.each(ctx, sel, "release", func(e *Entry) bool { return e.Place == PlaceHeld },
		func(e *Entry) spot {
			e.letGo()
			return q.nextSpot(&e.Job)
		})
}

// letGo marks a job that was held; its time begins to count now, unless its sender wants it to be held for longer.
func (e *Entry) letGo() {
	if e.Place == PlaceHeld {
		e.Job.Released, e.Job.HoldUntil = true, later(e.Job.HoldUntil, time.Now())
	}
}

// Resign sends matching jobs back to the signer.
func (q *Queue) Resign(ctx context.Context, sel Selection) (int, error) {
	return q.each(ctx, sel, "resign", func(e *Entry) bool { return e.Place == PlaceReady || e.Place == PlaceLater },
		func(e *Entry) spot {
			e.Job.Unsigned, e.Job.Signatures = true, ""
			if e.Place == PlaceLater { // it goes there when it is due
				return laterSpot(e.Class)
			}
			return signSpot(e.Job.Domain)
		})
}

// nextSpot is where a job goes that need not wait any longer.
func (q *Queue) nextSpot(j *Job) spot {
	j.Remaining, j.Due = nil, time.Time{}
	if j.Unsigned {
		return signSpot(j.Domain)
	}
	return q.readySpot(j.Domain)
}

// operators is how many jobs one command works on at a time.
const operators = 32

// each makes one move with every job that matches: publish the next state, remove the old one.
func (q *Queue) each(ctx context.Context, sel Selection, what string, wanted func(*Entry) bool, to func(*Entry) spot) (int, error) {
	return q.forEach(ctx, sel, what, func(ctx context.Context, e *Entry) (bool, error) {
		if e.Why == holdUnreadable || e.Job.Kind == "" || !wanted(e) { // what cannot be read stays as it is
			return false, nil
		}
		next := to(e)
		if err := q.move(ctx, e.ref, next, e.Job); err != nil {
			return false, err
		}
		q.Record(Event{Type: Admin, ID: e.Job.ID, Part: e.Job.Part, Text: what + ": " + string(e.Place) + " to " + string(next.place)})
		return true, nil
	})
}

// forEach calls fn with the jobs that match, several at a time, and counts how often it did something. It lists a stream to
// its end before it changes anything: pages of a listing shift when what they list goes.
func (q *Queue) forEach(ctx context.Context, sel Selection, what string, fn func(context.Context, *Entry) (bool, error)) (int, error) {
	var count atomic.Int64
	for _, stream := range []string{streamJobs, streamLater} {
		floors, err := q.floors(ctx, stream)
		if err != nil {
			return int(count.Load()), fmt.Errorf("%s: %w", what, err)
		}
		var found []string
		if _, err := q.subjects(ctx, stream, sel.filter(), func(s string) { found = append(found, s) }); err != nil {
			return int(count.Load()), fmt.Errorf("%s: %w", what, err)
		}
		err = inParallel(ctx, operators, found, func(ctx context.Context, subject string) error {
			e, err := q.entry(ctx, stream, subject, floors)
			if errors.Is(err, errAbsent) || err == nil && !(sel.matches(&e.Job) && sel.isHeldFor(&e)) {
				return nil
			}
			if err != nil {
				return err
			}
			did, err := fn(ctx, &e)
			if did {
				count.Add(1)
			}
			return err
		})
		if err != nil {
			return int(count.Load()), fmt.Errorf("%s: %w", what, err)
		}
	}
	return int(count.Load()), nil
}

// inParallel calls fn for each item, n at a time, until one fails.
func inParallel[T any](ctx context.Context, n int, items []T, fn func(context.Context, T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, len(items)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(items)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				if err := fn(ctx, items[i]); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// holdUnreadable is why a job is held that this version cannot decode.
const holdUnreadable = "unreadable"

func (q *Queue) move(ctx context.Context, from ref, to spot, j Job) error {
	if err := q.putMove(ctx, from, to, j); err != nil {
		return err
	}
	failpoint.Hit("operate.published")
	return q.dropJob(ctx, from)
}

// putMove publishes the job's next state; what it was before is still there.
func (q *Queue) putMove(ctx context.Context, from ref, to spot, j Job) error {
	return q.putJob(ctx, ref{to, from.domain, j.ID, j.Part, from.move + 1}, j)
}

// dropJob removes one job from where it lies.
func (q *Queue) dropJob(ctx context.Context, r ref) error {
	return q.erase(ctx, r.stream(), r.subject())
}

// Cancel ends matching jobs without delivery and without a notification.
func (q *Queue) Cancel(ctx context.Context, sel Selection) (int, error) {
	cancelled := func(j *Job) { q.Record(Event{Type: AdminBounce, ID: j.ID, Part: j.Part, Text: "cancelled"}) }
	// What the signer has not finished with has no jobs yet; what it finishes meanwhile is met there.
	var incoming []Entry
	var failed error
	q.listIncoming(ctx, sel, func(e Entry, err error) bool {
		if failed = err; err == nil {
			incoming = append(incoming, e)
		}
		return err == nil
	})
	if failed != nil {
		return 0, fmt.Errorf("cancel: %w", failed)
	}
	for i := range incoming {
		if err := q.cancelOne(ctx, &incoming[i]); err != nil {
			return i, fmt.Errorf("cancel: %w", err)
		}
		cancelled(&incoming[i].Job)
	}
	n, err := q.forEach(ctx, sel, "cancel", func(ctx context.Context, e *Entry) (bool, error) {
		if err := q.cancelOne(ctx, e); err != nil {
			return false, err
		}
		cancelled(&e.Job)
		return true, nil
	})
	return len(incoming) + n, err
}

func (q *Queue) cancelOne(ctx context.Context, e *Entry) error {
	if e.Job.Kind != "" { // else it could not be decoded: its mail is left to the reconciler
		if err := q.finish(ctx, &e.Job); err != nil {
			return err
		}
	}
	failpoint.Hit("cancel.finished")
	if e.ref.place == "" {
		return nil
	}
	return q.dropJob(ctx, e.ref)
}

// Counts is the queue at a glance. What an unclean stop brought back is not counted.
type Counts struct {
	Mails     uint64           `json:"mails"`      // messages of MAIL: mails, chunks and marks
	MailBytes uint64           `json:"mail_bytes"` // of MAIL
	MaxBytes  uint64           `json:"max_bytes"`
	Incoming  uint64           `json:"incoming"` // mails before or with the signer
	Sign      uint64           `json:"sign"`
	Ready     uint64           `json:"ready"`
	Later     map[Class]uint64 `json:"later"`
	Held      uint64           `json:"held"`
}

// Counts asks the consumers what they have not finished with, and the streams for the rest.
func (q *Queue) Counts(ctx context.Context) (Counts, error) {
	var c Counts
	var lanes map[string]uint64
	if _, err := q.tally(ctx, &c, &lanes); err != nil {
		return c, err
	}
	_, err := q.subjects(ctx, streamLater, "held.>", func(string) { c.Held++ })
	return c, err
}

// progress is how far a consumer is.
type progress struct {
	untaken, inHand uint64
	floor           uint64    // at or below it all is finished
	taken           uint64    // above it nothing was handed out
	lastTaken       time.Time // zero: not since its leader was elected
}

func (p progress) unfinished() uint64 { return p.untaken + p.inHand }

func (q *Queue) progress(ctx context.Context, d durable) (progress, error) {
	var resp struct {
		Pending    uint64 `json:"num_pending"`
		AckPending uint64 `json:"num_ack_pending"`
		AckFloor   struct {
			Stream uint64 `json:"stream_seq"`
		} `json:"ack_floor"`
		Delivered struct {
			Stream uint64    `json:"stream_seq"`
			Last   time.Time `json:"last_active"`
		} `json:"delivered"`
	}
	err := q.api(ctx, "CONSUMER.INFO", d.stream+"."+d.name, nil, &resp)
	return progress{untaken: resp.Pending, inHand: resp.AckPending, floor: resp.AckFloor.Stream, taken: resp.Delivered.Stream, lastTaken: resp.Delivered.Last}, err
}
