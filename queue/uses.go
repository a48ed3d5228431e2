package queue

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	useKept      = 180 * 24 * time.Hour
	useEvery     = 10 * time.Minute // between two writes of one pair by one process
	useRest      = 10 * time.Second // after a write that failed
	maxUses      = 50_000           // pairs that a process remembers to have written
	maxUseText   = 200              // octets of each text of a use
	usesMaxBytes = 64 << 20         // some 150,000 pairs
)

// Use says that a client came with a password, and when it last did.
type Use struct {
	Client   string    `json:"client"`
	Password string    `json:"password"` // its id
	Last     time.Time `json:"last"`
	Node     string    `json:"node,omitempty"`    // that saw it; filled in
	Address  string    `json:"address,omitempty"` // of the client
}

// useNotes is what this process has written of late.
type useNotes struct {
	mu   sync.Mutex
	next map[useKey]time.Time // when it may be written again
}

type useKey struct{ client, password string }

// NoteUse remembers for 180 days that a client used a password; what it notes last is kept. For the same pair each process
// writes once in ten minutes at most, and otherwise returns at once. A write takes up to two seconds: no session should wait
// for it. An error means that the use may not be known, and that another one is noted in ten seconds at the earliest.
func (q *Queue) NoteUse(ctx context.Context, u Use) error {
	if u.Client == "" || len(u.Client) > maxUseText || len(u.Password) > maxUseText {
		return fmt.Errorf("note the use of password %q of client %q: want texts of 1 to %d octets", cutText(u.Password), cutText(u.Client), maxUseText)
	}
	if u.Last.IsZero() {
		u.Last = time.Now()
	}
	if u.Node == "" {
		u.Node = q.o.Node
	}
	u.Address = cutText(u.Address)
	key := useKey{u.Client, u.Password}
	if !q.uses.turn(key, time.Now()) {
		return nil
	}
	data, err := json.Marshal(u)
	if err != nil {
		return fmt.Errorf("note the use of a password of %s: %w", u.Client, err)
	}
	m := newMsg(useSubject(u.Client, u.Password), data)
	m.Header.Set(jetstream.MsgTTLHeader, useKept.String())
	if err := q.note(ctx, m); err != nil {
		q.uses.failed(key, time.Now())
		return fmt.Errorf("note the use of a password of %s: %w", u.Client, err)
	}
	return nil
}

// Uses lists what clients used within 180 days, by client and password.
func (q *Queue) Uses(ctx context.Context) ([]Use, error) {
	var uses []Use
	err := q.bucketValues(ctx, useBucket, func(s *stored) {
		var u Use
		if json.Unmarshal(s.data, &u) == nil {
			uses = append(uses, u)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list uses of passwords: %w", err)
	}
	slices.SortFunc(uses, func(a, b Use) int {
		return cmp.Or(strings.Compare(a.Client, b.Client), strings.Compare(a.Password, b.Password))
	})
	return uses, nil
}

func useSubject(client, password string) string {
	return "$KV." + useBucket + "." + encodeToken(client) + "." + encodeToken(password)
}

// turn reports whether it is time to write a pair, and takes the turn.
func (n *useNotes) turn(k useKey, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now.Before(n.next[k]) {
		return false
	}
	if n.next == nil {
		n.next = make(map[useKey]time.Time)
	}
	if _, known := n.next[k]; !known && len(n.next) >= maxUses {
		n.makeRoom(now)
	}
	n.next[k] = now.Add(useEvery)
	return true
}

// makeRoom forgets what may be written again, and if that is nothing, anything: a pair is then written too often.
func (n *useNotes) makeRoom(now time.Time) {
	for k, at := range n.next {
		if !now.Before(at) {
			delete(n.next, k)
		}
	}
	for k := range n.next {
		if len(n.next) < maxUses {
			return
		}
		delete(n.next, k)
	}
}

func (n *useNotes) failed(k useKey, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.next[k] = now.Add(useRest)
}
