package queue

import "time"

// SetRest replaces settleRest, before Deliver and Sign begin.
func (q *Queue) SetRest(d time.Duration) { q.rest = d }

// Returned says that the server is there again.
func (q *Queue) Returned() { signal(q.back) }
