package cluster

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"postroad/queue"
)

// TestRolesSpeakOfThemselves uses what the permissions are for, with the logins of each role: announcements, notices, uses, the lead.
func TestRolesSpeakOfThemselves(t *testing.T) {
	s := startServers(t)
	open := func(u User, follow bool) *queue.Queue {
		t.Helper()
		o := queue.Options{Node: string(u), Replicas: Copies, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler), Follow: follow,
			Connect: func(extra ...nats.Option) (*nats.Conn, error) { return s.Connect(u, extra...) }}
		q, err := queue.Open(t.Context(), o)
		for end := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(end); q, err = queue.Open(t.Context(), o) {
			t.Logf("open as %s, tried again: %v", u, err) // servers that have just begun do not know of each other yet
			time.Sleep(time.Second)
		}
		if err != nil {
			t.Fatalf("open as %s: %v", u, err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := q.Close(ctx); err != nil {
				t.Error(err)
			}
		})
		return q
	}
	open(UserAdmin, false)
	roles := make(map[User]*queue.Queue)
	for _, u := range []User{UserIngress, UserSigner, UserDelivery, UserOps} {
		roles[u] = open(u, true)
		if err := roles[u].Announce(t.Context(), queue.Node{Roles: []string{string(u)}}); err != nil {
			t.Error(err)
		}
	}
	if err := roles[UserIngress].NoteUse(t.Context(), queue.Use{Client: "web", Password: "p1"}); err != nil {
		t.Error(err)
	}
	heard := make(chan string, 10)
	for u, topic := range map[User]string{UserSigner: "dkim", UserIngress: "clients", UserDelivery: "tls"} {
		stop, err := roles[u].OnNotice(topic, func(name string) {
			select {
			case heard <- topic + " " + name:
			default:
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		// Servers tell each other who listens to what; a notice that is quicker is lost, so it is repeated.
		hears := false
		for end := time.Now().Add(20 * time.Second); !hears && time.Now().Before(end); {
			if err := roles[UserOps].Notify(t.Context(), topic, "x"); err != nil {
				t.Fatal(err)
			}
			select {
			case got := <-heard: // perhaps a repeat of the topic before
				hears = got == topic+" x"
			case <-time.After(200 * time.Millisecond):
			}
		}
		if !hears {
			t.Errorf("%s does not hear of %s", u, topic)
		}
	}
	trySuppressions(t, roles)
	tryTap(t, roles)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	leads := make(chan struct{}, 1)
	wg.Go(func() {
		roles[UserSigner].Lead(ctx, "rotation", func(ctx context.Context) { leads <- struct{}{}; <-ctx.Done() })
	})
	select {
	case <-leads:
	case <-time.After(20 * time.Second):
		t.Error("the signer may not lead")
	}
	ops := roles[UserOps]
	nodes, err := ops.Nodes(t.Context())
	var names []string
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	if got := strings.Join(names, " "); err != nil || got != "delivery ingress ops signer" {
		t.Errorf("got nodes %s, %v", got, err)
	}
	uses, err := ops.Uses(t.Context())
	if err != nil || len(uses) != 1 || uses[0].Node != "ingress" {
		t.Errorf("got uses %v, %v", uses, err)
	}
	o, err := ops.Overview(t.Context())
	if err != nil || len(o.Missing)+len(o.Aside) > 0 || len(o.Streams) < 10 || len(o.Streams[0].Replicas) != Copies-1 {
		t.Errorf("got %+v, %v, want all streams with their copies", o, err)
	}
	if len(o.Leases) != 1 || o.Leases[0].Name != "rotation" || o.Leases[0].Holder != "signer" {
		t.Errorf("got leases %+v, want that the signer leads", o.Leases)
	}
	cancel()
	wg.Wait()
	if err := roles[UserSigner].Leave(t.Context(), "signer"); err != nil {
		t.Error(err)
	}
	if _, err := roles[UserSigner].Nodes(t.Context()); err == nil {
		t.Error("the signer reads what others say of themselves")
	}
}

// trySuppressions: operators and delivery write the list of those who are not to be written to and read it, ingress and signer do neither.
func trySuppressions(t *testing.T, roles map[User]*queue.Queue) {
	t.Helper()
	if err := roles[UserOps].Suppress(t.Context(), queue.Suppression{Address: "bob@example.com"}); err != nil {
		t.Error(err)
	}
	if err := roles[UserDelivery].NoteRefusal(t.Context(), queue.Suppression{Address: "carol@example.com"}, 2, time.Hour, time.Hour); err != nil {
		t.Error(err)
	}
	for _, u := range []User{UserOps, UserDelivery} {
		n := 0
		for end := time.Now().Add(time.Minute); n != 2 && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			n = 0
			if _, err := roles[u].SuppressionChanges(t.Context(), queue.SuppressionPosition{}, func(queue.SuppressionChange) { n++ }); err != nil {
				t.Error(err)
			}
		}
		if s, err := roles[u].Suppression(t.Context(), queue.SuppressionKey("", "bob@example.com")); n != 2 || err != nil || s == nil {
			t.Errorf("%s: got %d changes, %v, %v", u, n, s, err)
		}
	}
	if _, err := roles[UserDelivery].CountBounced(t.Context(), "web01", queue.Bounced{Ended: 1}, time.Hour); err != nil {
		t.Error(err)
	}
	if got, err := roles[UserOps].CountBounced(t.Context(), "web01", queue.Bounced{}, time.Hour); err != nil || got.Ended > 1 {
		t.Errorf("got %v, %v", got, err)
	}
	for _, u := range []User{UserIngress, UserSigner} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if s, err := roles[u].Suppression(ctx, queue.SuppressionKey("", "bob@example.com")); err == nil {
			t.Errorf("%s reads the list: %v", u, s)
		}
		cancel()
		if err := roles[u].Suppress(t.Context(), queue.Suppression{Address: "dave@example.com"}); err == nil {
			t.Errorf("%s writes to the list", u)
		}
	}
}
