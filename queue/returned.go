package queue

import (
	"context"
	"errors"
	"time"
)

// Return sends matching mail back to its senders: a worker finishes each job without a try, as if it had been refused with these words. A
// job that a worker has in hand at this moment may escape it, and what the signer has not finished with does. What a restart brought back, which may have
// been delivered, is sent back by its id only.
func (q *Queue) Return(ctx context.Context, sel Selection, why string) (int, error) {
	if why == "" {
		return 0, errors.New("return: give a reason")
	}
	return q.each(ctx, sel, "return", func(e *Entry) bool { return e.Job.Returned == "" && (e.Why != HoldReturned || sel.ID != "") }, func(e *Entry) spot {
		e.Job.Returned = cutTo(why, maxReasonText)
		e.Job.Remaining, e.Job.Due = nil, time.Time{}
		return q.readySpot(e.Job.Domain) // also what is unsigned: it is not relayed
	})
}

// isHeldFor reports that a job has been held for as long as the selection asks.
func (s *Selection) isHeldFor(e *Entry) bool {
	return s.HeldFor == 0 || e.Place == PlaceHeld && time.Since(e.Since) >= s.HeldFor
}
