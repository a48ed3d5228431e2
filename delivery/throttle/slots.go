package throttle

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"postroad/queue"
)

const (
	lookEvery   = 2 * time.Second        // while less is had than wanted
	tickEvery   = 250 * time.Millisecond // of the keeper
	linger      = 10 * time.Second       // before what nobody uses goes back
	claimTime   = 5 * time.Second
	troubleTime = 10 * time.Second // before people are told
	maxClaims   = 32               // on their way
)

// Need is what a path needs of its connections.
type Need struct {
	Limit int // of the cluster
	Use   int // connections that there are
	Want  int // in all
}

// Users are who use what is leased. Nothing of it may block, and it is called without a lock.
type Users struct {
	// Granted says that Have of a path has changed.
	Granted func(path string)
	// Yield asks for what a path does not need to be given back: with Keep, under the lock under which connections are counted.
	Yield func(path string)
	// Lost says that all leases are over: what uses them must end at once, except what would be sent twice by that.
	Lost func()
}

// Slots are this process's leases of connections. Make them with NewSlots.
type Slots struct {
	member Member
	users  Users
	free   chan struct{} // claims that may begin
	wg     sync.WaitGroup
	stop   context.CancelFunc
	claims atomic.Uint64
	failed atomic.Uint64

	mu      sync.Mutex
	life    context.Context
	leases  map[string]*lease
	trouble error     // of the last claim
	since   time.Time // there is trouble
	isOver  bool      // no claim begins any more
}

// lease is what this process has of one path. Slots.mu guards it.
type lease struct {
	need    Need
	have    int
	fair    int
	claimed time.Time // last
	looked  time.Time // last, to get more
	asked   int       // wanted by the last claim
	spare   time.Time // more is had, or was asked for, than needed since
	isBusy  bool      // a claim is on its way
	isDirty bool      // the need has changed since
	isHeard bool      // others have claimed since
}

// NewSlots joins the cluster.
func NewSlots(c Slotter, u Users) (*Slots, error) {
	s := &Slots{users: u, leases: make(map[string]*lease), free: make(chan struct{}, maxClaims), life: over}
	var err error
	if s.member, err = c.Join(s.heard); err != nil {
		return nil, fmt.Errorf("join the delivery processes: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	s.wg.Go(func() { s.keep(ctx) })
	return s, nil
}

var over = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// Stop gives everything back.
func (s *Slots) Stop(ctx context.Context) {
	s.stop()
	s.mu.Lock()
	s.isOver = true
	s.mu.Unlock()
	s.wg.Wait()
	s.member.Leave(ctx)
}

// Members is about how many processes there are.
func (s *Slots) Members() int { return s.member.Members() }

// Leased is how many connections are leased in all.
func (s *Slots) Leased() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, l := range s.leases {
		n += l.have
	}
	return n
}

// Claims counts claims, Failures those without an answer.
func (s *Slots) Claims() uint64 { return s.claims.Load() }

// Failures counts claims without an answer.
func (s *Slots) Failures() uint64 { return s.failed.Load() }

// Life ends when what was granted may be used no longer. It is to be asked right before each use.
func (s *Slots) Life() context.Context {
	life := s.member.Life()
	s.mu.Lock()
	defer s.mu.Unlock()
	if life != s.life {
		return over
	}
	return life
}

// Trouble is why leases cannot be had at present, nil if they can.
func (s *Slots) Trouble() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trouble
}

// Have is how many connections of a path there may be; and how many there should be, because others wait.
func (s *Slots) Have(path string) (have, fair int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, known := s.leases[path]; known {
		return l.have, l.fair
	}
	return 0, 0
}

// Keep says, in answer to Users.Yield, how many connections of a path are used at most from now on.
func (s *Slots) Keep(path string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, known := s.leases[path]; known {
		l.have = min(l.have, n)
	}
}

// note remembers how a claim ended. The caller holds the lock.
func (s *Slots) note(err error) {
	if s.trouble = err; err == nil {
		s.since = time.Time{}
	} else if s.since.IsZero() {
		s.since = time.Now()
	}
}

// Conditions say that leases cannot be had, once that has lasted for some time.
func (s *Slots) Conditions() []queue.Condition {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trouble == nil || time.Since(s.since) < troubleTime {
		return nil
	}
	return []queue.Condition{{Part: "delivery", Since: s.since, Text: "limits of sites cannot be counted, so this process sends nothing: " + s.trouble.Error(),
		Do: "see whether the queue answers; after an upgrade put its accounts.conf on the queue servers, and let a process with queue.manage: true make the bucket slots"}}
}

