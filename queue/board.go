package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	siteBucket     = "sites"
	sitesMaxBytes  = 64 << 20
	siteNotice     = "sites"
	maxPosting     = 64 << 10        // octets of its data
	unpostedKept   = 5 * time.Minute // of the mark that a posting was taken away
	boardEvery     = time.Second     // between two looks for what changed; a notice makes it at once
	boardWhole     = 30 * time.Second
	boardAgain     = 150 * time.Millisecond // after a notice: a replica may lag
	maxPostingName = 200
)

// ErrOvertaken says that somebody else has changed a posting meanwhile.
var ErrOvertaken = errors.New("somebody else has changed it meanwhile")

// Posting is a short record about a site that all delivery processes know within a second.
type Posting struct {
	Kind     string          `json:"kind"` // lower case letters
	Name     string          `json:"name"` // at most 200 octets
	Data     json.RawMessage `json:"data"`
	Until    time.Time       `json:"until,omitzero"` // zero: until it is taken away
	Node     string          `json:"node,omitempty"` // that posted it; filled in
	Revision uint64          `json:"-"`
}

// IsOver reports that its time is over.
func (p *Posting) IsOver(now time.Time) bool { return !p.Until.IsZero() && !now.Before(p.Until) }

type postingKey struct{ kind, name string }

func (k postingKey) token() string { return k.kind + "." + encodeToken(k.name) }

// Post puts up a posting in place of what is there under its kind and name.
func (q *Queue) Post(ctx context.Context, p Posting) error {
	_, err := q.post(ctx, p, false)
	return err
}

// PostOver is Post if that revision is still there (0: if nothing is), and returns the new one. ErrOvertaken says that it is not; after other errors
// it may be posted.
func (q *Queue) PostOver(ctx context.Context, p Posting) (uint64, error) { return q.post(ctx, p, true) }

// Unpost takes down what is there under the kind and name of p, or only that revision if p has one; then ErrOvertaken says that it is not there.
func (q *Queue) Unpost(ctx context.Context, p Posting) error {
	p.Data = nil
	_, err := q.post(ctx, p, p.Revision > 0)
	return err
}

func (q *Queue) post(ctx context.Context, p Posting, isSure bool) (uint64, error) {
	if err := checkTopic(p.Kind); err != nil || p.Name == "" || len(p.Name) > maxPostingName || len(p.Data) > maxPosting {
		return 0, fmt.Errorf("post %s %.50q: the kind is no word, the name is not of 1 to %d octets, or there are more than %d", p.Kind, p.Name, maxPostingName, maxPosting)
	}
	key := postingKey{p.Kind, p.Name}
	m := newMsg("$KV."+siteBucket+"."+key.token(), nil)
	ttl := unpostedKept
	if p.Data != nil {
		p.Node = q.o.Node
		data, err := json.Marshal(p)
		if err != nil {
			return 0, fmt.Errorf("post %s %s: %w", p.Kind, p.Name, err)
		}
		m.Data, ttl = data, 0
		if !p.Until.IsZero() {
			ttl = max(time.Second, time.Until(p.Until).Truncate(time.Second)+time.Second)
		}
	}
	if ttl > 0 {
		m.Header.Set(jetstream.MsgTTLHeader, ttl.String())
	}
	ack, err := q.publishPosting(ctx, m, isSure, p.Revision)
	if errors.Is(err, ErrOvertaken) && p.Revision == 0 {
		// What is in the way may be the mark that something was taken down, or is over.
		mark, markErr := q.getLeader(ctx, "KV_"+siteBucket, m.Subject)
		if markErr == nil && len(mark.data) == 0 {
			ack, err = q.publishPosting(ctx, m, isSure, mark.seq)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("post %s %s: %w", p.Kind, p.Name, err)
	}
	_ = q.Notify(ctx, siteNotice, p.Kind+" "+p.Name)
	return ack.Sequence, nil
}

// publishPosting publishes a posting once, if isSure over that revision only.
func (q *Queue) publishPosting(ctx context.Context, m *nats.Msg, isSure bool, over uint64) (*jetstream.PubAck, error) {
	if isSure {
		m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(over, 10))
	}
	ctx, cancel := q.onLink(ctx, publishTimeout)
	defer cancel()
	ack, err := q.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0))
	if hasCode(err, codeWrongLastSeq, codeWrongLastSeqNew) {
		return nil, ErrOvertaken
	}
	q.trouble(err)
	return ack, err
}

