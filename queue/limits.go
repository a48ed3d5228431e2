package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxLimitKey  = 200             // octets of a key
	spendTimeout = 5 * time.Second // for one Spend
	spendTries   = 100             // against other processes that write the same key; the time ends first
	maxRetryWait = 50 * time.Millisecond
	maxRefusal   = 5 * time.Second // how long a refusal is believed without asking again
	maxPurses    = 50_000          // keys of which a process remembers anything
	minIdle      = time.Minute     // how long a purse is kept that nobody uses; see idle
	sweepEvery   = time.Minute     // of purses
)

// Spent is the answer of Spend.
type Spent struct {
	OK bool
	// Left is about what is left of the limit, for people: as this process knew when it last asked.
	Left int
	// RetryAfter is, when not OK, the time until as much should be free; 0: never, it is more than the limit.
	RetryAfter time.Duration

	share share
}

// Spend takes n from the limit of a key, or nothing. The key is free text of at most 200 octets, such as "client/web01"; a key
// has one Limit at a time. An error says nothing about the limit: answer 451.
//
// Whatever processes there are and however they ask, in any time of the length l.Window no more than l.Count is given.
// Each process takes a block of the limit out of the bucket "limits" (1/50 of it, or n) and spends that in the current slice
// (1/60 of the window) without asking; what it has not spent then it gives back when it next takes a block. So at most one
// block for each process may stay unused for a window. A refusal is believed for up to 5 s.
//
// Time is that of the server that leads stream MAIL, or that of another process if that is later. Clocks, or what we
// know of that server's, may differ by two seconds (a twentieth of a window below 40 s) with no harm; beyond that, what was
// given in as much time as the excess may be given again.
//
// A new Limit for a key is in force with the next Spend. What was spent before still counts; a longer window knows only
// what the shorter one has not forgotten.
func (q *Queue) Spend(ctx context.Context, key string, n int, l Limit) (Spent, error) {
	s, err := q.spender.spend(ctx, key, n, l)
	if err != nil {
		return Spent{}, fmt.Errorf("spend %d of the limit of %s: %w", n, key, err)
	}
	return s, nil
}

// Refund takes back what Spend gave for a key, when it was not used after all: a second limit refused, the mail was not
// stored. What cannot be taken back any more stays counted.
func (q *Queue) Refund(key string, s Spent) { q.spender.refund(key, s) }

// Spending is what is known of one key's limit.
type Spending struct {
	Key   string    `json:"key"`
	Limit Limit     `json:"limit"` // with which it was last used
	Used  int       `json:"used"`  // and what processes hold for the moment
	Last  time.Time `json:"last"`  // when a process last took from it
}

// Spendings lists the limits of which something was spent of late, for operators.
func (q *Queue) Spendings(ctx context.Context) ([]Spending, error) {
	const prefix = "$KV." + limitBucket + "."
	var all []Spending
	from := uint64(1)
	for {
		batch, err := q.getBatch(ctx, streamLimits, prefix+">", map[string]any{"seq": from})
		if err != nil {
			return nil, fmt.Errorf("list limits: %w", err)
		}
		if len(batch) == 0 {
			return all, nil
		}
		for _, m := range batch {
			from = m.seq + 1
			s, err := decodeSpending(m.data)
			if err != nil || s.Window == 0 {
				continue // of another version, or the mark of one whose time is over
			}
			key, err := decodeToken(strings.TrimPrefix(m.subject, prefix))
			if err != nil {
				continue
			}
			l := Limit{Count: s.Count, Window: time.Duration(s.Window) * time.Millisecond}
			rest := s.take(q.spender.clock.millis(time.Now()), l, l.Count+1, 0, share{})
			all = append(all, Spending{Key: key, Limit: l, Used: l.Count - rest.free, Last: time.UnixMilli(s.At)})
		}
	}
}

// clock is the time of the server that leads MAIL, by which all processes count.
type clock struct{ offset atomic.Int64 } // nanoseconds to add to our own

func (c *clock) millis(t time.Time) int64 { return c.nanos(t) / int64(time.Millisecond) }

func (c *clock) nanos(t time.Time) int64 { return t.UnixNano() + c.offset.Load() }

// note learns from an answer: the server's clock showed at between two moments of ours. It moves no more than it must,
// so that on one machine nothing ever moves.
func (c *clock) note(at, asked, answered time.Time) {
	if at.IsZero() {
		return
	}
	low, high := at.UnixNano()-answered.UnixNano(), at.UnixNano()-asked.UnixNano()
	if now := c.offset.Load(); low <= high {
		c.offset.Store(min(max(now, low), high))
	}
}

