package delivery

import (
	"context"

	"postroad/queue"
)

// Senders watches how much of each sender's mail is refused; package bouncelimit does.
type Senders interface {
	// Ended is told how many recipients of a job came to an end, and how many of them hosts refused for good, once the queue has confirmed it.
	// It must not block.
	Ended(job *queue.Job, ended, refused int)

	// HoldFor says why a job is not to be tried but held until an operator releases it; empty: it is to be tried.
	HoldFor(job *queue.Job) string
}

// holdBounces is why the mail is held of a sender of whose mail too much is refused.
const holdBounces = "bounces"

// hold puts a job aside whose sender is above the bounce limit, and reports that it did. Where the queue does not take it, the job is handed out again.
func (w *Worker) hold(ctx context.Context, job queue.Job, m mail) bool {
	if w.o.Senders == nil || job.ReversePath.IsNull() || job.Returned != "" {
		return false
	}
	why := w.o.Senders.HoldFor(&job)
	if why == "" {
		return false
	}
	err := m.Settle(ctx, queue.Settlement{Hold: holdBounces, Remaining: job.Recipients, Reason: why,
		Facts: []queue.Event{{Type: queue.Admin, Client: job.Client, Text: "held: " + why}}})
	if err != nil {
		w.o.Logger.Warn("a job was not held", "msg_id", job.ID, "part", job.Part, "error", err)
	}
	return true
}

// tellEnds tells the watch what came of a job.
func (w *Worker) tellEnds(job queue.Job, r result, d decision) {
	if w.o.Senders == nil {
		return
	}
	ended, refused := 0, 0
	for i, state := range d.outcomes {
		if r.isBlocked(i) || state == deferred {
			continue
		}
		ended++
		if state == bounced && (!r.replies[i].Local || r.cause == causeLookup) {
			refused++
		}
	}
	w.o.Senders.Ended(&job, ended, refused)
}

// returned is the reply of a recipient whose mail an operator sends back.
func (a *attempt) returned() bool {
	if a.job.Returned == "" {
		return false
	}
	reply := localReply(550, "5.7.1", "returned by the relay: "+a.job.Returned)
	reply.Phase = phaseRoute
	a.all(a.job, reply)
	return true
}
