package queue

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// recentEnds is how far back Recover looks for what was finished. A power cut takes removals and acknowledgements of some seconds
// back; what came back before that, the reconciler has found.
const recentEnds = 5 * time.Minute

// Recover is for the process that opens an embedded store, before any role runs: it drops what an unclean stop brought back
// below the ack floors, finishes what the events say was finished, and drops jobs whose mail is gone and, of several jobs of one
// part, all but the one that lives.
func (q *Queue) Recover(ctx context.Context) (ReconcileReport, error) {
	p := q.newPass()
	if err := p.recover(ctx); err != nil {
		return p.r, err
	}
	if err := p.finishAgain(ctx); err != nil {
		return p.r, err
	}
	return p.r, p.dropDone(ctx)
}

// dropDone drops jobs that are done: of their acknowledgements the last ones were not written down. They would be dropped when they
// are handed out once more, but until then they would be listed as mail that waits.
func (p *pass) dropDone(ctx context.Context) error {
	var jobs []ref
	for _, r := range p.live {
		if m := p.mails[r.id]; m == nil || !m.m {
			jobs = append(jobs, r)
		}
	}
	return inParallel(ctx, atOnce, jobs, func(ctx context.Context, r ref) error {
		s, err := p.q.getLeader(ctx, r.stream(), r.subject())
		if errors.Is(err, errAbsent) {
			return nil
		}
		if err != nil {
			return err
		}
		j, err := readJob(s.data, r)
		if err != nil {
			return nil // held as unreadable: the operator's
		}
		if _, _, err := p.q.readMail(ctx, &j, true); !errors.Is(err, ErrGone) {
			return nil // there after all, or nothing is known
		}
		p.count(&p.r.Orphans)
		return p.q.dropJob(ctx, r)
	})
}

// finishAgain removes mails whose end is on record and which are there all the same: their jobs may be handed out again, since a
// consumer's state is not synced either. A job without its mail is dropped by whoever gets it.
func (p *pass) finishAgain(ctx context.Context) error {
	info, err := p.q.streamInfo(ctx, streamEvents, "", 0)
	if err != nil {
		return err
	}
	if info.State.LastTime.IsZero() {
		return nil
	}
	ended := make(map[MessageID]map[int]bool)
	for e, err := range p.q.Trace(ctx, TraceFilter{Since: info.State.LastTime.Add(-recentEnds)}) {
		if err != nil {
			return fmt.Errorf("read what was finished: %w", err)
		}
		if m := p.mails[e.ID]; m == nil || !m.m || e.Type != Finished && e.Type != AdminBounce {
			continue
		}
		if ended[e.ID] == nil {
			ended[e.ID] = make(map[int]bool)
		}
		ended[e.ID][e.Part] = true
	}
	ids := make([]MessageID, 0, len(ended))
	for id := range ended {
		ids = append(ids, id)
	}
	err = inParallel(ctx, atOnce, ids, func(ctx context.Context, id MessageID) error {
		kind := p.mails[id].kind
		s, err := p.q.getLeader(ctx, streamMail, mailSubject(kind, id))
		if errors.Is(err, errAbsent) {
			return nil
		}
		if err != nil {
			return err
		}
		head, _, err := decodeMail(s.data)
		if err != nil {
			return nil // a newer version's
		}
		signing := Signing{ID: id, Kind: kind, Envelope: head.Envelope, head: head, seq: s.seq}
		for _, part := range signing.jobs() {
			if !ended[id][part.Part] {
				continue
			}
			part.Notified = true
			p.count(&p.r.Finished)
			if err := p.q.finish(ctx, &part); err != nil {
				return err
			}
		}
		return nil
	})
	for _, id := range ids {
		p.mails[id].m = false // perhaps; see dropDone
	}
	return err
}
