package delivery

import (
	"slices"
	"time"

	"postroad/delivery/bounce"
	"postroad/delivery/bounceclass"
	"postroad/delivery/smtpc"
	"postroad/queue"
	"postroad/queue/address"
)

// class says in one word why a recipient was not delivered to.
func (o Options) class(reply smtpc.Reply, state outcome) bounceclass.Class {
	if state == delivered {
		return ""
	}
	return o.Classes.Class(bounceclass.Reply{Code: reply.Code, Enhanced: reply.Enhanced, Text: reply.Text(), Local: reply.Local})
}

// doubleFacts record that recipients failed whose sender cannot be told: a notification of ours, or of somebody else's, came to nothing.
func doubleFacts(job queue.Job, doubles []bounce.Recipient) []queue.Event {
	var facts []queue.Event
	for _, r := range doubles {
		facts = append(facts, queue.Event{
			Type:      queue.DoubleBounce,
			Recipient: r.Path.String(),
			Client:    job.Client,
			Peer:      string(job.Maker),
			Enhanced:  r.Status,
			Text:      bounce.Clean(r.Diagnostic, bounce.MaxText),
		})
	}
	return facts
}

// forOperator are those of the failed that he gets a copy of. NOTIFY=NEVER is what we write on our own notifications; on somebody else's mail
// it is his wish that nobody hears.
func forOperator(job queue.Job, doubles []bounce.Recipient) []bounce.Recipient {
	if job.Kind == queue.KindDSN {
		return doubles
	}
	return slices.DeleteFunc(slices.Clone(doubles), func(d bounce.Recipient) bool {
		return slices.ContainsFunc(job.Recipients, func(r queue.Recipient) bool { return r.Path == d.Path && isNever(r) })
	})
}

// wantsDouble says whether the operator gets a copy of what has no sender to be told. What was on its way to him never makes another:
// there the road ends.
func (w *Worker) wantsDouble(job queue.Job) bool {
	to := w.o.DoubleBounce
	return !to.IsNull() && !slices.ContainsFunc(job.Recipients, func(r queue.Recipient) bool { return r.Path == to })
}

// whomToTell is the sender with what he is to be told; the operator where there is no sender.
func (w *Worker) whomToTell(job queue.Job, d decision) (address.Path, []bounce.Recipient) {
	if len(d.doubles) > 0 && w.wantsDouble(job) {
		return w.o.DoubleBounce, forOperator(job, d.doubles)
	}
	return job.ReversePath, d.reports
}

// bareNotification writes the one that a decision calls for without the message; ok: it calls for one.
func (w *Worker) bareNotification(job queue.Job, d decision, now time.Time) (n queue.Notification, ok bool, err error) {
	to, reports := w.whomToTell(job, d)
	if len(reports) == 0 {
		return n, false, nil
	}
	n, err = w.notification(job, to, reports, nil, 0, now)
	return n, err == nil, err
}

// countRefusals counts and logs what hosts did not take, once the queue has confirmed it.
func (w *Worker) countRefusals(job queue.Job, d decision) {
	for _, e := range d.Facts {
		switch {
		case e.Type == queue.DoubleBounce:
			w.metrics.doubleBounces.Inc()
			w.o.Logger.Warn("mail without a sender failed, he is not told", "msg_id", job.ID, "rcpt", e.Recipient, "enhanced", e.Enhanced, "text", e.Text)
		case e.BounceClass != "":
			w.metrics.refusals.WithLabelValues(e.BounceClass).Inc()
		}
	}
}
