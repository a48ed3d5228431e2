package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"postroad/queue/failpoint"
)

// Pull makes waiting jobs of the domains ready before their time, those of the oldest mail first, each of them once: what they waited for has
// happened. Mail that is accepted after the call began is left alone, so is what was tried after since, and what waits for its signature or by its
// sender's wish. pace is called
// before each; its error ends it. It keeps at most page jobs in mind at a time. It returns how many it moved; the error is that of ctx or of the
// queue.
func (q *Queue) Pull(ctx context.Context, domains []string, since time.Time, page int, pace func(context.Context) error) (int, error) {
	began, moved := time.Now(), 0
	var last ref
	for {
		floors, err := q.floors(ctx, streamLater)
		if err != nil {
			return moved, fmt.Errorf("pull forward: %w", err)
		}
		found, err := q.waitingLongest(ctx, domains, page, func(r ref) bool {
			return (last.id == "" || byAge(r, last) > 0) && !r.id.Time().After(began)
		})
		if err != nil {
			return moved, fmt.Errorf("pull forward: %w", err)
		}
		for _, r := range found {
			if pace(ctx) != nil {
				return moved, ctx.Err()
			}
			q.putOff(r.domain, false) // through a slow lane: a backlog is to be in nobody's way, also when its site takes less than was thought
			isMoved, err := q.pullOne(ctx, r, since, floors)
			if err != nil {
				return moved, fmt.Errorf("pull forward: %w", err)
			}
			if isMoved {
				moved++
			}
			last = r
		}
		if len(found) < page {
			return moved, ctx.Err()
		}
	}
}

// byAge orders jobs by when their mail was accepted, and those of one moment always in the same way. A job that moves keeps its place.
func byAge(a, b ref) int {
	return cmp.Or(a.id.Time().Compare(b.id.Time()), cmp.Compare(a.id, b.id), cmp.Compare(a.domain, b.domain), cmp.Compare(a.part, b.part))
}

// waitingLongest lists the waiting jobs of domains that are wanted: the first most by age.
func (q *Queue) waitingLongest(ctx context.Context, domains []string, most int, wanted func(ref) bool) ([]ref, error) {
	var found []ref
	for _, domain := range domains {
		_, err := q.subjects(ctx, streamLater, "later.*."+encodeToken(domain)+".*.*.*", func(s string) {
			if r, err := parseRef(s); err == nil && wanted(r) {
				found = append(found, r)
			}
			if len(found) >= 2*most {
				slices.SortFunc(found, byAge)
				found = found[:most]
			}
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(found, byAge)
	return found[:min(len(found), most)], nil
}

func (q *Queue) pullOne(ctx context.Context, r ref, since time.Time, floors map[string]uint64) (bool, error) {
	e, err := q.entry(ctx, streamLater, r.subject(), floors)
	if errors.Is(err, errAbsent) {
		return false, nil // it moved by itself
	}
	if err != nil {
		return false, err
	}
	if e.Job.Unsigned || e.Job.HoldUntil.After(time.Now()) || e.Job.LastTry.After(since) || e.Job.Kind == "" {
		return false, nil
	}
	if err := q.putMove(ctx, e.ref, q.nextSpot(&e.Job), e.Job); err != nil {
		return false, err
	}
	failpoint.Hit("pull.published")
	return true, q.dropJob(ctx, e.ref)
}

// probeLooks is how many waiting jobs of a domain PullOne looks at.
const probeLooks = 64

// PullOne makes one waiting job of the domains ready before its time, to find out whether what they wait for has happened, and reports whether
// there was one. It takes the first in line that Pull would take, and lists nothing: it costs the same when a million wait.
func (q *Queue) PullOne(ctx context.Context, domains []string) (bool, error) {
	floors, err := q.floors(ctx, streamLater)
	if err != nil {
		return false, fmt.Errorf("pull one forward: %w", err)
	}
	now := time.Now()
	for _, domain := range domains {
		seq := uint64(0)
		for range probeLooks {
			s, err := q.nextLeader(ctx, streamLater, "later.*."+encodeToken(domain)+".*.*.*", seq+1)
			if errors.Is(err, errAbsent) {
				break
			}
			if err != nil {
				return false, fmt.Errorf("pull one forward: %w", err)
			}
			seq = s.seq
			r, err := parseRef(s.subject)
			if err != nil {
				continue
			}
			if isMoved, err := q.pullOne(ctx, r, now, floors); err != nil || isMoved {
				return isMoved, err
			}
		}
	}
	return false, nil
}
