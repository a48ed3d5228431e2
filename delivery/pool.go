package delivery

import (
	"context"
	"crypto/tls"
	"net/netip"
	"slices"
	"sync"
	"time"

	"postroad/delivery/smtpc"
	"postroad/delivery/tlspolicy"
)

// Limits of the reuse of a connection.
const (
	maxConnAge   = 300 * time.Second
	maxConnIdle  = 60 * time.Second
	reapInterval = 5 * time.Second
	quitTimeout  = 10 * time.Second
)

// conn is a connection to a host; *smtpc.Conn is one.
type conn interface {
	Send(ctx context.Context, m smtpc.Message) (smtpc.Result, error)
	Reusable() bool
	Transactions() int
	Limits() smtpc.Limits
	TLSState() *tls.ConnectionState
	RemoteAddr() netip.AddrPort
	Host() string
	Close(ctx context.Context)
}

var _ conn = (*smtpc.Conn)(nil)

// poolKey is what must be the same for a connection to serve another job. Any of the hosts will do.
type poolKey struct {
	site       string   // or the path that is counted apart
	hosts      [16]byte // that the job may go to, with their ports: names of sites are shortened, and an outsider chooses them
	source     string   // egress source; empty: the system's choice
	tls        smtpc.TLSMode
	policy     string // of the domain: see tlspolicy.Domain.Key
	login      string // whose credentials and certificate are shown, in which version; empty: nobody's
	requireTLS bool   // the host offers REQUIRETLS
}

// pooled is a connection with its times.
type pooled struct {
	conn
	key        poolKey
	site       *site           // whose connection it is in the gate
	closed     func()          // to be called once it is closed; may be nil
	life       context.Context // of the leases that it was made by: when they are over there is no time for a QUIT; nil: of none
	opened     time.Time
	idleSince  time.Time
	protection tlspolicy.Kind
	messages   int // transactions that it may have
}

// isSpent reports that the connection may have no further transaction, by our limit or by the host's (RFC 9422).
func (c *pooled) isSpent() bool {
	limit := c.messages
	if most := c.Limits().Messages; most > 0 {
		limit = min(limit, most)
	}
	return !c.Reusable() || c.Transactions() >= limit
}

// pool keeps connections that may serve again. Who uses one has a slot of its site, and takes an idle one before he
// dials, so there are never more connections of one key than slots.
type pool struct {
	limit   int // idle connections in all
	metrics *metrics

	mu       sync.Mutex
	idle     map[poolKey][]*pooled // the one used last at the end
	count    int
	isClosed bool
	closing  sync.WaitGroup
}

func newPool(limit int, m *metrics) *pool {
	return &pool{limit: limit, metrics: m, idle: make(map[poolKey][]*pooled)}
}

// take gives the connection that was used last, or nil.
func (p *pool) take(key poolKey) *pooled {
	p.mu.Lock()
	defer p.mu.Unlock()
	list, now := p.idle[key], time.Now()
	for len(list) > 0 {
		c := list[len(list)-1]
		list[len(list)-1] = nil
		list = list[:len(list)-1]
		p.set(key, list)
		p.count--
		if c.isFresh(now) {
			return c
		}
		p.discard(c, nil)
	}
	return nil
}

// put keeps a connection for the next job, or closes it. then, when given, is called once the connection is out of the
// way: kept, or closed.
func (p *pool) put(c *pooled, then func()) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isClosed || p.count >= p.limit || c.isSpent() || now.Sub(c.opened) >= maxConnAge {
		p.discard(c, then)
		return
	}
	c.idleSince = now
	p.idle[c.key] = append(p.idle[c.key], c)
	p.count++
	if then != nil {
		then()
	}
}

func (c *pooled) isFresh(now time.Time) bool {
	return now.Sub(c.idleSince) < maxConnIdle && now.Sub(c.opened) < maxConnAge
}

// discard closes a connection on the side: QUIT may take its time. p.mu is held.
func (p *pool) discard(c *pooled, then func()) {
	p.closing.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
		defer cancel()
		if c.life != nil {
			stop := context.AfterFunc(c.life, cancel)
			defer stop()
		}
		c.Close(ctx)
		p.metrics.open.Dec()
		if c.closed != nil {
			c.closed()
		}
		if then != nil {
			then()
		}
	})
}

// end closes a connection that could be kept.
func (p *pool) end(c *pooled, then func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.discard(c, then)
}

// evict closes an idle connection of a site of the gate, the one not used for longest of its key, and reports whether there was one.
func (p *pool) evict(s *site) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, list := range p.idle {
		for i, c := range list {
			if c.site == s {
				p.count--
				p.discard(c, nil)
				p.set(key, slices.Delete(list, i, i+1))
				return true
			}
		}
	}
	return false
}

// reap closes what has been idle for too long, until ctx ends.
func (p *pool) reap(ctx context.Context) {
	ticker := time.NewTicker(reapInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			p.sweep(func(c *pooled, now time.Time) bool { return c.isFresh(now) })
		}
	}
}

// sweep closes the idle connections that are not to be kept.
func (p *pool) sweep(keep func(*pooled, time.Time) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for key, list := range p.idle {
		kept := make([]*pooled, 0, len(list))
		for _, c := range list {
			if keep(c, now) {
				kept = append(kept, c)
				continue
			}
			p.count--
			p.discard(c, nil)
		}
		p.set(key, kept)
	}
}

func (p *pool) set(key poolKey, list []*pooled) {
	if len(list) == 0 {
		delete(p.idle, key)
		return
	}
	p.idle[key] = list
}

// close closes all that is idle and keeps nothing from now on. It waits for the QUITs, which are bounded.
func (p *pool) close() {
	p.mu.Lock()
	p.isClosed = true
	p.mu.Unlock()
	p.sweep(func(*pooled, time.Time) bool { return false })
	p.closing.Wait()
}
