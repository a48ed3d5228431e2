package queue

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// casBucket is a bucket whose values processes replace by compare and swap. Its keys end by themselves.
type casBucket struct {
	q    *Queue
	name string
}

func (b casBucket) stream() string { return "KV_" + b.name }

func (b casBucket) subject(token string) string { return "$KV." + b.name + "." + token }

// read gets the value of a key and its revision; nothing, revision 0, when there is none. A first look may be of an old one; again must not
// be.
func (b casBucket) read(ctx context.Context, token string, again bool) ([]byte, uint64, error) {
	get := b.q.get
	if again {
		get = b.q.getLeader // a replica that lags would make us lose once more
	}
	m, err := get(ctx, b.stream(), b.subject(token))
	if errors.Is(err, errAbsent) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	return m.data, m.seq, nil
}

// write replaces the value of that revision and returns the next one. errConflict: it was certainly not written; other errors: it may be.
// The key ends ttl, in whole seconds, after it was last written.
func (b casBucket) write(ctx context.Context, token string, data []byte, revision uint64, ttl time.Duration) (uint64, error) {
	ctx, cancel := b.q.onLink(ctx, publishTimeout)
	defer cancel()
	m := newMsg(b.subject(token), data)
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(revision, 10))
	m.Header.Set(jetstream.MsgTTLHeader, ttl.String())
	ack, err := b.q.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0))
	if hasCode(err, codeWrongLastSeq, codeWrongLastSeqNew) {
		// This publish was made once, so nothing of it can be stored. Only where one is repeated is this answer unknown.
		return 0, fmt.Errorf("%w: %w", errConflict, err)
	}
	b.q.trouble(err)
	if err != nil {
		return 0, fmt.Errorf("write to bucket %s: %w", b.name, err)
	}
	return ack.Sequence, nil
}
