package delivery

import (
	"context"
	"crypto/sha256"
	"io"
	"slices"
	"strings"
	"time"

	"postroad/delivery/smtpc"
	"postroad/queue"
)

// restDelay is when recipients come back who were not tried, because the connection may have no further transaction.
const restDelay = 10 * time.Second

// transact sends the message over c, in as many transactions as the host wants: it may have told how many recipients it
// takes (RFC 9422), or it says 452 to those that are too many (RFC 5321 §4.5.3.1.10). The result is for all recipients of
// the job; the error is that of the last transaction.
func (a *attempt) transact(ctx context.Context, c *pooled, body io.Reader) (smtpc.Result, error) {
	rest := make([]int, len(a.job.Recipients))
	for i := range rest {
		rest[i] = i
	}
	all := smtpc.Result{Recipients: make([]smtpc.Reply, len(rest)), DSN: true, Deadline: true}
	for isFirst := true; ; isFirst = false {
		rcpts := make([]queue.Recipient, len(rest))
		for i, r := range rest {
			rcpts[i] = a.job.Recipients[r]
		}
		n := c.Limits().Fit(rcpts)
		a.isSent.Store(false)
		res, err := c.Send(ctx, a.message(rcpts[:n], body, a.tapOn(c)))
		switch {
		case len(res.Recipients) == n:
		case isFirst:
			return smtpc.Result{}, err
		default:
			a.leave(&all, rest)
			return all, err
		}
		all.DSN, all.Deadline, all.InDoubt = all.DSN && res.DSN, all.Deadline && res.Deadline, all.InDoubt || res.InDoubt
		var again []int
		isDelivered, isLater := false, false
		for i, r := range res.Recipients {
			all.Recipients[rest[i]] = r
			isDelivered = isDelivered || judge(r) == delivered
			isLater = isLater || judge(r) == deferred && r.Phase != smtpc.PhaseRcpt
			if r.TooMany() {
				again = append(again, rest[i])
			}
		}
		if !isDelivered { // then there is nothing beside which these were too many
			again = nil
		}
		rest = append(again, rest[n:]...)
		if len(rest) == 0 {
			return all, err
		}
		if err != nil || isLater || c.isSpent() || !a.nextTurn(ctx) {
			a.leave(&all, rest)
			return all, err
		}
		next, openErr := a.mail.Open(ctx)
		if openErr != nil {
			a.leave(&all, rest)
			return all, err
		}
		defer next.Close() // few, and each is at its end
		body = next
	}
}

// nextTurn waits for the turn of one more message on the path. There is none once what is leased of the path is over.
func (a *attempt) nextTurn(ctx context.Context) bool {
	if !a.limits.Rate.IsZero() {
		if _, err := a.w.shaping.pacer.Turn(ctx, a.limits.Path, a.limits.Rate); err != nil {
			return false
		}
	}
	return a.leased() == nil
}

// hostsKey is the same for the same hosts in any order.
func hostsKey(targets []target) [16]byte {
	names := make([]string, len(targets))
	for i, t := range targets {
		names[i] = t.host + ":" + portText(t.addr)
	}
	slices.Sort(names)
	sum := sha256.Sum256([]byte(strings.Join(slices.Compact(names), " ")))
	return [16]byte(sum[:])
}

// leave says of recipients who were not asked about that they come next.
func (a *attempt) leave(res *smtpc.Result, rest []int) {
	for _, r := range rest {
		if res.Recipients[r].Code == 0 {
			res.Recipients[r] = localReply(452, "4.5.3", "not asked on this connection: the host takes no more of the message for now")
		}
	}
	if len(rest) == len(undecided(*res)) {
		a.delay = restDelay
	}
}

// undecided are the recipients who are to be tried again.
func undecided(res smtpc.Result) []int {
	var list []int
	for i, r := range res.Recipients {
		if judge(r) == deferred {
			list = append(list, i)
		}
	}
	return list
}

func (a *attempt) message(rcpts []queue.Recipient, body io.Reader, tap smtpc.Tap) smtpc.Message {
	return smtpc.Message{
		From:       a.reversePath(rcpts),
		Recipients: rcpts,
		ENVID:      a.job.ENVID,
		RET:        a.job.RET,
		Flags:      a.job.Flags,
		Deadline:   a.job.Deadline,
		Size:       a.mail.Size(),
		Body:       body,
		Sent:       func() { a.isSent.Store(true) },
		Tap:        tap,
	}
}
