package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats.go/jetstream"
)

// EventType is the kind of a fact, in the words that delivery logs use.
type EventType string

// The kinds of events.
const (
	Reception        EventType = "Reception"        // accepted from a client
	Signed           EventType = "Signed"           // has its signatures
	Delivered        EventType = "Delivery"         // a next hop took it
	TransientFailure EventType = "TransientFailure" // to be tried again
	Bounce           EventType = "Bounce"           // failed for good
	Discarded        EventType = "Discard"          // a route throws it away; nobody is told
	Expiration       EventType = "Expiration"       // its time is over
	AdminBounce      EventType = "AdminBounce"      // an operator cancelled it
	Admin            EventType = "Admin"            // an operator moved it
	Suppressed       EventType = "Suppressed"       // is on the list of those who are not to be written to
	NotificationMade EventType = "Notification"     // a notification about it was made; Peer is its id
	Finished         EventType = "Finished"         // a part is through
	Shaping          EventType = "Shaping"          // of a site, not of a message: suspended, dead, alive again, slowed down
	SetAside         EventType = "SetAside"         // it came back after it was signed; an operator decides
	OutOfBandBounce  EventType = "OutOfBandBounce"  // a host that had taken it sent it back
	OutOfBandReport  EventType = "OutOfBandReport"  // such a host says that it waits, or is through, or sent something else
	Feedback         EventType = "Feedback"         // a recipient complained
	DoubleBounce     EventType = "DoubleBounce"     // failed, and the null reverse-path leaves nobody to tell
)

// Event is a fact for people. A crash may lose the last moments of history, never mail.
type Event struct {
	Time      time.Time `json:"time"`
	Node      string    `json:"node"`
	Type      EventType `json:"type"`
	ID        MessageID `json:"id"`
	Part      int       `json:"part,omitempty"`
	Sender    string    `json:"sender,omitempty"`
	Recipient string    `json:"rcpt,omitempty"`
	Owner     string    `json:"owner,omitempty"`      // of the list that led to the recipient, of a Reception: see Recipient.Owner
	MessageID string    `json:"message_id,omitempty"` // the header field
	Client    string    `json:"client,omitempty"`
	Site      string    `json:"site,omitempty"`
	Peer      string    `json:"peer,omitempty"` // host[address]:port, or the id of a notification
	Egress    string    `json:"egress,omitempty"`
	TLS       string    `json:"tls,omitempty"`
	Attempt   int       `json:"attempt,omitempty"`
	Code      int       `json:"code,omitempty"`
	Enhanced  string    `json:"enhanced,omitempty"`
	Text      string    `json:"text,omitempty"` // reply or reason, without control characters
	Size      int64     `json:"size,omitempty"`
	// BounceClass is why a host refused, in one word of package delivery/bounceclass.
	BounceClass string        `json:"bounce_class,omitempty"`
	Class       string        `json:"class,omitempty"`       // of the client, of a Reception
	Notify      string        `json:"notify,omitempty"`      // of the recipient, of a Reception or a Delivery: NEVER, or of SUCCESS,FAILURE,DELAY
	RequireTLS  bool          `json:"require_tls,omitempty"` // of a Reception or a Delivery
	Due         time.Time     `json:"due,omitzero"`
	Duration    time.Duration `json:"duration,omitempty"` // nanoseconds
	InDoubt     bool          `json:"in_doubt,omitempty"` // the host may have taken it all the same: it may come twice (RFC 1047)
}

const (
	bundleInterval = 200 * time.Millisecond
	bundleBytes    = 256 << 10 // before compression: a bundle that is full goes at once
	bundleBacklog  = 32 << 20  // what is kept while the queue does not answer; beyond it events are dropped and counted
)

// recorder collects events and publishes them in bundles: lines of JSON, compressed.
type recorder struct {
	q       *Queue
	mu      sync.Mutex
	buf     bytes.Buffer
	kick    chan struct{}
	dropped atomic.Int64
	sending sync.Mutex // one bundle at a time keeps their order
}

func newRecorder(q *Queue) *recorder { return &recorder{q: q, kick: make(chan struct{}, 1)} }

// Record notes a fact. It never blocks on the network. Time and Node are filled in when empty.
func (q *Queue) Record(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	if e.Node == "" {
		e.Node = q.o.Node
	}
	line, err := json.Marshal(e)
	if err != nil {
		q.o.Logger.Error("event cannot be encoded", "error", err)
		return
	}
	r := q.events
	r.mu.Lock()
	full := r.buf.Len() > bundleBacklog
	if !full {
		r.buf.Write(line)
		r.buf.WriteByte('\n')
	}
	ready := r.buf.Len() >= bundleBytes
	r.mu.Unlock()
	if full {
		r.dropped.Add(1)
	}
	if ready {
		select {
		case r.kick <- struct{}{}:
		default:
		}
	}
}