// Need says what a path needs now. It does not block.
func (s *Slots) Need(path string, n Need) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, known := s.leases[path]
	if !known {
		if n.Want == 0 {
			return
		}
		l = &lease{}
		s.leases[path] = l
	}
	l.need = n
	s.consider(path, l, time.Now())
}

// heard looks again at a path of which others want, or have given back, some.
func (s *Slots) heard(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l, known := s.leases[path]; known {
		l.isHeard = true
		s.consider(path, l, time.Now())
	}
}

// consider begins a claim where it is time for one. The caller holds the lock.
func (s *Slots) consider(path string, l *lease, now time.Time) {
	if l.isBusy || s.isOver {
		l.isDirty = true
		return
	}
	n := l.need
	c := queue.Claim{Want: n.Want, Limit: n.Limit}
	isShort := n.Want > l.have && l.have < n.Limit
	hasSpare := max(l.have, l.asked) > max(n.Use, n.Want) // others hold back for what is asked for
	idle := linger
	if l.have == 0 {
		idle = lookEvery
	}
	if !hasSpare {
		l.spare = time.Time{}
	} else if l.spare.IsZero() {
		l.spare = now
	}
	yields := false
	switch {
	case l.isHeard:
		c.Look = true
	case l.have > min(l.fair, n.Limit) && n.Use < l.have: // others wait for it, or the limit has changed
		yields = true
	case isShort && (l.looked.IsZero() || now.Sub(l.looked) >= lookEvery):
		c.Look, c.Tell = !l.looked.IsZero(), true
	case hasSpare && now.Sub(l.spare) >= idle:
		yields = true
	case now.Sub(l.claimed) >= queue.SlotsKept && l.have > 0:
	default:
		return
	}
	if isShort {
		l.looked = now
	}
	select {
	case s.free <- struct{}{}:
	default:
		return // the keeper comes again
	}
	l.isBusy, l.isDirty, l.isHeard, l.claimed = true, false, false, now
	s.wg.Go(func() { s.claim(path, l, c, yields) })
}

func (s *Slots) claim(path string, l *lease, c queue.Claim, yields bool) {
	defer func() { <-s.free }()
	if yields {
		s.users.Yield(path)
	}
	s.mu.Lock()
	life, had := s.life, l.have
	c.Use = had // nobody else gets what may be used meanwhile
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), claimTime)
	got, err := s.member.Claim(ctx, life, path, c)
	cancel()
	if s.claims.Add(1); err != nil {
		s.failed.Add(1)
	}
	s.mu.Lock()
	l.isBusy = false
	if s.life != life { // the keeper has begun anew
		s.mu.Unlock()
		return
	}
	s.note(err)
	if err != nil {
		s.mu.Unlock()
		return
	}
	l.have, l.fair, l.asked = got.Have, got.Fair, c.Want
	if got.Have > had || got.Have >= l.need.Want {
		l.looked = time.Time{}
	}
	if l.have == 0 && l.need.Want == 0 && l.need.Use == 0 {
		delete(s.leases, path)
	} else if l.isDirty || !yields && l.have > l.fair {
		s.consider(path, l, time.Now())
	}
	s.mu.Unlock()
	s.users.Granted(path)
}

// keep follows the life of the member, and looks again at what is short, spare or old.
func (s *Slots) keep(ctx context.Context) {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		s.follow()
		s.mu.Lock()
		life, now := s.life, time.Now()
		for path, l := range s.leases {
			s.consider(path, l, now)
		}
		s.mu.Unlock()
		alive := life.Done()
		if life.Err() != nil {
			alive = nil
		}
		select {
		case <-ctx.Done():
		case <-alive:
		case <-tick.C:
		}
	}
}

// follow begins anew when the member does: what was granted before counts no more.
func (s *Slots) follow() {
	life := s.member.Life()
	s.mu.Lock()
	if life == s.life {
		s.mu.Unlock()
		return
	}
	wasOver := s.life == over
	s.life = life
	if life.Err() != nil {
		s.life = over
		s.note(queue.ErrNoMember)
	} else {
		s.note(nil)
	}
	if wasOver && s.life == over {
		s.mu.Unlock()
		return
	}
	var paths []string
	for path, l := range s.leases {
		paths = append(paths, path)
		// A claim that is on its way may still write, and must not write over what the next one got: there is never a second beside it.
		*l = lease{need: l.need, isBusy: l.isBusy}
	}
	s.mu.Unlock()
	if !wasOver {
		for _, path := range paths {
			s.users.Granted(path)
		}
		s.users.Lost()
	}
}
