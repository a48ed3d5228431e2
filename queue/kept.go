package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Topics of what delivery keeps for all its processes beside mail. Mail flows without it.
const (
	KeptPolicies = "sts" // MTA-STS policies
	KeptTallies  = "rpt" // what is counted for TLS reports
)

// Each topic has a bucket of its own: one that is full refuses what is new, and outsiders have a hand in how much is counted.
const (
	keptBucket   = "tls" // of policies
	tallyBucket  = "tallies"
	keptMaxBytes = 128 << 20 // of each
	maxKept      = 256 << 10 // octets of a value
	maxKeptKey   = 300       // octets of a key
)

// ErrChanged says that another process has changed a kept value meanwhile.
var ErrChanged = errors.New("another process has changed the value")

func keptToken(topic, key string) (string, error) {
	if err := checkTopic(topic); err != nil {
		return "", err
	}
	if key == "" || len(key) > maxKeptKey {
		return "", fmt.Errorf("key of %d octets, want 1 to %d", len(key), maxKeptKey)
	}
	return topic + "." + encodeToken(key), nil
}

// keptIn is the bucket of a topic.
func keptIn(topic string) string {
	if topic == KeptTallies {
		return tallyBucket
	}
	return keptBucket
}

// Recall gives a kept value and its revision; nothing and, where there never was one, revision 0 when there is none. What Keep wrote a moment
// ago may not be seen yet: Keep tells then.
func (q *Queue) Recall(ctx context.Context, topic, key string) (value []byte, revision uint64, err error) {
	token, err := keptToken(topic, key)
	if err != nil {
		return nil, 0, fmt.Errorf("recall %s: %w", topic, err)
	}
	value, revision, err = casBucket{q, keptIn(topic)}.read(ctx, token, false)
	if err != nil {
		return nil, 0, fmt.Errorf("recall %s of %s: %w", topic, key, err)
	}
	return value, revision, nil
}

// Keep replaces the value that had this revision, for ttl (a second at least). Without octets it forgets it. ErrChanged: it has another
// revision; other errors: unknown.
func (q *Queue) Keep(ctx context.Context, topic, key string, value []byte, revision uint64, ttl time.Duration) error {
	token, err := keptToken(topic, key)
	if err != nil {
		return fmt.Errorf("keep %s: %w", topic, err)
	}
	if len(value) > maxKept {
		return fmt.Errorf("keep %s of %s: %d octets, want %d at most", topic, key, len(value), maxKept)
	}
	if len(value) == 0 {
		ttl = time.Minute // of the mark
	}
	_, err = casBucket{q, keptIn(topic)}.write(ctx, token, value, revision, max(time.Second, ttl.Truncate(time.Second)))
	if errors.Is(err, errConflict) {
		return fmt.Errorf("keep %s of %s: %w", topic, key, ErrChanged)
	}
	if err != nil {
		return fmt.Errorf("keep %s of %s: %w", topic, key, err)
	}
	return nil
}

// Kept lists the keys of a topic that have a value.
func (q *Queue) Kept(ctx context.Context, topic string) ([]string, error) {
	if err := checkTopic(topic); err != nil {
		return nil, fmt.Errorf("list %s: %w", topic, err)
	}
	prefix := "$KV." + keptIn(topic) + "." + topic + "."
	var keys []string
	for from := uint64(1); ; {
		batch, err := q.getBatch(ctx, "KV_"+keptIn(topic), prefix+"*", map[string]any{"seq": from})
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", topic, err)
		}
		for _, m := range batch {
			from = m.seq + 1
			key, err := decodeToken(strings.TrimPrefix(m.subject, prefix))
			if err == nil && len(m.data) > 0 {
				keys = append(keys, key)
			}
		}
		if len(batch) == 0 {
			return keys, nil
		}
	}
}

// Originate stores a message of our own making, as a notification: the signer signs it for our own domain only. A message of this id that
// is there already is left as it is. The payload and its envelope together have 1 MiB at most.
func (q *Queue) Originate(ctx context.Context, id MessageID, env Envelope, payload []byte) error {
	if len(env.Recipients) == 0 {
		return errors.New("originate: envelope without recipients")
	}
	data, err := encodeMail(mailHeader{Envelope: env, Parts: len(partition(env.Recipients)), Size: int64(len(payload))}, payload)
	if err != nil {
		return err
	}
	_, err = q.putConfirmed(ctx, mailSubject(KindDSN, id), data)
	return err
}
