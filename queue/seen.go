package queue

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A client that loses its connection before it has read the 250 sends the message again (RFC 1047). SEEN remembers for a
// while what was accepted, by a key that the caller makes of the message. It is a stream in memory, on as many servers as the others,
// so noting a message costs no sync; when all servers stop at once it is empty, and a repeat is delivered twice.
const (
	seenTimeout     = time.Second
	rememberTimeout = 500 * time.Millisecond
	seenPause       = 2 * time.Second // after a failure: mail does not wait for this
)

var errSeenRests = errors.New("the memory of messages did not answer a moment ago")

func seenSubject(key [32]byte) string { return "seen." + base64.RawURLEncoding.EncodeToString(key[:]) }

// Seen finds the message that was remembered under a key. An error means: not known; it takes a second at most.
//
// Any copy may answer. One lags behind the leader by a round trip, and a client comes back after seconds, so the leader's
// own answer is not worth its price; a copy that is cut off may miss a repeat.
func (q *Queue) Seen(ctx context.Context, key [32]byte) (MessageID, bool, error) {
	if q.seenRests() {
		return "", false, fmt.Errorf("look for a repeat: %w", errSeenRests)
	}
	ctx, cancel := q.bound(ctx, seenTimeout)
	defer cancel()
	m, err := q.get(ctx, streamSeen, seenSubject(key))
	if errors.Is(err, errAbsent) {
		return "", false, nil
	}
	if err != nil {
		q.restSeen(err)
		return "", false, fmt.Errorf("look for a repeat: %w", err)
	}
	id, err := ParseID(string(m.data))
	if err != nil {
		return "", false, fmt.Errorf("look for a repeat: %w", err)
	}
	return id, true, nil
}

// Remember notes a message that is stored, before its client is told. It takes half a second at most; an error means that a repeat may
// not be noticed, and is no reason to refuse the message. When the memory is full the oldest messages are forgotten before
// Options.SeenWindow is over.
func (q *Queue) Remember(ctx context.Context, key [32]byte, id MessageID) error {
	if q.seenRests() {
		return fmt.Errorf("remember %s: %w", id, errSeenRests)
	}
	ctx, cancel := q.onLink(ctx, rememberTimeout)
	defer cancel()
	_, err := q.js.PublishMsg(ctx, newMsg(seenSubject(key), []byte(id)), jetstream.WithRetryAttempts(0))
	if err != nil {
		q.restSeen(err)
		return fmt.Errorf("remember %s: %w", id, err)
	}
	return nil
}

func (q *Queue) seenRests() bool { return time.Now().UnixNano() < q.seenRest.Load() }

// restSeen leaves SEEN alone for a while, so that not each message waits for it in vain.
func (q *Queue) restSeen(err error) {
	if !errors.Is(err, context.Canceled) {
		q.seenRest.Store(time.Now().Add(seenPause).UnixNano())
	}
}
