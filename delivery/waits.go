package delivery

import (
	"hash/fnv"
	"strconv"
	"time"

	"postroad/delivery/retry"
	"postroad/delivery/smtpc"
	"postroad/queue"
)

// minDelay is the shortest delay class of the queue.
const minDelay = retry.MinWait

// waits is how long the recipients of one job wait, each by the plan for its failure; see package retry.
type waits struct {
	policy *retry.Policy
	query  retry.Query
	tried  retry.Tried
	isBusy bool          // not tried, and that says nothing of the recipient
	soon   time.Duration // of the recipients seen so far
}

// waits begins the reckoning for a result; tries counts it.
func (o *Options) waits(job queue.Job, r result, tries int, now time.Time) *waits {
	class := job.Class
	if job.Kind == queue.KindDSN { // a class's rule is for its mail, not for what its senders are told
		class = ""
	}
	return &waits{
		policy: &o.Retry,
		isBusy: r.cause == causeBusy,
		query: retry.Query{Domain: job.Domain, Site: r.site, Route: r.route, Class: class, Failure: retry.Other,
			IsNull: job.ReversePath.IsNull()},
		tried: retry.Tried{Tries: tries, Age: now.Sub(job.Began()), NotNow: !r.tried,
			Greylists: retry.WasGreylisted(job.Reason), Seed: seed(&job, tries)},
	}
}

func (w *waits) plan(reply smtpc.Reply) retry.Plan {
	w.query.Failure = retry.FailureOf(reply)
	return w.policy.Plan(w.query)
}

// isOver reports that a recipient with this reply is given up. The end of a schedule is a failure after its last cutoff, so that a turn that did
// not come is none.
func (w *waits) isOver(reply smtpc.Reply) bool {
	plan := w.plan(reply)
	return plan.IsOver(w.tried.Age) && (!w.isBusy || w.tried.Age >= plan.MaxAge)
}

// add takes note of a recipient that waits.
func (w *waits) add(reply smtpc.Reply) {
	w.tried.Text = reply.Text()
	if wait := w.plan(reply).Wait(w.tried); w.soon == 0 || wait < w.soon {
		w.soon = wait
	}
}

// delay is how long the remaining recipients of a job wait. The last try comes when their lifetime ends; so does the one at which the sender
// hears that his time is over.
func (w *waits) delay(job queue.Job, r result, now time.Time) time.Duration {
	delay := w.soon
	if r.delay > 0 { // its turn at a busy site
		delay = min(r.delay, w.plan(r.replies[0]).MaxAge-w.tried.Age)
	}
	if d := job.Deadline; d.Return || d.At.After(now) {
		delay = min(delay, d.At.Sub(now))
	}
	return max(minDelay, delay)
}

// seed is the same for the same try of the same job.
func seed(job *queue.Job, tries int) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(string(job.ID) + " " + strconv.Itoa(job.Part) + " " + strconv.Itoa(tries)))
	return h.Sum64()
}
