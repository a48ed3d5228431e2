package cluster

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"postroad/queue"
)

// openQueue opens the queue as a role does.
func openQueue(t *testing.T, s *Servers, u User, node string) *queue.Queue {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	q, err := queue.Open(ctx, queue.Options{
		Connect: func(extra ...nats.Option) (*nats.Conn, error) { return s.Connect(u, extra...) },
		Node:    node, Logger: slog.New(slog.DiscardHandler), MaxBytes: 1 << 30, Replicas: Copies, Follow: u != UserAdmin,
	})
	if err != nil {
		t.Fatalf("open the queue as %s: %v", u, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := q.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return q
}

// TestLimitsAndRepeatsOfIngress: two ingress processes with the login of their role, on three servers as they are deployed,
// share a limit and know what the other one has accepted.
func TestLimitsAndRepeatsOfIngress(t *testing.T) {
	s := startServers(t)
	openQueue(t, s, UserAdmin, "manager")
	for _, u := range []User{UserSigner, UserDelivery, UserOps} { // each role finds what it waits for
		openQueue(t, s, u, string(u))
	}
	first, second := openQueue(t, s, UserIngress, "mx1"), openQueue(t, s, UserIngress, "mx2")
	ctx := t.Context()
	l := queue.Limit{Count: 360, Window: time.Hour}
	total := 0
	for i := range 400 {
		q := []*queue.Queue{first, second}[i%2]
		spent, err := q.Spend(ctx, "client/web01.example.com", 1, l)
		if err != nil {
			t.Fatal(err)
		}
		if spent.OK {
			total++
		}
	}
	if total > l.Count || total < l.Count-10 { // a block may wait for its giving back
		t.Errorf("%d were given, want %d", total, l.Count)
	}
	key, id := [32]byte{1, 2, 3}, queue.NewID()
	if err := first.Remember(ctx, key, id); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // copies lag behind by a round trip
	if got, known, err := second.Seen(ctx, key); err != nil || !known || got != id {
		t.Errorf("got %s, %v, %v, want %s", got, known, err, id)
	}
}
