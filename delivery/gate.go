package delivery

import (
	"container/list"
	"context"
	"sync"
	"time"

	"postroad/delivery/smtpc"
	"postroad/delivery/throttle"
	"postroad/queue"
)

// gate lets jobs to their sites. It bounds the dialogues with one site, and how much of the window one site may occupy,
// so that jobs for a dead or slow one never stand in the way of others:
//
//   - A job that finds no free slot waits in hand, but only while the site has at most its share of the window, and only
//     for maxWait.
//   - A site may have more than its share in hand while its turns come soon, within borrowWait: one that is merely busy
//     may fill the window. When that turns out wrong, nothing is lent to it until it has answered somebody again.
//   - A site that could not be reached several times in a row is dead: see health.
//
// What a gate turns away has not been tried. It comes back later, and the refusal says when.
type gate struct {
	slots int // dialogues with one site
	share int // jobs in hand for one site
	limit int // sites remembered

	// leases are the connections that this process may have of those of the cluster; nil: it counts its own only. evict closes a connection
	// to a site that nobody uses, if there is one.
	leases *throttle.Slots
	evict  func(*site) bool
	// died and lives hear of the health of paths that the cluster knows.
	died  func(path string, h health)
	lives func(path string)

	mu    sync.Mutex
	sites map[string]*site
}

const (
	maxWait     = 8 * time.Second
	borrowWait  = 2 * time.Second
	borrowPause = 30 * time.Second
	maxPutOff   = 5 * time.Minute
	slowFor     = 30 * time.Second // before a site that asked for less is asked for more
	maxSites    = 20000
)

// site is what a worker knows of one site. All fields are guarded by gate.mu.
type site struct {
	name    string
	hand    int        // jobs in hand
	open    int        // slots taken
	allowed float64    // slots there are now: fewer after a 421
	waiting *list.List // of *waiter, first come first served
	most    int        // slots that there can be
	lease   *leasedConns

	noBorrow time.Time     // no borrowing before
	slowed   time.Time     // when slots were last taken away
	took     time.Duration // by a dialogue, on average of late; zero: not known
	paced    time.Duration // between two messages, where there is a limit
	reserved time.Time     // the last turn that was promised to a job that was sent away
	health
}

type waiter struct {
	turn    chan *refusal // gets nil with the slot, or why there will be none
	element *list.Element // nil: no longer waiting
}

// refusal says why a job does not get to its site now.
type refusal struct {
	isDead bool          // the site is dead: back off by the schedule
	delay  time.Duration // otherwise: when its turn may come
	reply  smtpc.Reply
	remote string // host that gave the reply
}

// pass is a job's leave to talk to a site. The slot goes back with leave, the place in the window with done, in any
// order and on any goroutine; both may be called again.
type pass struct {
	gate             *gate
	site             *site
	life             context.Context // of the leases that it rests on; nil: on none
	since            time.Time       // when it got the slot
	isProbe          bool
	hasLeft, hasDone bool // guarded by gate.mu
}

func newGate(slots, share int) *gate {
	return &gate{slots: slots, share: share, limit: maxSites, sites: make(map[string]*site)}
}

// enter waits for a slot of what only this process counts. It returns a pass, or a refusal, or an error when ctx ended first.
func (g *gate) enter(ctx context.Context, name string) (*pass, *refusal, error) {
	return g.enterBy(ctx, throttle.Limits{Path: name, Connections: g.slots}, false)
}

// enterBy waits for a slot of a path, within what is leased of its connections where the cluster counts them.
func (g *gate) enterBy(ctx context.Context, l throttle.Limits, isLeased bool) (*pass, *refusal, error) {
	g.mu.Lock()
	s := g.site(l.Path)
	s.limitTo(min(g.slots, l.Connections), l.Rate)
	now := time.Now()
	refused, isProbe := s.admit(now)
	if refused != nil {
		g.mu.Unlock()
		return nil, refused, nil
	}
	p := &pass{gate: g, site: s, isProbe: isProbe, since: now}
	if isLeased && g.leases != nil {
		if s.lease == nil {
			s.lease = &leasedConns{}
			s.lease.have, s.lease.fair = g.leases.Have(s.name)
		}
		s.lease.total = l.Connections
	}
	isBorrowed := s.hand >= g.share && !isProbe
	if isBorrowed && (now.Before(s.noBorrow) || s.nextTurn() > borrowWait) {
		refused := s.busy(now, g.share, nil)
		g.mu.Unlock()
		return nil, refused, nil
	}
	s.hand++
	if s.open < s.room(isProbe) && (isProbe || s.waiting.Len() == 0) {
		s.open++
		g.need(s)
		g.mu.Unlock()
		return p.begin(now), nil, nil
	}
	w := &waiter{turn: make(chan *refusal, 1)}
	if w.element = s.waiting.PushBack(w); isProbe {
		s.waiting.MoveToFront(w.element)
	}
	g.need(s)
	g.mu.Unlock()

	wait := maxWait
	if isBorrowed {
		wait = borrowWait
	}
	return g.await(ctx, p, w, wait)
}

