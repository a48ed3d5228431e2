package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"postroad/queue/failpoint"
)

const (
	chunkSize      = 512 << 10
	chunksInFlight = 8       // of one message
	chunkLine      = 32      // of all messages of this process: more would wait past their time
	inlineLimit    = 1 << 20 // content above this goes into chunks, whatever the server's max_payload is
	payloadReserve = 4 << 10 // of max_payload, for protocol headers
	acceptPatience = 15 * time.Second
)

// ErrEnvelopeTooLarge says that the envelope alone does not fit into one NATS message.
var ErrEnvelopeTooLarge = errors.New("the envelope does not fit into one message of the queue")

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// Accept stores the message under id. nil means that it is fsynced on one node, or on a majority of them: only then may
// the client be told 250. The error wraps the payload's own (nothing stays accepted), ErrFull, or ErrUnavailable: then the
// state is unknown and the client must keep its mail. It uses about 5 MiB of memory at the most, whatever the size.
func (q *Queue) Accept(ctx context.Context, id MessageID, env Envelope, payload io.Reader) error {
	if len(env.Recipients) == 0 {
		return errors.New("accept: envelope without recipients")
	}
	h := mailHeader{Envelope: env, Parts: len(partition(env.Recipients))}
	head, err := encodeMail(h, nil)
	if err != nil {
		return err
	}
	room := min(inlineLimit, int(q.nc.MaxPayload())-len(head)-payloadReserve)
	if room < 0 {
		return fmt.Errorf("accept: %w: %d octets", ErrEnvelopeTooLarge, len(head))
	}
	buf := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(buf)
	buf.Reset()
	_, err = io.CopyN(buf, payload, int64(room)+1)
	switch {
	case errors.Is(err, io.EOF):
		h.Size = int64(buf.Len())
		return q.commit(ctx, id, h, buf.Bytes())
	case err != nil:
		return fmt.Errorf("accept: read content: %w", err)
	}
	h.Chunks, h.Size, err = q.putChunks(ctx, id, io.MultiReader(buf, payload))
	if err != nil {
		if !q.o.Follow { // else it may not remove anything
			q.dropChunks(id)
		}
		return err
	}
	failpoint.Hit("accept.chunks")
	return q.commit(ctx, id, h, nil)
}

// commit publishes the mail itself: the point from which on it is ours.
func (q *Queue) commit(ctx context.Context, id MessageID, h mailHeader, content []byte) error {
	data, err := encodeMail(h, content)
	if err != nil {
		return err
	}
	failpoint.Hit("accept.mail")
	if failpoint.Planted("early-250") {
		go func() {
			time.Sleep(20 * time.Millisecond)
			_, _ = q.putConfirmed(q.life, mailSubject(KindMail, id), data)
		}()
		return nil
	}
	_, err = q.putConfirmed(ctx, mailSubject(KindMail, id), data)
	if err != nil {
		return err
	}
	failpoint.Hit("accept.published")
	return nil
}

// putConfirmed is put with the patience of a client that waits for its reply.
func (q *Queue) putConfirmed(ctx context.Context, subject string, data []byte) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, acceptPatience)
	defer cancel()
	var seq uint64
	err := q.persist(ctx, "publish "+subject, func(ctx context.Context) error {
		var err error
		seq, err = q.putOnce(ctx, streamMail, subject, data)
		if errors.Is(err, ErrFull) {
			return &finalError{err}
		}
		return err
	})
	if err != nil && !errors.Is(err, ErrFull) {
		return 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return seq, err
}

// putChunks publishes the content in slices, several at a time, and returns their number and the size.
func (q *Queue) putChunks(ctx context.Context, id MessageID, r io.Reader) (n int, size int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	free := make(chan []byte, chunksInFlight)
	for range chunksInFlight {
		free <- nil
	}
	var wg sync.WaitGroup
	for {
		var buf []byte
		select {
		case buf = <-free:
		case <-ctx.Done():
			wg.Wait()
			return 0, 0, context.Cause(ctx)
		}
		if buf == nil {
			buf = make([]byte, chunkSize)
		}
		got, readErr := io.ReadFull(r, buf)
		if readErr != nil && readErr != io.EOF && readErr != io.ErrUnexpectedEOF {
			wg.Wait() // not cancelled: a chunk on its way would be stored after the others are removed
			return 0, 0, fmt.Errorf("accept: read content: %w", readErr)
		}
		if got > 0 {
			if _, err := q.chunks.acquire(ctx, 1); err != nil {
				wg.Wait()
				return 0, 0, context.Cause(ctx)
			}
			subject := chunkSubject(KindMail, id, n)
			n++
			size += int64(got)
			wg.Go(func() {
				defer q.chunks.release(1)
				if _, err := q.putConfirmed(ctx, subject, buf[:got]); err != nil {
					cancel(err)
				}
				free <- buf
			})
		}
		if readErr != nil {
			wg.Wait()
			if ctx.Err() != nil {
				return 0, 0, context.Cause(ctx)
			}
			return n, size, nil
		}
	}
}

// dropChunks tidies up after a message that was not accepted. What it misses the reconciler finds.
func (q *Queue) dropChunks(id MessageID) {
	ctx, cancel := context.WithTimeout(q.life, apiTimeout)
	defer cancel()
	if _, err := q.purge(ctx, streamMail, string(KindMail)+"."+string(id)+".c.>", 0); err != nil {
		q.o.Logger.Warn("chunks of a refused message stay for the reconciler", "msg_id", string(id), "error", err)
	}
}
