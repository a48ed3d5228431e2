package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// apiTimeout bounds one request to the JetStream API; longer waits are repeats. A listing may be long.
const (
	apiTimeout  = 5 * time.Second
	listTimeout = 30 * time.Second
)

// apiError is the server's refusal of an API call.
type apiError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

func (e *apiError) Error() string {
	return fmt.Sprintf("%s (%d/%d)", e.Description, e.Code, e.ErrCode)
}

// Error codes of JetStream that mean something to us.
const (
	codeNoMessage       = 10037
	codeNoSequence      = 10043
	codeWrongLastSeq    = 10071
	codeWrongLastSeqNew = 10164
	codeStoreFailed     = 10077 // the stream's MaxBytes
	codeNoResources     = 10023 // the server's own limit
	codeNoCopies        = 10074 // of a server outside any cluster
	codeNoMemory        = 10028 // max_memory_store of a single server
	codeNoPeers         = 10005 // with room for it in the cluster
	codeUnavailable     = 10008 // the server sees no leader of the cluster
)

// errNoLeader: a server that is cut off from the others answers INFO from its own copy, and names no leader (nats-server 2.15.2).
var errNoLeader = errors.New("the server that answered sees no leader")

func hasCode(err error, codes ...int) bool {
	got := 0
	if e, ok := errors.AsType[*apiError](err); ok {
		got = e.ErrCode
	} else if e, ok := errors.AsType[*jetstream.APIError](err); ok {
		got = int(e.ErrorCode)
	}
	for _, c := range codes {
		if got == c {
			return true
		}
	}
	return false
}

// api makes one request to the leader of a stream and decodes its answer into resp.
func (q *Queue) api(ctx context.Context, verb, name string, req, resp any) error {
	return q.apiOn(ctx, q.calls, apiTimeout, verb, name, req, resp)
}

func (q *Queue) apiOn(ctx context.Context, nc *nats.Conn, limit time.Duration, verb, name string, req, resp any) error {
	return q.apiCounted(ctx, nc, q.troublesOf(nc), limit, verb, name, req, resp)
}