// begin is when a pass got its slot.
func (p *pass) begin(now time.Time) *pass {
	p.since = now
	if p.site.lease != nil {
		p.life = p.gate.leases.Life()
	}
	return p
}

func (g *gate) await(ctx context.Context, p *pass, w *waiter, wait time.Duration) (*pass, *refusal, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var refused *refusal
	select {
	case refused = <-w.turn:
	case <-timer.C:
		refused = g.giveUp(p.site, w, true)
	case <-ctx.Done():
		if g.giveUp(p.site, w, false) == nil {
			p.leave(verdict{})
		}
		p.endProbe()
		p.done()
		return nil, nil, ctx.Err()
	}
	if refused != nil {
		p.endProbe()
		p.done()
		return nil, refused, nil
	}
	return p.begin(time.Now()), nil, nil
}

// endProbe lets another job probe: this one did not come to it.
func (p *pass) endProbe() {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	if p.isProbe {
		p.site.probing = false
	}
}

// giveUpProbe gives everything back: another process probes.
func (p *pass) giveUpProbe() *refusal {
	p.gate.mu.Lock()
	refused := p.site.refuse()
	p.gate.mu.Unlock()
	p.leave(verdict{})
	p.done()
	return refused
}

// perSecond is about how many jobs a path takes in a second; 0: it is not known.
func (g *gate) perSecond(path string) float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s, known := g.sites[path]; known && s.took > 0 {
		return s.perSecond(s.took)
	}
	return 0
}

// giveUp takes a waiter out of the line. When its turn has come meanwhile, that counts.
func (g *gate) giveUp(s *site, w *waiter, isLate bool) *refusal {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.element == nil {
		return <-w.turn
	}
	s.waiting.Remove(w.element)
	w.element = nil
	g.need(s)
	if !isLate {
		return &refusal{}
	}
	now := time.Now()
	s.noBorrow = now.Add(borrowPause)
	var trouble error
	if s.lease != nil {
		trouble = g.leases.Trouble()
	}
	return s.busy(now, g.share, trouble)
}

// verdict is what a dialogue says about the health of a site.
type verdict struct {
	isAlive bool         // somebody answered
	isSlow  bool         // it asked for less (421)
	isFull  bool         // it takes no more connections than there are
	failure *smtpc.Reply // nobody could be reached
	remote  string       // host that gave the failure
}

// leave gives the slot to the next in line.
func (p *pass) leave(v verdict) {
	g, s := p.gate, p.site
	died, lives := p.leaves(v)
	switch {
	case died != nil:
		g.died(s.name, *died)
	case lives:
		g.lives(s.name)
	}
}

// leaves does it, and says what the cluster should hear.
func (p *pass) leaves(v verdict) (died *health, lives bool) {
	g, s := p.gate, p.site
	g.mu.Lock()
	defer g.mu.Unlock()
	if p.hasLeft {
		return nil, false
	}
	p.hasLeft = true
	now := time.Now()
	s.open--
	s.noBorrow = time.Time{}
	if took := now.Sub(p.since); s.took == 0 {
		s.took = took
	} else {
		s.took = (7*s.took + took) / 8
	}
	switch {
	case v.isFull:
		s.allowed, s.slowed = max(1, min(s.allowed, float64(s.open))), now
	case v.isSlow && now.Sub(s.slowed) > time.Second: // dialogues that ran at the same time tell the same
		s.allowed, s.slowed = max(1, s.allowed/2), now
	case v.isAlive && now.Sub(s.slowed) > slowFor:
		s.allowed = min(float64(s.most), s.allowed+1/s.allowed)
	}
	hasDied := s.judge(now, v, p.isProbe)
	if hasDied {
		s.turnAway(now)
	}
	s.letIn()
	g.need(s)
	if s.lease != nil && g.died != nil {
		lives = v.isAlive
		if hasDied {
			h := s.health
			died = &h
		}
	}
	g.forget(s)
	return died, lives
}

