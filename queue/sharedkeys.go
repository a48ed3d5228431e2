package queue

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Keys that all processes share and nobody outside knows: with them one process proves that something is its own work to another one, an
// address that bounces come back to, say. Whoever may read mail may read them.
const (
	keyBucket      = "keys"
	keysMaxBytes   = 1 << 20
	sharedKeyBytes = 32
	maxSharedKeys  = 50 // of one name
)

// SharedKey is one of the keys of a name.
type SharedKey struct {
	Secret []byte    `json:"secret"`
	Made   time.Time `json:"made"`
}

// SharedKeys reads the keys of a name, the newest first; none: nobody has made any yet.
func (q *Queue) SharedKeys(ctx context.Context, name string) ([]SharedKey, error) {
	keys, _, err := q.sharedKeys(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read keys for %s: %w", name, err)
	}
	return keys, nil
}

func (q *Queue) sharedKeys(ctx context.Context, name string) ([]SharedKey, uint64, error) {
	m, err := q.get(ctx, "KV_"+keyBucket, keySubject(name))
	if errors.Is(err, errAbsent) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	var keys []SharedKey
	if err := json.Unmarshal(m.data, &keys); err != nil {
		return nil, 0, err
	}
	slices.SortFunc(keys, func(a, b SharedKey) int { return b.Made.Compare(a.Made) })
	return keys, m.seq, nil
}

// KeepSharedKeys makes a key for a name when the newest is older than every, and drops those that were replaced longer than kept ago. Any
// number of processes may call it, at any time; of two at the same moment one has no effect.
func (q *Queue) KeepSharedKeys(ctx context.Context, name string, every, kept time.Duration) error {
	keys, revision, err := q.sharedKeys(ctx, name)
	if err != nil {
		return fmt.Errorf("keep keys for %s: %w", name, err)
	}
	now := time.Now().UTC()
	if len(keys) > 0 && now.Sub(keys[0].Made) < every {
		return nil
	}
	fresh := SharedKey{Secret: make([]byte, sharedKeyBytes), Made: now}
	if _, err := rand.Read(fresh.Secret); err != nil {
		return fmt.Errorf("make a key for %s: %w", name, err)
	}
	keys = slices.Insert(keys, 0, fresh)
	for i := 1; i < len(keys); i++ {
		if replaced := keys[i-1].Made; now.Sub(replaced) > kept || i >= maxSharedKeys {
			keys = keys[:i]
		}
	}
	data, err := json.Marshal(keys)
	if err != nil {
		return fmt.Errorf("make a key for %s: %w", name, err)
	}
	m := newMsg(keySubject(name), data)
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(revision, 10))
	if err := q.note(ctx, m); err != nil && !hasCode(err, codeWrongLastSeq, codeWrongLastSeqNew) {
		return fmt.Errorf("store a key for %s: %w", name, err)
	}
	return nil
}

func keySubject(name string) string { return "$KV." + keyBucket + "." + encodeToken(name) }
