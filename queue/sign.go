package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"postroad/queue/failpoint"
)

// giveBackDelay is how long work waits that its handler did not finish.
const giveBackDelay = 5 * time.Second

// Signing is one mail in the signer's hand, or one job that goes through the signer again. The queue keeps it in progress
// while the handler runs.
type Signing struct {
	ID        MessageID
	Kind      Kind
	Envelope  Envelope
	HoldUntil time.Time // not to be signed before; see Hold

	q       *Queue
	h       *hand
	head    mailHeader
	content []byte
	seq     uint64 // position of the mail
	missing []Job  // of a mail that was handed out before: the parts without a job
	again   *Job   // a job that was signed before, or waited unsigned
	where   ref    // of that job
	settled bool
}

// Sign hands out mails that wait for their signatures, and jobs that go through the signer again, until ctx ends: at most
// window of each at a time, each on its own goroutine. A handler that returns without Signed or Later leaves the mail
// to be handed out again after a short delay. Sign returns when all handlers have returned.
func (q *Queue) Sign(ctx context.Context, window int, handle func(context.Context, *Signing)) error {
	var wg sync.WaitGroup
	var errs [2]error
	wg.Go(func() {
		errs[0] = q.pull(ctx, streamMail, signerConsumer, window, func(ctx context.Context, h *hand, meta *jetstream.MsgMetadata) {
			q.signMail(ctx, h, meta, handle)
		})
	})
	wg.Go(func() {
		errs[1] = q.pull(ctx, streamJobs, signConsumer, window, func(ctx context.Context, h *hand, meta *jetstream.MsgMetadata) {
			q.signAgain(ctx, h, meta, handle)
		})
	})
	wg.Wait()
	return errors.Join(errs[:]...)
}

func (q *Queue) signMail(ctx context.Context, h *hand, meta *jetstream.MsgMetadata, handle func(context.Context, *Signing)) {
	failpoint.Hit("sign.taken")
	m := h.current()
	kind, id, err := parseMailSubject(m.Subject())
	if err != nil {
		q.o.Logger.Error("unknown subject in the mail stream", "error", err)
		h.ackPlain()
		return
	}
	head, content, err := decodeMail(m.Data())
	if err != nil {
		q.o.Logger.Error("mail cannot be read, it stays where it is", "msg_id", string(id), "error", err)
		h.nak(time.Minute)
		return
	}
	s := &Signing{ID: id, Kind: kind, Envelope: head.Envelope, HoldUntil: head.Envelope.HoldUntil, q: q, h: h, head: head, content: content,
		seq: meta.Sequence.Stream}
	if meta.NumDelivered > 1 {
		err := q.findMissing(ctx, s)
		if err != nil {
			q.o.Logger.Warn("redelivered mail cannot be looked up", "msg_id", string(id), "error", err)
			h.nak(giveBackDelay)
			return
		}
		if len(s.missing) == 0 {
			h.ackPlain()
			return
		}
	}
	handle(ctx, s)
	if !s.settled {
		h.nak(giveBackDelay)
	}
}

// findMissing finds the parts of a redelivered mail that still lack a job. Only these may be published: a part that had its
// job and is finished would go out again, for after a restart the duplicate window has forgotten it.
func (q *Queue) findMissing(ctx context.Context, s *Signing) error {
	known, err := q.fresh(ctx, streamMail)
	if err != nil {
		return err
	}
	there, err := q.present(ctx, mailSubject(s.Kind, s.ID), known)
	if err != nil || !there {
		return err
	}
	for _, j := range s.jobs() {
		has, err := q.hasSuccessor(ctx, s, j, known)
		if err != nil {
			return err
		}
		if !has {
			s.missing = append(s.missing, j)
		}
	}
	return nil
}

// hasSuccessor reports whether the part is finished or has a job somewhere.
func (q *Queue) hasSuccessor(ctx context.Context, s *Signing, j Job, known uint64) (bool, error) {
	live, _, err := q.newest(ctx, j.Domain, j.ID, j.Part)
	if err != nil || live != nil {
		return live != nil, err
	}
	if j.Parts == 1 {
		there, err := q.present(ctx, mailSubject(s.Kind, s.ID), known)
		return !there, err
	}
	done, err := q.doneParts(ctx, s.Kind, s.ID, known)
	return done[fmt.Sprint(j.Part)], err
}

func (q *Queue) signAgain(ctx context.Context, h *hand, meta *jetstream.MsgMetadata, handle func(context.Context, *Signing)) {
	j, where, ok := q.takeJob(ctx, h, meta)
	if !ok {
		return
	}
	head, content, err := q.readMail(ctx, &j, meta.NumDelivered > 1)
	if errors.Is(err, ErrGone) {
		_ = h.ack(ctx)
		return
	}
	if err != nil {
		q.o.Logger.Warn("mail of a job cannot be read", "msg_id", string(j.ID), "error", err)
		h.nak(giveBackDelay)
		return
	}
	s := &Signing{ID: j.ID, Kind: j.Kind, Envelope: head.Envelope, HoldUntil: j.HoldUntil, q: q, h: h, head: head, content: content,
		seq: j.MailSeq, again: &j, where: where}
	handle(ctx, s)
	if !s.settled {
		h.nak(giveBackDelay)
	}
}

