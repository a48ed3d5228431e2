package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Overview is the whole queue for people. Making one is bounded work, however much waits: what needs a look at single jobs is
// said of the first thousands of them only.
type Overview struct {
	At      time.Time         `json:"at"`
	Counts  Counts            `json:"counts"`
	Lanes   map[string]uint64 `json:"lanes"`            // ready jobs, and those in workers' hands
	Oldest  *Oldest           `json:"oldest,omitempty"` // none: nothing is in the queue, or it was not found in time
	Lines   []Line            `json:"lines,omitempty"`  // of those that have work
	Waiting Waiting           `json:"waiting"`
	Leases  []Lease           `json:"leases"`
	Streams []Stream          `json:"streams"`
	Missing []string          `json:"missing,omitempty"` // what could not be found out, and why
	Aside   []string          `json:"aside,omitempty"`   // the same, of what is there for people only
}

// Names of lines.
const (
	LineSigner = signerConsumer // new mail
	LineSign   = signConsumer   // jobs that go through the signer again
)

// Line is work that is handed out in its order.
type Line struct {
	Name       string    `json:"name"`                // LineSigner, LineSign, or that of a lane: lane-…
	Slow       bool      `json:"slow,omitempty"`      // a lane for domains that take little
	Unfinished uint64    `json:"unfinished"`          // the untaken ones, and those in hands
	First      time.Time `json:"first,omitzero"`      // when the first unfinished one came; zero: not found
	Untaken    uint64    `json:"untaken,omitempty"`   // nobody has had them in hand
	Head       time.Time `json:"head,omitzero"`       // when the first of these came; zero: not found
	LastTaken  time.Time `json:"last_taken,omitzero"` // when somebody took something; zero: not since the line's leader was elected
}

// Oldest is the mail that has been in the queue for the longest time, and where one of its jobs is.
type Oldest struct {
	ID       MessageID `json:"id"`
	Accepted time.Time `json:"accepted"`
	Place    Place     `json:"place"`
	Class    Class     `json:"class,omitempty"`
	Why      string    `json:"why,omitempty"` // of a hold
	Domain   string    `json:"domain"`
	Reason   string    `json:"reason,omitempty"`
	Due      time.Time `json:"due,omitzero"`
}

// Stream is where a part of the queue is stored.
type Stream struct {
	Name     string    `json:"name"`
	Messages uint64    `json:"messages"`
	Bytes    uint64    `json:"bytes"`
	MaxBytes uint64    `json:"max_bytes,omitempty"`
	Leader   string    `json:"leader,omitempty"` // empty: none at the moment
	Copies   int       `json:"copies"`           // that are wanted
	Replicas []Replica `json:"replicas,omitempty"`
}

// Replica is a copy of a stream besides its leader's.
type Replica struct {
	Name    string        `json:"name"`
	Current bool          `json:"current"`
	Offline bool          `json:"offline,omitempty"`
	Active  time.Duration `json:"active"` // since the leader heard from it
	Lag     uint64        `json:"lag,omitempty"`
}

const (
	overviewTime = 10 * time.Second // for all of it
	maxTrueHolds = 20_000           // as many held jobs are counted one by one
)

// Overview looks at the queue. An error says that the queue does not answer.
func (q *Queue) Overview(ctx context.Context) (Overview, error) {
	ctx, cancel := q.bound(ctx, overviewTime)
	defer cancel()
	o := Overview{At: time.Now()}
	missing := func(what string, err error) {
		if err != nil {
			o.Missing = append(o.Missing, what+": "+err.Error())
		}
	}
	var err error
	if err = q.streamStates(ctx, &o); err != nil {
		return o, fmt.Errorf("look at the queue: %w", err)
	}
	far, err := q.tally(ctx, &o.Counts, &o.Lanes)
	if err != nil {
		return o, fmt.Errorf("look at the queue: %w", err)
	}
	floors := make(map[string]uint64)
	for name, p := range far {
		floors[name] = p.floor
	}
	missing("the lines of work", q.lookAtLines(ctx, &o, far))
	missing("held jobs", q.countHeld(ctx, &o))
	missing("waiting jobs", q.survey(ctx, &o, far, floors))
	o.Oldest, err = q.oldest(ctx, floors)
	missing("oldest mail", err)
	o.Leases, err = q.Leases(ctx)
	missing("leases", err)
	return o, nil
}

