package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"
)

// Rate is a pace at which something may happen: Count times in a Window, at even distances, and after a rest up to Burst times at once.
type Rate struct {
	Count  int           `json:"count"`
	Window time.Duration `json:"window"` // 1 s to a year
	Burst  int           `json:"burst,omitempty"`
}

const (
	paceMagic = "PRP1" // of the stored form; then JSON
	paceKeys  = "pace."
	// shortGrace is how late a turn may be taken where turns are closer than that, and longGrace where they are far apart.
	shortGrace = 100 * time.Millisecond
	longGrace  = time.Minute
	// paceKept is how long the last turn is remembered besides the distance of turns.
	paceKept = time.Minute
	maxLead  = 2 * time.Second
	// maxAhead is by how much the last turn may be later than anybody can get one; where it is by more, the server's clock was wrong.
	maxAhead = time.Minute
)

// IsZero reports that there is no pace to keep.
func (r Rate) IsZero() bool { return r.Count == 0 }

// Every is the distance of two turns.
func (r Rate) Every() time.Duration { return max(1, r.Window/time.Duration(max(1, r.Count))) }

// Grace is how long after its time a turn may be taken; then it is lost. It is what keeps late ones from adding up with those that come after
// them: a tenth of a second, or the distance of two turns where that is longer, at most a minute.
func (r Rate) Grace() time.Duration { return min(max(shortGrace, r.Every()), longGrace) }

// Block is by how many the takers of turns together may exceed Count in some time of the length Window, the Burst aside: as many as
// have their turns within Grace.
func (r Rate) Block() int { return max(1, int((r.Grace()+r.Every()-1)/r.Every())) }

func (r Rate) check() error {
	if r.Count < 1 || r.Window < minWindow || r.Window > maxWindow || r.Burst < 0 {
		return fmt.Errorf("rate of %d in %s: want at least 1 in %s to %s", r.Count, r.Window, minWindow, maxWindow)
	}
	return nil
}

// Turns are moments at which their holder, and nobody else in the cluster, may do what is paced: one at each, no earlier, and no later
// than Grace after it.
type Turns struct {
	First time.Time     // by the clock of this process
	Every time.Duration // between two of them
	Count int           // 0: there is none so soon
	Wait  time.Duration // then: how long it is until the next one that is free
}

// Reserve takes up to n consecutive turns of the pace of a key, none of them later than within from now. Everybody's turns of a key
// are Every apart, so whatever processes there are, in any time of the length of the Window no more than Count and one Block are taken, and the
// Burst on top after a rest. A turn that is not taken is lost. The key is free text of at most 200 octets.
//
// An error says nothing about the pace and gives no turn. Time is that of the server that leads stream MAIL; by as much as the clocks of two
// processes differ in what they know of it, their turns may be closer.
//
// A new Rate for a key is in force with the next Reserve.
func (q *Queue) Reserve(ctx context.Context, key string, n int, r Rate, within time.Duration) (Turns, error) {
	t, err := q.pacer.reserve(ctx, key, n, r, within)
	if err != nil {
		return Turns{}, fmt.Errorf("reserve turns of %s: %w", key, err)
	}
	return t, nil
}

// pacer hands out turns.
type pacer struct {
	store  paceStore
	clock  *clock
	time   func() time.Time
	pause  func(context.Context, time.Duration) error
	leeway time.Duration // see Options

	took atomic.Int64 // nanoseconds by a reservation of late; no turn is so near that it would be over when it is known
}

// paceStore keeps the paces of the cluster; see casBucket.
type paceStore interface {
	read(ctx context.Context, token string, again bool) ([]byte, uint64, error)
	write(ctx context.Context, token string, data []byte, revision uint64, ttl time.Duration) (uint64, error)
}

// pace is the stored form: the last turn that somebody has. Times are nanoseconds of Unix.
type pace struct {
	Last int64 `json:"last"`
	Rate Rate  `json:"rate"` // of the last writer, for people
}

