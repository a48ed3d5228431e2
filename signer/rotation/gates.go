package rotation

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"
)

// gates looks at the gates of a step, cheap ones first. The wait is for the
// first one that is closed; its Do is empty when all are open. The report is of
// the step's record, when a gate asked for it.
func (r *Rotator) gates(ctx context.Context, s *Step) (Report, Wait) {
	now := time.Now()
	closed := func(g Gate) Wait { return Wait{Step: *s, Reason: "until " + g.Text, Until: g.Until} }
	var report Report
	for _, g := range s.Gates {
		if g.Opens == WhenFirst || g.Opens == Never || g.Opens == WhenTime && now.Before(g.Until) {
			return report, closed(g)
		}
	}
	for _, g := range s.Gates {
		switch g.Opens {
		case WhenSeen:
			report = Check(ctx, r.o.Publication, s.entry, r.o.Policy.Resolvers, r.o.AcceptDead...)
			if !report.OK() {
				return report, r.unseen(ctx, s, &report)
			}
		case WhenCached:
			if wait := r.cached(s, &report, now); wait.Do != "" {
				return report, wait
			}
		case WhenSent:
			n, err := r.o.Sent.Queued(ctx, s.Domain, s.Selector)
			if err != nil {
				return report, failed(*s, fmt.Errorf("count queued mail with its signature: %w", err))
			}
			if n > 0 {
				w := closed(g)
				w.Reason = fmt.Sprintf("%s: there are %d", w.Reason, n)
				return report, w
			}
		}
	}
	return report, Wait{}
}

// cached waits until a resolver that asked before the record was everywhere has
// forgotten the answer.
func (r *Rotator) cached(s *Step, report *Report, now time.Time) Wait {
	since := s.entry.Since()
	if since.IsZero() {
		return Wait{Step: *s, Reason: "nobody wrote down since when its record is published: check it, and activate it by hand"}
	}
	if until := since.Add(report.cached()); now.Before(until) {
		return Wait{Step: *s, Until: until, Reason: fmt.Sprintf("until %s: resolvers may remember for %v that there was no record",
			until.UTC().Format(time.DateTime+"Z"), report.cached())}
	}
	return Wait{}
}

// unseen is the wait for a record that is not everywhere. A key that was just
// made is published, and again when that does not help for long.
func (r *Rotator) unseen(ctx context.Context, s *Step, report *Report) Wait {
	record := recordFor(s)
	w := Wait{Step: *s, Report: report, Reason: firstLines(report)}
	if s.Do != Publish {
		return w
	}
	if r.o.Publisher == nil {
		w.ByHand = &record
		return w
	}
	if !r.mayPublish(record.Name) {
		return w
	}
	if err := r.publish(ctx, record); err != nil {
		r.forget(record.Name)
		return failed(*s, err)
	}
	return w
}

// firstLines sums a report up.
func firstLines(report *Report) string {
	const most = 3
	var texts []string
	for i, p := range report.Problems {
		if i == most {
			texts = append(texts, fmt.Sprintf("and %d more", len(report.Problems)-most))
			break
		}
		texts = append(texts, p.String())
	}
	return "until its record is everywhere: " + strings.Join(texts, "; ")
}

// mayPublish remembers that a record is published now, unless that was done a
// short time ago.
func (r *Rotator) mayPublish(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(r.published, func(_ string, at time.Time) bool { return now.Sub(at) >= r.o.PublishAgain })
	if _, is := r.published[name]; is {
		return false
	}
	r.published[name] = now
	return true
}

func (r *Rotator) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.published, name)
}