// apiCounted is apiOn that notes in t how it ended.
func (q *Queue) apiCounted(ctx context.Context, nc *nats.Conn, t *troubles, limit time.Duration, verb, name string, req, resp any) error {
	var body []byte
	if req != nil { // some calls refuse even "null"
		var err error
		if body, err = json.Marshal(req); err != nil {
			return fmt.Errorf("encode request %s: %w", verb, err)
		}
	}
	ctx, cancel := q.onLinkOf(ctx, nc, limit)
	defer cancel()
	msg, err := nc.RequestWithContext(ctx, "$JS.API."+verb+"."+name, body)
	if err != nil {
		q.count(nc, t, err)
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	var answer struct {
		Error   *apiError `json:"error"`
		Cluster *struct {
			Leader string `json:"leader"`
		} `json:"cluster"`
	}
	if err := json.Unmarshal(msg.Data, &answer); err != nil {
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	if answer.Error != nil {
		err = answer.Error
	} else if answer.Cluster != nil && answer.Cluster.Leader == "" {
		err = errNoLeader
	}
	if err == nil || !hasCode(err, codeUnavailable) && !errors.Is(err, errNoLeader) {
		q.count(nc, t, nil)
	} else {
		q.count(nc, t, err)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	if err := json.Unmarshal(msg.Data, resp); err != nil {
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	return nil
}

// streamInfo is one page of a stream's state, as its leader sees it. With a filter it lists the subjects that match and
// their counts; State.LastSeq in the same answer tells how fresh it is.
type streamInfo struct {
	Created time.Time `json:"created"`
	Config  struct {
		MaxBytes int64 `json:"max_bytes"`
		Replicas int   `json:"num_replicas"`
	} `json:"config"`
	State struct {
		Messages uint64            `json:"messages"`
		Bytes    uint64            `json:"bytes"`
		FirstSeq uint64            `json:"first_seq"`
		LastSeq  uint64            `json:"last_seq"`
		LastTime time.Time         `json:"last_ts"`
		Subjects map[string]uint64 `json:"subjects"`
	} `json:"state"`
	Cluster struct {
		Leader   string    `json:"leader"`
		Replicas []Replica `json:"replicas"`
	} `json:"cluster"`
	Time  time.Time `json:"ts"` // the server's clock
	Total int       `json:"total"`
	Limit int       `json:"limit"`
}

func (q *Queue) streamInfo(ctx context.Context, stream, filter string, offset int) (*streamInfo, error) {
	var resp streamInfo
	var req any
	if filter != "" {
		req = map[string]any{"subjects_filter": filter, "offset": offset}
	}
	if err := q.api(ctx, "STREAM.INFO", stream, req, &resp); err != nil {
		return nil, err
	}
	return &resp, nil
}

// subjects calls fn with every subject of the stream that matches, page by page, and returns the lowest last sequence
// that any page showed. Pages are not one snapshot: what moves meanwhile may be missed.
func (q *Queue) subjects(ctx context.Context, stream, filter string, fn func(subject string)) (lastSeq uint64, err error) {
	for offset := 0; ; {
		info, err := q.listPage(ctx, stream, filter, offset)
		if err != nil {
			return 0, err
		}
		if offset == 0 || info.State.LastSeq < lastSeq {
			lastSeq = info.State.LastSeq
		}
		for s := range info.State.Subjects {
			fn(s)
		}
		n := len(info.State.Subjects)
		offset += n
		if n == 0 || offset >= info.Total {
			return lastSeq, nil
		}
	}
}

// listPage is streamInfo for filters that may match a great many subjects.
func (q *Queue) listPage(ctx context.Context, stream, filter string, offset int) (*streamInfo, error) {
	if names := strings.Count(filter, ".") - strings.Count(filter, "*") + 1; names > 2 {
		return q.streamInfo(ctx, stream, filter, offset) // of one domain and message at the least
	}
	var resp streamInfo
	err := q.apiOn(ctx, q.lists, listTimeout, "STREAM.INFO", stream, map[string]any{"subjects_filter": filter, "offset": offset}, &resp)
	return &resp, err
}

// ackFloor is the stream sequence at or below which a consumer has finished with everything.
func (q *Queue) ackFloor(ctx context.Context, stream, consumer string) (uint64, error) {
	var resp struct {
		AckFloor struct {
			Stream uint64 `json:"stream_seq"`
		} `json:"ack_floor"`
	}
	err := q.api(ctx, "CONSUMER.INFO", stream+"."+consumer, nil, &resp)
	return resp.AckFloor.Stream, err
}

// erase removes the message of a subject. It asks for its sequence right before: a sequence could be another message's after
// a loss. What is not there is erased already; a leader of yesterday may say so wrongly, and then the reconciler finds it.
//
// It is no purge by subject, because a purge that is narrower than a consumer's filter can raise that consumer's ack floor over
// messages that are still in hand, which are then never handed out again (nats-server 2.15.2, consumer.go purge with isWider).
func (q *Queue) erase(ctx context.Context, stream, subject string) error {
	get := q.get
	return q.persist(ctx, "erase "+subject, func(ctx context.Context) error {
		s, err := get(ctx, stream, subject)
		get = q.getLeader // a repeat must not meet a replica that lags
		if errors.Is(err, errAbsent) {
			s, err = q.getLeader(ctx, stream, subject)
		}
		if errors.Is(err, errAbsent) {
			return nil
		}
		if err != nil {
			return err
		}
		var resp struct{}
		err = q.api(ctx, "STREAM.MSG.DELETE", stream, map[string]any{"seq": s.seq, "no_erase": true}, &resp)
		if hasCode(err, codeNoSequence, codeNoMessage) {
			return fmt.Errorf("%w: %w", errAbsent, err) // look once more
		}
		return err
	})
}

// purge removes what matches filter below the sequence (0: everything that matches). The filter must be exactly that of a
// consumer, or no subset of any consumer's; see erase.
func (q *Queue) purge(ctx context.Context, stream, filter string, below uint64) (uint64, error) {
	req := map[string]any{"filter": filter}
	if below > 0 {
		req["seq"] = below
	}
	var resp struct {
		Purged uint64 `json:"purged"`
	}
	err := q.api(ctx, "STREAM.PURGE", stream, req, &resp)
	return resp.Purged, err
}

// stored is one message as the store has it.
type stored struct {
	subject string
	seq     uint64
	time    time.Time
	data    []byte
}

// getLeader asks the leader for the last message of a subject. errAbsent only says what the leader sees now.
func (q *Queue) getLeader(ctx context.Context, stream, subject string) (*stored, error) {
	return q.ofLeader(ctx, stream, map[string]any{"last_by_subj": subject})
}

// nextLeader asks the leader for the first message at or after seq that matches filter. errAbsent only says what the leader sees now.
func (q *Queue) nextLeader(ctx context.Context, stream, filter string, seq uint64) (*stored, error) {
	return q.ofLeader(ctx, stream, map[string]any{"seq": seq, "next_by_subj": filter})
}

func (q *Queue) ofLeader(ctx context.Context, stream string, which map[string]any) (*stored, error) {
	var resp struct {
		Message struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	err := q.api(ctx, "STREAM.MSG.GET", stream, which, &resp)
	if hasCode(err, codeNoMessage) {
		return nil, errAbsent
	}
	if err != nil {
		return nil, err
	}
	m := resp.Message
	return &stored{subject: m.Subject, seq: m.Seq, time: m.Time, data: m.Data}, nil
}

// errAbsent is one server's view that a message is not there. By itself it is no fact; see gone.
var errAbsent = errors.New("not in this server's store")

// get asks any replica, without the API queue of the servers.
func (q *Queue) get(ctx context.Context, stream, subject string) (*stored, error) {
	return q.direct(ctx, "$JS.API.DIRECT.GET."+stream+"."+subject, nil)
}

// next asks any replica for the first message at or after seq that matches filter.
func (q *Queue) next(ctx context.Context, stream, filter string, seq uint64) (*stored, error) {
	body, err := json.Marshal(map[string]any{"seq": seq, "next_by_subj": filter})
	if err != nil {
		return nil, err
	}
	return q.direct(ctx, "$JS.API.DIRECT.GET."+stream, body)
}

func (q *Queue) direct(ctx context.Context, subject string, body []byte) (*stored, error) {
	ctx, cancel := q.onLink(ctx, apiTimeout)
	defer cancel()
	msg, err := q.nc.RequestWithContext(ctx, subject, body)
	if err != nil {
		q.trouble(err)
		return nil, fmt.Errorf("get %s: %w", subject, err)
	}
	return storedOf(subject, msg) // no word of the connection: an isolated server answers this too
}

// batchSize is how many messages one request of getBatch asks for that does not say.
const batchSize = 64

// getBatch asks any replica for the next messages that match filter from a position on: none at the end.
func (q *Queue) getBatch(ctx context.Context, stream, filter string, from map[string]any) ([]*stored, error) {
	ctx, cancel := q.onLinkOf(ctx, q.lists, apiTimeout)
	defer cancel()
	req := maps.Clone(from)
	if req["next_by_subj"] = filter; req["batch"] == nil {
		req["batch"] = batchSize
	}
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	inbox := q.lists.NewInbox()
	sub, err := q.lists.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := q.lists.PublishRequest("$JS.API.DIRECT.GET."+stream, inbox, body); err != nil {
		return nil, err
	}
	var out []*stored
	for {
		msg, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return nil, fmt.Errorf("get from %s: %w", stream, err)
		}
		if msg.Header.Get("Status") == "204" { // the end of the batch
			return out, nil
		}
		s, err := storedOf(stream, msg)
		if errors.Is(err, errAbsent) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
}

func storedOf(subject string, msg *nats.Msg) (*stored, error) {
	if msg.Header.Get("Status") == "404" {
		return nil, errAbsent
	}
	if s := msg.Header.Get("Status"); s != "" {
		return nil, fmt.Errorf("get %s: %s %s", subject, s, msg.Header.Get("Description"))
	}
	seq, err := strconv.ParseUint(msg.Header.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("get %s: sequence: %w", subject, err)
	}
	at, err := time.Parse(time.RFC3339Nano, msg.Header.Get(jetstream.TimeStampHeaer))
	if err != nil {
		return nil, fmt.Errorf("get %s: time: %w", subject, err)
	}
	return &stored{subject: msg.Header.Get(jetstream.SubjectHeader), seq: seq, time: at, data: msg.Data}, nil
}

// onLink is onLinkOf nc.
func (q *Queue) onLink(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return q.onLinkOf(ctx, q.nc, limit)
}

// onLinkOf bounds a request by time and by the life of its connection: on one that broke the answer never comes, and what waits
// for it here, a mail that a peer has taken, is worked on by somebody else meanwhile.
func (q *Queue) onLinkOf(ctx context.Context, nc *nats.Conn, limit time.Duration) (context.Context, context.CancelFunc) {
	l := &q.link
	switch nc {
	case q.calls:
		l = &q.callLink
	case q.lists:
		l = &q.listLink
	}
	return within(ctx, l, max(limit, q.o.leeway))
}

func within(ctx context.Context, l *atomic.Pointer[link], limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	stop := context.AfterFunc(l.Load().life, cancel)
	return ctx, func() { stop(); cancel() }
}

// bound bounds what is asked of the queue by time.
func (q *Queue) bound(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, max(limit, q.o.leeway))
}

// link is one connection to a server: requests on it end with it.
type link struct {
	life context.Context
	end  context.CancelFunc
}

// newLink begins the life of a connection and ends the one before. Each call ends just the link that it replaces.
func newLink(l *atomic.Pointer[link]) {
	next := new(link)
	next.life, next.end = context.WithCancel(context.Background())
	if last := l.Swap(next); last != nil {
		last.end()
	}
}

// persist repeats fn until it succeeds or ctx ends: for what must happen as long as this process lives. A refusal that
// cannot change is fn's to turn into success or to return through final.
func (q *Queue) persist(ctx context.Context, what string, fn func(context.Context) error) error {
	wait := 50 * time.Millisecond
	for try := 1; ; try++ {
		err := fn(ctx)
		if err == nil {
			return nil
		}
		if f, ok := errors.AsType[*finalError](err); ok {
			return fmt.Errorf("%s: %w", what, f.err)
		}
		if try == 3 {
			q.o.Logger.Warn("queue step is being repeated", "step", what, "error", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, context.Cause(ctx), err)
		case <-time.After(wait):
		}
		wait = min(2*wait, 500*time.Millisecond)
	}
}

// finalError ends a persist.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }

func newMsg(subject string, data []byte) *nats.Msg {
	return &nats.Msg{Subject: subject, Data: data, Header: make(nats.Header, 2)}
}