// spender is this process's part in the limits.
type spender struct {
	store limitStore
	clock clock
	time  func() time.Time
	pause func(context.Context, time.Duration) error // sleep; tests need not

	leeway time.Duration // see Options

	mu    sync.Mutex
	m     map[string]*purse
	swept time.Time
}

// limitStore keeps the spendings of the cluster.
type limitStore interface {
	// read gets the spending of a key and its revision. A first look may be of an old one; again must not be.
	read(ctx context.Context, key string, again bool) (spending, uint64, error)
	// write replaces the spending of that revision. errConflict: it was certainly not written; other errors: it may be.
	write(ctx context.Context, key string, s *spending, revision uint64, ttl time.Duration) error
}

var errConflict = errors.New("another process was quicker")

func newSpender(store limitStore) *spender {
	return &spender{store: store, time: time.Now, pause: sleep, m: make(map[string]*purse)}
}

// purse is what this process has of one key's limit. The spender's lock guards it.
type purse struct {
	limit Limit
	have  share     // to be spent until its end
	since time.Time // it was asked for
	free  int       // what was left besides, then
	back  share     // to be given back

	no   refusal
	used time.Time     // last
	busy int           // goroutines that hold on to it
	turn chan struct{} // one at a time asks the store
}

// refusal is a recent answer of the store: not so much, not before that time.
type refusal struct {
	n     int
	left  int
	until time.Time
	fits  time.Time
}

func (s *spender) spend(ctx context.Context, key string, n int, l Limit) (Spent, error) {
	if err := l.check(); err != nil {
		return Spent{}, err
	}
	if len(key) > maxLimitKey {
		return Spent{}, fmt.Errorf("key of %d octets, want %d at most", len(key), maxLimitKey)
	}
	if n <= 0 {
		return Spent{OK: true}, nil
	}
	if n > l.Count {
		return Spent{}, nil
	}
	s.mu.Lock()
	now := s.time()
	p := s.purse(key, now)
	if answer, sure := p.take(now, s.clock.millis(now), n, l); sure {
		s.mu.Unlock()
		return answer, nil
	}
	p.busy++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		p.busy--
		s.mu.Unlock()
	}()
	ctx, cancel := context.WithTimeout(ctx, max(spendTimeout, s.leeway))
	defer cancel()
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return Spent{}, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
	return s.ask(ctx, key, p, n, l)
}