// Waiting counts the jobs that wait for a domain.
func (q *Queue) Waiting(ctx context.Context, domain string) (int, error) {
	info, err := q.listPage(ctx, streamLater, "later.*."+encodeToken(domain)+".*.*.*", 1<<30) // beyond the last: only the total
	if err != nil {
		return 0, fmt.Errorf("count jobs for %s: %w", domain, err)
	}
	return info.Total, nil
}

// Postings lists what is posted now.
func (q *Queue) Postings(ctx context.Context) ([]Posting, error) {
	var all []Posting
	now := time.Now()
	err := q.bucketValues(ctx, siteBucket, func(s *stored) {
		if p, ok := decodePosting(s); ok && !p.IsOver(now) {
			all = append(all, p)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list postings: %w", err)
	}
	return all, nil
}

func decodePosting(s *stored) (Posting, bool) {
	var p Posting
	if len(s.data) == 0 || json.Unmarshal(s.data, &p) != nil {
		return p, false // taken away, over, or of another version
	}
	p.Revision = s.seq
	return p, true
}

// follower is one who follows the board.
type follower struct {
	q    *Queue
	fn   func(p Posting, isThere bool)
	all  map[postingKey]Posting
	last uint64
	read time.Time // of the whole
}

// FollowPostings calls fn with each posting that is there, and then with each that is put up, changed or taken down, until ctx ends. One whose time
// is over need not be told. fn must not block long. looked is called after each look at the board with what was wrong with it: after the first
// that was well, fn has been called with all that is there.
func (q *Queue) FollowPostings(ctx context.Context, fn func(p Posting, isThere bool), looked func(error)) error {
	kick := make(chan struct{}, 1)
	unlisten, err := q.OnNotice(siteNotice, func(string) {
		select {
		case kick <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return fmt.Errorf("follow postings: %w", err)
	}
	defer unlisten()
	f := &follower{q: q, fn: fn, all: make(map[postingKey]Posting)}
	pause := time.Duration(0)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-kick:
			pause = boardAgain
		case <-timer.C:
			pause = boardEvery
		}
		err := f.look(ctx)
		if err != nil && ctx.Err() == nil {
			q.o.Logger.Debug("postings cannot be read", "error", err)
		}
		looked(err)
		timer.Reset(pause)
	}
}

// look reads what changed since the last time; at times everything, which also finds what was missed or lost.
func (f *follower) look(ctx context.Context) error {
	isWhole := time.Since(f.read) >= boardWhole
	from, last := f.last+1, f.last
	if isWhole {
		from, last = 1, 0
	}
	seen := make(map[postingKey]bool)
	for {
		batch, err := f.q.getBatch(ctx, "KV_"+siteBucket, "$KV."+siteBucket+".>", map[string]any{"seq": from})
		if err != nil {
			return err
		}
		for _, s := range batch {
			from, last = s.seq+1, s.seq
			if key, ok := f.take(s); ok {
				seen[key] = true
			}
		}
		if len(batch) == 0 {
			break
		}
	}
	f.last = last
	if !isWhole {
		return nil
	}
	f.read = time.Now()
	return f.missing(ctx, seen)
}

// missing tells of those that were not seen, if they are gone: the replica that was asked may lag.
func (f *follower) missing(ctx context.Context, seen map[postingKey]bool) error {
	for key, p := range maps.Clone(f.all) {
		if seen[key] {
			continue
		}
		s, err := f.q.getLeader(ctx, "KV_"+siteBucket, "$KV."+siteBucket+"."+key.token())
		switch {
		case err == nil:
			f.take(s)
		case errors.Is(err, errAbsent):
			delete(f.all, key)
			f.fn(p, false)
		default:
			return err
		}
	}
	return nil
}

// take tells of one message of the bucket; ok: it is a posting that is there.
func (f *follower) take(s *stored) (postingKey, bool) {
	kind, token, _ := strings.Cut(strings.TrimPrefix(s.subject, "$KV."+siteBucket+"."), ".")
	name, err := decodeToken(token)
	if err != nil {
		return postingKey{}, false
	}
	key := postingKey{kind, name}
	p, isThere := decodePosting(s)
	was, known := f.all[key]
	switch {
	case isThere && (!known || was.Revision != p.Revision):
		f.all[key] = p
		f.fn(p, true)
	case !isThere && known:
		delete(f.all, key)
		f.fn(was, false)
	}
	return key, isThere
}
