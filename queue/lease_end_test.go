package queue

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// muteBucket gives a lease once.
type muteBucket struct {
	jetstream.KeyValue
	given bool
}

func (m *muteBucket) Create(ctx context.Context, _ string, _ []byte, _ ...jetstream.KVCreateOpt) (uint64, error) {
	if m.given {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	m.given = true
	return 1, nil
}

func (m *muteBucket) Delete(context.Context, string, ...jetstream.KVDeleteOpt) error {
	return errors.New("no answer")
}

// muteServer answers no publish.
type muteServer struct{ jetstream.JetStream }

func (muteServer) PublishMsg(ctx context.Context, _ *nats.Msg, _ ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestLeaseEndsBeforeOthersTakeIt: a holder that gets no answer to its renewals stops before the lease has ended for the others, also while it
// waits for one.
func TestLeaseEndsBeforeOthersTakeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &Queue{o: Options{Node: "test", Logger: slog.New(slog.DiscardHandler)}, js: muteServer{}, nc: &nats.Conn{}}
		q.kv.leases = &muteBucket{}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		asked := time.Now()
		q.holdLease(ctx, "test", func(held context.Context) {
			defer cancel()
			<-held.Done()
			if led := time.Since(asked); led >= leaseTTL || led < leaseTTL/2 {
				t.Errorf("it led for %s, want a little less than %s", led, leaseTTL)
			}
		})
	})
}
