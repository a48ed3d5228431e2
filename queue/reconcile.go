package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"postroad/queue/failpoint"
)

const (
	reconcileInterval = 5 * time.Minute
	reconcileRest     = 10            // times what a pass took: the servers list a million messages for minutes
	chunkPatience     = 2 * time.Hour // longer than the longest DATA
	overdueGrace      = 10 * time.Minute

	// returnedMove is the move under which a mail without a job is set aside: above any that its lost jobs can have had.
	returnedMove = 1 << 20
	// HoldReturned is why a mail is held that was signed before and has neither a job nor an end in the records.
	HoldReturned = "returned"
)

// ReconcileReport says what one pass found and mended.
type ReconcileReport struct {
	Jobs       int `json:"jobs"`        // jobs seen
	Mails      int `json:"mails"`       // mails seen
	LowerMoves int `json:"lower_moves"` // jobs dropped because a later state of their part is there
	Finished   int `json:"finished"`    // mails removed whose parts were all done, or whose end is on record
	Orphans    int `json:"orphans"`     // jobs and marks dropped whose mail is gone
	Chunks     int `json:"chunks"`      // mails never committed, whose chunks were removed
	Overdue    int `json:"overdue"`     // jobs that had been left behind in later
	Returned   int `json:"returned"`    // finished jobs that an unclean stop had brought back
	SetAside   int `json:"set_aside"`   // mails held for an operator
	Suspects   int `json:"suspects"`    // mails without a job for the first time: judged in the next pass
}

// suspects are mails that had no job in the last pass.
type suspects map[MessageID]bool

// RunReconciler reconciles at start and every five minutes, more seldom where a pass takes long, while this process holds the cluster's lease
// for it, until ctx ends.
func (q *Queue) RunReconciler(ctx context.Context) error {
	q.holdLease(ctx, "reconciler", func(ctx context.Context) {
		for wait := time.Duration(0); sleep(ctx, wait) == nil; {
			began := time.Now()
			r, err := q.Reconcile(ctx)
			wait = max(reconcileInterval, reconcileRest*time.Since(began))
			if err != nil && ctx.Err() == nil {
				q.o.Logger.Warn("reconcile", "error", err)
				continue
			}
			if r != (ReconcileReport{Jobs: r.Jobs, Mails: r.Mails}) {
				q.o.Logger.Info("reconciled", "report", r)
			}
		}
	})
	return nil
}

// Reconcile makes one pass, lease or not. Every action is taken only after the single message was looked at again, and
// each can be repeated.
func (q *Queue) Reconcile(ctx context.Context) (ReconcileReport, error) {
	p := q.newPass()
	if err := p.recover(ctx); err != nil {
		return p.r, err
	}
	if err := p.judge(ctx); err != nil {
		return p.r, err
	}
	return p.r, nil
}

// partKey names one part of one message.
type partKey struct {
	id   MessageID
	part int
}

// mailState is what lies in MAIL under one id.
type mailState struct {
	kind   Kind
	m      bool
	chunks bool
	done   int
	notes  bool
	again  bool // seen in the second listing too
}

// pass is one run of the reconciler over what it has seen.
type pass struct {
	q      *Queue
	r      ReconcileReport
	old    time.Time // what was made after this is left alone
	floor  uint64    // of the signer
	mails  map[MessageID]*mailState
	live   map[partKey]ref
	jobsOf map[MessageID]int
	lower  map[ref]bool

	mu      sync.Mutex // of what follows, and of the report
	jobless []jobless
	ended   map[partKey]bool
	next    suspects
}

func (q *Queue) newPass() *pass {
	return &pass{q: q, old: time.Now().Add(-2 * q.o.AckWait), mails: make(map[MessageID]*mailState),
		live: make(map[partKey]ref), jobsOf: make(map[MessageID]int), lower: make(map[ref]bool),
		ended: make(map[partKey]bool), next: make(suspects)}
}

