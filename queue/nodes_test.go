package queue

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"postroad/queue/embedded"
)

func TestNodes(t *testing.T) {
	q := innerQueue(t)
	ctx := t.Context()
	if nodes, err := q.Nodes(ctx); err != nil || len(nodes) != 0 {
		t.Errorf("got %v, %v before anybody said anything, want none", nodes, err)
	}
	since := time.Now().Add(-time.Minute).UTC().Truncate(time.Second)
	b := Node{Name: "b.example_1", Roles: []string{"signer"}, Version: "1", Host: "b", Started: since, Draining: true,
		Conditions: []Condition{{Part: "signer", Text: "keys out of reach", Since: since}}, Facts: map[string]string{"certificate a": "sha256:00"}}
	for _, n := range []Node{{Name: b.Name, Version: "0"}, b, {Roles: []string{"ingress"}}} {
		if err := q.Announce(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	got, err := q.Nodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []Node{b, {Name: "test", Roles: []string{"ingress"}}}
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(Node{}, "Seen")); d != "" {
		t.Error(d)
	}
	for _, n := range got {
		if age := time.Since(n.Seen); age < 0 || age > time.Minute {
			t.Errorf("%s was seen %s ago, want a moment", n.Name, age)
		}
	}
	if err := q.Leave(ctx, b.Name); err != nil {
		t.Fatal(err)
	}
	if got, err = q.Nodes(ctx); err != nil || len(got) != 1 || got[0].Name != "test" {
		t.Errorf("got %v, %v after one left, want the other", got, err)
	}
}

// TestNodeIsForgotten looks at the time with which an announcement is stored: the servers themselves take it away.
func TestNodeIsForgotten(t *testing.T) {
	q := innerQueue(t)
	if err := q.Announce(t.Context(), Node{}); err != nil {
		t.Fatal(err)
	}
	sub, err := q.nc.SubscribeSync("_INBOX.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := q.nc.PublishRequest("$JS.API.DIRECT.GET.KV_nodes."+nodeSubject("test"), sub.Subject, nil); err != nil {
		t.Fatal(err)
	}
	m, err := sub.NextMsg(time.Minute)
	if err != nil || m.Header.Get("Nats-TTL") != "45s" {
		t.Errorf("got %v, %v, want a life of 45 s", m, err)
	}
}

func TestNodeIsBounded(t *testing.T) {
	n := Node{Facts: make(map[string]string)}
	for i := range 600 {
		n.Conditions = append(n.Conditions, Condition{Text: strings.Repeat("ä", 400)})
		n.Facts[fmt.Sprint(i)] = strings.Repeat("x", 700)
	}
	got := n.cut()
	if len(got.Conditions) != maxConditions || len(got.Facts) != maxFacts {
		t.Errorf("got %d conditions and %d facts, want %d and %d", len(got.Conditions), len(got.Facts), maxConditions, maxFacts)
	}
	if text := got.Conditions[0].Text; text != strings.Repeat("ä", 250)+"…" || n.Conditions[0].Text == text {
		t.Errorf("got %q, and the original must stay as it is", text)
	}
}

func TestUses(t *testing.T) {
	q := innerQueue(t)
	ctx := t.Context()
	at := time.Now().UTC().Truncate(time.Second)
	use := func(client, password string, last time.Time) {
		t.Helper()
		if err := q.NoteUse(ctx, Use{Client: client, Password: password, Last: last, Address: "192.0.2.1"}); err != nil {
			t.Fatal(err)
		}
	}
	use("web", "p2", at)
	use("web", "p1", at.Add(-time.Hour))
	use("web", "p1", at) // not written: within ten minutes of the first
	use("Mail.Host", "p1", at)
	got, err := q.Uses(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []Use{
		{Client: "Mail.Host", Password: "p1", Last: at, Node: "test", Address: "192.0.2.1"},
		{Client: "web", Password: "p1", Last: at.Add(-time.Hour), Node: "test", Address: "192.0.2.1"},
		{Client: "web", Password: "p2", Last: at, Node: "test", Address: "192.0.2.1"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, bad := range []Use{{Password: "p"}, {Client: strings.Repeat("c", 300)}} {
		if err := q.NoteUse(ctx, bad); err == nil {
			t.Errorf("%+v was noted, want an error", bad)
		}
	}
}

func TestUseNotesAreBounded(t *testing.T) {
	var n useNotes
	now := time.Now()
	for i := range maxUses + 100 {
		if !n.turn(useKey{fmt.Sprint(i), "p"}, now) {
			t.Fatalf("pair %d has no turn", i)
		}
	}
	if len(n.next) > maxUses {
		t.Errorf("%d pairs are remembered, want %d at most", len(n.next), maxUses)
	}
	k := useKey{"one", "p"}
	if !n.turn(k, now) || n.turn(k, now.Add(useEvery-time.Second)) || !n.turn(k, now.Add(useEvery)) {
		t.Error("a pair has its turn other than every ten minutes")
	}
	n.failed(k, now)
	if n.turn(k, now) || !n.turn(k, now.Add(useRest)) {
		t.Error("after a failure the turn does not come back in ten seconds")
	}
}

func TestNotices(t *testing.T) {
	q := innerQueue(t)
	ctx := t.Context()
	got := make(chan string, 10)
	stop, err := q.OnNotice("dkim", func(name string) { got <- name })
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range [][2]string{{"clients", "x"}, {"dkim", "Example.COM"}, {"dkim", ""}} {
		if err := q.Notify(ctx, n[0], n[1]); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"Example.COM", ""} {
		select {
		case name := <-got:
			if name != want {
				t.Errorf("got %q, want %q", name, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("no notice of %q", want)
		}
	}
	stop()
	for _, bad := range [][2]string{{"", "x"}, {"a.b", "x"}, {"*", "x"}, {"dkim", strings.Repeat("x", 301)}} {
		if err := q.Notify(ctx, bad[0], bad[1]); err == nil {
			t.Errorf("%q went out, want an error", bad)
		}
	}
	if _, err := q.OnNotice(">", func(string) {}); err == nil {
		t.Error("a wildcard is no topic, want an error")
	}
}

func TestLead(t *testing.T) {
	q := innerQueue(t)
	var leading, most, calls atomic.Int32
	began := make(chan struct{}, 10)
	lead := func(ctx context.Context) {
		if n := leading.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer leading.Add(-1)
		began <- struct{}{}
		if calls.Add(1) > 1 {
			<-ctx.Done()
		} // the first call returns early and is made again
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { q.Lead(ctx, "Rotation", lead) })
	}
	for range 2 {
		select {
		case <-began:
		case <-time.After(time.Minute):
			t.Fatal("nobody leads")
		}
	}
	leases, err := q.Leases(ctx)
	if err != nil || len(leases) != 1 || leases[0].Name != "Rotation" || leases[0].Holder != "test" {
		t.Errorf("got %+v, %v, want the lease and who has it", leases, err)
	}
	cancel()
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d led at once, want 1", most.Load())
	}
	if leases, err := q.Leases(t.Context()); err != nil || len(leases) != 0 {
		t.Errorf("got %+v, %v after the end, want none", leases, err)
	}
}

// TestFollowerOfAnOlderCluster starts where no process has made the new buckets yet.
func TestFollowerOfAnOlderCluster(t *testing.T) {
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), MaxBytes: StoreBytes(1 << 30), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	open := func(node string, follow bool) *Queue {
		t.Helper()
		q, err := Open(t.Context(), Options{Connect: s.Connect, Node: node, MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler), Follow: follow, leeway: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	t.Cleanup(func() {
		if err := s.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	old := open("old", false)
	for _, b := range []string{nodeBucket, useBucket} {
		if err := old.js.DeleteKeyValue(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	follower := open("follower", true)
	defer closeQueue(t, follower)
	if err := follower.Announce(t.Context(), Node{}); err == nil || !strings.Contains(err.Error(), "queue.manage") {
		t.Errorf("got %v, want who makes the bucket", err)
	}
	if _, err := follower.Nodes(t.Context()); err == nil {
		t.Error("nodes without a bucket, want an error")
	}
	closeQueue(t, old)
	upgraded := open("upgraded", false)
	defer closeQueue(t, upgraded)
	if err := follower.Announce(t.Context(), Node{}); err != nil {
		t.Errorf("after the upgrade of the managing process: %v", err)
	}
}

// TestSideBucketsDoNotKeepAStart: what the queue rests on is ready before they are waited for.
func TestSideBucketsDoNotKeepAStart(t *testing.T) {
	s := startServer(t, t.TempDir())
	first := openNode(t, s, "first")
	for _, b := range []string{nodeBucket, useBucket} {
		if err := first.js.DeleteKeyValue(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	warned := slog.New(slog.NewTextHandler(writerFunc(func(line []byte) (int, error) { // it has given the first of them up
		if strings.Contains(string(line), "a bucket is missing") {
			cancel()
		}
		return len(line), nil
	}), nil))
	q, err := Open(ctx, Options{Connect: s.Connect, Node: "second", MaxBytes: 1 << 30, Logger: warned, Follow: true, leeway: time.Minute})
	if err != nil {
		t.Fatalf("got %v although only side buckets are missing", err)
	}
	defer closeQueue(t, q)
	if ctx.Err() == nil {
		t.Error("no side bucket was waited for")
	}
	if _, err := q.kv.leases.Keys(t.Context()); err != nil && !strings.Contains(err.Error(), "no keys") {
		t.Errorf("leases: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(line []byte) (int, error) { return f(line) }
