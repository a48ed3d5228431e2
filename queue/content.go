package queue

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
)

// openContent streams the content of a mail: what followed its header, or its chunks one after the other with one read
// ahead, so that memory stays at two chunks.
func (q *Queue) openContent(ctx context.Context, kind Kind, id MessageID, h mailHeader, inline []byte) io.ReadCloser {
	if h.Chunks == 0 {
		return io.NopCloser(bytes.NewReader(inline))
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &chunkReader{cancel: cancel, ahead: make(chan chunk, 1), done: make(chan struct{}), closed: make(chan struct{})}
	go func() {
		defer close(r.done)
		defer close(r.ahead)
		for n := range h.Chunks {
			data, err := q.getChunk(ctx, kind, id, n)
			if err == nil {
				err = ctx.Err() // never an end that looks like the end of the mail
			}
			select {
			case r.ahead <- chunk{data, err}:
			case <-r.closed:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return r
}

func (q *Queue) getChunk(ctx context.Context, kind Kind, id MessageID, n int) ([]byte, error) {
	subject := chunkSubject(kind, id, n)
	s, err := q.get(ctx, streamMail, subject)
	if err != nil { // a replica may lag: ask the leader
		s, err = q.getLeader(ctx, streamMail, subject)
	}
	if err != nil {
		return nil, fmt.Errorf("read chunk %d of %s: %w", n, id, err)
	}
	return s.data, nil
}

type chunk struct {
	data []byte
	err  error
}

// chunkReader reads what one goroutine fetches ahead. Close ends that goroutine and waits for it.
type chunkReader struct {
	cancel context.CancelFunc
	once   sync.Once
	closed chan struct{} // by Close
	ahead  chan chunk
	done   chan struct{} // the goroutine has ended
	cur    []byte
	err    error
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.cur) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		c, ok := <-r.ahead
		switch {
		case !ok:
			r.err = io.EOF
		case c.err != nil:
			r.err = c.err
		default:
			r.cur = c.data
		}
	}
	n := copy(p, r.cur)
	r.cur = r.cur[n:]
	return n, nil
}

func (r *chunkReader) Close() error {
	r.once.Do(func() { close(r.closed) })
	r.cancel()
	<-r.done
	return nil
}
