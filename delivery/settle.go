package delivery

import (
	"net/netip"
	"strings"
	"time"

	"postroad/delivery/bounce"
	"postroad/delivery/bounceclass"
	"postroad/delivery/smtpc"
	"postroad/queue"
)

// result is what an attempt came to, or the decision not to make one.
type result struct {
	replies []smtpc.Reply  // for each recipient of the job, in its order
	blocked []*smtpc.Reply // of recipients who are not to be written to, as replies has them once it is complete; nil: of nobody
	tried   bool           // a host was asked, or the DNS
	cause   cause          // of the replies that are not the peer's
	delay   time.Duration  // not tried because the site is busy: when to come back
	dsn     bool           // the peer took over the duty to report success
	// keepsDeadline: the peer was told by when the mail is to be delivered.
	keepsDeadline bool
	inDoubt       bool // lost after the dot
	site          string
	route         string
	egress        string         // name of the source; empty: the system's choice
	host          string         // that replied, or was dialled last
	addr          netip.AddrPort // its address
	tls           string
	startedAt     time.Time
	took          time.Duration
}

// cause says why recipients were deferred, for metrics.
type cause string

const (
	causeReply      cause = "reply"
	causeConnection cause = "connection"
	causeLookup     cause = "lookup"
	causeDead       cause = "dead_site"
	causeBusy       cause = "busy_site"
	causeRoute      cause = "route"
	causeSource     cause = "source"
	causeLogin      cause = "login"
)

// all gives every recipient the same reply.
func (r *result) all(job queue.Job, reply smtpc.Reply) {
	r.replies = make([]smtpc.Reply, len(job.Recipients))
	for i := range r.replies {
		r.replies[i] = reply
	}
}

// decision is a settlement in the making: what is to be recorded, and what the sender is to be told.
type decision struct {
	queue.Settlement
	outcomes []outcome          // for each recipient
	reports  []bounce.Recipient // what the sender is to be told
	doubles  []bounce.Recipient // failed, and there is no sender to tell
	isNotice bool               // of the reports some are of a delay
}

// decide turns a result into what is to be done. Each recipient is delivered, deferred, bounced, expired or discarded; of
// one that is discarded nobody is told.
func (o Options) decide(job queue.Job, r result, now time.Time) decision {
	d := decision{outcomes: make([]outcome, len(job.Recipients))}
	isNotice := o.isNoticeDue(job, now)
	tries := job.Tries
	if d.Tried = r.tried; r.tried {
		tries++
	}
	waits := o.waits(job, r, tries, now)
	for i, rcpt := range job.Recipients {
		reply := r.replies[i]
		state := judge(reply)
		if state == deferred && waits.isOver(reply) {
			state = expired
		}
		d.outcomes[i] = state
		fact := r.fact(job, rcpt, reply, state, tries, o.class(reply, state))
		if r.isBlocked(i) {
			fact.Type, fact.BounceClass = queue.Suppressed, "" // no host said so
		}
		d.Facts = append(d.Facts, fact)
		var action bounce.Action
		switch state {
		case delivered:
			if wants(rcpt, "SUCCESS", false) && !r.dsn || wantsRelayed(job.Deadline, rcpt, r.keepsDeadline) {
				action = bounce.Relayed // RFC 3461 §5.2.2
			}
		case deferred:
			d.Remaining = append(d.Remaining, rcpt)
			d.Reason = replyText(reply)
			waits.add(reply)
			if isNotice && (wants(rcpt, "DELAY", true) || job.Deadline.Warns() && !isNever(rcpt)) {
				action, d.isNotice = bounce.Delayed, true
			}
		case bounced, expired:
			if job.ReversePath.IsNull() {
				d.doubles = append(d.doubles, r.report(job, rcpt, reply, state, bounce.Failed))
			} else if wants(rcpt, "FAILURE", true) {
				action = bounce.Failed
			}
		}
		if action != "" && !job.ReversePath.IsNull() {
			report := r.report(job, rcpt, reply, state, action)
			if action == bounce.Delayed {
				report.WillRetryUntil = job.Began().Add(waits.plan(reply).Lifetime())
			}
			d.reports = append(d.reports, report)
		}
	}
	if len(d.Remaining) > 0 {
		d.Delay = waits.delay(job, r, now)
		d.Delayed = isNotice
	}
	d.Facts = append(d.Facts, doubleFacts(job, d.doubles)...)
	d.Source, d.Elsewhere = r.egress, r.cause == causeSource
	isKnown := r.cause == causeBusy || r.cause == causeSource || r.cause == causeLogin && !r.tried && d.Reason == job.Reason
	if isKnown && len(d.Remaining) == len(job.Recipients) {
		d.Facts = nil // nothing happened, and it may happen often
	}
	return d
}

