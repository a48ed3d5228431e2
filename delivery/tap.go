package delivery

import (
	"strconv"
	"time"

	"postroad/delivery/smtpc"
	"postroad/queue"
)

// Taps knows who listens to dialogues; *queue.Taps does.
type Taps interface {
	// Hear gives what is to be called with each line of a dialogue about a message, or nil when nobody listens.
	Hear(about queue.TapLine) func(at time.Time, from, text string)
}

var _ Taps = (*queue.Taps)(nil)

// tap is who hears a dialogue of this attempt, nil mostly.
func (a *attempt) tap() smtpc.Tap {
	if a.w.o.Taps == nil {
		return nil
	}
	tell := a.w.o.Taps.Hear(queue.TapLine{ID: a.job.ID, Part: a.job.Part, Domain: a.job.Domain, Site: a.dest.site})
	if tell == nil {
		return nil
	}
	return func(l smtpc.Line) { tell(l.At, string(l.From), l.Text) }
}

// tapOn is who hears a transaction on c: told first where it goes, when somebody else has opened the connection.
func (a *attempt) tapOn(c *pooled) smtpc.Tap {
	tap := a.tap()
	if n := c.Transactions(); tap != nil && n > 0 {
		tap(smtpc.Line{At: time.Now(), From: smtpc.Note, Text: "on a connection to " + peerName(c.Host(), c.RemoteAddr()) + ", message " + strconv.Itoa(n+1)})
	}
	return tap
}
