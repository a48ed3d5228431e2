package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Every process of the cluster says of itself what it is and what is wrong with it. That is for people: no step of the queue's
// protocol rests on it, so it is kept in memory by the servers and need not be there.
const (
	// AnnounceEvery is how often a process announces itself.
	AnnounceEvery = 10 * time.Second
	// ForgottenAfter is how long after its last announcement a process is still listed.
	ForgottenAfter = 45 * time.Second

	noteTimeout = 2 * time.Second // for one write of what people want to know

	maxConditions = 50  // of a node
	maxFacts      = 500 // of a node
	maxNodeText   = 500 // octets of each text of a node
)

// Node is a process of the cluster as it describes itself.
type Node struct {
	Name       string            `json:"name"` // Options.Node
	Roles      []string          `json:"roles"`
	Version    string            `json:"version"`
	Host       string            `json:"host"`
	Started    time.Time         `json:"started"`
	Seen       time.Time         `json:"seen"` // its last announcement, by the clock of the servers; Announce leaves it alone
	Draining   bool              `json:"draining,omitempty"`
	Conditions []Condition       `json:"conditions,omitempty"`
	Facts      map[string]string `json:"facts,omitempty"`
}

// Condition is something that is wrong now, in words for people.
type Condition struct {
	Part  string    `json:"part"`            // signer, secrets, queue, certificates, …
	About string    `json:"about,omitempty"` // the domain whose mail waits for keys; EveryDomain
	Text  string    `json:"text"`            // the same for as long as it lasts
	Do    string    `json:"do,omitempty"`
	Since time.Time `json:"since"`
}

// EveryDomain in Condition.About says that no mail can be signed.
const EveryDomain = "*"

// Announce tells the cluster about this process. It is to be called every AnnounceEvery, and at once when something changes; the cluster
// forgets a process ForgottenAfter its last time. It takes two seconds at most. An error needs no answer but the next announcement. Of a
// node the first 50 conditions and 500 facts are kept, and 500 octets of each text.
func (q *Queue) Announce(ctx context.Context, n Node) error {
	if n.Name == "" {
		n.Name = q.o.Node
	}
	data, err := json.Marshal(n.cut())
	if err != nil {
		return fmt.Errorf("announce %s: %w", n.Name, err)
	}
	m := newMsg(nodeSubject(n.Name), data)
	m.Header.Set(jetstream.MsgTTLHeader, ForgottenAfter.String())
	if err := q.note(ctx, m); err != nil {
		return fmt.Errorf("announce %s: %w", n.Name, err)
	}
	return nil
}

// Leave takes a process off the list: it has stopped in good order.
func (q *Queue) Leave(ctx context.Context, name string) error {
	m := newMsg(nodeSubject(name), nil)
	m.Header.Set("KV-Operation", "DEL")
	m.Header.Set(jetstream.MsgTTLHeader, ForgottenAfter.String())
	if err := q.note(ctx, m); err != nil {
		return fmt.Errorf("take %s off the list of nodes: %w", name, err)
	}
	return nil
}

// Nodes lists the processes that have announced themselves of late, by name.
func (q *Queue) Nodes(ctx context.Context) ([]Node, error) {
	var nodes []Node
	err := q.bucketValues(ctx, nodeBucket, func(s *stored) {
		var n Node
		if json.Unmarshal(s.data, &n) != nil {
			return // of another version
		}
		n.Seen = s.time
		nodes = append(nodes, n)
	})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	slices.SortFunc(nodes, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return nodes, nil
}

// cut keeps a node to its bounds.
func (n Node) cut() Node {
	n.Conditions = slices.Clone(n.Conditions[:min(len(n.Conditions), maxConditions)])
	for i := range n.Conditions {
		n.Conditions[i].Text, n.Conditions[i].Do = cutText(n.Conditions[i].Text), cutText(n.Conditions[i].Do)
	}
	facts := make(map[string]string, len(n.Facts))
	for k, v := range n.Facts {
		if len(facts) == maxFacts {
			break
		}
		facts[cutText(k)] = cutText(v)
	}
	n.Facts = facts
	return n
}

func cutText(s string) string {
	if len(s) <= maxNodeText {
		return s
	}
	return strings.ToValidUTF8(s[:maxNodeText], "") + "…"
}

func nodeSubject(name string) string { return "$KV." + nodeBucket + "." + encodeToken(name) }

// note writes what people want to know into a bucket. Its failures are no sign of trouble: the bucket may not be there yet.
func (q *Queue) note(ctx context.Context, m *nats.Msg) error {
	ctx, cancel := q.onLink(ctx, noteTimeout)
	defer cancel()
	_, err := q.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0))
	if errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("%w: its bucket is not there; a process of this version with queue.manage: true makes it", err)
	}
	return err
}

// bucketValues calls fn with every value of a bucket, deletions left out.
func (q *Queue) bucketValues(ctx context.Context, bucket string, fn func(*stored)) error {
	for from := uint64(1); ; {
		batch, err := q.getBatch(ctx, "KV_"+bucket, "$KV."+bucket+".>", map[string]any{"seq": from})
		if err != nil {
			return err
		}
		for _, m := range batch {
			from = m.seq + 1
			if len(m.data) > 0 { // else the mark of one whose time is over, or that was deleted
				fn(m)
			}
		}
		if len(batch) == 0 {
			return nil
		}
	}
}
