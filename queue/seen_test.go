package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

func seenKey(i int) [32]byte {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], uint64(i)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(key[24:], uint64(i))
	return key
}

func TestSeen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startServer(t, dir)
	first := openNode(t, s, "mx1")
	second := openNode(t, s, "mx2", func(o *Options) { o.Follow = true })
	if _, known, err := first.Seen(t.Context(), seenKey(1)); known || err != nil {
		t.Fatalf("before: got %v, %v", known, err)
	}
	id := NewID()
	if err := first.Remember(t.Context(), seenKey(1), id); err != nil {
		t.Fatal(err)
	}
	if got, known, err := second.Seen(t.Context(), seenKey(1)); got != id || !known || err != nil {
		t.Errorf("got %s, %v, %v, want %s", got, known, err, id)
	}
	if _, known, err := second.Seen(t.Context(), seenKey(2)); known || err != nil {
		t.Errorf("another key: got %v, %v", known, err)
	}
	openNode(t, s, "mx3", func(o *Options) { o.SeenWindow = 2 * time.Second })
	eventually(t, "still known long after its window", func() bool {
		_, known, err := second.Seen(t.Context(), seenKey(1))
		if err != nil {
			t.Fatal(err)
		}
		return !known
	})
}

// TestSeenHoldsNothingUp: when the memory of messages does not answer, mail does not wait for it each time.
func TestSeenHoldsNothingUp(t *testing.T) {
	t.Parallel()
	q := openNode(t, startServer(t, t.TempDir()), "mx1", func(o *Options) { o.leeway = 0 })
	if err := q.js.DeleteStream(t.Context(), streamSeen); err != nil {
		t.Fatal(err)
	}
	began, asked := time.Now(), 0
	for range 100 {
		_, _, lookErr := q.Seen(t.Context(), seenKey(1))
		for _, err := range []error{q.Remember(t.Context(), seenKey(1), NewID()), lookErr} {
			if err == nil {
				t.Fatal("remembered, or looked, nowhere")
			}
			if !errors.Is(err, errSeenRests) {
				asked++
			}
		}
	}
	if most := 1 + int(time.Since(began)/seenPause); asked < 1 || asked > most {
		t.Errorf("it was asked %d times, want %d at most", asked, most)
	}
	if err := q.Accept(t.Context(), NewID(), sampleEnvelopeTo("example.com"), strings.NewReader("content")); err != nil {
		t.Error(err)
	}
}

// TestRefusesServerWithoutMemory: an old nats-server configuration, with the words that cure it.
func TestRefusesServerWithoutMemory(t *testing.T) {
	t.Parallel()
	began := time.Now()
	_, err := openOn(t, &server.Options{DontListen: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 40, JetStreamMaxMemory: 1 << 20},
		Options{MaxBytes: 1 << 20})
	if err == nil || !strings.Contains(err.Error(), "max_memory_store: 256MB") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 55*time.Second { // and a minute if it tried on
		t.Errorf("took %s", took)
	}
}

