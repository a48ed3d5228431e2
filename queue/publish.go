package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// publishTimeout bounds the wait for one PubAck before the same publish is made again.
const publishTimeout = 4 * time.Second

// dedupWindow is how long a stream remembers a Msg-Id.
const dedupWindow = 2 * time.Minute

// put stores data under a subject that nothing else is ever stored under, and returns a stream position at or after it.
// It repeats until the queue confirms or ctx ends, so that nil is certain and an error is not: the message may be stored.
// A job that is already there, or was there within the duplicate window, counts as stored.
func (q *Queue) put(ctx context.Context, stream, subject string, data []byte) (uint64, error) {
	var seq uint64
	err := q.persist(ctx, "publish "+subject, func(ctx context.Context) error {
		var err error
		seq, err = q.putOnce(ctx, stream, subject, data)
		return err
	})
	return seq, err
}

// lineLength bounds the publishes to one stream on their way. A stream syncs one after the other; a longer line would only
// make all of them wait past their time and be repeated.
const lineLength = 64

func (q *Queue) putOnce(ctx context.Context, stream, subject string, data []byte) (uint64, error) {
	if _, err := q.lines[stream].acquire(ctx, 1); err != nil {
		return 0, err
	}
	defer q.lines[stream].release(1)
	ctx, cancel := q.onLink(ctx, publishTimeout)
	defer cancel()
	m := newMsg(subject, data)
	m.Header.Set(jetstream.MsgIDHeader, subject)
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
	ack, err := q.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0))
	switch {
	case err == nil:
		q.trouble(nil)
		return ack.Sequence, nil
	case hasCode(err, codeWrongLastSeq, codeWrongLastSeqNew):
		// Unknown, not "somebody else did it": read back. Absent means: ask again.
		// By a listing, which shows no content: ingress may not read what it wrote.
		info, readErr := q.streamInfo(ctx, stream, subject, 0)
		if readErr != nil {
			return 0, fmt.Errorf("%w; read back: %w", err, readErr)
		}
		if info.State.Subjects[subject] == 0 {
			return 0, fmt.Errorf("%w; read back: %w", err, errAbsent)
		}
		return info.State.LastSeq, nil
	case hasCode(err, codeStoreFailed, codeNoResources):
		return 0, fmt.Errorf("%w: %w", ErrFull, err)
	default:
		q.trouble(err)
		return 0, err
	}
}

// putJob publishes the job where r says, with r's move.
func (q *Queue) putJob(ctx context.Context, r ref, j Job) error {
	j.Move = r.move
	data, err := encodeJob(&j)
	if err != nil {
		return err
	}
	_, err = q.put(ctx, r.stream(), r.subject(), data)
	return err
}

// barrier makes looks fresh: a marker published after the question was asked, whose position an answer must have seen.
// Questions that come while a marker is on its way share the next one.
type barrier struct {
	mu      sync.Mutex
	running bool
	waiting []chan barResult
}

type barResult struct {
	seq uint64
	err error
}

// fresh returns a sequence of the stream that any answer must have reached to count. With one copy there is one server
// and its answers are always current.
func (q *Queue) fresh(ctx context.Context, stream string) (uint64, error) {
	if q.o.Replicas == 1 {
		return 0, nil
	}
	b := q.bars[stream]
	ch := make(chan barResult, 1)
	b.mu.Lock()
	b.waiting = append(b.waiting, ch)
	if !b.running {
		b.running = true
		q.wg.Go(func() { q.runBarrier(stream, b) })
	}
	b.mu.Unlock()
	select {
	case r := <-ch:
		return r.seq, r.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (q *Queue) runBarrier(stream string, b *barrier) {
	for {
		b.mu.Lock()
		waiting := b.waiting
		b.waiting = nil
		if len(waiting) == 0 {
			b.running = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		seq, err := q.mark(stream)
		for _, ch := range waiting {
			ch <- barResult{seq, err}
		}
	}
}

func (q *Queue) mark(stream string) (uint64, error) {
	ctx, cancel := q.onLink(q.life, publishTimeout)
	defer cancel()
	ack, err := q.js.PublishMsg(ctx, newMsg(barSubject(stream, q.o.Node), nil), jetstream.WithRetryAttempts(0))
	q.trouble(err)
	if err != nil {
		return 0, fmt.Errorf("publish marker to %s: %w", stream, err)
	}
	return ack.Sequence, nil
}

// errStale says that an answer was older than what we know, so nothing may be concluded from it.
var errStale = errors.New("the server that answered lags behind")
