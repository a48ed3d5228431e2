package mx

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	maxTTL         = time.Hour        // whatever a record says
	minTTL         = time.Second      // so that a burst of mail asks once
	maxNegativeTTL = 15 * time.Minute // a domain that was put right should not wait long
	failureTTL     = 10 * time.Second // failures are remembered shortly (RFC 9520 §3.2)

	// Records that are over are better than none for a while, when the name service fails (RFC 8767 §5). Not those that were proven: what
	// holds by DNSSEC ends with its time.
	maxStale = 6 * time.Hour
	staleTTL = 30 * time.Second

	// A large answer is not kept: strangers make them, and thousands would fill the memory.
	maxKept     = 8 << 10 // octets of an answer
	recordBytes = 128     // of a record, beside what it says
)

// question is what a cache entry answers.
type question struct {
	name  string
	qtype uint16
}

// answer is what the servers said: records, none, or an error.
type answer struct {
	rrs    []dns.RR
	end    string // name at the end of the aliases
	secure bool   // DNSSEC proves it
	err    error
	ttl    time.Duration
}

// size is about how much memory the answer takes.
func (a answer) size() int {
	n := 0
	for _, rr := range a.rrs {
		n += recordBytes + dns.Len(rr)
	}
	return n
}

// cache keeps answers for their time, at most max of them and none that is large, and lets one
// caller ask for all who want to know the same.
type cache struct {
	max int

	mu      sync.Mutex
	entries map[question]entry
	asking  map[question]*flight
}

type entry struct {
	answer answer
	until  time.Time
	stale  time.Time // until then it may stand in for a failure; zero: it may not
}

// flight is a question that is being asked.
type flight struct {
	done   chan struct{}
	answer answer
}

func newCache(max int) *cache {
	return &cache{max: max, entries: make(map[question]entry), asking: make(map[question]*flight)}
}

// get gives the answer to q, from memory or by ask. Whoever comes while it is
// asked waits; when the one who asks has to leave, the next one asks.
func (c *cache) get(ctx context.Context, q question, ask func(context.Context) answer) answer {
	for {
		c.mu.Lock()
		if e, ok := c.entries[q]; ok && time.Now().Before(e.until) {
			c.mu.Unlock()
			return e.answer
		}
		f, ok := c.asking[q]
		if !ok {
			f = &flight{done: make(chan struct{})}
			c.asking[q] = f
			c.mu.Unlock()
			return c.lead(ctx, q, f, ask)
		}
		c.mu.Unlock()
		select {
		case <-f.done:
			if f.answer.ttl > 0 { // not one that its asker left
				return f.answer
			}
		case <-ctx.Done():
			return answer{err: context.Cause(ctx)}
		}
	}
}

// lead asks and tells those who wait. An answer that only says that the
// asker's ctx ended is for nobody else.
func (c *cache) lead(ctx context.Context, q question, f *flight, ask func(context.Context) answer) answer {
	f.answer = ask(ctx)
	if f.answer.err != nil && ctx.Err() != nil {
		f.answer = answer{err: context.Cause(ctx)}
	} else {
		f.answer.ttl = min(max(f.answer.ttl, minTTL), maxTTL)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.asking, q)
	if f.answer.ttl > 0 {
		e := c.entryFor(q, f.answer, time.Now())
		f.answer = e.answer
		delete(c.entries, q)
		if f.answer.size() <= maxKept {
			c.makeRoom()
			c.entries[q] = e
		}
	}
	close(f.done)
	return f.answer
}

// entryFor is what is to be kept of an answer: of a failure, what was known before, if that will do.
func (c *cache) entryFor(q question, a answer, now time.Time) entry {
	if old := c.entries[q]; isTrouble(a.err) && now.Before(old.stale) {
		old.answer.ttl = staleTTL
		old.until = now.Add(staleTTL)
		return old
	}
	e := entry{answer: a, until: now.Add(a.ttl)}
	if len(a.rrs) > 0 && !a.secure && q.qtype != dns.TypeTLSA {
		e.stale = e.until.Add(maxStale)
	}
	return e
}

// isTrouble reports a failure of the name service itself. What is no name, or is forged, is none.
func isTrouble(err error) bool {
	return err != nil && !errors.Is(err, ErrNoName) && !errors.Is(err, ErrBogus)
}

// makeRoom drops entries when the cache is full: of a few at random the
// expired ones, else the one that expires first.
func (c *cache) makeRoom() {
	if len(c.entries) < c.max {
		return
	}
	const look = 8
	var oldest question
	var until time.Time
	now, seen := time.Now(), 0
	for q, e := range c.entries { // in random order
		if e.until.Before(now) {
			delete(c.entries, q)
		} else if until.IsZero() || e.until.Before(until) {
			oldest, until = q, e.until
		}
		if seen++; seen == look {
			break
		}
	}
	if len(c.entries) >= c.max {
		delete(c.entries, oldest)
	}
}
