package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"postroad/queue"
)

// openQueue opens the queue as a role does.
func openQueue(t *testing.T, s *Servers, u User, node string) *queue.Queue {
	t.Helper()
	var q *queue.Queue
	persistently(t, "open the queue as "+string(u), func() (err error) { // servers that have just begun do not know of each other yet
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		q, err = queue.Open(ctx, queue.Options{
			Connect: func(extra ...nats.Option) (*nats.Conn, error) { return s.Connect(u, extra...) },
			Node:    node, Logger: slog.New(slog.DiscardHandler), MaxBytes: 1 << 30, Replicas: Copies, Follow: u != UserAdmin,
		})
		return err
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := q.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return q
}

// persistently repeats for two minutes what a cluster on a busy machine may not answer in time, or not yet.
func persistently(t *testing.T, what string, try func() error) {
	t.Helper()
	err := try()
	for end := time.Now().Add(2 * time.Minute); err != nil && time.Now().Before(end); err = try() {
		time.Sleep(200 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
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
	total, lost := 0, 0
	for i := range 400 {
		q := []*queue.Queue{first, second}[i%2]
		persistently(t, "spend", func() error {
			spent, err := q.Spend(ctx, "client/web01.example.com", 1, l)
			if err != nil {
				lost++
			}
			if spent.OK {
				total++
			}
			return err
		})
	}
	// A block may wait for its giving back; and one whose answer never came may be lost.
	if total > l.Count || total < l.Count-10-lost*l.Count/10 {
		t.Errorf("%d were given and %d answers never came, want %d", total, lost, l.Count)
	}
	key, id := [32]byte{1, 2, 3}, queue.NewID()
	persistently(t, "remember", func() error { return first.Remember(ctx, key, id) })
	persistently(t, "look for a repeat", func() error { // copies lag behind by a round trip
		got, known, err := second.Seen(ctx, key)
		if err == nil && (!known || got != id) {
			err = fmt.Errorf("got %s, %v, want %s", got, known, id)
		}
		return err
	})
}
