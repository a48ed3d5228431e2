package cluster

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"postroad/queue"
)

// TestRolesSpeakOfThemselves uses what the permissions are for, with the logins of each role: announcements, notices, uses, the lead.
func TestRolesSpeakOfThemselves(t *testing.T) {
	s := startServers(t)
	openQueue(t, s, UserAdmin, string(UserAdmin))
	roles := make(map[User]*queue.Queue)
	for _, u := range []User{UserIngress, UserSigner, UserDelivery, UserOps} {
		roles[u] = openQueue(t, s, u, string(u))
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
		for end := time.Now().Add(2 * time.Minute); !hears && time.Now().Before(end); {
			if err := roles[UserOps].Notify(t.Context(), topic, "x"); err != nil {
				t.Logf("notify: %v", err)
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
	case <-time.After(2 * time.Minute):
		t.Error("the signer may not lead")
	}
	ops := roles[UserOps]
	persistently(t, "nodes", func() error { // each is forgotten after 45 seconds, and copies lag behind
		for u, q := range roles {
			if err := q.Announce(t.Context(), queue.Node{Roles: []string{string(u)}}); err != nil {
				return err
			}
		}
		nodes, err := ops.Nodes(t.Context())
		var names []string
		for _, n := range nodes {
			names = append(names, n.Name)
		}
		if got := strings.Join(names, " "); err == nil && got != "delivery ingress ops signer" {
			err = fmt.Errorf("got nodes %s", got)
		}
		return err
	})
	persistently(t, "uses", func() error {
		if err := roles[UserIngress].NoteUse(t.Context(), queue.Use{Client: "web", Password: "p1"}); err != nil {
			return err
		}
		uses, err := ops.Uses(t.Context())
		if err == nil && (len(uses) != 1 || uses[0].Node != "ingress") {
			err = fmt.Errorf("got uses %v", uses)
		}
		return err
	})
	persistently(t, "overview", func() error {
		o, err := ops.Overview(t.Context())
		switch {
		case err != nil:
			return err
		case len(o.Missing)+len(o.Aside) > 0 || len(o.Streams) < 10 || len(o.Streams[0].Replicas) != Copies-1:
			return fmt.Errorf("got %+v, want all streams with their copies", o)
		case len(o.Leases) != 1 || o.Leases[0].Name != "rotation" || o.Leases[0].Holder != "signer":
			return fmt.Errorf("got leases %+v, want that the signer leads", o.Leases)
		}
		return nil
	})
	cancel()
	wg.Wait()
	persistently(t, "leave", func() error { return roles[UserSigner].Leave(t.Context(), "signer") })
	if _, err := roles[UserSigner].Nodes(t.Context()); err == nil {
		t.Error("the signer reads what others say of themselves")
	}
}

// trySuppressions: operators and delivery write the list of those who are not to be written to and read it, ingress and signer do neither.
func trySuppressions(t *testing.T, roles map[User]*queue.Queue) {
	t.Helper()
	persistently(t, "suppress", func() error {
		return roles[UserOps].Suppress(t.Context(), queue.Suppression{Address: "bob@example.com"})
	})
	persistently(t, "note a refusal", func() error {
		return roles[UserDelivery].NoteRefusal(t.Context(), queue.Suppression{Address: "carol@example.com"}, 2, time.Hour, time.Hour)
	})
	for _, u := range []User{UserOps, UserDelivery} {
		persistently(t, string(u)+": read the list", func() error { // a copy may lag
			n := 0
			if _, err := roles[u].SuppressionChanges(t.Context(), queue.SuppressionPosition{}, func(queue.SuppressionChange) { n++ }); err != nil {
				return err
			}
			s, err := roles[u].Suppression(t.Context(), queue.SuppressionKey("", "bob@example.com"))
			if err == nil && (n != 2 || s == nil) {
				err = fmt.Errorf("got %d changes and %v", n, s)
			}
			return err
		})
	}
	counted := 0
	persistently(t, "count what bounced", func() error {
		counted++
		_, err := roles[UserDelivery].CountBounced(t.Context(), "web01", queue.Bounced{Ended: 1}, time.Hour)
		return err
	})
	persistently(t, "ask what bounced", func() error {
		got, err := roles[UserOps].CountBounced(t.Context(), "web01", queue.Bounced{}, time.Hour)
		if err == nil && got.Ended > counted {
			t.Errorf("got %v", got)
		}
		return err
	})
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
