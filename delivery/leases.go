package delivery

import (
	"container/list"
	"context"
	"time"

	"postroad/delivery/throttle"
)

// leasedConns are the connections to a site where the cluster counts them. gate.mu guards it.
type leasedConns struct {
	total    int       // that the cluster may have
	have     int       // that this process may have
	fair     int       // that it should have, because others wait
	conns    int       // that there are: being made, in use, idle, being closed
	dialling list.List // of *waiter who wait until they may make one
}

// need tells what a site needs. The caller holds the lock.
func (g *gate) need(s *site) {
	if s.lease == nil {
		return
	}
	g.leases.Need(s.name, throttle.Need{Limit: s.lease.total, Use: s.lease.conns, Want: s.wants()})
}

// granted takes note that what is leased for a path has changed.
func (g *gate) granted(path string) {
	g.mu.Lock()
	s, known := g.sites[path]
	if !known || s.lease == nil {
		g.mu.Unlock()
		return
	}
	l := s.lease
	l.have, l.fair = g.leases.Have(path)
	s.letIn()
	l.letDial()
	surplus := l.surplus()
	g.need(s)
	g.forget(s)
	g.mu.Unlock()
	g.evictSome(s, surplus)
}

// surplus is how many connections there are too many, because others wait for them or the limit is lower now.
func (l *leasedConns) surplus() int { return l.conns - min(l.have, l.fair, l.total) }

func (g *gate) evictSome(s *site, n int) {
	for ; n > 0 && g.evict(s); n-- {
	}
}

// trim closes idle connections of a site that are too many.
func (g *gate) trim(s *site) {
	g.mu.Lock()
	surplus := 0
	if s.lease != nil {
		surplus = s.lease.surplus()
	}
	g.mu.Unlock()
	g.evictSome(s, surplus)
}

// yield gives back what is not needed.
func (g *gate) yield(path string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	keep := 0
	if s, known := g.sites[path]; known && s.lease != nil {
		l := s.lease
		keep = min(l.have, max(l.conns, min(s.wants(), l.fair, l.total)))
		l.have = keep
	}
	g.leases.Keep(path, keep)
}

// wants is how many connections would be used now.
func (s *site) wants() int { return min(s.open+s.waiting.Len(), max(1, int(s.allowed))) }

// letDial lets those make connections for whom there is room.
func (l *leasedConns) letDial() {
	for l.dialling.Len() > 0 && l.conns < l.have {
		l.conns++
		w := l.dialling.Remove(l.dialling.Front()).(*waiter)
		w.element = nil
		w.turn <- nil
	}
}

// mayConnect waits until a connection more may be made, which is counted from then on until closed. Who has a pass waits for a connection that is just
// being closed, at most.
func (g *gate) mayConnect(ctx context.Context, s *site) (*refusal, error) {
	g.mu.Lock()
	l := s.lease
	if l == nil {
		g.mu.Unlock()
		return nil, nil
	}
	w := &waiter{turn: make(chan *refusal, 1)}
	w.element = l.dialling.PushBack(w)
	l.letDial()
	isFull := w.element != nil
	g.need(s)
	g.mu.Unlock()
	if isFull {
		g.evict(s)
	}
	timer := time.NewTimer(maxWait)
	defer timer.Stop()
	isLate := false
	select {
	case <-w.turn:
		return nil, nil
	case <-timer.C:
		isLate = true
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.element == nil { // its turn has come meanwhile
		if isLate {
			return nil, nil
		}
		l.conns--
		l.letDial()
		g.need(s)
		return nil, ctx.Err()
	}
	l.dialling.Remove(w.element)
	if !isLate {
		return nil, ctx.Err()
	}
	return s.busy(time.Now(), g.share, g.leases.Trouble()), nil
}

// closed takes note that a connection of a site is no more, or did not come about.
func (g *gate) closed(s *site) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s.lease == nil {
		return
	}
	s.lease.conns--
	s.lease.letDial()
	s.letIn()
	g.need(s)
	g.forget(s)
}

// isSurplus reports that a connection should be closed rather than kept, because others wait for it.
func (p *pass) isSurplus() bool {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	l := p.site.lease
	return l != nil && l.surplus() > 0
}
