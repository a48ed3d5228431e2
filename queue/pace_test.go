package queue

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// flakyStore is a bucket in memory whose answers may be lost, late or a refusal.
type flakyStore struct {
	data     map[string][]byte
	revision map[string]uint64
	next     uint64
	mood     func() string // of a write: "", conflict, lost (written, no answer) or failed
}

func (f *flakyStore) read(_ context.Context, token string, _ bool) ([]byte, uint64, error) {
	return f.data[token], f.revision[token], nil
}

func (f *flakyStore) write(_ context.Context, token string, data []byte, revision uint64, _ time.Duration) (uint64, error) {
	mood := f.mood()
	if revision != f.revision[token] || mood == "conflict" {
		return 0, errConflict
	}
	if mood == "failed" {
		return 0, errors.New("no answer")
	}
	f.next++
	f.data[token], f.revision[token] = data, f.next
	if mood == "lost" {
		return 0, errors.New("no answer")
	}
	return f.next, nil
}

// TestTurnsNeverExceedTheRate lets workers with clocks of their own reserve turns, take them late or never, die and come back, while the
// store refuses and loses answers. In no window there is more than the rate, one block, and what the clocks may be wrong by.
func TestTurnsNeverExceedTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := Rate{Count: rapid.IntRange(1, 300).Draw(t, "count"), Window: rapid.SampledFrom([]time.Duration{time.Second, 10 * time.Second, time.Minute}).Draw(t, "window"),
			Burst: rapid.IntRange(0, 5).Draw(t, "burst")}
		const wrong = 20 * time.Millisecond // of a clock, as far as it is not known
		start := time.Unix(1_700_000_000, 0)
		now := start
		moods := rapid.SampledFrom([]string{"", "", "", "", "conflict", "lost", "failed"})
		store := &flakyStore{data: make(map[string][]byte), revision: make(map[string]uint64), mood: func() string { return moods.Draw(t, "mood") }}
		var pacers []*pacer
		var skews []time.Duration
		for range 4 {
			skew := time.Duration(rapid.Int64Range(-int64(time.Hour), int64(time.Hour)).Draw(t, "skew"))
			c := &clock{}
			c.offset.Store(-int64(skew) + rapid.Int64Range(-int64(wrong), int64(wrong)).Draw(t, "wrong"))
			pacers = append(pacers, &pacer{store: store, clock: c, time: func() time.Time { return now.Add(skew) }, pause: func(context.Context, time.Duration) error { return nil }})
			skews = append(skews, skew)
		}
		var taken []time.Time // by the true clock
		for range rapid.IntRange(20, 120).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(3*rate.Every())).Draw(t, "passes")))
			i := rapid.IntRange(0, len(pacers)-1).Draw(t, "worker")
			turns, err := pacers[i].reserve(t.Context(), "site", rapid.IntRange(1, 10).Draw(t, "wants"), rate, 8*time.Second)
			if err != nil {
				continue
			}
			for k := range turns.Count {
				if rapid.IntRange(0, 9).Draw(t, "dies") == 0 {
					break // with the turns in its hand
				}
				from := turns.First.Add(time.Duration(k) * turns.Every)
				if asked := now.Add(skews[i]); from.Before(asked) {
					from = asked // of a burst
				}
				late := time.Duration(rapid.Int64Range(0, int64(rate.Grace())-1).Draw(t, "late"))
				taken = append(taken, from.Add(late-skews[i]))
			}
		}
		slices.SortFunc(taken, time.Time.Compare)
		most := rate.Count + rate.Block() + max(0, rate.Burst-1) + int(math.Ceil(float64(2*wrong)/float64(rate.Every())))
		from := 0
		for i := range taken {
			for taken[i].Sub(taken[from]) >= rate.Window {
				from++
			}
			if n := i - from + 1; n > most {
				t.Fatalf("%d of %+v in one window, want %d at most", n, rate, most)
			}
		}
	})
}