// take takes up to n turns at that clock; first is the time of the first one, also where there is none within reach. It changes the pace where
// it gives any, and where the last turn is one that nobody can have got by that clock.
func (p *pace) take(clock int64, n int, r Rate, within time.Duration) (first int64, got int) {
	every := int64(r.Every())
	if p.Last > clock+int64(within+maxAhead) {
		p.Last = clock
	}
	first = max(p.Last+every, clock-int64(max(1, r.Burst)-1)*every)
	last := first + int64(n-1)*every
	if most := clock + int64(within); last > most {
		if first > most {
			return first, 0
		}
		n = int((most-first)/every) + 1
		last = first + int64(n-1)*every
	}
	p.Last, p.Rate = last, r
	return first, n
}

func (pc *pacer) reserve(ctx context.Context, key string, n int, r Rate, within time.Duration) (Turns, error) {
	if err := r.check(); err != nil {
		return Turns{}, err
	}
	if len(key) > maxLimitKey || n < 1 {
		return Turns{}, fmt.Errorf("%d turns for a key of %d octets, want at least one, and %d octets at most", n, len(key), maxLimitKey)
	}
	ctx, cancel := context.WithTimeout(ctx, max(spendTimeout, pc.leeway))
	defer cancel()
	token := paceToken(key)
	for try := range spendTries {
		asked := pc.time()
		data, revision, err := pc.store.read(ctx, token, try > 0)
		if err != nil {
			return Turns{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		p, err := decodePace(data)
		if err != nil {
			return Turns{}, err
		}
		was, now := p, asked.Add(min(time.Duration(pc.took.Load()), maxLead))
		clock := pc.clock.nanos(now)
		first, got := p.take(clock, n, r, within)
		t := Turns{First: now.Add(time.Duration(first - clock)), Every: r.Every(), Count: got}
		if got == 0 {
			t.Wait = max(1, t.First.Sub(asked))
		}
		if p == was {
			return t, nil
		}
		if data, err = encodePace(&p); err != nil {
			return Turns{}, err
		}
		ttl := (time.Duration(p.Last-clock) + r.Every()*time.Duration(max(1, r.Burst)) + paceKept).Truncate(time.Second)
		switch _, err = pc.store.write(ctx, token, data, revision, max(ttl, paceKept)); {
		case err == nil:
			pc.note(pc.time().Sub(asked))
			return t, nil
		case !errors.Is(err, errConflict):
			return Turns{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if err := pc.pause(ctx, rand.N(min(time.Millisecond<<min(try, 10), maxRetryWait))); err != nil {
			return Turns{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return Turns{}, fmt.Errorf("%w: others were quicker %d times", ErrUnavailable, spendTries)
}

// note learns how long a reservation takes: at once that it takes longer, by and by that it does not.
func (pc *pacer) note(took time.Duration) {
	if last := time.Duration(pc.took.Load()); took < last {
		took = (7*last + took) / 8
	}
	pc.took.Store(int64(took))
}

// Pace is what is known of one key's pace.
type Pace struct {
	Key  string    `json:"key"`
	Rate Rate      `json:"rate"` // with which it was last used
	Last time.Time `json:"last"` // the last turn that somebody has, maybe to come
}

// Paces lists the paces that were kept of late, for operators.
func (q *Queue) Paces(ctx context.Context) ([]Pace, error) {
	var all []Pace
	err := q.bucketValues(ctx, limitBucket, func(s *stored) {
		p, err := decodePace(s.data)
		key, keyErr := decodeToken(strings.TrimPrefix(s.subject, "$KV."+limitBucket+"."))
		name, is := strings.CutPrefix(key, paceKeys)
		if err == nil && keyErr == nil && is {
			all = append(all, Pace{Key: name, Rate: p.Rate, Last: time.Unix(0, p.Last-q.spender.clock.offset.Load())})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list paces: %w", err)
	}
	return all, nil
}

// paceToken keeps paces apart from the spendings of the same bucket.
func paceToken(key string) string { return encodeToken(paceKeys + key) }

func encodePace(p *pace) ([]byte, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode pace: %w", err)
	}
	return append([]byte(paceMagic), b...), nil
}

// decodePace reads a stored form. Nothing, which is also what the server leaves when a key's time is over, is a pace without any turn so far.
func decodePace(b []byte) (pace, error) {
	var p pace
	if len(b) == 0 {
		return p, nil
	}
	rest, err := afterMagic(b, paceMagic)
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(rest, &p); err != nil {
		return p, fmt.Errorf("pace: %w: %w", err, ErrCorrupt)
	}
	return p, nil
}
