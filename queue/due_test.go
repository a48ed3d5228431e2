package queue

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// E6-83: what became due while nobody looked leaves in the order in which it began to wait, a bounded number at a time: none comes
// further ahead of an older one than that number.
func TestE6_83_OverdueLeavesOldestFirst(t *testing.T) {
	q := innerQueue(t)
	const n = 3 * timerBatch
	place := make(map[MessageID]int, n)
	for i := range n {
		id := q.NewID()
		place[id] = i
		j := Job{ID: id, Kind: KindMail, Parts: 1, Domain: fmt.Sprintf("d%d.example", i%50), Accepted: time.Now()}
		if err := q.putJob(t.Context(), ref{laterSpot("4h"), j.Domain, id, 0, 1}, j); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- q.runTimer(ctx, "4h", time.Millisecond) }() // four hours have passed for all of them
	var left []MessageID
	for len(left) < n && ctx.Err() == nil {
		time.Sleep(100 * time.Millisecond)
		left = left[:0]
		for seq := uint64(1); ; {
			s, err := q.next(ctx, streamJobs, "ready.>", seq)
			if err != nil {
				break
			}
			seq = s.seq + 1
			r, err := parseRef(s.subject)
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, r.id)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if len(left) != n {
		t.Fatalf("%d of %d left", len(left), n)
	}
	for i, id := range left {
		if ahead := place[id] - i; ahead > timerMoves {
			t.Errorf("the one that began as number %d left as number %d: %d ahead, want %d at most", place[id], i, ahead, timerMoves)
		}
	}
}
