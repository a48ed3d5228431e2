package queue

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postroad/queue/embedded"
)

// TestJobsAreCrowded: neither JOBS nor LATER is above the watermark, but what is ready could not be put off any more. Were both full, workers and
// timers would wait for the room of each other for good. So nothing new is taken, and the signer makes no jobs, until there is room.
func TestJobsAreCrowded(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), MaxBytes: StoreBytes(limit), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	q, err := Open(t.Context(), Options{Connect: s.Connect, Node: "test", MaxBytes: limit, Logger: slog.New(slog.DiscardHandler), leeway: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = q.Close(context.Background()); _ = s.Stop(context.Background()) }()
	j := q.storeMail(t, NewID(), "example.com")[0]
	j.Reason = strings.Repeat("x", limit/2)
	ready := q.storeJob(t, q.readySpot("example.com"), j, 1)
	q.storeJob(t, laterSpot("4h"), j, 2)
	eventually(t, "Full() does not show that jobs have no room", q.Full)

	ctx, cancel := context.WithCancel(t.Context())
	var signer sync.WaitGroup
	defer signer.Wait()
	defer cancel()
	var signed atomic.Int64
	signer.Go(func() {
		_ = q.Sign(ctx, 8, func(ctx context.Context, s *Signing) { signed.Add(1); _ = s.Signed(ctx, "") })
	})
	_ = sleep(t.Context(), 4*crowdedPause)
	if n := signed.Load(); n > 0 {
		t.Errorf("%d mails were signed while there was no room for their jobs", n)
	}
	if err := q.dropJob(t.Context(), ready); err != nil {
		t.Fatal(err)
	}
	eventually(t, "mail is not signed although there is room", func() bool { return signed.Load() == 1 && !q.Full() })
}
