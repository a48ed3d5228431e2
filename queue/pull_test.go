package queue

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

// What is pulled forward leaves page by page, the oldest mail first, each job once: one that waits again meanwhile waits for something else.
func TestPullGoesOverAllOnce(t *testing.T) {
	q := innerQueue(t)
	classes := []Class{"1h", "5m", "4h"}
	put := func(domain string, id MessageID, class Class, move int) {
		t.Helper()
		j := Job{ID: id, Kind: KindMail, Parts: 1, Domain: domain, Accepted: time.Now()}
		if err := q.putJob(t.Context(), ref{laterSpot(class), domain, id, 0, move}, j); err != nil {
			t.Fatal(err)
		}
	}
	const n, page = 25, 4
	var want []MessageID
	for i := range n {
		id := q.NewID()
		want = append(want, id)
		put([]string{"a.example", "b.example"}[i%2], id, classes[i%3], 1)
	}
	put("other.example", q.NewID(), "1h", 1)

	paced := 0
	moved, err := q.Pull(t.Context(), []string{"a.example", "b.example"}, time.Now(), page, func(context.Context) error {
		if paced++; paced == 2*page {
			put("a.example", want[0], "1h", 9)
		}
		return nil
	})
	if err != nil || moved != n {
		t.Errorf("moved: got %d and %v, want %d", moved, err, n)
	}
	var got []MessageID
	for _, r := range readyJobs(t, q) {
		got = append(got, r.id)
		if r.detail != slowLane(r.domain) {
			t.Errorf("a job of %s lies in lane %s, in the way of others", r.domain, r.detail)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("order: got %v, want %v", got, want)
	}
}

func TestPullEndsWithItsPace(t *testing.T) {
	q := innerQueue(t)
	for range 5 {
		id := q.NewID()
		j := Job{ID: id, Kind: KindMail, Parts: 1, Domain: "a.example", Accepted: time.Now()}
		if err := q.putJob(t.Context(), ref{laterSpot("1h"), j.Domain, id, 0, 1}, j); err != nil {
			t.Fatal(err)
		}
	}
	paced := 0
	moved, err := q.Pull(t.Context(), []string{"a.example"}, time.Now(), 2, func(context.Context) error {
		if paced++; paced > 3 {
			return errors.New("dead again")
		}
		return nil
	})
	if moved != 3 || err != nil {
		t.Errorf("got %d and %v, want 3", moved, err)
	}
}

// One job is enough to find out whether a site is back: not of other domains, none that waits for its signature or by its sender's wish, and each
// look takes another one.
// readyJobs are the jobs in JOBS, in their order.
func readyJobs(t *testing.T, q *Queue) []ref {
	t.Helper()
	var all []ref
	for seq := uint64(1); ; {
		s, err := q.next(t.Context(), streamJobs, "ready.>", seq)
		if errors.Is(err, errAbsent) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		seq = s.seq + 1
		r, err := parseRef(s.subject)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
}

func TestPullOne(t *testing.T) {
	q := innerQueue(t)
	put := func(domain string, class Class, change func(*Job)) MessageID {
		t.Helper()
		id := q.NewID()
		j := Job{ID: id, Kind: KindMail, Parts: 1, Domain: domain, Accepted: time.Now(), LastTry: time.Now()}
		if change != nil {
			change(&j)
		}
		if err := q.putJob(t.Context(), ref{laterSpot(class), domain, id, 0, 1}, j); err != nil {
			t.Fatal(err)
		}
		return id
	}
	put("other.example", "1h", nil)
	put("a.example", "1h", func(j *Job) { j.Unsigned = true })
	put("a.example", "4h", func(j *Job) { j.HoldUntil = time.Now().Add(time.Hour) })
	want := []MessageID{put("a.example", "4h", nil), put("a.example", "1h", nil)}

	domains := []string{"none.example", "a.example"}
	for i := range want {
		if isMoved, err := q.PullOne(t.Context(), domains); err != nil || !isMoved {
			t.Fatalf("look %d: got %v and %v, want a job", i+1, isMoved, err)
		}
	}
	if isMoved, err := q.PullOne(t.Context(), domains); err != nil || isMoved {
		t.Errorf("when no job is left: got %v and %v", isMoved, err)
	}
	var got []MessageID
	for _, r := range readyJobs(t, q) {
		got = append(got, r.id)
	}
	if !slices.Equal(got, want) {
		t.Errorf("made ready: got %v, want %v", got, want)
	}
}