func (r *recorder) run(ctx context.Context) {
	tick := time.NewTicker(bundleInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-r.kick:
		}
		r.flush(ctx)
		if n := r.dropped.Swap(0); n > 0 {
			r.q.o.Logger.Warn("events were dropped while the queue did not answer", "count", n)
		}
	}
}

// flush publishes what is there when it begins, full bundles first. What comes meanwhile, and what cannot be published, stays
// for the next time: one bundle for each fact would cost a sync for each.
func (r *recorder) flush(ctx context.Context) {
	r.sending.Lock()
	defer r.sending.Unlock()
	for {
		bundle := r.cut()
		if len(bundle) == 0 {
			return
		}
		ctx, cancel := r.q.bound(ctx, publishTimeout)
		_, err := r.q.js.PublishMsg(ctx, newMsg("events."+encodeToken(r.q.o.Node), s2.Encode(nil, bundle)), jetstream.WithRetryAttempts(0))
		cancel()
		if err != nil {
			r.giveBack(bundle)
			return
		}
		if len(bundle) < bundleBytes {
			return
		}
	}
}

// cut takes whole lines of about one bundle from the front.
func (r *recorder) cut() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.buf.Bytes()
	n := len(b)
	if n > bundleBytes {
		n = bundleBytes + bytes.IndexByte(b[bundleBytes:], '\n') + 1
	}
	out := bytes.Clone(b[:n])
	r.buf.Next(n)
	return out
}

func (r *recorder) giveBack(bundle []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rest := bytes.Clone(r.buf.Bytes())
	r.buf.Reset()
	r.buf.Write(bundle)
	r.buf.Write(rest)
}

// TraceFilter selects events; all that is set must match.
type TraceFilter struct {
	ID        MessageID
	Sender    string
	Recipient string
	MessageID string // the header field
	Client    string
	Since     time.Time // where to begin; with an id, its own time is the default
}

func (f *TraceFilter) matches(e *Event) bool {
	return (f.ID == "" || f.ID == e.ID || e.Peer == string(f.ID)) &&
		(f.Sender == "" || f.Sender == e.Sender) &&
		(f.Recipient == "" || f.Recipient == e.Recipient) &&
		(f.MessageID == "" || f.MessageID == e.MessageID) &&
		(f.Client == "" || f.Client == e.Client)
}

// Trace yields the events that match, in the order in which they were published, up to the newest at the time of the call.
// A fact appears about a quarter of a second after it happened.
func (q *Queue) Trace(ctx context.Context, f TraceFilter) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		since := f.Since
		if since.IsZero() && f.ID != "" {
			since = f.ID.Time().Add(-2 * time.Second)
		}
		for bundle, err := range q.bundles(ctx, since) {
			if err != nil {
				yield(Event{}, err)
				return
			}
			for dec := json.NewDecoder(bytes.NewReader(bundle)); ; {
				var e Event
				err := dec.Decode(&e)
				if err == io.EOF {
					break
				}
				if err != nil {
					yield(Event{}, fmt.Errorf("read events: %w", err))
					return
				}
				if !e.Time.Before(since) && f.matches(&e) && !yield(e, nil) {
					return
				}
			}
		}
	}
}

// bundles yields the stored bundles since a time, decompressed. It reads by direct gets: a consumer of its own would need a right
// with which a role could have any message published under any subject.
func (q *Queue) bundles(ctx context.Context, since time.Time) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		info, err := q.streamInfo(ctx, streamEvents, "", 0)
		if err != nil {
			yield(nil, err)
			return
		}
		from := map[string]any{"seq": max(1, info.State.FirstSeq)}
		if !since.IsZero() {
			from = map[string]any{"start_time": since}
		}
		for {
			batch, err := q.getBatch(ctx, streamEvents, "events.*", from)
			if err != nil {
				yield(nil, fmt.Errorf("read events: %w", err))
				return
			}
			for _, m := range batch {
				data, err := s2.Decode(nil, m.data)
				if !yield(data, err) || err != nil {
					return
				}
			}
			if len(batch) == 0 || batch[len(batch)-1].seq >= info.State.LastSeq {
				return
			}
			from = map[string]any{"seq": batch[len(batch)-1].seq + 1}
		}
	}
}