// recover purges below the ack floors, then looks at everything: MAIL, JOBS, LATER, JOBS, LATER, MAIL. What moves between
// two looks is in one of them.
func (p *pass) recover(ctx context.Context) error {
	if err := p.purgeReturned(ctx); err != nil {
		return err
	}
	if err := p.listMails(ctx, false); err != nil {
		return err
	}
	for range 2 {
		for _, s := range []string{streamJobs, streamLater} {
			if err := p.listJobs(ctx, s); err != nil {
				return err
			}
		}
	}
	if err := p.listMails(ctx, true); err != nil {
		return err
	}
	p.r.Jobs, p.r.Mails = len(p.live), len(p.mails)
	for r := range p.lower {
		if err := p.dropLower(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// purgeReturned removes what lies at or below a work queue consumer's ack floor: nobody will ever be handed it.
func (p *pass) purgeReturned(ctx context.Context) error {
	for _, d := range durables() {
		floor, err := p.q.ackFloor(ctx, d.stream, d.name)
		if err != nil {
			return err
		}
		if d.stream == streamMail {
			p.floor = floor
			continue
		}
		if floor == 0 {
			continue
		}
		n, err := p.q.purge(ctx, d.stream, d.filters[0], floor+1)
		if err != nil {
			return fmt.Errorf("purge what came back below %s of %s: %w", d.name, d.stream, err)
		}
		p.r.Returned += int(n)
	}
	return nil
}

func (p *pass) listMails(ctx context.Context, second bool) error {
	_, err := p.q.subjects(ctx, streamMail, ">", func(s string) {
		t := strings.SplitN(s, ".", 4)
		if len(t) < 3 || t[0] == "bar" {
			return
		}
		id := MessageID(strings.Clone(t[1]))
		m := p.mails[id]
		if m == nil {
			if second {
				return // accepted meanwhile: nothing to judge
			}
			m = &mailState{kind: Kind(strings.Clone(t[0]))}
			p.mails[id] = m
		}
		switch {
		case second:
			m.again = true
			m.m = m.m || t[2] == "m"
		case t[2] == "m":
			m.m = true
		case t[2] == "c":
			m.chunks = true
		case t[2] == "done" && len(t) == 4 && strings.HasPrefix(t[3], "n"):
			m.notes = true
		case t[2] == "done":
			m.done++
		}
	})
	return err
}

func (p *pass) listJobs(ctx context.Context, stream string) error {
	var bad error
	_, err := p.q.subjects(ctx, stream, "*.*.*.*.*.*", func(s string) {
		r, err := parseRef(strings.Clone(s))
		if err != nil {
			bad = err
			return
		}
		k := partKey{r.id, r.part}
		other, ok := p.live[k]
		switch {
		case !ok:
			p.live[k] = r
			p.jobsOf[r.id]++
		case other == r:
		case r.supersedes(other):
			p.live[k] = r
			p.lower[other] = true
		default:
			p.lower[r] = true
		}
	})
	return errors.Join(err, bad)
}

// dropLower drops a job when a later state of its part is really there: between two looks it may just have moved on.
func (p *pass) dropLower(ctx context.Context, r ref) error {
	live, all, err := p.q.newest(ctx, r.domain, r.id, r.part)
	if err != nil {
		return err
	}
	for _, other := range all {
		if other == r && live.supersedes(r) {
			p.r.LowerMoves++
			return p.q.dropJob(ctx, r)
		}
	}
	return nil
}

// atOnce is how many messages one pass works on at a time.
const atOnce = 16

// count changes the report.
func (p *pass) count(what *int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*what++
}

// judge looks at jobs without mail, and at mails that lie there without anything to be done for them.
func (p *pass) judge(ctx context.Context) error {
	if err := inParallel(ctx, atOnce, slices.Collect(maps.Values(p.live)), p.judgeJob); err != nil {
		return err
	}
	var old []MessageID
	for id, m := range p.mails {
		if m.again && id.Time().Before(p.old) {
			old = append(old, id)
		}
	}
	if err := inParallel(ctx, atOnce, old, p.judgeMail); err != nil {
		return err
	}
	if len(p.jobless) > 0 {
		if err := p.readEnds(ctx); err != nil {
			return err
		}
	}
	err := inParallel(ctx, atOnce, p.jobless, p.settleJobless)
	p.q.suspects, p.r.Suspects = p.next, len(p.next)
	return err
}

func (p *pass) judgeJob(ctx context.Context, r ref) error {
	if m := p.mails[r.id]; (m == nil || !m.m) && r.id.Time().Before(p.old) {
		return p.dropOrphan(ctx, r)
	}
	if r.place == PlaceLater {
		return p.pullOverdue(ctx, r)
	}
	return nil
}

// dropOrphan drops a job whose mail is gone.
func (p *pass) dropOrphan(ctx context.Context, r ref) error {
	kind, err := p.kindOf(ctx, r)
	if errors.Is(err, errAbsent) {
		return nil
	}
	if err != nil {
		return err
	}
	there, err := p.q.presentNow(ctx, mailSubject(kind, r.id))
	if err != nil || there {
		return err
	}
	p.count(&p.r.Orphans)
	return p.q.dropJob(ctx, r)
}

func (p *pass) kindOf(ctx context.Context, r ref) (Kind, error) {
	s, err := p.q.getLeader(ctx, r.stream(), r.subject())
	if err != nil {
		return "", err
	}
	j, err := readJob(s.data, r)
	if err != nil {
		return "", errAbsent // held as unreadable: the operator's
	}
	return j.Kind, nil
}

// pullOverdue makes a job ready that its timer has left behind. Only the newest delay counts; a job in hand is younger.
func (p *pass) pullOverdue(ctx context.Context, r ref) error {
	delay := Class(r.detail).delay()
	if r.id.Time().Add(delay + overdueGrace).After(time.Now()) {
		return nil
	}
	s, err := p.q.get(ctx, streamLater, r.subject())
	if errors.Is(err, errAbsent) {
		return nil
	}
	if err != nil {
		return err
	}
	if time.Since(s.time) < delay+overdueGrace {
		return nil
	}
	j, err := readJob(s.data, r)
	if err != nil {
		return nil
	}
	p.count(&p.r.Overdue)
	return p.q.move(ctx, r, p.q.nextSpot(&j), j)
}

// judgeMail decides about one mail that is old enough.
func (p *pass) judgeMail(ctx context.Context, id MessageID) error {
	switch m := p.mails[id]; {
	case m.m && (p.jobsOf[id] == 0 || m.done > 0):
		return p.findJobless(ctx, id, m)
	case m.m:
		return nil
	case m.chunks && m.done == 0 && !m.notes:
		if time.Since(id.Time()) < chunkPatience {
			return nil
		}
		return p.dropAbandoned(ctx, m.kind, id)
	default:
		p.count(&p.r.Orphans)
		return p.purgeUnlessMail(ctx, m.kind, id)
	}
}

// dropAbandoned removes chunks of which none has come for long, by the servers' clock: that of the ingress, which is in the id, may be hours behind.
func (p *pass) dropAbandoned(ctx context.Context, kind Kind, id MessageID) error {
	last, err := p.q.getLeader(ctx, streamMail, string(kind)+"."+string(id)+".c.*")
	if errors.Is(err, errAbsent) {
		return nil
	}
	if err != nil {
		return err
	}
	if age := p.q.spender.clock.nanos(time.Now()) - last.time.UnixNano(); time.Duration(age) < p.q.patience {
		return nil
	}
	p.count(&p.r.Chunks)
	return p.purgeUnlessMail(ctx, kind, id)
}

func (p *pass) purgeUnlessMail(ctx context.Context, kind Kind, id MessageID) error {
	there, err := p.q.presentNow(ctx, mailSubject(kind, id))
	if err != nil || there {
		return err
	}
	_, err = p.q.purge(ctx, streamMail, allOfMail(kind, id), 0)
	return err
}

// jobless is a mail of which parts have no job.
type jobless struct {
	Signing
	missing []Job // neither a job nor a mark that they are done
	isDone  bool  // no part is missing and none has a job
}

// findJobless looks at a mail of which a part has no job: not signed yet, finished, or returned.
func (p *pass) findJobless(ctx context.Context, id MessageID, m *mailState) error {
	s, err := p.q.getLeader(ctx, streamMail, mailSubject(m.kind, id))
	if errors.Is(err, errAbsent) || err == nil && s.seq > p.floor {
		return nil // gone, or still the signer's
	}
	if err != nil {
		return err
	}
	head, _, err := decodeMail(s.data)
	if err != nil {
		return nil // a newer version's
	}
	j := jobless{Signing: Signing{ID: id, Kind: m.kind, Envelope: head.Envelope, head: head, seq: s.seq}}
	if err := p.partsWithoutEnd(ctx, &j); err != nil {
		return err
	}
	if len(j.missing) == 0 && !j.isDone {
		return nil // every part is on its way
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.jobless = append(p.jobless, j)
	return nil
}

// partsWithoutEnd finds the parts that have neither a job nor a mark that they are done.
func (p *pass) partsWithoutEnd(ctx context.Context, j *jobless) error {
	known, err := p.q.fresh(ctx, streamMail)
	if err != nil {
		return err
	}
	done, err := p.q.doneParts(ctx, j.Kind, j.ID, known)
	if err != nil {
		return err
	}
	j.isDone = true
	for _, part := range j.jobs() {
		if done[strconv.Itoa(part.Part)] {
			continue
		}
		j.isDone = false
		live, _, err := p.q.newest(ctx, part.Domain, part.ID, part.Part)
		if err != nil {
			return err
		}
		if live == nil {
			j.missing = append(j.missing, part)
		}
	}
	return nil
}

// readEnds reads once which parts of all these messages are finished according to the events.
func (p *pass) readEnds(ctx context.Context) error {
	since := p.jobless[0].ID.Time()
	wanted := make(map[MessageID]bool)
	for _, j := range p.jobless {
		wanted[j.ID] = true
		if t := j.ID.Time(); t.Before(since) {
			since = t
		}
	}
	for e, err := range p.q.Trace(ctx, TraceFilter{Since: since.Add(-2 * time.Second)}) {
		if err != nil {
			return err
		}
		if (e.Type == Finished || e.Type == AdminBounce) && wanted[e.ID] {
			p.ended[partKey{e.ID, e.Part}] = true
		}
	}
	return nil
}

// settleJobless ends what is finished. Parts that the signer has let go of and that have neither a job nor an end were
// brought back by the store: when the records tell their end they go; otherwise, in the second pass that meets them, they
// are held and an operator decides. They are never signed again by themselves.
func (p *pass) settleJobless(ctx context.Context, j jobless) error {
	if j.isDone {
		p.count(&p.r.Finished)
		return p.q.remove(ctx, &Job{ID: j.ID, Kind: j.Kind, Chunks: j.head.Chunks})
	}
	for _, part := range j.missing {
		switch {
		case p.ended[partKey{part.ID, part.Part}]:
			part.Notified = true
			p.count(&p.r.Finished)
			if err := p.q.finish(ctx, &part); err != nil {
				return err
			}
		case !p.q.suspects[part.ID]:
			p.mu.Lock()
			p.next[part.ID] = true
			p.mu.Unlock()
		default:
			if err := p.setAside(ctx, part); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *pass) setAside(ctx context.Context, j Job) error {
	p.count(&p.r.SetAside)
	j.Unsigned, j.Reason = true, "it came back after an unclean stop and no record tells its end; retry or cancel it"
	to := ref{heldSpot(HoldReturned), j.Domain, j.ID, j.Part, returnedMove}
	if err := p.q.putJob(ctx, to, j); err != nil {
		return err
	}
	failpoint.Hit("reconcile.aside")
	p.q.Record(Event{Type: SetAside, ID: j.ID, Part: j.Part, Text: j.Reason})
	p.q.o.Logger.Error("mail set aside", "msg_id", string(j.ID), "part", j.Part, "reason", j.Reason)
	return nil
}
