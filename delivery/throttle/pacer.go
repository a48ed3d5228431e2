package throttle

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"postroad/queue"
)

const (
	// MaxWait is how long a job waits in hand for its turn.
	MaxWait = 8 * time.Second
	// slowTurns are so far apart that one takes his turn before he connects.
	slowTurns  = 2 * time.Second
	askAgain   = 250 * time.Millisecond // while the queue does not answer
	maxPaces   = 20000
	paceIdle   = time.Minute
	minPromise = 10 * time.Second // the shortest time for which a job can be put aside
	maxPromise = time.Hour
)

// ConnectPrefix sets turns for new connections apart from those for messages.
const ConnectPrefix = "connect "

// errUnanswered says that turns cannot be had for want of an answer of the queue.
var errUnanswered = errors.New("limits cannot be counted: the queue does not answer")

// NotYet says that a job's turn is too far away to wait for it in hand.
type NotYet struct {
	Delay time.Duration // when to come back
	Err   error         // nil: that is what the limit says
}

// Error says why.
func (n *NotYet) Error() string {
	if n.Err != nil {
		return n.Err.Error()
	}
	return "the rate limit of the site is reached"
}

// Pacer gives turns by rates that the cluster keeps together.
type Pacer struct {
	cluster Pace
	members func() int
	wg      sync.WaitGroup
	asked   atomic.Uint64
	turns   atomic.Uint64

	mu    sync.Mutex
	paths map[string]*line
}

// line is who waits for turns of one path. Pacer.mu guards it.
type line struct {
	waiting  []*inTurn
	isAsking bool
	rate     queue.Rate // by which is known:
	next     time.Time  // no turn is free before, as far as is known
	promised time.Time  // to who was sent away
	used     time.Time
}

// inTurn is somebody who waits.
type inTurn struct {
	rate  queue.Rate
	until time.Time // he does not wait longer
	given chan turn // room for one
}

type turn struct {
	from, until time.Time
	err         error
}

// NewPacer makes a pacer; members is about how many processes share the work.
func NewPacer(c Pace, members func() int) *Pacer {
	return &Pacer{cluster: c, members: members, paths: make(map[string]*line)}
}

// Stop waits for what is on its way; nobody may wait for a turn any more.
func (p *Pacer) Stop() { p.wg.Wait() }

// Reservations counts how often turns were reserved.
func (p *Pacer) Reservations() uint64 { return p.asked.Load() }

// Turns counts turns.
func (p *Pacer) Turns() uint64 { return p.turns.Load() }

// IsSlow reports that the turns of a rate are so far apart that one should have his before he connects.
func IsSlow(r queue.Rate) bool { return !r.IsZero() && r.Every() >= slowTurns }

// Delay is how long a job should stay away whose turn cannot come within MaxWait; 0: it may come in. ahead are jobs before it that do not stand in
// line for a turn yet. It costs nothing.
func (p *Pacer) Delay(path string, r queue.Rate, ahead int) time.Duration {
	if r.IsZero() {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	l := p.line(path)
	l.goBy(r)
	rested := -time.Duration(max(1, r.Burst)-1) * r.Every()
	if wait := max(l.next.Sub(now), rested) + time.Duration(len(l.waiting)+ahead)*r.Every(); wait <= MaxWait {
		return 0
	}
	l.used = now
	return p.promise(l, r, now)
}

// promise spreads those who are sent away over the time, at the part of the rate that falls to this process. Who finds no turn within
// maxPromise is promised one that another has too: as many come back as ever there are turns. The caller holds the lock.
func (p *Pacer) promise(l *line, r queue.Rate, now time.Time) time.Duration {
	soonest := now.Add(minPromise)
	if soonest.Before(l.next) {
		soonest = l.next
	}
	if l.promised.Before(soonest) || l.promised.Sub(now) > maxPromise {
		l.promised = soonest
	}
	delay := min(l.promised.Sub(now), maxPromise)
	l.promised = l.promised.Add(r.Every() * time.Duration(max(1, p.members())))
	return delay
}

// Turn waits for a turn and returns until when it is good. The error is a *NotYet, or that of ctx.
func (p *Pacer) Turn(ctx context.Context, path string, r queue.Rate) (until time.Time, err error) {
	w := &inTurn{rate: r, until: time.Now().Add(MaxWait), given: make(chan turn, 1)}
	for {
		p.join(path, w)
		var t turn
		select {
		case t = <-w.given:
		case <-ctx.Done():
			return time.Time{}, ctx.Err() // a turn that comes all the same is lost
		}
		if t.err != nil {
			return time.Time{}, t.err
		}
		if wait := time.Until(t.from); wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return time.Time{}, ctx.Err()
			}
		}
		if time.Now().Before(t.until) {
			return t.until, nil
		}
		// It woke too late: that turn is lost.
	}
}

