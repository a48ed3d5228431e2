package queue

import "time"

// SetRest replaces settleRest, before Deliver and Sign begin.
func (q *Queue) SetRest(d time.Duration) { q.rest = d }

// Patient makes it wait a minute for each answer.
func Patient(o *Options) { o.leeway = time.Minute }

// Returned says that the server is there again.
func (q *Queue) Returned() { signal(q.back) }
