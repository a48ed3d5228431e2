package queue

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"postroad/queue/failpoint"
)

const (
	timerBatch = 256 // jobs that one timer moves at a time, when many are due
	timerMoves = 32  // of them at once
)

// RunTimers moves due jobs from later to ready, or back to the signer, until ctx ends. Any number of processes may run
// it: each holds a different head of the FIFOs.
func (q *Queue) RunTimers(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make([]error, len(classes))
	for i, c := range classes {
		wg.Go(func() { errs[i] = q.runTimer(ctx, c.name, c.delay) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// runTimer takes the head of one class. A constant delay makes the order of arrival the order of being due, so while
// the head waits nothing behind it can be due. One job is held while it waits; when jobs are due already, batches grow.
func (q *Queue) runTimer(ctx context.Context, class Class, delay time.Duration) error {
	cons, err := q.consumer(ctx, streamLater, timerConsumer(class))
	if err != nil {
		return err
	}
	batch := 1
	for ctx.Err() == nil {
		held, err := q.heads(cons, batch)
		if err != nil {
			q.trouble(err)
			_ = sleep(ctx, 250*time.Millisecond)
		}
		switch waited := q.moveDue(ctx, held, delay); {
		case waited, len(held) == 0:
			batch = 1
		case len(held) == batch:
			batch = min(2*batch, timerBatch)
		}
	}
	return nil
}

// dueHand is a job of `later` in hand.
type dueHand struct {
	*hand
	meta *jetstream.MsgMetadata
}

// heads takes up to n jobs from the head of a FIFO. It waits for the first one only when that is all that is asked for.
func (q *Queue) heads(cons jetstream.Consumer, n int) ([]dueHand, error) {
	var (
		msgs jetstream.MessageBatch
		err  error
		link = q.linkNumber()
	)
	if n == 1 {
		msgs, err = cons.Fetch(1, jetstream.FetchMaxWait(fetchWait))
	} else {
		msgs, err = cons.FetchNoWait(n)
	}
	if err != nil {
		return nil, err
	}
	var held []dueHand
	for m := range msgs.Messages() {
		meta, err := m.Metadata()
		if err != nil {
			continue
		}
		if h, ok := q.take(m, link); ok {
			held = append(held, dueHand{h, meta})
		}
	}
	return held, msgs.Error()
}

// moveDue moves each job when its time has come and reports whether any had to wait for it. When ctx ends it gives the rest
// back.
func (q *Queue) moveDue(ctx context.Context, held []dueHand, delay time.Duration) (waited bool) {
	var wg sync.WaitGroup
	defer wg.Wait()
	free := newSlots(timerMoves)
	for _, h := range held {
		if late := q.untilDue(h.meta, delay); late > 0 {
			waited = true
			_ = sleep(ctx, late)
		}
		if _, err := free.acquire(ctx, 1); err != nil {
			h.nak(0)
			h.drop()
			continue
		}
		kept := waited
		wg.Go(func() {
			defer free.release(1)
			defer h.drop()
			q.moveOne(q.life, h.hand, h.meta, kept)
		})
	}
	return waited
}

// untilDue is the rest of the delay. The clock may have been set since the job was stored, so it is never longer
// than the delay from now.
func (q *Queue) untilDue(meta *jetstream.MsgMetadata, delay time.Duration) time.Duration {
	now := time.Now()
	since := meta.Timestamp
	if since.After(now) {
		since = now
	}
	return since.Add(delay).Sub(now)
}

// moveOne publishes the next state of a due job. What was kept in hand may have been moved by an operator meanwhile, which
// an acknowledgement would not tell.
func (q *Queue) moveOne(ctx context.Context, h *hand, meta *jetstream.MsgMetadata, kept bool) {
	m := h.current()
	where, err := parseRef(m.Subject())
	if err != nil {
		q.o.Logger.Error("unknown subject in a job stream", "error", err)
		_ = h.ack(ctx)
		return
	}
	j, err := readJob(m.Data(), where)
	if err != nil {
		q.setAsideUnreadable(ctx, h, where, m.Data(), err)
		return
	}
	if kept || meta.NumDelivered > 1 {
		live, err := q.stillThere(ctx, where, meta.NumDelivered > 1)
		if err != nil {
			q.o.Logger.Warn("due job cannot be looked up", "msg_id", string(j.ID), "error", err)
			h.nak(giveBackDelay)
			return
		}
		if !live {
			_ = h.ack(ctx)
			return
		}
	}
	if failpoint.Planted("early-ack") {
		_ = h.ack(ctx)
		time.Sleep(20 * time.Millisecond)
	}
	to := q.afterWait(&j)
	if err := q.putJob(ctx, ref{to, where.domain, j.ID, j.Part, where.move + 1}, j); err != nil {
		h.nak(giveBackDelay)
		return
	}
	failpoint.Hit("due.published")
	_ = h.ack(ctx)
}

// stillThere reports whether the job where it was is still the one that lives.
func (q *Queue) stillThere(ctx context.Context, where ref, again bool) (bool, error) {
	if again {
		live, _, err := q.newest(ctx, where.domain, where.id, where.part)
		return live != nil && *live == where, err
	}
	known, err := q.fresh(ctx, streamLater)
	if err != nil {
		return false, err
	}
	seen := make(map[ref]bool)
	if err := q.look(ctx, streamLater, where.subject(), known, seen); err != nil {
		return false, err
	}
	return seen[where], nil
}

// afterWait is where a job goes when one delay class is over.
func (q *Queue) afterWait(j *Job) spot {
	switch {
	case len(j.Remaining) > 0:
		c := j.Remaining[0]
		j.Remaining = j.Remaining[1:]
		return laterSpot(c)
	case j.Unsigned:
		return signSpot(j.Domain)
	default:
		return q.readySpot(j.Domain)
	}
}