// ask spends from what the store still has. The caller has the turn.
func (s *spender) ask(ctx context.Context, key string, p *purse, n int, l Limit) (Spent, error) {
	for try := range spendTries {
		s.mu.Lock()
		now := s.time()
		answer, sure := p.take(now, s.clock.millis(now), n, l) // who had the turn before may have brought enough
		s.mu.Unlock()
		if sure {
			return answer, nil
		}
		answer, sure, err := s.askOnce(ctx, key, p, n, l, try > 0)
		if sure {
			return answer, nil
		}
		if err != nil && !errors.Is(err, errConflict) {
			return Spent{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if err := s.pause(ctx, rand.N(min(time.Millisecond<<min(try, 10), maxRetryWait))); err != nil {
			return Spent{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return Spent{}, fmt.Errorf("%w: others were quicker %d times", ErrUnavailable, spendTries)
}

// askOnce reads and writes the spending once. Neither sure nor an error: the slice was over before the answer came.
func (s *spender) askOnce(ctx context.Context, key string, p *purse, n int, l Limit, again bool) (Spent, bool, error) {
	spent, revision, err := s.store.read(ctx, key, again)
	if err != nil {
		return Spent{}, false, err
	}
	s.mu.Lock()
	asked := s.time()
	clock := s.clock.millis(asked)
	end := spent.sliceEnd(clock, l)
	p.expire(asked, clock)
	if p.have.End != end {
		p.retire()
	}
	have, back := p.have, p.back // of which nobody else takes meanwhile
	p.have.N, p.back = 0, share{}
	s.mu.Unlock()

	got := spent.take(clock, l, n-have.N, l.block(), back)
	if got.N > 0 {
		err = s.store.write(ctx, key, &spent, revision, l.ttl())
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.time()
	switch {
	case err != nil:
		p.put(have)
		if errors.Is(err, errConflict) {
			p.setBack(back) // else it may have been given back
		}
		return Spent{}, false, err
	case got.N == 0:
		p.put(have)
		p.setBack(back)
		p.no = refusal{n: n, left: got.free + have.N, fits: now.Add(got.fits), until: now.Add(min(got.fits, maxRefusal))}
		return p.no.spent(now), true, nil
	}
	if p.have.End != end {
		p.retire()
		p.have.End = end
	}
	p.have.N += have.N + got.N
	p.since, p.free, p.no = asked, got.free, refusal{}
	answer, sure := p.take(now, s.clock.millis(now), n, l)
	return answer, sure, nil
}

// refund puts back what was spent into the share from which it came.
func (s *spender) refund(key string, spent Spent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, known := s.m[key]; known && spent.share.N > 0 {
		p.put(spent.share)
		p.no = refusal{}
	}
}

// purse finds or makes the purse of a key. The caller holds the lock.
func (s *spender) purse(key string, now time.Time) *purse {
	p, known := s.m[key]
	if !known {
		s.makeRoom(now)
		p = &purse{turn: make(chan struct{}, 1)}
		s.m[key] = p
	}
	p.used = now
	return p
}

// makeRoom forgets purses. What was in one stays counted.
func (s *spender) makeRoom(now time.Time) {
	if now.Sub(s.swept) >= sweepEvery {
		s.swept = now
		for key, p := range s.m {
			if p.busy == 0 && now.Sub(p.used) > p.idle() {
				delete(s.m, key)
			}
		}
	}
	for key, p := range s.m {
		if len(s.m) < maxPurses {
			return
		}
		if p.busy == 0 {
			delete(s.m, key)
		}
	}
}

// idle is how long a purse is kept that nobody uses: over the end of its slice, to give back what is left of it.
func (p *purse) idle() time.Duration {
	return max(minIdle, 2*time.Duration(p.limit.slice())*time.Millisecond)
}

// take spends n from what is here, or refuses it on the word of a recent refusal. Otherwise it is not sure.
func (p *purse) take(now time.Time, clock int64, n int, l Limit) (answer Spent, sure bool) {
	if p.limit != l {
		p.retire()
		p.limit, p.no = l, refusal{}
	}
	p.expire(now, clock)
	if p.have.N >= n {
		p.have.N -= n
		return Spent{OK: true, Left: p.free + p.have.N, share: share{End: p.have.End, N: n}}, true
	}
	if n >= p.no.n && now.Before(p.no.until) {
		return p.no.spent(now), true
	}
	return Spent{}, false
}

// expire ends what is here with its slice. A clock that is far behind would not notice: no slice is longer than its length.
func (p *purse) expire(now time.Time, clock int64) {
	if p.have.N > 0 && (clock >= p.have.End || now.Sub(p.since) >= time.Duration(p.limit.slice())*time.Millisecond) {
		p.retire()
	}
}

// retire sets aside what is here, to be given back.
func (p *purse) retire() {
	p.setBack(p.have)
	p.have = share{}
}

// setBack notes what is to be given back. There is room for one slice; what is left of another stays counted.
func (p *purse) setBack(sh share) {
	switch {
	case sh.N == 0:
	case p.back.N > 0 && p.back.End == sh.End:
		p.back.N += sh.N
	case p.back.N == 0 || sh.End > p.back.End:
		p.back = sh
	}
}

// put returns something to what is here, or to what is to be given back.
func (p *purse) put(sh share) {
	if p.have.End == sh.End {
		p.have.N += sh.N
		return
	}
	p.setBack(sh)
}

func (r *refusal) spent(now time.Time) Spent {
	return Spent{Left: r.left, RetryAfter: max(time.Millisecond, r.fits.Sub(now))}
}

// bucketStore keeps spendings in the bucket "limits". Its keys end by themselves a window after they were last
// written. When the bucket is full new keys are refused with an error until others have ended; known keys go on.
type bucketStore struct{ casBucket }

var _ limitStore = bucketStore{}

func (b bucketStore) read(ctx context.Context, key string, again bool) (spending, uint64, error) {
	data, revision, err := b.casBucket.read(ctx, encodeToken(key), again)
	if err != nil {
		return spending{}, 0, err
	}
	s, err := decodeSpending(data)
	return s, revision, err
}

func (b bucketStore) write(ctx context.Context, key string, s *spending, revision uint64, ttl time.Duration) error {
	data, err := encodeSpending(s)
	if err != nil {
		return err
	}
	_, err = b.casBucket.write(ctx, encodeToken(key), data, revision, ttl)
	return err
}
