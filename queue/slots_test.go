package queue

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"postroad/queue/embedded"
)

// testQueues are several processes at one embedded store.
func testQueues(t *testing.T, n int) []*Queue {
	t.Helper()
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), MaxBytes: StoreBytes(1 << 30), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	var all []*Queue
	for i := range n {
		q, err := Open(t.Context(), Options{Connect: s.Connect, Node: string(rune('a' + i)), MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler), leeway: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := q.Close(ctx); err != nil {
				t.Error(err)
			}
		})
		all = append(all, q)
	}
	return all
}

func join(t *testing.T, q *Queue, heard func(string)) *Member {
	t.Helper()
	m, err := q.Join(heard)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); m.Life().Err() != nil && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if m.Life().Err() != nil {
		t.Fatal("no member")
	}
	return m
}

func claim(t *testing.T, m *Member, key string, c Claim) Claimed {
	t.Helper()
	got, err := m.Claim(t.Context(), m.Life(), key, c)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestSlotsAreShared(t *testing.T) {
	qs := testQueues(t, 3)
	heard := make(chan string, 100)
	a := join(t, qs[0], func(key string) { heard <- key })
	b := join(t, qs[1], func(string) {})
	defer b.Leave(context.Background())
	const key = "(a|b).mx.example.net@out-1"
	if got := claim(t, a, key, Claim{Want: 10, Limit: 10}); got.Have != 10 || got.Fair != 10 {
		t.Fatalf("got %+v, want all", got)
	}
	if got := claim(t, b, key, Claim{Want: 4, Limit: 10}); got.Have != 0 {
		t.Fatalf("got %+v, want nothing yet", got)
	}
	select {
	case got := <-heard:
		if got != key {
			t.Errorf("heard of %q", got)
		}
	case <-time.After(time.Minute):
		t.Fatal("who has all was not told that another waits")
	}
	if got := claim(t, a, key, Claim{Use: 10, Want: 10, Limit: 10, Look: true}); got.Have != 10 || got.Fair != 6 {
		t.Errorf("got %+v, want to keep what is in use, and a fair part of 6", got)
	}
	if got := claim(t, a, key, Claim{Use: 6, Want: 10, Limit: 10}); got.Have != 6 {
		t.Errorf("got %+v, want 6", got)
	}
	if got := claim(t, b, key, Claim{Want: 4, Limit: 10}); got.Have != 4 {
		t.Errorf("got %+v, want 4", got)
	}
	uses, err := qs[2].SlotUses(t.Context())
	if err != nil || len(uses) != 1 || uses[0].Key != key || uses[0].Nodes["a"] != 6 || uses[0].Nodes["b"] != 4 {
		t.Errorf("got %+v, %v", uses, err)
	}
	// A member that left has nothing, and its place is free at once.
	a.Leave(t.Context())
	c := join(t, qs[2], func(string) {})
	defer c.Leave(context.Background())
	end := time.Now().Add(time.Minute)
	for claim(t, c, key, Claim{Want: 6, Limit: 10, Look: true}).Have != 6 {
		if time.Now().After(end) {
			t.Fatal("what a member had that left was not free in a minute")
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// TestMemberThatIsGone ends as a killed process does: nobody hears of it.
func TestMemberThatIsGone(t *testing.T) {
	t.Parallel()
	qs := testQueues(t, 2)
	a, b := join(t, qs[0], func(string) {}), join(t, qs[1], func(string) {})
	defer b.Leave(context.Background())
	claim(t, a, "site", Claim{Want: 3, Limit: 3})
	life := a.Life()
	a.stop() // no sign of life any more
	a.wg.Wait()
	begun := time.Now()
	var once sync.Once
	for {
		if claim(t, b, "site", Claim{Want: 3, Limit: 3, Look: true}).Have == 3 {
			break
		}
		if time.Since(begun) > memberTTL+time.Minute {
			t.Fatal("the slots did not come back")
		}
		if a.Life().Err() != nil {
			once.Do(func() { t.Logf("over for itself after %s", time.Since(begun)) })
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("back after %s", time.Since(begun))
	if a.Life().Err() == nil {
		t.Error("others have the slots, and who had them still counts on them")
	}
	if _, err := a.Claim(t.Context(), life, "site", Claim{Use: 3, Want: 3, Limit: 3}); err == nil {
		t.Error("it goes on after its end")
	}
}

// TestWaiterThatIsGone ends while it waits for the only slot, and would be the next: it does not keep the others from it.
func TestWaiterThatIsGone(t *testing.T) {
	t.Parallel()
	qs := testQueues(t, 3)
	has, waits, next := join(t, qs[0], func(string) {}), join(t, qs[1], func(string) {}), join(t, qs[2], func(string) {})
	defer next.Leave(context.Background())
	one := Claim{Want: 1, Limit: 1, Look: true}
	if claim(t, has, "site", one).Have != 1 || claim(t, waits, "site", one).Have != 0 || claim(t, next, "site", one).Have != 0 {
		t.Fatal("not one has it, and two wait")
	}
	waits.Leave(t.Context()) // with what it wanted still written down
	claim(t, has, "site", Claim{Limit: 1, Look: true})
	has.Leave(t.Context())
	for end := time.Now().Add(time.Minute); claim(t, next, "site", one).Have != 1; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the slot is kept for one that is no more")
		}
	}
}

// TestMoreIsOnlyHadOnceWritten: a look may be at a replica that lags, so what it shows of our own counts only when a write over it went well.
func TestMoreIsOnlyHadOnceWritten(t *testing.T) {
	t.Parallel()
	a := join(t, testQueues(t, 1)[0], func(string) {})
	defer a.Leave(context.Background())
	revision := func() uint64 {
		t.Helper()
		_, revision, err := a.cas.read(t.Context(), tenancyToken("site"), true)
		if err != nil {
			t.Fatal(err)
		}
		return revision
	}
	claim(t, a, "site", Claim{Want: 3, Limit: 3})
	before := revision()
	if got := claim(t, a, "site", Claim{Use: 3, Want: 3, Limit: 3, Look: true}); got.Have != 3 || revision() != before {
		t.Errorf("got %+v and revision %d after %d, want a look that writes nothing", got, revision(), before)
	}
	if got := claim(t, a, "site", Claim{Use: 1, Want: 3, Limit: 3, Look: true}); got.Have != 3 || revision() == before {
		t.Errorf("got %+v and revision %d after %d, want it written", got, revision(), before)
	}
}
