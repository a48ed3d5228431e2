package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// hand is one message that this process holds. While it does, the consumer is told so often enough that nobody else
// gets it.
type hand struct {
	q      *Queue
	key    string
	handle atomic.Pointer[handle] // the latest: a redelivery while we hold it replaces the handle
	gone   bool                   // acknowledged
}

// handle is a message as it was handed out.
type handle struct {
	jetstream.Msg
	link uint64 // the connection on which that was, by its number
}

// hands is everything in hand.
type hands struct {
	mu   sync.Mutex
	m    map[string]*hand // by subject, which tells messages apart
	idle []chan struct{}  // waiters for none
}

// take registers a message of a fetch that began on the connection link. ok is false when this process already holds it:
// then only the handle was renewed. A message is known by its subject: after a power cut a store of one copy may give a
// sequence to another message.
func (q *Queue) take(m jetstream.Msg, link uint64) (*hand, bool) {
	now := &handle{m, link}
	q.hands.mu.Lock()
	defer q.hands.mu.Unlock()
	if h := q.hands.m[m.Subject()]; h != nil {
		h.handle.Store(now)
		return nil, false
	}
	h := &hand{q: q, key: m.Subject()}
	h.handle.Store(now)
	q.hands.m[h.key] = h
	return h, true
}

// drop forgets the message, acknowledged or not.
func (h *hand) drop() {
	s := &h.q.hands
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, h.key)
	if len(s.m) == 0 {
		for _, ch := range s.idle {
			close(ch)
		}
		s.idle = nil
	}
}

func (h *hand) current() jetstream.Msg { return h.handle.Load().Msg }

// isStale says that the message was handed out before its server ended, perhaps: what names it in an acknowledgement is its
// sequence, and a store of one copy may have given that to another message since (the removal of what came last is not
// synced). Of several copies a majority remembers.
func (h *hand) isStale() bool { return h.q.o.Replicas == 1 && h.handle.Load().link != h.q.linkNumber() }

// linkNumber is another one for each connection of nc.
func (q *Queue) linkNumber() uint64 { return q.nc.Stats().Reconnects }

var errStaleHand = errors.New("it was handed out on a connection that has ended")

// ackPatience is longer than an election. An acknowledgement that comes from before a server's crash is never answered.
const ackPatience = 15 * time.Second

// ack acknowledges and waits for the stream's confirmation: a lost ack would hand the job out again. When none comes it gives
// up: what follows the job is stored already, so whoever is handed it again finds that out and drops it.
func (h *hand) ack(ctx context.Context) error {
	if h.gone {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ackPatience)
	defer cancel()
	err := h.q.persist(ctx, "acknowledge "+h.key, func(ctx context.Context) error {
		ctx, cancel := h.q.onLink(ctx, publishTimeout)
		defer cancel()
		if h.isStale() {
			return &finalError{errStaleHand}
		}
		err := h.current().DoubleAck(ctx)
		if errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
			return nil
		}
		h.q.trouble(err)
		return err
	})
	h.gone = err == nil
	return err
}

// ackPlain acknowledges where a lost ack costs a look and no duplicate.
func (h *hand) ackPlain() {
	h.gone = true
	if !h.isStale() {
		_ = h.current().Ack()
	}
}

// nak gives the message back, to be handed out again after a delay.
func (h *hand) nak(d time.Duration) {
	if !h.gone && !h.isStale() {
		_ = h.current().NakWithDelay(d)
	}
}

// wait returns when nothing is in hand, or with ctx's error.
func (s *hands) wait(ctx context.Context) error {
	s.mu.Lock()
	if len(s.m) == 0 {
		s.mu.Unlock()
		return nil
	}
	ch := make(chan struct{})
	s.idle = append(s.idle, ch)
	s.mu.Unlock()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// keepHands tells the consumers at a third of AckWait that what we hold is in progress, and at once when the connection was made anew: on the
// one before nobody may have heard it for a while.
func (q *Queue) keepHands() {
	tick := time.NewTicker(q.o.AckWait / 3)
	defer tick.Stop()
	back := q.back
	if q.o.Replicas == 1 { // see watchReturns
		back = nil
	}
	for {
		select {
		case <-q.life.Done():
			return
		case <-tick.C:
		case <-back:
		}
		q.hands.mu.Lock()
		held := make([]*hand, 0, len(q.hands.m))
		for _, h := range q.hands.m {
			held = append(held, h)
		}
		q.hands.mu.Unlock()
		for _, h := range held {
			// The library refuses progress on an acknowledged message; that race is harmless.
			_ = h.current().InProgress()
		}
	}
}

// slots is a counting semaphore that grants as many as are free.
type slots struct {
	mu   sync.Mutex
	free int
	wake chan struct{}
}

func newSlots(n int) *slots { return &slots{free: n, wake: make(chan struct{}, 1)} }

// acquire waits for at least one slot and takes up to most of them.
func (s *slots) acquire(ctx context.Context, most int) (int, error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		s.mu.Lock()
		n := min(s.free, most)
		s.free -= n
		more := s.free > 0
		s.mu.Unlock()
		if n > 0 {
			if more { // for the next one in line
				s.signal()
			}
			return n, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-s.wake:
		}
	}
}

