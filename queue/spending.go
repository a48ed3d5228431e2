package queue

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Limit is a number of something, recipients say, in any time of the length Window.
type Limit struct {
	Count  int
	Window time.Duration // one second to a year
}

const (
	minWindow = time.Second
	maxWindow = 366 * 24 * time.Hour
	maxSkew   = 2 * time.Second // see skew

	windowSlices = 60               // of a Window
	maxShares    = 4 * windowSlices // of one spending: the Window may have changed, or differ between processes
	blocksOfAll  = 50               // a process leases 1/50 of the Count at once
	spendMagic   = "PRL1"           // of the stored form; then JSON
)

func (l Limit) check() error {
	if l.Count < 0 || l.Window < minWindow || l.Window > maxWindow {
		return fmt.Errorf("limit of %d in %s: want no less than 0 in %s to %s", l.Count, l.Window, minWindow, maxWindow)
	}
	return nil
}

// slice is how long one lease lasts at most, in milliseconds. The Window has 60 of them.
func (l Limit) slice() int64 { return (l.Window.Milliseconds() + windowSlices - 1) / windowSlices }

// memory is how long after its end a slice still counts, in milliseconds. Besides the Window this is the time by which two
// clocks may differ: the slower one may spend in a slice that the other one has left.
func (l Limit) memory() int64 { return (l.Window + l.skew()).Milliseconds() + 1 }

func (l Limit) skew() time.Duration { return min(maxSkew, l.Window/20) }

// block is what a process takes at once, at least.
func (l Limit) block() int { return max(1, l.Count/blocksOfAll) }

// spending is what has been taken from one limit, by all processes together: the stored form. What was taken in a slice
// of time may be spent until the end of the slice, so it counts until that end is a Window ago. Ends are kept as times, not as
// numbers of slices, so that a change of the Window leaves them as they are. All times are milliseconds of Unix.
type spending struct {
	Count  int     `json:"count"`  // the limit of the last writer, for people
	Window int64   `json:"window"` // milliseconds
	At     int64   `json:"at"`     // the latest time that a writer had: for all of them time does not go back
	Shares []share `json:"shares"` // ascending ends
}

// share is what was taken in the slice that ends at End.
type share struct {
	End int64 `json:"e"`
	N   int   `json:"n"`
}

// lease is the outcome of take.
type lease struct {
	share               // N is 0 when there was not enough
	free  int           // what is left for others
	fits  time.Duration // when there was not enough: the time until there is
}

// now is the time to count with.
func (s *spending) now(clock int64) int64 { return max(clock, s.At) }

// sliceEnd is the end of the slice in which something is taken at that clock.
func (s *spending) sliceEnd(clock int64, l Limit) int64 {
	n := l.slice()
	return (s.now(clock)/n + 1) * n
}

// take takes need from the limit, up to want of it where there is more, or nothing at all. back is what the same process took
// from an earlier slice and will never spend.
func (s *spending) take(clock int64, l Limit, need, want int, back share) lease {
	now := s.now(clock)
	end := s.sliceEnd(clock, l)
	s.giveBack(back)
	s.Shares = slices.DeleteFunc(s.Shares, func(sh share) bool { return sh.End <= now-l.memory() })
	used := 0
	for _, sh := range s.Shares {
		used += sh.N
	}
	free := l.Count - used
	if need > free {
		return lease{free: max(0, free), fits: s.fits(now, l, need-free)}
	}
	n := min(max(need, want), free)
	s.add(share{End: end, N: n})
	s.At, s.Count, s.Window = now, l.Count, l.Window.Milliseconds()
	return lease{share: share{End: end, N: n}, free: free - n}
}

// fits is how long it takes until so much more is free, if nobody takes any meanwhile.
func (s *spending) fits(now int64, l Limit, missing int) time.Duration {
	at := now
	for _, sh := range s.Shares {
		if missing <= 0 {
			break
		}
		missing -= sh.N
		at = sh.End + l.memory()
	}
	return max(1, time.Duration(at-now)) * time.Millisecond
}

func (s *spending) add(sh share) {
	i, found := slices.BinarySearchFunc(s.Shares, sh.End, func(a share, end int64) int { return int(a.End - end) })
	if found {
		s.Shares[i].N += sh.N
	} else {
		s.Shares = slices.Insert(s.Shares, i, sh)
	}
	for len(s.Shares) > maxShares { // the oldest counts a little longer
		s.Shares[1].N += s.Shares[0].N
		s.Shares = slices.Delete(s.Shares, 0, 1)
	}
}

// giveBack lowers a share. One that is not there, or has become part of a later one, counts until its time is over.
func (s *spending) giveBack(back share) {
	for i := range s.Shares {
		if s.Shares[i].End == back.End {
			s.Shares[i].N = max(0, s.Shares[i].N-back.N)
		}
	}
}

// ttl is how long the stored form says anything about the limit after it was written.
func (l Limit) ttl() time.Duration {
	return (l.Window + l.skew() + time.Duration(l.slice())*time.Millisecond + time.Second).Truncate(time.Second) + time.Second
}

func encodeSpending(s *spending) ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode spending: %w", err)
	}
	return append([]byte(spendMagic), b...), nil
}

// decodeSpending reads a stored form. Nothing, which is also what the server leaves when a key's time is over, is a limit of
// which nothing was taken.
func decodeSpending(b []byte) (spending, error) {
	var s spending
	if len(b) == 0 {
		return s, nil
	}
	rest, err := afterMagic(b, spendMagic)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(rest, &s); err != nil {
		return s, fmt.Errorf("spending: %w: %w", err, ErrCorrupt)
	}
	return s, nil
}
