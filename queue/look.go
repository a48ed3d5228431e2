package queue

import (
	"context"
	"fmt"
	"strings"
)

// newest looks where the jobs of one part are and returns the one that lives, besides all the others. A single look at
// each stream would miss a job that is on the move between them, so it looks at JOBS, LATER, JOBS, LATER.
func (q *Queue) newest(ctx context.Context, domain string, id MessageID, part int) (live *ref, all []ref, err error) {
	jobs, err := q.fresh(ctx, streamJobs)
	if err != nil {
		return nil, nil, err
	}
	later, err := q.fresh(ctx, streamLater)
	if err != nil {
		return nil, nil, err
	}
	seen := make(map[ref]bool)
	for range 2 {
		for _, s := range []struct {
			stream string
			known  uint64
		}{{streamJobs, jobs}, {streamLater, later}} {
			if err := q.look(ctx, s.stream, partFilter(domain, id, part), s.known, seen); err != nil {
				return nil, nil, err
			}
		}
	}
	for r := range seen {
		all = append(all, r)
		if live == nil || r.supersedes(*live) {
			live = &r
		}
	}
	return live, all, nil
}

// look adds the jobs of a stream that match filter. An answer that has not seen the position known counts for nothing.
func (q *Queue) look(ctx context.Context, stream, filter string, known uint64, seen map[ref]bool) error {
	var bad error
	last, err := q.subjects(ctx, stream, filter, func(s string) {
		r, err := parseRef(s)
		if err != nil {
			bad = err
			return
		}
		seen[r] = true
	})
	if err != nil {
		return err
	}
	if last < known {
		return fmt.Errorf("look at %s: %w", stream, errStale)
	}
	return bad
}

// doneParts returns the parts of a message that are finished, as of the position known or later.
func (q *Queue) doneParts(ctx context.Context, kind Kind, id MessageID, known uint64) (map[string]bool, error) {
	done := make(map[string]bool)
	prefix := string(kind) + "." + string(id) + ".done."
	last, err := q.subjects(ctx, streamMail, prefix+">", func(s string) {
		if mark := strings.TrimPrefix(s, prefix); !strings.HasPrefix(mark, "n") {
			done[mark] = true
		}
	})
	if err != nil {
		return nil, err
	}
	if last < known {
		return nil, fmt.Errorf("list finished parts of %s: %w", id, errStale)
	}
	return done, nil
}

// present asks the leader whether a subject of MAIL is there. known is a position that the answer must have seen.
func (q *Queue) present(ctx context.Context, subject string, known uint64) (bool, error) {
	info, err := q.streamInfo(ctx, streamMail, subject, 0)
	if err != nil {
		return false, err
	}
	if info.State.Subjects[subject] > 0 {
		return true, nil
	}
	if info.State.LastSeq < known {
		return false, fmt.Errorf("look for %s: %w", subject, errStale)
	}
	return false, nil
}

// presentNow is present for what somebody else may have removed: it publishes a marker first, so that a leader of
// yesterday cannot answer.
func (q *Queue) presentNow(ctx context.Context, subject string) (bool, error) {
	known, err := q.fresh(ctx, streamMail)
	if err != nil {
		return false, err
	}
	return q.present(ctx, subject, known)
}