func TestTurns(t *testing.T) {
	every := 100 * time.Millisecond
	second := Rate{Count: 10, Window: time.Second}
	start := int64(1_700_000_000_000_000_000)
	for _, tc := range []struct {
		name   string
		last   int64 // after start
		rate   Rate
		wants  int
		within time.Duration
		first  time.Duration
		got    int
	}{
		{"the first of all", math.MinInt64, second, 1, time.Second, 0, 1},
		{"behind others", int64(300 * time.Millisecond), second, 2, time.Second, 400 * time.Millisecond, 2},
		{"only what is near", int64(300 * time.Millisecond), second, 20, time.Second, 400 * time.Millisecond, 7},
		{"none is near", int64(2 * time.Second), second, 1, time.Second, 2*time.Second + every, 0},
		{"a burst after a rest", -int64(time.Hour), Rate{Count: 10, Window: time.Second, Burst: 5}, 5, time.Second, -4 * every, 5},
		{"no burst without a rest", -int64(every), Rate{Count: 10, Window: time.Second, Burst: 5}, 1, time.Second, 0, 1},
		{"slow", -int64(time.Second), Rate{Count: 1, Window: time.Hour}, 1, 8 * time.Second, time.Hour - time.Second, 0},
		{"a new rate counts from the last turn", int64(-time.Second), Rate{Count: 1, Window: 10 * time.Second}, 1, 20 * time.Second, 9 * time.Second, 1},
	} {
		p := pace{Last: start + tc.last}
		if tc.last == math.MinInt64 {
			p.Last = 0
		}
		first, got := p.take(start, tc.wants, tc.rate, tc.within)
		if time.Duration(first-start) != tc.first || got != tc.got {
			t.Errorf("%s: got %d from %s on, want %d from %s on", tc.name, got, time.Duration(first-start), tc.got, tc.first)
		}
	}
}

// TestClockThatWasWrong: the server's clock was an hour ahead for a moment, and turns by it are remembered.
func TestClockThatWasWrong(t *testing.T) {
	for _, tc := range []struct {
		name string
		rate Rate
	}{
		{"quick", Rate{Count: 10, Window: time.Second}},
		{"slower than anybody looks ahead", Rate{Count: 1, Window: 5 * time.Minute}},
	} {
		now := time.Unix(1_700_000_000, 0)
		store := &flakyStore{data: make(map[string][]byte), revision: make(map[string]uint64), mood: func() string { return "" }}
		c := &clock{}
		p := &pacer{store: store, clock: c, time: func() time.Time { return now }}
		reserve := func() Turns {
			turns, err := p.reserve(t.Context(), "site", 1, tc.rate, 8*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			return turns
		}
		c.offset.Store(int64(time.Hour))
		reserve()
		c.offset.Store(0)
		if turns := reserve(); turns.Count == 0 {
			now = now.Add(tc.rate.Every())
			if turns := reserve(); turns.Count != 1 {
				t.Errorf("%s: got %+v, want a turn", tc.name, turns)
			}
		}
		if turns := reserve(); turns.First.Before(now.Add(tc.rate.Every())) {
			t.Errorf("%s: got %+v, want the pace to be kept from then on", tc.name, turns)
		}
	}
}

func TestPacesAreListed(t *testing.T) {
	q := innerQueue(t)
	rate := Rate{Count: 100, Window: time.Second}
	turns, err := q.Reserve(t.Context(), "mx.example.net@out-1", 3, rate, time.Second)
	if err != nil || turns.Count != 3 || turns.Every != 10*time.Millisecond {
		t.Fatalf("got %+v, %v", turns, err)
	}
	if _, err := q.Spend(t.Context(), "client/web01", 1, Limit{Count: 5, Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	all, err := q.Paces(t.Context())
	if err != nil || len(all) != 1 || all[0].Key != "mx.example.net@out-1" || all[0].Rate != rate {
		t.Errorf("got %+v, %v", all, err)
	}
	if spendings, err := q.Spendings(t.Context()); err != nil || len(spendings) != 1 {
		t.Errorf("got %+v, %v beside a pace, want the one of ingress", spendings, err)
	}
	if _, err := q.Reserve(t.Context(), "x", 1, Rate{Count: 1, Window: time.Millisecond}, time.Second); err == nil {
		t.Error("a window of a millisecond is taken")
	}
}