// isNoticeDue says whether the sender is now to be told, once, that the mail waits: after DelayNotice, or past the time that he set
// himself (RFC 2852 §4.1).
func (o Options) isNoticeDue(job queue.Job, now time.Time) bool {
	switch {
	case job.Delayed:
		return false
	case job.Deadline.Warns():
		return !now.Before(job.Deadline.At)
	}
	return o.DelayNotice > 0 && now.Sub(job.Began()) >= o.DelayNotice
}

// wantsRelayed says whether the sender of a message with a deadline is to be told that a host has it now: when that host does not
// know of the deadline, or when he asked to hear of each (RFC 2852 §4.2).
func wantsRelayed(d queue.Deadline, rcpt queue.Recipient, isKept bool) bool {
	return !d.IsZero() && !isNever(rcpt) && (d.Trace || !isKept)
}

func isNever(rcpt queue.Recipient) bool { return len(rcpt.Notify) > 0 && rcpt.Notify[0] == "NEVER" }

// wants says whether the sender asked for a notification (RFC 3461 §4.1); byDefault is for recipients without NOTIFY.
func wants(rcpt queue.Recipient, what string, byDefault bool) bool {
	if len(rcpt.Notify) == 0 {
		return byDefault
	}
	for _, n := range rcpt.Notify {
		if n == what {
			return true
		}
	}
	return false // NEVER stands alone
}

func (r result) fact(job queue.Job, rcpt queue.Recipient, reply smtpc.Reply, state outcome, tries int, class bounceclass.Class) queue.Event {
	types := map[outcome]queue.EventType{
		delivered: queue.Delivered, deferred: queue.TransientFailure, bounced: queue.Bounce, expired: queue.Expiration, discarded: queue.Discarded,
	}
	e := queue.Event{
		Type:      types[state],
		Sender:    job.ReversePath.String(),
		Recipient: rcpt.Path.String(),
		Client:    job.Client,
		Site:      r.site,
		Egress:    r.egress,
		TLS:       r.tls,
		Attempt:   tries,
		Code:      reply.Code,
		Enhanced:  enhanced(state, reply),
		Text:      bounce.Clean(reply.Text(), bounce.MaxText),
		Size:      job.Size + int64(len(job.Signatures)),
		Duration:  r.took,

		BounceClass: string(class),
		InDoubt:     reply.InDoubt,
	}
	if state == delivered { // from which the sender is known when the reception was not noted
		e.Notify, e.RequireTLS = strings.Join(rcpt.Notify, ","), job.Flags.RequireTLS
	}
	if r.host != "" {
		e.Peer = r.host
		if r.addr.IsValid() {
			e.Peer = peerName(r.host, r.addr)
		}
	}
	return e
}

func (r result) report(job queue.Job, rcpt queue.Recipient, reply smtpc.Reply, state outcome, action bounce.Action) bounce.Recipient {
	b := bounce.Recipient{
		Path:        rcpt.Path,
		ORCPT:       rcpt.ORCPT,
		Action:      action,
		Status:      enhanced(state, reply),
		Diagnostic:  replyText(reply),
		LastAttempt: job.LastTry,
	}
	if r.tried {
		b.LastAttempt = r.startedAt
	}
	if !reply.Local {
		b.RemoteMTA = r.host
	}
	return b
}