func (s *slots) release(n int) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	s.free += n
	s.mu.Unlock()
	s.signal()
}

func (s *slots) signal() { signal(s.wake) }

// signal wakes the one that waits on ch, now or when it looks next.
func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// maxFetch bounds one pull request: what is requested but lost on the way costs its AckWait.
const maxFetch = 256

// fetchWait is how long one pull request stays with the server at most, and how long a stop may wait for it. Each stays for another time
// than the one before: the oldest request is served first, and with equal times one process of two would be given each job that is
// handed back for the other.
const fetchWait = time.Second

// crowdedPause is how long mail is left where it is when there is no room for its jobs.
const crowdedPause = 250 * time.Millisecond

// pull hands the messages of a consumer to handle, each on its own goroutine, at most window at a time, until ctx ends and
// all of them have returned. handle gets a context that lives until Close.
func (q *Queue) pull(ctx context.Context, stream, consumer string, window int, handle func(context.Context, *hand, *jetstream.MsgMetadata)) error {
	cons, err := q.consumer(ctx, stream, consumer)
	if err != nil {
		return err
	}
	free := newSlots(window)
	var wg sync.WaitGroup
	defer wg.Wait()
	var last uint64 // the link on which the last fetch was made
	for {
		n, err := free.acquire(ctx, min(window, maxFetch))
		if err != nil {
			return nil
		}
		if stream == streamMail && q.crowded.Load() {
			free.release(n)
			_ = sleep(ctx, crowdedPause)
			continue
		}
		link := q.linkNumber()
		if link != last && q.o.Replicas == 1 {
			free.release(n)
			_ = sleep(ctx, q.rest)
			last = link
			continue
		}
		batch, err := cons.Fetch(n, jetstream.FetchMaxWait(fetchWait/2+rand.N(fetchWait/2)))
		if err != nil {
			free.release(n)
			q.trouble(err)
			_ = sleep(ctx, 250*time.Millisecond)
			continue
		}
		// A connection that was made anew in between: nobody has rested on it, and what comes could not be acknowledged.
		isEarly := q.o.Replicas == 1 && q.linkNumber() != link
		for m := range batch.Messages() {
			if isEarly {
				continue
			}
			n--
			wg.Go(func() {
				defer free.release(1)
				q.handleOne(ctx, m, link, handle)
			})
		}
		free.release(n)
		if err := batch.Error(); err != nil && ctx.Err() == nil {
			if !errors.Is(err, nats.ErrTimeout) {
				q.trouble(err)
			}
			_ = sleep(ctx, 100*time.Millisecond)
		}
	}
}

func (q *Queue) handleOne(ctx context.Context, m jetstream.Msg, link uint64, handle func(context.Context, *hand, *jetstream.MsgMetadata)) {
	meta, err := m.Metadata()
	if err != nil {
		q.o.Logger.Error("message without metadata", "subject", m.Subject(), "error", err)
		return
	}
	h, ok := q.take(m, link)
	if !ok {
		return
	}
	defer h.drop()
	if ctx.Err() != nil { // stopping: it came too late
		h.nak(0)
		return
	}
	handle(q.life, h, meta)
}

// consumer looks the durable up, waiting for a cluster without a leader, and for one that somebody removed: mail of its lane waits until then.
func (q *Queue) consumer(ctx context.Context, stream, name string) (jetstream.Consumer, error) {
	for {
		c, err := q.js.Consumer(ctx, stream, name)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("consumer %s of stream %s: %w", name, stream, err)
		}
		pause := 500 * time.Millisecond
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			q.o.Logger.Error("a consumer of the queue is missing, what it hands out waits: start a process with queue.manage, it is made again then",
				"stream", stream, "consumer", name)
			pause = missingPause
		} else {
			q.trouble(err)
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, err
		}
	}
}

// missingPause is how long a consumer that is not there is not looked for.
const missingPause = 5 * time.Second