// TestClusterRemembers: what one process spends and remembers, another one knows, also after the leaders are gone. When all
// servers have stopped at once the limits are still known and the messages are not.
func TestClusterRemembers(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	first, second := c.open(t, "mx1"), c.open(t, "mx2")
	defer closeQueue(t, first)
	defer closeQueue(t, second)
	l := Limit{100, time.Hour}
	key := ""
	spend := func(q *Queue, n int, want bool) {
		t.Helper()
		patiently(t, "spend", func(ctx context.Context) error {
			spent, err := q.Spend(ctx, key, n, l)
			if err == nil && spent.OK != want {
				t.Errorf("spend %d: got %+v, want %v", n, spent, want)
			}
			return err
		})
	}
	remember := func(q *Queue, i int) MessageID {
		t.Helper()
		id := NewID()
		patiently(t, "remember", func(ctx context.Context) error { return q.Remember(ctx, seenKey(i), id) })
		return id
	}
	seen := func(q *Queue, i int, want MessageID) {
		t.Helper()
		patiently(t, "look", func(ctx context.Context) error {
			got, _, err := q.Seen(ctx, seenKey(i))
			if err == nil && got != want { // a copy may lag
				err = fmt.Errorf("message %d: got %q, want %q", i, got, want)
			}
			return err
		})
	}
	var ids []MessageID
	for i := range 20 {
		ids = append(ids, remember(first, i))
		seen(second, i, ids[i])
	}
	patiently(t, "spend", func(ctx context.Context) error { // what is spent with an answer that never came is spent of another key
		key = "client/" + strings.ToLower(string(NewID()))
		spent, err := first.Spend(ctx, key, 60, l)
		if err == nil && !spent.OK {
			t.Errorf("spend 60: got %+v", spent)
		}
		return err
	})
	spend(second, 60, false)
	for i, s := range c.servers {
		s.Shutdown()
		s.WaitForShutdown()
		spend(second, 60, false)
		c.start(t, i)
		patiently(t, "wait for the copies", func(ctx context.Context) error {
			return errors.Join(agreed(ctx, first), c.haveAll(streamSeen, len(ids)))
		})
	}
	for i, id := range ids {
		seen(second, i, id)
	}
	spend(second, 10, true) // of the 40 that are left some may be lost with an answer that never came
	for _, s := range c.servers {
		s.Shutdown()
		s.WaitForShutdown()
	}
	for i := range c.servers {
		c.start(t, i)
	}
	remember(second, 100)
	seen(second, 0, "")
	spend(first, 50, false)
}

// patiently repeats what a cluster that looks for its leaders cannot do yet.
func patiently(t *testing.T, what string, fn func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	for {
		once, end := context.WithTimeout(ctx, 10*time.Second) // a server that went down answers nothing
		err := fn(once)
		end()
		if err == nil {
			return
		}
		if sleep(ctx, 200*time.Millisecond) != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// agreed reports whether all copies of what these tests use have caught up.
func agreed(ctx context.Context, q *Queue) error {
	for _, name := range []string{streamSeen, streamLimits} {
		s, err := q.js.Stream(ctx, name)
		if err != nil {
			return err
		}
		c := s.CachedInfo().Cluster
		if c == nil || c.Leader == "" || len(c.Replicas) != 2 {
			return fmt.Errorf("stream %s has no leader or too few copies: %+v", name, c)
		}
		for _, r := range c.Replicas {
			if !r.Current || r.Offline {
				return fmt.Errorf("copy of stream %s on %s lags behind", name, r.Name)
			}
		}
	}
	return nil
}

// haveAll asks every server for its own copy of a stream: the leader may call one current that has only just come back.
func (c *cluster) haveAll(stream string, messages int) error {
	for _, s := range c.servers {
		view, err := s.Jsz(&server.JSzOptions{Accounts: true, Streams: true})
		if err != nil {
			return err
		}
		got := -1
		for _, a := range view.AccountDetails {
			for _, d := range a.Streams {
				if d.Name == stream {
					got = int(d.State.Msgs)
				}
			}
		}
		if got != messages {
			return fmt.Errorf("server %s has %d messages of %s, want %d", s.Name(), got, stream, messages)
		}
	}
	return nil
}

// BenchmarkSeen is what a message costs that is looked for and remembered.
func BenchmarkSeen(b *testing.B) {
	q := openNode(b, startServer(b, b.TempDir()), "bench")
	id := NewID()
	b.Run("look", func(b *testing.B) {
		for i := range b.N {
			if _, _, err := q.Seen(b.Context(), seenKey(i)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("leader", func(b *testing.B) {
		for i := range b.N {
			if _, err := q.getLeader(b.Context(), streamSeen, seenSubject(seenKey(i))); err == nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("remember", func(b *testing.B) {
		for i := range b.N {
			if err := q.Remember(b.Context(), seenKey(i), id); err != nil {
				b.Fatal(err)
			}
		}
	})
}