// streamStates asks for the state of all streams. Those of mail and jobs must answer.
func (q *Queue) streamStates(ctx context.Context, o *Overview) error {
	var names []string
	for _, c := range q.streamConfigs() {
		names = append(names, c.Name)
	}
	needed := len(names)
	for _, c := range slices.Concat(q.bucketConfigs(), q.sideBuckets()) {
		names = append(names, "KV_"+c.Bucket)
	}
	side := len(names) - len(q.sideBuckets())
	for i, name := range names {
		info, err := q.streamInfo(ctx, name, "", 0)
		if err != nil && i < needed {
			return err
		}
		if err != nil {
			text := "bucket " + strings.TrimPrefix(name, "KV_") + ": " + err.Error()
			if i < side {
				o.Missing = append(o.Missing, text)
			} else {
				o.Aside = append(o.Aside, text)
			}
			continue
		}
		s := Stream{Name: name, Messages: info.State.Messages, Bytes: info.State.Bytes, MaxBytes: uint64(max(0, info.Config.MaxBytes)),
			Leader: info.Cluster.Leader, Copies: info.Config.Replicas, Replicas: info.Cluster.Replicas}
		o.Streams = append(o.Streams, s)
	}
	return nil
}

// tally asks the consumers what they have not finished with. It returns how far each is.
func (q *Queue) tally(ctx context.Context, c *Counts, lanes *map[string]uint64) (far map[string]progress, err error) {
	c.Later, *lanes, far = make(map[Class]uint64), make(map[string]uint64), make(map[string]progress)
	info, err := q.streamInfo(ctx, streamMail, "", 0)
	if err != nil {
		return nil, err
	}
	c.Mails, c.MailBytes, c.MaxBytes = info.State.Messages, info.State.Bytes, uint64(info.Config.MaxBytes)
	for _, d := range durables() {
		p, err := q.progress(ctx, d)
		if err != nil {
			return nil, err
		}
		far[d.name] = p
		n := p.unfinished()
		switch {
		case d.name == signerConsumer:
			c.Incoming = n
		case d.name == signConsumer:
			c.Sign = n
		case d.stream == streamJobs:
			c.Ready += n
			(*lanes)[strings.TrimPrefix(d.name, laneConsumer(""))] = n
		default:
			c.Later[Class(strings.TrimPrefix(d.name, timerConsumer("")))] = n
		}
	}
	return far, nil
}

// lookAtLines finds the first of what the signer and delivery have not finished with, and of what nobody has taken. The oldest mail of the
// queue does not tell of those: one that is deferred may be older.
func (q *Queue) lookAtLines(ctx context.Context, o *Overview, far map[string]progress) error {
	for _, d := range durables() {
		p := far[d.name]
		if d.stream == streamLater || p.unfinished() == 0 {
			continue
		}
		l := Line{Name: d.name, Slow: strings.HasPrefix(d.name, laneConsumer("s")), Unfinished: p.unfinished(), Untaken: p.untaken, LastTaken: p.lastTaken}
		if s, err := q.first(ctx, d, p.floor+1); err != nil {
			return err
		} else if s != nil {
			l.First = s.time
		}
		if p.untaken > 0 {
			if s, err := q.first(ctx, d, p.taken+1); err != nil {
				return err
			} else if s != nil {
				l.Head = s.time
			}
		}
		o.Lines = append(o.Lines, l)
	}
	return nil
}

