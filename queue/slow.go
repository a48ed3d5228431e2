package queue

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// Slow lanes. A lane is a FIFO, so ten thousand jobs of a site that takes none would be in the way of everybody else's in it,
// each of them at the price of a move. When a worker puts a job off without a try, its site being dead or busy, or many after
// a try with none delivered in between, it says so to all processes; for a minute what becomes ready for that domain goes to
// a slow lane, where only its like are held up.
const (
	slowLanes = 4
	slowFor   = time.Minute
	slowTell  = 5 * time.Second // how often one process repeats it
	maxSlow   = 50_000          // domains remembered
	slowAfter = 32              // deferrals in a row, within slowFor
)

// slowDomains remembers which domains are slow, by themselves or by what others said.
type slowDomains struct {
	mu sync.Mutex
	m  map[string]slowDomain // by token
}

type slowDomain struct {
	until, told time.Time
	since       time.Time // of the first deferral in a row
	deferrals   int
}

func slowSubject(token string) string { return "slow." + token }

// listenSlow takes what other processes say, and this one.
func (q *Queue) listenSlow() error {
	q.slow.m = make(map[string]slowDomain)
	_, err := q.nc.Subscribe(slowSubject("*"), func(m *nats.Msg) {
		q.slow.mark(strings.TrimPrefix(m.Subject, "slow."), time.Now())
	})
	return err
}

// mark remembers a domain and reports whether it is time to tell others.
func (s *slowDomains) mark(token string, now time.Time) (tell bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.hasRoom(token, now) {
		return false
	}
	d := s.m[token]
	d.until = now.Add(slowFor)
	if tell = now.Sub(d.told) >= slowTell; tell {
		d.told = now
	}
	s.m[token] = d
	return tell
}

// hasRoom makes room for a domain by forgetting those that are of the past. The caller holds the lock.
func (s *slowDomains) hasRoom(token string, now time.Time) bool {
	if _, known := s.m[token]; known || len(s.m) < maxSlow {
		return true
	}
	for t, d := range s.m {
		if now.After(d.until) && now.Sub(d.since) > slowFor {
			delete(s.m, t)
		}
	}
	return len(s.m) < maxSlow
}

// deferred counts a deferral after a try and reports whether there were too many in a row.
func (s *slowDomains) deferred(token string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.hasRoom(token, now) {
		return false
	}
	d := s.m[token]
	if now.Sub(d.since) > slowFor {
		d.since, d.deferrals = now, 0
	}
	d.deferrals++
	s.m[token] = d
	return d.deferrals >= slowAfter
}

// delivered ends a row of deferrals.
func (s *slowDomains) delivered(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d, known := s.m[token]; known {
		d.deferrals = 0
		s.m[token] = d
	}
}

func (s *slowDomains) has(token string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.m[token].until)
}

// putOff notes that a worker deferred a job of this domain. The word to others may be lost; it is repeated.
func (q *Queue) putOff(domain string, tried bool) {
	token, now := encodeToken(domain), time.Now()
	if tried && !q.slow.deferred(token, now) {
		return
	}
	if q.slow.mark(token, now) {
		_ = q.nc.Publish(slowSubject(token), nil)
	}
}

// readySpot is the lane in which a domain's jobs are handed out at present.
func (q *Queue) readySpot(domain string) spot {
	if q.slow.has(encodeToken(domain), time.Now()) {
		return spot{PlaceReady, slowLane(domain)}
	}
	return spot{PlaceReady, laneOf(domain)}
}

func slowLane(domain string) string {
	return "s" + strconv.Itoa(int(laneHash(domain)%slowLanes))
}

// allLanes are the names of all lanes, the slow ones last.
func allLanes() []string {
	var names []string
	for i := range Lanes {
		names = append(names, strconv.Itoa(i))
	}
	for i := range slowLanes {
		names = append(names, "s"+strconv.Itoa(i))
	}
	return names
}