// Open streams the content, header and body with CRLF, from the start. It may be called again.
func (s *Signing) Open(ctx context.Context) (io.ReadCloser, error) {
	return s.q.openContent(ctx, s.Kind, s.ID, s.head, s.content), nil
}

// Signed publishes one ready job for each part with the signature fields, which may be empty by policy, and lets go of the mail.
func (s *Signing) Signed(ctx context.Context, signatures string) error {
	return s.publish(ctx, func(j *Job) spot {
		j.Signatures, j.Unsigned, j.Reason = signatures, false, ""
		return s.q.readySpot(j.Domain)
	})
}

// Later puts the mail aside for about delay, rounded to delay classes; it then comes to the signer again. reason is for people.
func (s *Signing) Later(ctx context.Context, delay time.Duration, reason string) error {
	steps := decompose(delay)
	return s.publish(ctx, func(j *Job) spot {
		j.Unsigned, j.Reason = true, reason
		return j.wait(steps, time.Now())
	})
}

// Hold puts the mail aside until HoldUntil, as its sender asked. It may come to the signer again before: then it is to be held again.
func (s *Signing) Hold(ctx context.Context) error {
	left := time.Until(s.HoldUntil)
	return s.publish(ctx, func(j *Job) spot {
		j.Unsigned, j.Reason = true, "held until "+s.HoldUntil.UTC().Format(time.RFC3339)+", as its sender asked"
		to := j.wait(holdSteps(left), time.Now())
		j.Due = s.HoldUntil
		return to
	})
}

// GiveUp sends the mail on unsigned and marked so, for delivery to end it with a notification: it is never relayed. It is for
// mail whose time is over while no signature could be had.
func (s *Signing) GiveUp(ctx context.Context, reason string) error {
	return s.publish(ctx, func(j *Job) spot {
		j.Unsigned, j.Reason = true, reason
		return s.q.readySpot(j.Domain)
	})
}

// publish makes the successors of what is in hand, all of them before it lets go.
func (s *Signing) publish(ctx context.Context, next func(*Job) spot) error {
	var jobs []Job
	switch {
	case s.again != nil:
		jobs = []Job{*s.again}
	case s.missing != nil:
		jobs = s.missing
	default:
		jobs = s.jobs()
	}
	if failpoint.Planted("early-ack") {
		s.h.ackPlain()
		time.Sleep(20 * time.Millisecond)
	}
	for i := range jobs {
		j := &jobs[i]
		to := next(j)
		if err := s.q.putJob(ctx, ref{to, j.Domain, j.ID, j.Part, j.Move + 1}, *j); err != nil {
			return err
		}
		if i == 0 {
			failpoint.Hit("sign.first")
		}
	}
	failpoint.Hit("sign.published")
	s.settled = true
	if s.again == nil {
		s.h.ackPlain()
	} else if err := s.h.ack(ctx); err != nil { // what follows it is stored
		s.q.o.Logger.Warn("signed job was not acknowledged, it will be looked up again", "msg_id", string(s.ID), "error", err)
	}
	return nil
}

// jobs are the first jobs of all parts, before their first move.
func (s *Signing) jobs() []Job {
	e := s.Envelope
	parts := partition(e.Recipients)
	out := make([]Job, len(parts))
	for i, rcpts := range parts {
		out[i] = Job{ID: s.ID, Kind: s.Kind, Part: i, Parts: len(parts), Domain: rcpts[0].Path.Domain,
			ReversePath: e.ReversePath, Recipients: rcpts, ENVID: e.ENVID, RET: e.RET, Flags: e.Flags,
			Client: e.Client, Class: e.Class, HeaderFrom: e.HeaderFrom, Accepted: e.Accepted, Maker: e.Maker, Incoming: e.Incoming,
			HoldUntil: e.HoldUntil, Deadline: e.Deadline,
			Size: s.head.Size, Chunks: s.head.Chunks, MailSeq: s.seq}
		if owner := rcpts[0].Owner; !owner.IsNull() && !e.ReversePath.IsNull() {
			// Mail of a list is a new one: what the sender asked for ends with its delivery to the list (RFC 3461 §5.2.7.1).
			out[i].ReversePath, out[i].ENVID, out[i].RET = owner, "", ""
		}
	}
	return out
}

func parseMailSubject(subject string) (Kind, MessageID, error) {
	kind, rest, _ := strings.Cut(subject, ".")
	id, tail, _ := strings.Cut(rest, ".")
	if (kind != string(KindMail) && kind != string(KindDSN)) || tail != "m" {
		return "", "", fmt.Errorf("subject %q is not that of a mail", subject)
	}
	if _, err := MessageID(id).parse(); err != nil {
		return "", "", fmt.Errorf("subject %q: %w", subject, err)
	}
	return Kind(kind), MessageID(id), nil
}