// letIn gives free slots to who waits.
func (s *site) letIn() {
	for s.waiting.Len() > 0 && s.open < s.room(false) {
		s.open++
		s.next().turn <- nil
	}
}

// room is how many dialogues there may be now. A probe does not ask how many were good.
func (s *site) room(isProbe bool) int {
	n := int(s.allowed)
	if isProbe {
		n = s.most
	}
	if s.lease != nil {
		n = min(n, s.lease.have, s.lease.fair)
	}
	return n
}

// limitTo changes the number of slots that there can be.
func (s *site) limitTo(most int, rate queue.Rate) {
	s.paced = 0
	if !rate.IsZero() {
		s.paced = rate.Every()
	}
	if most == s.most {
		return
	}
	if s.allowed >= float64(s.most) || s.allowed > float64(most) {
		s.allowed = float64(most)
	}
	s.most = most
}

// done gives the place in the window back.
func (p *pass) done() {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	if p.hasDone {
		return
	}
	p.hasDone = true
	p.site.hand--
	p.gate.forget(p.site)
}

func (s *site) next() *waiter {
	w := s.waiting.Remove(s.waiting.Front()).(*waiter)
	w.element = nil
	return w
}

// turnAway sends all that wait home: their site is dead.
func (s *site) turnAway(now time.Time) {
	for s.waiting.Len() > 0 {
		s.next().turn <- s.refuse()
	}
	s.reserved = now
}

// nextTurn is how long a job would wait that joins the line now.
func (s *site) nextTurn() time.Duration {
	return time.Duration(float64(s.waiting.Len()+1) * max(float64(s.took)/s.allowed, float64(s.paced)))
}

// line is how many jobs wait for a slot of a path.
func (g *gate) line(path string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s, known := g.sites[path]; known {
		return s.waiting.Len()
	}
	return 0
}

// busy promises a job the next free turn. Jobs come back at the beat of the shortest delay class, all of a beat at once,
// so a beat has as many turns as the site can do, and as can wait in hand. When all beats within maxPutOff are full, they are filled once more.
func (s *site) busy(now time.Time, share int, trouble error) *refusal {
	took := s.took
	if took == 0 {
		took = time.Second
	}
	perSecond := s.perSecond(took)
	turns := min(minDelay.Seconds()*perSecond, float64(share)+borrowWait.Seconds()*perSecond)
	if soonest := now.Add(minDelay); s.reserved.Before(soonest) || s.reserved.Sub(now) > maxPutOff {
		s.reserved = soonest
	}
	delay := s.reserved.Sub(now)
	s.reserved = s.reserved.Add(time.Duration(float64(minDelay) / turns))
	return &refusal{
		delay: delay.Truncate(minDelay),
		reply: busyReply(trouble),
	}
}

func (s *site) perSecond(took time.Duration) float64 {
	n := s.allowed / max(took.Seconds(), 1e-6)
	if s.paced > 0 {
		n = min(n, float64(time.Second)/float64(s.paced))
	}
	return n
}

func (s *site) isUnused() bool {
	return s.hand == 0 && s.open == 0 && (s.lease == nil || s.lease.have == 0 && s.lease.conns == 0)
}

// site finds or makes the record of a site.
func (g *gate) site(name string) *site {
	s, exists := g.sites[name]
	if !exists {
		if len(g.sites) >= g.limit {
			g.makeRoom()
		}
		s = &site{name: name, most: g.slots, allowed: float64(g.slots), waiting: list.New()}
		g.sites[name] = s
	}
	return s
}

// forget drops the record of a site that there is nothing to remember of.
func (g *gate) forget(s *site) {
	now := time.Now()
	if s.isUnused() && s.isHealthy() && s.allowed >= float64(s.most) && now.After(s.noBorrow) && now.After(s.reserved) {
		delete(g.sites, s.name)
	}
}

// makeRoom drops records that are old, or any when that is not enough. Those with jobs in hand stay: the window bounds
// them.
func (g *gate) makeRoom() {
	now, room := time.Now(), g.limit/10+1
	for _, isOld := range []func(*site) bool{
		func(s *site) bool { return now.After(s.expires) },
		func(*site) bool { return true },
	} {
		for name, s := range g.sites {
			if g.limit-len(g.sites) >= room {
				return
			}
			if s.isUnused() && isOld(s) {
				delete(g.sites, name)
			}
		}
	}
}

// deadSites counts the sites that are dead now.
func (g *gate) deadSites() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, s := range g.sites {
		if s.isDead() {
			n++
		}
	}
	return n
}