// line finds or makes the line of a path. The caller holds the lock.
func (p *Pacer) line(path string) *line {
	l, known := p.paths[path]
	if !known {
		p.makeRoom()
		l = &line{}
		p.paths[path] = l
	}
	return l
}

// join puts one in line.
func (p *Pacer) join(path string, w *inTurn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.line(path)
	l.goBy(w.rate)
	l.used = time.Now()
	l.waiting = append(l.waiting, w)
	if !l.isAsking {
		l.isAsking = true
		p.wg.Go(func() { p.ask(path, l) })
	}
}

// goBy takes over another rate: when turns are free by it is not known yet. The caller holds the lock.
func (l *line) goBy(r queue.Rate) {
	if l.rate != r {
		l.rate, l.next, l.promised = r, time.Time{}, time.Time{}
	}
}

// makeRoom forgets lines in which nobody stands. The caller holds the lock.
func (p *Pacer) makeRoom() {
	if len(p.paths) < maxPaces {
		return
	}
	now := time.Now()
	for _, isOld := range []func(*line) bool{
		func(l *line) bool { return now.Sub(l.used) > paceIdle && now.After(l.next) && now.After(l.promised) },
		func(*line) bool { return true },
	} {
		for path, l := range p.paths {
			if len(p.paths) <= maxPaces*9/10 {
				return
			}
			if !l.isAsking && isOld(l) {
				delete(p.paths, path)
			}
		}
	}
}

// ask reserves turns for who stands in line, as many as there are of them, until nobody does.
func (p *Pacer) ask(path string, l *line) {
	for {
		p.mu.Lock()
		if len(l.waiting) == 0 {
			l.isAsking = false
			p.mu.Unlock()
			return
		}
		rate := l.rate
		most := max(1, int(time.Second/rate.Every())) // a second's worth
		n := min(len(l.waiting), most)
		p.mu.Unlock()

		asked := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), claimTime)
		turns, err := p.cluster.Reserve(ctx, path, n, rate, MaxWait)
		cancel()
		p.asked.Add(1)
		p.turns.Add(uint64(turns.Count))
		p.mu.Lock()
		p.give(l, rate, turns, err, asked)
		p.mu.Unlock()
		if err != nil {
			time.Sleep(askAgain)
		}
	}
}

// give hands out what was got by a rate. The caller holds the lock.
func (p *Pacer) give(l *line, r queue.Rate, turns queue.Turns, err error, asked time.Time) {
	now := time.Now()
	if err != nil {
		p.sendAway(l, func(w *inTurn) bool { return !now.Before(w.until) }, func(*inTurn) error { return &NotYet{Delay: minPromise, Err: errUnanswered} })
		return
	}
	next := turns.First.Add(time.Duration(turns.Count) * turns.Every)
	if turns.Count == 0 {
		next = now.Add(turns.Wait)
	}
	if l.rate == r { // still
		l.next = next
	}
	if turns.Count == 0 {
		p.sendAway(l, func(*inTurn) bool { return true }, func(w *inTurn) error { return &NotYet{Delay: p.promise(l, w.rate, now)} })
		return
	}
	for i := range min(turns.Count, len(l.waiting)) {
		w := l.waiting[i]
		from := turns.First.Add(time.Duration(i) * turns.Every)
		until := from.Add(w.rate.Grace())
		if from.Before(asked) { // of a burst
			until = asked.Add(w.rate.Grace())
		}
		w.given <- turn{from: from, until: until}
	}
	l.waiting = l.waiting[min(turns.Count, len(l.waiting)):]
}

func (p *Pacer) sendAway(l *line, who func(*inTurn) bool, why func(*inTurn) error) {
	kept := l.waiting[:0]
	for _, w := range l.waiting {
		if who(w) {
			w.given <- turn{err: why(w)}
		} else {
			kept = append(kept, w)
		}
	}
	l.waiting = kept
}