// first is the first message of a consumer at or after seq; nil: there is none.
func (q *Queue) first(ctx context.Context, d durable, seq uint64) (*stored, error) {
	var first *stored
	for _, filter := range d.filters {
		s, err := q.next(ctx, d.stream, filter, seq)
		if errors.Is(err, errAbsent) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if first == nil || s.seq < first.seq {
			first = s
		}
	}
	return first, nil
}

// countHeld counts what is held. No consumer knows it, and to list a million takes long, so first it is what else LATER has.
func (q *Queue) countHeld(ctx context.Context, o *Overview) error {
	rest := int64(0)
	for _, s := range o.Streams {
		if s.Name == streamLater {
			rest = int64(s.Messages)
		}
	}
	for _, n := range o.Counts.Later {
		rest -= int64(n)
	}
	if o.Counts.Held = uint64(max(0, rest)); o.Counts.Held > maxTrueHolds {
		return nil // the markers of a few nodes are among them
	}
	o.Counts.Held = 0
	_, err := q.subjects(ctx, streamLater, "held.>", func(string) { o.Counts.Held++ })
	return err
}

// maxOldest bounds the mails that are looked at to find the oldest: what is finished may have come back.
const maxOldest = 20

// oldest finds the first mail that has a job, or that the signer has not finished with.
func (q *Queue) oldest(ctx context.Context, floors map[string]uint64) (*Oldest, error) {
	var found *Oldest
	for _, kind := range []Kind{KindMail, KindDSN} {
		o, err := q.oldestOf(ctx, kind, floors)
		if err != nil {
			return found, err
		}
		if o != nil && (found == nil || o.Accepted.Before(found.Accepted)) {
			found = o
		}
	}
	return found, nil
}

func (q *Queue) oldestOf(ctx context.Context, kind Kind, floors map[string]uint64) (*Oldest, error) {
	seq := uint64(1)
	for range maxOldest {
		s, err := q.next(ctx, streamMail, string(kind)+".*.m", seq)
		if errors.Is(err, errAbsent) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		seq = s.seq + 1
		_, id, err := parseMailSubject(s.subject)
		if err != nil {
			return nil, err
		}
		head, _, err := decodeMail(s.data)
		if err != nil {
			return nil, err
		}
		sg := Signing{ID: id, Kind: kind, Envelope: head.Envelope, head: head, seq: s.seq}
		o, err := q.whereOldest(ctx, &sg, floors)
		if o != nil || err != nil {
			return o, err
		}
	}
	return nil, nil
}

// maxOldestParts bounds the parts of a mail that are looked for.
const maxOldestParts = 8

// whereOldest finds a job of a mail. There is none when the mail is finished at this moment, or was and came back.
func (q *Queue) whereOldest(ctx context.Context, sg *Signing, floors map[string]uint64) (*Oldest, error) {
	jobs := sg.jobs()
	o := &Oldest{ID: sg.ID, Accepted: sg.Envelope.Accepted, Place: PlaceIncoming}
	if len(jobs) > 0 {
		o.Domain = jobs[0].Domain
	}
	if sg.seq > floors[signerConsumer] {
		return o, nil
	}
	for _, j := range jobs[:min(len(jobs), maxOldestParts)] {
		for _, stream := range []string{streamJobs, streamLater, streamJobs} {
			info, err := q.streamInfo(ctx, stream, partFilter(j.Domain, sg.ID, j.Part), 0)
			if err != nil {
				return nil, err
			}
			for subject := range info.State.Subjects {
				e, err := q.entry(ctx, stream, subject, floors)
				if err != nil {
					continue // it moved meanwhile
				}
				o.Place, o.Class, o.Why, o.Domain, o.Reason, o.Due = e.Place, e.Class, e.Why, e.Job.Domain, e.Job.Reason, e.Job.Due
				return o, nil
			}
		}
	}
	return nil, nil
}
