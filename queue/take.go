package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"postroad/queue/failpoint"
)

// Delivery is one job in a worker's hand. The queue keeps it in progress while the handler runs.
type Delivery struct {
	Job Job

	q       *Queue
	h       *hand
	where   ref
	again   bool // handed out before
	settled bool
}

// Deliver hands out ready jobs of all lanes until ctx ends, at most window at a time and half as many of the slow lanes, each
// on its own goroutine. All
// checks that a redelivery needs are made before. A handler that returns without a successful Settle leaves the job to be
// handed out again. When ctx ends nothing more is taken; handlers keep a context that lives until Close, so that a
// dialogue can come to its end. Deliver returns when all handlers have returned.
func (q *Queue) Deliver(ctx context.Context, window int, handle func(context.Context, *Delivery)) error {
	var wg sync.WaitGroup
	names := allLanes()
	errs := make([]error, len(names))
	for i, lane := range names {
		wg.Go(func() {
			errs[i] = q.pull(ctx, streamJobs, laneConsumer(lane), max(1, window/Lanes),
				func(ctx context.Context, h *hand, meta *jetstream.MsgMetadata) { q.deliver(ctx, h, meta, handle) })
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (q *Queue) deliver(ctx context.Context, h *hand, meta *jetstream.MsgMetadata, handle func(context.Context, *Delivery)) {
	failpoint.Hit("deliver.taken")
	j, where, ok := q.takeJob(ctx, h, meta)
	if !ok {
		return
	}
	d := &Delivery{Job: j, q: q, h: h, where: where, again: meta.NumDelivered > 1}
	handle(ctx, d)
	if !d.settled {
		h.nak(giveBackDelay)
	}
}

// takeJob decodes the job in hand and makes sure that it is the one of its part that lives and that its part is not
// finished. ok is false when there is nothing to do: the hand is settled then.
func (q *Queue) takeJob(ctx context.Context, h *hand, meta *jetstream.MsgMetadata) (j Job, where ref, ok bool) {
	m := h.current()
	where, err := parseRef(m.Subject())
	if err != nil {
		q.o.Logger.Error("unknown subject in a job stream", "error", err)
		_ = h.ack(ctx)
		return j, where, false
	}
	j, err = readJob(m.Data(), where)
	if err != nil {
		q.setAsideUnreadable(ctx, h, where, m.Data(), err)
		return j, where, false
	}
	settled, err := q.came(ctx, &j, where)
	live := false
	if err == nil && !settled {
		live, err = q.lives(ctx, &j, where, meta.NumDelivered > 1)
	}
	if err != nil {
		q.o.Logger.Warn("job cannot be looked up", "msg_id", string(j.ID), "part", j.Part, "error", err)
		h.nak(giveBackDelay)
		return j, where, false
	}
	if !live {
		_ = h.ack(ctx)
		return j, where, false
	}
	return j, where, true
}

// lives makes the redelivery checks: a higher move elsewhere, or a part that is finished. The first try of a job's first
// move needs none but the latter, which one read answers.
func (q *Queue) lives(ctx context.Context, j *Job, where ref, again bool) (bool, error) {
	if again || where.move > 1 {
		_, all, err := q.newest(ctx, where.domain, j.ID, j.Part)
		if err != nil {
			return false, err
		}
		for _, r := range all {
			if r.supersedes(where) {
				return false, nil
			}
		}
	}
	if j.Parts == 1 {
		return true, nil
	}
	done, err := q.isDone(ctx, j, again)
	if err != nil || !done {
		return err == nil, err
	}
	// Killed between `done` and its ack: the last part must still remove the mail.
	return false, q.removeIfComplete(ctx, j, 0)
}

func (q *Queue) isDone(ctx context.Context, j *Job, again bool) (bool, error) {
	subject := doneSubject(j.Kind, j.ID, j.Part)
	if !again {
		_, err := q.get(ctx, streamMail, subject)
		if errors.Is(err, errAbsent) {
			return false, nil
		}
		return err == nil, err
	}
	return q.presentNow(ctx, subject)
}

// setAsideUnreadable moves a job that cannot be decoded to a hold of its own, byte for byte, where it blocks nothing and an
// operator sees it.
func (q *Queue) setAsideUnreadable(ctx context.Context, h *hand, where ref, data []byte, cause error) {
	q.o.Logger.Error("job cannot be read, it is held", "msg_id", string(where.id), "error", cause)
	to := where
	to.spot, to.move = heldSpot(holdUnreadable), where.move+1
	if _, err := q.put(ctx, to.stream(), to.subject(), data); err != nil {
		h.nak(time.Minute)
		return
	}
	_ = h.ack(ctx)
}

// readMail reads the mail of a job. ErrGone comes only from an answer that is known to be fresh; anything else is
// temporary. A job that was handed out before asks the leader, because a replica may show a mail that is finished.
func (q *Queue) readMail(ctx context.Context, j *Job, again bool) (mailHeader, []byte, error) {
	subject := mailSubject(j.Kind, j.ID)
	var (
		s     *stored
		err   error
		known = j.MailSeq
	)
	if again {
		if known, err = q.fresh(ctx, streamMail); err != nil {
			return mailHeader{}, nil, err
		}
		s, err = q.getLeader(ctx, streamMail, subject)
	} else {
		s, err = q.get(ctx, streamMail, subject)
	}
	if errors.Is(err, errAbsent) {
		there, err := q.present(ctx, subject, max(known, j.MailSeq))
		switch {
		case err != nil:
			return mailHeader{}, nil, err
		case !there:
			return mailHeader{}, nil, ErrGone
		}
		if s, err = q.getLeader(ctx, streamMail, subject); err != nil {
			return mailHeader{}, nil, fmt.Errorf("read mail %s: %w", j.ID, err)
		}
	} else if err != nil {
		return mailHeader{}, nil, fmt.Errorf("read mail %s: %w", j.ID, err)
	}
	h, content, err := decodeMail(s.data)
	if err != nil {
		return h, nil, fmt.Errorf("read mail %s: %w", j.ID, err)
	}
	return h, content, nil
}

// Open streams what is to be sent: the signature fields, then the content. ErrGone says that the mail is gone; the job is
// dropped then and the handler just returns. Any other error is temporary.
func (d *Delivery) Open(ctx context.Context) (io.ReadCloser, error) {
	h, content, err := d.q.readMail(ctx, &d.Job, d.again)
	if errors.Is(err, ErrGone) {
		d.settled = true
		if ackErr := d.h.ack(d.q.life); ackErr != nil {
			return nil, fmt.Errorf("%w: %w", err, ackErr)
		}
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	body := d.q.openContent(ctx, d.Job.Kind, d.Job.ID, h, content)
	return &joined{Reader: io.MultiReader(strings.NewReader(d.Job.Signatures), body), Closer: body}, nil
}

// Size is the number of octets that Open will yield.
func (d *Delivery) Size() int64 { return int64(len(d.Job.Signatures)) + d.Job.Size }

type joined struct {
	io.Reader
	io.Closer
}
