package source

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
	"time"

	"postroad/queue"
)

// Request is what is known of an attempt.
type Request struct {
	Pool       string // of the route; empty: the default
	Key        string // of the job: the same for all its tries
	Recipients int    // that a new source would have to count

	Last    string    // source of the last try; empty: none
	LastTry time.Time // when that was
	Began   time.Time // of the job: how long it may have waited for a source

	// Usable says whether a source is good for the site, by what the site has said of late; nil: all are.
	Usable func(source string) bool

	Hosts []netip.Addr // that are to be reached: a source with an address of the family of one of them will do
}

// Choice is a source for one attempt.
type Choice struct {
	Source Source // with the addresses only that this machine has
	refund func()
}

// Refund says that nothing was sent. It may be called again.
func (c *Choice) Refund() {
	if c.refund != nil {
		c.refund()
		c.refund = nil
	}
}

// Wait says that there is no source for now.
type Wait struct {
	Text  string // why, for people
	Delay time.Duration
}

// Error implements error.
func (w *Wait) Error() string { return w.Text }

// How long jobs wait for a source that others have: soon at first, so that the next process takes them.
const (
	// stickyFor is how long after a try a job waits for its source. Greylisting lasts minutes; later it may come from anywhere.
	stickyFor = time.Hour

	soon, later, late = 10 * time.Second, time.Minute, 5 * time.Minute
	maxWarmWait       = time.Hour
)

// Families says of which families a pool has addresses here.
func (s *Set) Families(pool string) (has4, has6 bool) {
	members, ok := s.members(pool)
	if !ok {
		return true, true // Choose says what is wrong
	}
	if members == nil {
		return true, true
	}
	found := false
	for _, m := range members {
		if src, isHere := s.here.trim(s.sources[m.Source], time.Now()); isHere {
			has4, has6, found = has4 || src.IPv4.IsValid(), has6 || src.IPv6.IsValid(), true
		}
	}
	return has4 || !found, has6 || !found
}

// members gives the members of a pool; none for the system's choice.
func (s *Set) members(pool string) (members []Member, ok bool) {
	if pool == "" {
		pool = s.o.Default
	}
	if pool == "" || pool == SystemPool {
		return nil, true
	}
	members, ok = s.pools[pool]
	return members, ok
}

// Choose gives the source for an attempt. The error is a *Wait, or that of ctx.
func (s *Set) Choose(ctx context.Context, r Request) (*Choice, error) {
	c, err := s.choose(ctx, r)
	if wait, is := errors.AsType[*Wait](err); is {
		wait.Delay = s.turns.next(wait.Delay, time.Now())
	}
	return c, err
}

func (s *Set) choose(ctx context.Context, r Request) (*Choice, error) {
	members, ok := s.members(r.Pool)
	switch {
	case !ok:
		return nil, &Wait{fmt.Sprintf("the route wants the pool of sources %q, which this process does not have", r.Pool), late}
	case members == nil:
		return &Choice{Source: s.o.System}, nil
	}
	now := time.Now()
	var here []candidate
	isKnown, reaches := false, false // the last source is one of the pool; one that is here has the family
	isMarked := false                // the site wants nothing from one that is here
	for _, m := range members {
		if r.Usable != nil && !r.Usable(m.Source) {
			isMarked = true
			continue
		}
		isKnown = isKnown || m.Source == r.Last
		src, isHere := s.here.trim(s.sources[m.Source], now)
		if !isHere {
			continue
		}
		c := candidate{Source: src, score: score(r.Key, m), isLast: m.Source == r.Last}
		c.reaches = len(r.Hosts) == 0 || slices.ContainsFunc(r.Hosts, src.Reaches)
		reaches = reaches || c.reaches
		here = append(here, c)
	}
	isSticky := isKnown && now.Sub(r.LastTry) < stickyFor
	switch {
	case len(here) == 0 && isMarked:
		return nil, &Wait{fmt.Sprintf("the site wants nothing for now from the sources of pool %q", s.poolName(r.Pool)), late}
	case len(here) == 0:
		return nil, &Wait{fmt.Sprintf("this process has none of the sources of pool %q; it is left to one that has", s.poolName(r.Pool)), patience(now.Sub(r.Began))}
	case isSticky && !slices.ContainsFunc(here, func(c candidate) bool { return c.isLast }):
		return nil, &Wait{fmt.Sprintf("it was sent from source %s last, which this process does not have; it is left to one that has", r.Last), soon}
	case !reaches:
		return nil, &Wait{"no source here has an address of the family of its hosts", patience(now.Sub(r.Began))}
	}
	slices.SortFunc(here, func(a, b candidate) int { return compare(a, b, isSticky) })
	return s.reserve(ctx, here, r, now)
}

func (s *Set) poolName(pool string) string {
	if pool == "" {
		return s.o.Default
	}
	return pool
}

// candidate is a member of the pool that is here.
type candidate struct {
	Source
	score   float64
	isLast  bool
	reaches bool
}

func compare(a, b candidate, isSticky bool) int {
	if isSticky && a.isLast != b.isLast {
		if a.isLast {
			return -1
		}
		return 1
	}
	switch {
	case a.score > b.score:
		return -1
	case a.score < b.score:
		return 1
	}
	return 0
}

// reserve takes the first candidate that is warm, or may have this much more today.
func (s *Set) reserve(ctx context.Context, list []candidate, r Request, now time.Time) (*Choice, error) {
	wait := maxWarmWait
	for _, c := range list {
		if !c.reaches {
			continue
		}
		day, isWarm := s.o.WarmUp.Day(c.Started, now)
		if isWarm {
			return &Choice{Source: c.Source}, nil
		}
		l := s.o.WarmUp.limit(day)
		if l.Count == 0 {
			continue // it begins another day
		}
		key := SpendPrefix + c.Name
		spent, err := s.o.Spender.Spend(ctx, key, min(max(r.Recipients, 1), l.Count), l)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			s.o.Logger.Warn("it cannot be counted what a new source sends", "egress", c.Name, "error", err)
			wait = min(wait, later)
		case spent.OK:
			return &Choice{Source: c.Source, refund: func() { s.o.Spender.Refund(key, spent) }}, nil
		default:
			wait = min(wait, spentWait(spent))
		}
	}
	return nil, &Wait{fmt.Sprintf("the sources of pool %q that are here are new, and have sent what they may for now", s.poolName(r.Pool)), wait}
}

// spentWait is when something may be free again.
func spentWait(s queue.Spent) time.Duration {
	return min(max(s.RetryAfter, later), maxWarmWait)
}

// patience grows with the age of a job that waits for a process that has its source.
func patience(age time.Duration) time.Duration {
	switch {
	case age < 5*time.Minute:
		return soon
	case age < time.Hour:
		return later
	}
	return late
}

// score is the weight of a member for a key by rendezvous hashing: the highest of a pool is chosen, each as often as its
// weight says, and for a key the same as long as it is there.
func score(key string, m Member) float64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(key + "\x00" + m.Source)) // never fails
	u := (float64(mix(h.Sum64())>>11) + 0.5) / (1 << 53)
	return -float64(m.Weight) / math.Log(u)
}

// mix spreads the bits of a hash (the finalizer of SplitMix64): FNV alone is poor in the high ones.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
