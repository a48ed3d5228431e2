package queue

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func sum(t *tenancy) int {
	n := 0
	for _, x := range t.Tenants {
		n += x.Have
	}
	return n
}

// TestSlotsNeverExceed lets members claim at random, die and be found dead, while the limit changes. There are never more than the limit, or
// than there were when it was lowered; and nobody loses what it uses.
func TestSlotsNeverExceed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var x tenancy
		limit, now := rapid.IntRange(0, 20).Draw(t, "limit"), int64(0)
		dead := make(map[string]bool)
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			now += rapid.Int64Range(0, 3000).Draw(t, "passes")
			before := sum(&x)
			if rapid.IntRange(0, 9).Draw(t, "changes") == 0 {
				limit = rapid.IntRange(0, 20).Draw(t, "limit")
			}
			member := fmt.Sprint(rapid.IntRange(0, 5).Draw(t, "member"))
			if rapid.IntRange(0, 9).Draw(t, "dies") == 0 {
				dead[member] = true
			}
			if dead[member] {
				if rapid.Bool().Draw(t, "found") {
					x.drop(func(m string) bool { return dead[m] })
					clear(dead)
				}
				continue
			}
			had := x.of(member).Have
			c := Claim{Use: rapid.IntRange(0, had).Draw(t, "use"), Want: rapid.IntRange(0, 25).Draw(t, "want"), Limit: limit}
			got := x.claim(member, "node", c, now)
			switch after := sum(&x); {
			case after > max(before, limit):
				t.Fatalf("%d of %d are had, %d before", after, limit, before)
			case got.Have < c.Use:
				t.Fatalf("got %d, but %d are in use", got.Have, c.Use)
			case got.Have > had && after > limit:
				t.Fatalf("got %d, had %d, and there are %d of %d", got.Have, had, after, limit)
			case got.Have != x.of(member).Have:
				t.Fatalf("got %d, stored are %d", got.Have, x.of(member).Have)
			}
		}
	})
}

// TestSlotsAreFair: whatever the members had, after each has claimed a few times what it is due nobody who wants a part is without.
func TestSlotsAreFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "members")
		limit := rapid.IntRange(n, 30).Draw(t, "limit")
		var x tenancy
		wants := make([]int, n)
		for i := range wants {
			wants[i] = rapid.IntRange(1, 40).Draw(t, "want")
		}
		now := int64(0)
		for range 4 {
			for i := range wants {
				now += 100
				x.claim(fmt.Sprint(i), "node", Claim{Want: wants[i], Limit: limit}, now)
			}
		}
		total := 0
		for i, want := range wants {
			have := x.of(fmt.Sprint(i)).Have
			total += have
			if have < min(want, limit/n) {
				t.Fatalf("%d has %d of %d and wants %d: %+v", i, have, limit, want, x.Tenants)
			}
		}
		all := 0
		for _, want := range wants {
			all += want
		}
		if total < min(all, limit) {
			t.Fatalf("%d of %d are had, and %d are wanted: %+v", total, limit, all, x.Tenants)
		}
	})
}

// TestSlotsTakeTurns has fewer slots than members.
func TestSlotsTakeTurns(t *testing.T) {
	var x tenancy
	for _, start := range []int64{3_600_000, 0} { // the clock is set back by an hour
		had := make(map[string]int)
		for now := start; now < start+60_000; now += 1000 {
			for _, m := range []string{"a", "b", "c"} {
				if x.claim(m, "node", Claim{Want: 1, Limit: 1}, now).Have == 1 {
					had[m]++
				}
			}
			if sum(&x) > 1 {
				t.Fatalf("%d have the one slot", sum(&x))
			}
		}
		for _, m := range []string{"a", "b", "c"} {
			if had[m] < 10 {
				t.Errorf("from %d on %s had it for %d of 60 s: %v", start, m, had[m], had)
			}
		}
	}
}
