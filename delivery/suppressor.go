package delivery

import (
	"context"

	"postroad/delivery/bounce"
	"postroad/delivery/smtpc"
	"postroad/queue"
	"postroad/queue/address"
)

// HardBounce is a recipient that a host refused for good, or who complained.
type HardBounce struct {
	Recipient address.Path
	Class     string          // why, in the words of package bounceclass, or complaint
	MailClass string          // of the client that sent the mail; empty if it is not known
	Client    string          // that sent it; empty if it is not known
	ID        queue.MessageID // of the mail; empty if it is not known
	Text      string          // what the host said, or whose report it was
}

// ClassComplaint is the class of a recipient who called the mail spam (RFC 5965).
const ClassComplaint = "complaint"

// Suppressor keeps recipients who are not to be written to; package suppress has one.
type Suppressor interface {
	// Blocked says why recipients of a job are not to be written to: for each of them, nil for those who may be; nil when all may be. An error
	// means that it cannot be told now.
	Blocked(ctx context.Context, job *queue.Job) ([]*queue.Suppression, error)

	// HardBounced is told of each refusal once the queue has confirmed it, and of reports that arrive later. It must not block; it may lose
	// what it is told when too much comes at once.
	HardBounced(b HardBounce)
}

// screen takes recipients out of the attempt who are not to be written to. Nobody is left: the attempt has its replies.
func (a *attempt) screen(ctx context.Context) (isOver bool, err error) {
	if a.w.o.Suppressor == nil {
		return false, nil
	}
	blocked, err := a.w.o.Suppressor.Blocked(ctx, &a.job)
	if err != nil || blocked == nil {
		return false, err
	}
	a.blocked = make([]*smtpc.Reply, len(blocked))
	var rest []queue.Recipient
	for i, s := range blocked {
		if s == nil {
			rest = append(rest, a.job.Recipients[i])
			continue
		}
		reply := suppressedReply(s)
		a.blocked[i] = &reply
	}
	a.job.Recipients = rest
	return len(rest) == 0, nil
}

// suppressedReply is what a recipient gets who is not written to.
func suppressedReply(s *queue.Suppression) smtpc.Reply {
	enhanced, text := "5.7.1", "not sent: "+s.Address+" is on the suppression list"
	if s.Owner == "policy" && s.Reason != ClassComplaint {
		enhanced = "5.1.1" // as the host said
	}
	if s.Reason != "" {
		text += " (" + s.Reason + ")"
	}
	if s.Text != "" {
		text += ": " + s.Text
	}
	reply := localReply(550, enhanced, text)
	reply.Phase = phaseRoute
	return reply
}

// complete gives every recipient of the job its reply, those too who were screened out.
func (r *result) complete() {
	if r.blocked == nil {
		return
	}
	rest := r.replies
	r.replies = make([]smtpc.Reply, len(r.blocked))
	for i, reply := range r.blocked {
		if reply != nil {
			r.replies[i] = *reply
		} else {
			r.replies[i], rest = rest[0], rest[1:]
		}
	}
}

// isBlocked reports that the i-th recipient was screened out.
func (r *result) isBlocked(i int) bool { return r.blocked != nil && r.blocked[i] != nil }

// tellRefusals tells the suppressor whom hosts refused. What a host says to all of several at once says nothing of one of them.
func (w *Worker) tellRefusals(job queue.Job, r result, d decision) {
	if w.o.Suppressor == nil || job.ReversePath.IsNull() {
		return
	}
	for i, state := range d.outcomes {
		if reply := r.replies[i]; state == bounced && !reply.Local && (reply.Phase == smtpc.PhaseRcpt || len(d.outcomes) == 1) {
			w.o.Suppressor.HardBounced(HardBounce{Recipient: job.Recipients[i].Path, Class: d.Facts[i].BounceClass, MailClass: job.Class,
				Client: job.Client, ID: job.ID, Text: bounce.Clean(replyText(reply), bounce.MaxText)})
		}
	}
}
