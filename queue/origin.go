package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"postroad/queue/address"
)

// Origin is who sent a message, and to whom: as it was accepted.
type Origin struct {
	Sender     address.Path // null: nobody is told anything
	Recipients []Recipient  // their paths, NOTIFY and the owners of lists
	RequireTLS bool         // what is told about it wants TLS too (RFC 8689 §5)
	Client     string
	Class      string // of the client
	MessageID  string // the header field
	IsPartial  bool   // of its deliveries: the class is not known, and there may be more recipients
}

// SenderTo is who is told of what became of a recipient; the sender, if it is none of them.
func (o *Origin) SenderTo(path address.Path) address.Path {
	for _, r := range o.Recipients {
		if r.Path == path && !r.Owner.IsNull() && !o.Sender.IsNull() {
			return r.Owner
		}
	}
	return o.Sender
}

// How far from the time in a message's id its reception may be noted, and how much is looked through for it: a
// body may take long to come, and a busy cluster notes much in that time.
const (
	receptionSpan  = 2 * time.Hour
	receptionAfter = 5 * time.Second // the facts of one reception are noted together
	maxOriginRcpts = 20_000          // more than ingress takes
)

var maxOriginFacts = 64 << 20 // octets of them; tests make do with less

// ErrTooManyFacts says that more was noted at the time of a message than is looked through for its reception, so that it is not known
// whether it is there, or to whom else it went.
var ErrTooManyFacts = errors.New("too many facts of that time to find all of its reception")

// Origin looks up the reception of a message in the events, which are kept for a week; the parts of it that are still queued need no look. A
// process that is killed does not note what it has just received: then it is put together of the deliveries, without the class. It
// reads from the time in the id on, so it takes as long as the cluster has noted facts then, mostly some milliseconds. ErrNotFound: nothing is
// known of it any more. ErrTooManyFacts: that cannot be told, now or later.
func (q *Queue) Origin(ctx context.Context, id MessageID) (Origin, error) {
	var o, delivered Origin
	began := id.Time()
	if began.IsZero() {
		return o, fmt.Errorf("look up %.40q: %w", string(id), ErrMalformedID)
	}
	until := began.Add(receptionSpan)
	found, isDelivered, read := false, false, 0
	for bundle, err := range q.bundles(ctx, began.Add(-2*time.Second)) {
		if err != nil {
			return Origin{}, fmt.Errorf("look up %s: %w", id, err)
		}
		if read += len(bundle); read > maxOriginFacts || len(o.Recipients) > maxOriginRcpts {
			if isDelivered && !found {
				break
			}
			return Origin{}, fmt.Errorf("look up %s: %w", id, ErrTooManyFacts)
		}
		last, isThere := o.readFacts(bundle, id, Reception)
		if !found && !isThere {
			_, is := delivered.readFacts(bundle, id, Delivered)
			isDelivered = isDelivered || is
		}
		if isThere && !found {
			found, until = true, last.Add(receptionAfter)
		}
		if last.After(until) {
			break
		}
	}
	if !found && isDelivered {
		delivered.IsPartial = true
		return delivered, nil
	}
	if !found {
		return Origin{}, fmt.Errorf("look up %s: %w", id, ErrNotFound)
	}
	return o, nil
}

// readFacts takes the facts of one type about a message out of a bundle. last is the time of the bundle's last fact.
func (o *Origin) readFacts(bundle []byte, id MessageID, what EventType) (last time.Time, isThere bool) {
	lines := bytes.Split(bytes.TrimRight(bundle, "\n"), []byte("\n"))
	for i, line := range lines {
		isLast := i == len(lines)-1
		if !isLast && !bytes.Contains(line, []byte(id)) {
			continue
		}
		var e Event
		if json.Unmarshal(line, &e) != nil {
			continue // one bad line must not hide the others
		}
		if isLast {
			last = e.Time
		}
		if e.Type != what || e.ID != id {
			continue
		}
		isThere = true
		o.Client, o.Class, o.MessageID = e.Client, e.Class, e.MessageID
		sender, _ := address.Parse(e.Sender) // as it was written; else nobody is told
		if len(o.Recipients) == 0 {
			o.Sender = sender
		}
		o.RequireTLS = e.RequireTLS
		if path, err := address.Parse(e.Recipient); err == nil {
			rcpt := Recipient{Path: path}
			if rcpt.Owner, _ = address.Parse(e.Owner); what == Delivered && sender != o.Sender {
				rcpt.Owner = sender // of a list, or the sender beside a list
			}
			if e.Notify != "" {
				rcpt.Notify = strings.Split(e.Notify, ",")
			}
			o.Recipients = append(o.Recipients, rcpt)
		}
	}
	return last, isThere
}
