package delivery

import (
	"postroad/delivery/route"
	"postroad/delivery/smtpc"
	"postroad/queue"
)

// queryOf is what the route of a job is chosen by.
func queryOf(job queue.Job) route.Query {
	return route.Query{Domain: job.Domain, Sender: job.ReversePath, Client: job.Client, Class: job.Class}
}

// answer gives the recipients what the route itself says of them, when it says anything: nobody is asked then.
func (a *attempt) answer() bool {
	hop := a.route.NextHop
	reply := smtpc.Reply{Phase: phaseRoute, Local: true}
	switch {
	case hop.Discard:
		reply.Phase, reply.Code, reply.Enhanced, reply.Lines = phaseDiscard, 250, "2.0.0", []string{"discarded by the route " + a.route.String()}
	case hop.Reply != nil:
		reply.Code, reply.Enhanced, reply.Lines = hop.Reply.Code, hop.Reply.Enhanced, []string{hop.Reply.Text}
	default:
		return false
	}
	a.all(a.job, reply)
	a.cause = causeRoute
	return true
}
