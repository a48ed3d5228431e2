package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/ops"
	"postroad/queue"
	"postroad/signer/keyring"
)

// listener notes what is announced.
type listener struct {
	mu    sync.Mutex
	said  []queue.Node
	left  []string
	fails error
}

func (l *listener) Announce(_ context.Context, n queue.Node) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said = append(l.said, n)
	return l.fails
}

func (l *listener) Leave(_ context.Context, name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = append(l.left, name)
	return nil
}

func (l *listener) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.said)
}

func TestAnnouncer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &listener{}
		var mu sync.Mutex
		var conditions []queue.Condition
		a := &announcer{queue: l, log: slog.New(slog.DiscardHandler), kick: make(chan struct{}, 1)}
		a.self = func() queue.Node {
			mu.Lock()
			defer mu.Unlock()
			return queue.Node{Name: "n", Draining: a.draining.Load(), Conditions: conditions}
		}
		expect := func(what string, n int) {
			t.Helper()
			synctest.Wait()
			if got := l.count(); got != n {
				t.Errorf("%s: got %d announcements, want %d", what, got, n)
			}
		}
		a.start()
		expect("at once", 1)
		time.Sleep(30*time.Second + lookEvery/2)
		expect("every ten seconds", 4)
		mu.Lock()
		conditions = []queue.Condition{{Part: "signer", Text: "away"}}
		mu.Unlock()
		time.Sleep(lookEvery)
		expect("a condition", 5)
		time.Sleep(3 * lookEvery)
		expect("the same", 5)
		l.mu.Lock()
		l.fails = errors.New("no bucket")
		l.mu.Unlock()
		time.Sleep(time.Minute)
		if n := l.count(); n < 14 || n > 18 {
			t.Errorf("got %d announcements, want one every five or six seconds while they fail", n)
		}
		l.mu.Lock()
		l.fails = nil
		l.mu.Unlock()
		a.drain()
		synctest.Wait()
		if last := l.said[len(l.said)-1]; !last.Draining {
			t.Errorf("got %+v, want that it ends", last)
		}
		if err := a.stop(t.Context()); err != nil || len(l.left) != 1 || l.left[0] != "n" {
			t.Errorf("got %v, left %v, want that it has left", err, l.left)
		}
	})
}

// TestClusterKnowsItsNodes starts roles apart: each is known, a missing key is a condition of the signer that goes, and who stops leaves.
func TestClusterKnowsItsNodes(t *testing.T) {
	port, got := destination(t, accepts)
	dir := shortDir(t)
	store := testConfig(filepath.Join(dir, "q"), port)
	store.Roles, store.Queue.Listen, store.Queue.Node = []config.Role{config.RoleQueue, config.RoleOps}, "127.0.0.1:0", "store"
	url := start(t, store).QueueURL()
	secretsDir := filepath.Join(dir, "secrets")
	if err := os.MkdirAll(filepath.Join(secretsDir, "dkim"), 0o700); err != nil {
		t.Fatal(err)
	}
	open := func(role config.Role) *Daemon {
		c := testConfig(filepath.Join(dir, string(role)), port)
		c.Roles, c.Queue.URLs, c.Queue.Node = []config.Role{role}, []string{url}, string(role)
		c.Secrets.Dir, c.Signer.MissingKey = secretsDir, config.MissingHold
		return start(t, c)
	}
	open(config.RoleSigner)
	open(config.RoleDelivery)
	in := open(config.RoleIngress)
	client := ops.NewClient(store.SocketPath())
	status := func() *ops.Status {
		t.Helper()
		st, err := client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	waitFor(t, func() bool { return status().Well })
	st := status()
	var names []string
	for _, n := range st.Nodes {
		names = append(names, n.Name)
		if n.Version != "test" || n.Host != "relay.test.example" || !strings.HasPrefix(n.Facts["config"], "sha256:") {
			t.Errorf("got %+v, want version, host and configuration", n)
		}
	}
	if strings.Join(names, " ") != "delivery ingress signer store" || !st.Embedded || st.Asked != "store" {
		t.Errorf("got nodes %v, embedded %t, asked %s", names, st.Embedded, st.Asked)
	}
	send(t, in.Addrs()[0], "waits")
	waitFor(t, func() bool { return !status().Well })
	waitFor(t, func() bool {
		st = status()
		return len(st.Attention) == 1 && len(st.Attention[0].Nodes) == 1
	})
	if a := st.Attention[0]; a.Nodes[0] != "signer" || !strings.Contains(a.Text, "1 mail waits for keys of b.example") || !strings.Contains(a.Do, "postroad dkim new") {
		t.Errorf("got %+v, want that mail waits for a key", a)
	}
	if len(got) > 0 {
		t.Error("the message left without a signature")
	}
	if _, err := keyring.Generate(secretsDir, "b.example", "s1", keyring.RSA); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { // the signer may not have looked at the files yet
		if _, err := client.Do(t.Context(), ops.ActionRetry, ops.Order{Selection: ops.Selection{All: true}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		return len(got) > 0
	})
	waitFor(t, func() bool { return status().Well })
	if err := in.Stop(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		nodes, err := client.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(nodes) == 3
	})
	waitFor(t, func() bool {
		for _, a := range status().Attention {
			if strings.Contains(a.Text, "no process has the role ingress") {
				return true
			}
		}
		return false
	})
}
