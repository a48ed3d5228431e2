package queue

import (
	"context"
	"fmt"
	"time"

	"postroad/queue/failpoint"
)

// Settlement is what an attempt came to, or a decision not to try.
type Settlement struct {
	Notify    []Notification // to be published, each once
	Remaining []Recipient    // to be tried again; none: the part is finished
	Delay     time.Duration  // until then, rounded to delay classes
	Tried     bool           // there was an attempt at SMTP: raises Tries; without one the domain goes to a slow lane at once
	Delayed   bool           // a delay notice is among Notify
	Source    string         // egress source of the try: the next one is to come from it too
	Elsewhere bool           // not tried because another process is to do it: says nothing of the domain
	Hold      string         // instead of the delay: why it is held until an operator releases it
	Reason    string         // why it waits, for people
	Facts     []Event        // recorded with id and part filled in where there is no id
}

// Notification is a message of our own making about the job. Its id is derived from the job and Key, so that one that is made
// again after a crash is found and not sent twice.
type Notification struct {
	Key      string // tells the notifications of one job apart: what it reports and the recipients it reports on
	Envelope Envelope
	Payload  []byte // the whole message with CRLF, at most 1 MiB less its envelope
}

// Settle records the result in the order that survives a crash at any point: notifications, then the deferred job or the
// end of the part, then the acknowledgement. It repeats until the queue confirms or ctx ends. Once a peer has said 250 the
// caller must not give up early: that is the one place where a crash sends a mail twice.
func (d *Delivery) Settle(ctx context.Context, s Settlement) error {
	failpoint.Hit("settle.begin")
	d.Job.Notified = d.Job.Notified || len(s.Notify) > 0
	for _, n := range s.Notify {
		if err := d.q.notify(ctx, &d.Job, n, &s); err != nil {
			return err
		}
		failpoint.Hit("bounce.published")
	}
	if failpoint.Planted("early-ack") {
		if err := d.h.ack(ctx); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	var err error
	if len(s.Remaining) > 0 {
		err = d.defers(ctx, &s)
	} else {
		d.q.slow.delivered(encodeToken(d.Job.Domain))
		err = d.q.finish(ctx, &d.Job)
	}
	if err != nil {
		return err
	}
	d.settled = true
	d.q.settled.note(&d.Job, d.where, len(s.Remaining) == 0, time.Now())
	if err := d.h.ack(ctx); err != nil { // it is settled all the same
		d.q.o.Logger.Warn("settled job was not acknowledged, it will be looked up again", "msg_id", string(d.Job.ID), "error", err)
	}
	d.record(&s)
	return nil
}

func (d *Delivery) record(s *Settlement) {
	for _, e := range s.Facts {
		if e.ID == "" { // else it is about another message: one that came back
			e.ID, e.Part = d.Job.ID, d.Job.Part
		}
		if len(s.Remaining) > 0 && e.Type == TransientFailure && e.Due.IsZero() {
			e.Due = d.Job.Due
		}
		d.q.Record(e)
	}
	if len(s.Remaining) == 0 {
		d.q.Record(Event{Type: Finished, ID: d.Job.ID, Part: d.Job.Part})
	}
}

// defers publishes the job into its first delay class, with the recipients that remain: this is also the record of those
// that are through.
func (d *Delivery) defers(ctx context.Context, s *Settlement) error {
	now := time.Now()
	j := d.Job
	j.Recipients, j.Reason = s.Remaining, s.Reason
	j.Delayed = j.Delayed || s.Delayed
	if s.Tried {
		j.Tries++
		j.LastTry = now
		if s.Source != "" {
			j.Source = s.Source
		}
	}
	if !j.Unsigned && !s.Elsewhere && s.Hold == "" {
		d.q.putOff(j.Domain, s.Tried)
	}
	to := heldSpot(s.Hold)
	if s.Hold == "" {
		to = j.wait(decompose(s.Delay), now)
	}
	r := ref{to, d.where.domain, j.ID, j.Part, d.where.move + 1}
	if err := d.q.putJob(ctx, r, j); err != nil {
		return err
	}
	d.Job.Due = j.Due
	failpoint.Hit("defer.published")
	return nil
}

// wait sets the delay classes that the job goes through and returns the first.
func (j *Job) wait(steps []Class, now time.Time) spot {
	j.Remaining = steps[1:]
	j.Due = now
	for _, c := range steps {
		j.Due = j.Due.Add(c.delay())
	}
	return laterSpot(steps[0])
}

// finish ends a part. The mail goes when it was the last one; with chunks its `m` goes first, because a mail without
// all its chunks must never be found.
func (q *Queue) finish(ctx context.Context, j *Job) error {
	if j.Kind == KindDSN && j.Maker != "" {
		if err := q.noteFinished(ctx, j); err != nil {
			return err
		}
	}
	if j.Parts == 1 {
		return q.remove(ctx, j)
	}
	seq, err := q.put(ctx, streamMail, doneSubject(j.Kind, j.ID, j.Part), nil)
	if err != nil {
		return err
	}
	failpoint.Hit("finish.done")
	return q.removeIfComplete(ctx, j, seq)
}

// removeIfComplete removes the mail when all of its parts are done. Every part publishes its mark first and looks
// afterwards, so the last one sees all of them.
func (q *Queue) removeIfComplete(ctx context.Context, j *Job, known uint64) error {
	return q.persist(ctx, "finish "+string(j.ID), func(ctx context.Context) error {
		at := known
		if at == 0 {
			var err error
			if at, err = q.fresh(ctx, streamMail); err != nil {
				return err
			}
		}
		done, err := q.doneParts(ctx, j.Kind, j.ID, at)
		if err != nil || len(done) < j.Parts {
			return err
		}
		return q.remove(ctx, j)
	})
}

// remove takes the mail away with all that lies beside it. A mail with chunks goes first: without all of them it must never
// be found.
func (q *Queue) remove(ctx context.Context, j *Job) error {
	if j.Chunks > 0 {
		if err := q.erase(ctx, streamMail, mailSubject(j.Kind, j.ID)); err != nil {
			return err
		}
		failpoint.Hit("finish.erased")
	}
	err := q.persist(ctx, "remove "+string(j.ID), func(ctx context.Context) error {
		_, err := q.purge(ctx, streamMail, allOfMail(j.Kind, j.ID), 0)
		return err
	})
	if err == nil {
		failpoint.Hit("finish.removed")
	}
	return err
}

// notify stores a notification once. A repeat finds it, or the mark that it left when it was through.
func (q *Queue) notify(ctx context.Context, j *Job, n Notification, s *Settlement) error {
	id, err := DeriveID(j.ID, fmt.Sprint(j.Part), n.Key)
	if err != nil {
		return err
	}
	return q.persist(ctx, "notify about "+string(j.ID), func(ctx context.Context) error {
		known, err := q.fresh(ctx, streamMail)
		if err != nil {
			return err
		}
		through, err := q.present(ctx, notedSubject(j.ID, id), known)
		if err != nil || through {
			return err
		}
		n.Envelope.Maker = j.ID
		h := mailHeader{Envelope: n.Envelope, Parts: len(partition(n.Envelope.Recipients)), Size: int64(len(n.Payload))}
		data, err := encodeMail(h, n.Payload)
		if err != nil {
			return &finalError{err}
		}
		if _, err := q.putOnce(ctx, streamMail, mailSubject(KindDSN, id), data); err != nil {
			return err
		}
		s.Facts = append(s.Facts, Event{Type: NotificationMade, Peer: string(id), Text: n.Key})
		return nil
	})
}

// noteFinished leaves a mark with the message that a finished notification reports on, for as long as that exists.
func (q *Queue) noteFinished(ctx context.Context, j *Job) error {
	return q.persist(ctx, "note "+string(j.ID), func(ctx context.Context) error {
		there, err := q.presentNow(ctx, mailSubject(KindMail, j.Maker))
		if err != nil || !there {
			return err
		}
		if _, err := q.putOnce(ctx, streamMail, notedSubject(j.Maker, j.ID), nil); err != nil {
			return err
		}
		// The message may have gone meanwhile; then nobody else takes the mark away.
		if there, err = q.presentNow(ctx, mailSubject(KindMail, j.Maker)); err != nil || there {
			return err
		}
		_, err = q.purge(ctx, streamMail, notedSubject(j.Maker, j.ID), 0)
		return err
	})
}
