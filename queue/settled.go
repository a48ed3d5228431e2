package queue

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	settledKept = 5 * time.Minute // at least; a server may be killed again and again
	maxSettled  = 50_000          // of each half of what is remembered
	lastMoment  = 5 * time.Second // before a server ended: what was settled then is settled again when it is back
	maxRecent   = 5_000
	// settleRest is how long nothing is taken after a connection was made anew: longer than all processes need to come back to a
	// server that was started again, and to settle again.
	settleRest = 2 * time.Second
)

// settledJobs is what this process has settled of late. A store of one copy writes down what a consumer has acknowledged ten times a
// second at most, and removals not at once: what was settled in the last 100 ms before its server was killed can come back, and be
// handed out as if for the first time, to any process. The zero value remembers nothing yet.
type settledJobs struct {
	mu       sync.Mutex
	now, old map[string]bool // true: the part is finished; false: this move of it has a successor
	since    time.Time       // of now
	recent   []settledJob    // of the last moment, oldest first
}

// settledJob is what it takes to settle a job again.
type settledJob struct {
	job      Job // what finish needs of it
	where    ref
	finished bool
	at       time.Time
}

// note remembers that a job was settled.
func (s *settledJobs) note(j *Job, where ref, finished bool, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at.Sub(s.since) > settledKept || len(s.now) >= maxSettled {
		s.now, s.old, s.since = make(map[string]bool), s.now, at
	}
	from, _ := slices.BinarySearchFunc(s.recent, at.Add(-lastMoment), func(r settledJob, t time.Time) int { return r.at.Compare(t) })
	if half := len(s.recent) / 2; from > half || len(s.recent) >= maxRecent { // seldom: it moves all that is kept
		s.recent = slices.Delete(s.recent, 0, max(from, half))
	}
	s.recent = append(s.recent, settledJob{
		job:   Job{ID: j.ID, Kind: j.Kind, Part: j.Part, Parts: j.Parts, Chunks: j.Chunks, Maker: j.Maker},
		where: where, finished: finished, at: at,
	})
	if finished {
		s.now[doneSubject(j.Kind, j.ID, j.Part)] = true
		return
	}
	s.now[where.subject()] = false
}

// look tells what is remembered of a job that was handed out.
func (s *settledJobs) look(j *Job, where ref) (finished, replaced bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range []map[string]bool{s.now, s.old} {
		if m[doneSubject(j.Kind, j.ID, j.Part)] {
			return true, false
		}
		if _, is := m[where.subject()]; is {
			replaced = true
		}
	}
	return false, replaced
}

// last returns what was settled in the last moment.
func (s *settledJobs) last() []settledJob {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.recent)
}

// watchReturns settles again what a server of one copy may have forgotten whenever it is there again: before anybody is handed it,
// see settleRest.
func (q *Queue) watchReturns() {
	for {
		select {
		case <-q.life.Done():
			return
		case <-q.back:
		}
		err := inParallel(q.life, atOnce, q.settled.last(), func(ctx context.Context, s settledJob) error {
			return q.persist(ctx, "settle again "+string(s.job.ID), func(ctx context.Context) error { return q.settleAgain(ctx, s) })
		})
		if err != nil && q.life.Err() == nil {
			q.o.Logger.Warn("what was settled right before the queue's server ended cannot be settled again", "error", err)
		}
	}
}

func (q *Queue) settleAgain(ctx context.Context, s settledJob) error {
	if !s.finished {
		return q.dropJob(ctx, s.where)
	}
	_, err := q.getLeader(ctx, streamMail, mailSubject(s.job.Kind, s.job.ID))
	if errors.Is(err, errAbsent) {
		return nil
	}
	if err != nil {
		return err
	}
	return q.finish(ctx, &s.job)
}

// came reports that a job in hand is one that this process has settled. What was finished is removed once more.
func (q *Queue) came(ctx context.Context, j *Job, where ref) (bool, error) {
	finished, replaced := q.settled.look(j, where)
	if !finished {
		return replaced, nil
	}
	q.o.Logger.Info("a finished job came back with its server and is removed again", "msg_id", string(j.ID), "part", j.Part)
	return true, q.finish(ctx, j)
}
