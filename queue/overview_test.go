package queue

import (
	"strings"
	"testing"
	"time"
)

// wait stores a job as one that waits.
func (q *Queue) wait(t *testing.T, where spot, domain string, change func(*Job)) Job {
	t.Helper()
	j := q.storeMail(t, oldID(time.Minute), domain)[0]
	change(&j)
	q.storeJob(t, where, j, 2)
	return j
}

func TestOverviewOfAnEmptyQueue(t *testing.T) {
	q := innerQueue(t)
	o, err := q.Overview(t.Context())
	if err != nil || o.Oldest != nil || !o.Waiting.Whole || !o.Waiting.HeldWhole || len(o.Missing) > 0 {
		t.Errorf("got %+v, %v, want nothing", o, err)
	}
	if len(o.Streams) < 10 || o.Streams[0].MaxBytes == 0 || o.Streams[0].Leader == "" || len(o.Lanes) != Lanes+slowLanes {
		t.Errorf("got streams %+v and lanes %v", o.Streams, o.Lanes)
	}
}

func TestOverview(t *testing.T) {
	q := innerQueue(t)
	plain := func(j *Job) { j.Reason, j.Tries = "450 later", 3 }
	for range 3 {
		q.wait(t, laterSpot("1m"), "slow.example", plain)
	}
	q.wait(t, laterSpot("4h"), "other.example", plain)
	for range 2 {
		q.wait(t, laterSpot("5m"), "slow.example", func(j *Job) {
			j.Unsigned, j.HeaderFrom, j.Reason = true, "author.example", "no DKIM key for author.example"
		})
	}
	q.wait(t, laterSpot("4h"), "slow.example", func(j *Job) { j.HoldUntil = time.Now().Add(time.Hour) })
	q.wait(t, heldSpot("operator"), "slow.example", func(j *Job) {})
	q.storeMail(t, q.NewID(), "new.example") // the signer's
	o, err := q.Overview(t.Context())
	if err != nil || len(o.Missing) > 0 {
		t.Fatalf("got %v, %v", o.Missing, err)
	}
	w := o.Waiting
	if w.Jobs != 7 || w.Looked != 7 || !w.Whole || w.Scheduled != 1 || o.Counts.Held != 1 {
		t.Errorf("got %+v, want 7 that wait, one of them as its sender wants, and one held", w)
	}
	if len(w.Domains) != 2 || w.Domains[0].Domain != "slow.example" || w.Domains[0].Jobs != 3 || w.Domains[0].Reason != "450 later" || w.Domains[1].Jobs != 1 {
		t.Errorf("got domains %+v", w.Domains)
	}
	if len(w.Keys) != 1 || w.Keys[0].Author != "author.example" || w.Keys[0].Mails != 2 || !strings.Contains(w.Keys[0].Reason, "no DKIM key") {
		t.Errorf("got keys %+v", w.Keys)
	}
	if len(w.Held) != 1 || w.Held[0].Why != "operator" || w.Held[0].Mails != 1 {
		t.Errorf("got held %+v", w.Held)
	}
	if o.Oldest == nil || o.Counts.Incoming == 0 {
		t.Errorf("got oldest %+v and counts %+v", o.Oldest, o.Counts)
	}
}

// TestOldestMail passes over what is finished.
func TestOldestMail(t *testing.T) {
	q := innerQueue(t)
	q.storeMail(t, oldID(time.Hour), "gone.example") // the signer is done with it and it has no job: it came back
	j := q.wait(t, laterSpot("1h"), "slow.example", func(j *Job) { j.Reason = "450 later" })
	floors := map[string]uint64{signerConsumer: 1 << 40}
	o, err := q.oldest(t.Context(), floors)
	if err != nil || o == nil || o.ID != j.ID || o.Place != PlaceLater || o.Class != "1h" || o.Reason != "450 later" {
		t.Errorf("got %+v, %v, want %s", o, err, j.ID)
	}
	if o, err = q.oldest(t.Context(), nil); err != nil || o == nil || o.Place != PlaceIncoming || o.Domain != "gone.example" {
		t.Errorf("got %+v, %v, want the one that the signer has", o, err)
	}
}

// TestSurveyIsBounded has more jobs than it looks at.
func TestSurveyIsBounded(t *testing.T) {
	q := innerQueue(t)
	for range 150 {
		q.wait(t, laterSpot("1m"), "slow.example", func(*Job) {})
	}
	n := 0
	count := func(ref, *Job) bool { n++; return true }
	looked, _, whole, err := q.lookThrough(t.Context(), look{stream: streamLater, filter: ">", most: 100}, count)
	if err != nil || whole || looked != 128 || n != looked {
		t.Errorf("got %d, %t, %v, want two batches", looked, whole, err)
	}
	if looked, _, whole, err = q.lookThrough(t.Context(), look{stream: streamLater, filter: ">", most: 1000}, count); err != nil || !whole || looked != 150 {
		t.Errorf("got %d, %t, %v, want all 150", looked, whole, err)
	}
}

// TestHeldJobsHideNothing: what an operator holds, in front and between, uses up neither the look at what waits nor that at what is held for our
// own reasons.
func TestHeldJobsHideNothing(t *testing.T) {
	q := innerQueue(t)
	hold := func(n int) {
		for range n {
			q.wait(t, heldSpot("operator"), "slow.example", func(*Job) {})
		}
	}
	hold(70)
	waiting := []ref{}
	for range 2 {
		j := q.storeMail(t, oldID(time.Minute), "slow.example")[0]
		waiting = append(waiting, q.storeJob(t, laterSpot("1m"), j, 2))
		hold(70)
	}
	q.wait(t, heldSpot(HoldReturned), "slow.example", func(*Job) {})
	n := 0
	looked, passed, whole, err := q.lookThrough(t.Context(), look{stream: streamLater, filter: ">", most: 3}, func(r ref, _ *Job) bool {
		n++
		return r.place == PlaceLater
	})
	if err != nil || !whole || looked != len(waiting) || passed != n-looked || n != 213 {
		t.Errorf("got %d and %d of %d, %t, %v, want that held jobs do not count", looked, passed, n, whole, err)
	}
	o, err := q.Overview(t.Context())
	if w := o.Waiting; err != nil || w.Looked != 2 || w.Passed != 141 || !w.Whole || !w.KeysWhole {
		t.Errorf("got %+v, %v, want that it begins at the first that waits", w, err)
	}
	hold(maxHeldLooked)
	if o, err = q.Overview(t.Context()); err != nil || len(o.Waiting.Held) != 2 || o.Waiting.HeldWhole {
		t.Fatalf("got %+v, %v, want that not all were looked at", o.Waiting.Held, err)
	}
	if h := o.Waiting.Held[0]; h.Why != HoldReturned || h.Mails != 1 || !h.Decide || h.More {
		t.Errorf("got %+v, want the one that came back", h)
	}
	if h := o.Waiting.Held[1]; h.Why != "operator" || h.Decide || !h.More {
		t.Errorf("got %+v, want those of the operator", h)
	}
}

// TestLinesOfWork: what is first with the signer and in each lane is known although an older mail is deferred.
func TestLinesOfWork(t *testing.T) {
	q := innerQueue(t)
	q.wait(t, laterSpot("4h"), "slow.example", func(*Job) {})
	q.signerDone(t, 1)
	before := time.Now()
	for range 2 {
		q.wait(t, spot{PlaceReady, "1"}, "a.example", func(*Job) {})
	}
	q.wait(t, spot{PlaceSign, "1"}, "a.example", func(*Job) {})
	c, err := q.js.Consumer(t.Context(), streamJobs, laneConsumer("1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Next(); err != nil { // and never finished
		t.Fatal(err)
	}
	o, err := q.Overview(t.Context())
	if err != nil || len(o.Missing) > 0 || o.Oldest == nil || o.Oldest.Place == PlaceIncoming {
		t.Fatalf("got %+v, %v, want that the oldest mail is deferred", o.Oldest, err)
	}
	lines := make(map[string]Line)
	for _, l := range o.Lines {
		lines[l.Name] = l
	}
	if l := lines[LineSigner]; l.Unfinished != 3 || l.First.Before(before) || l.Untaken != 3 || !l.Head.Equal(l.First) {
		t.Errorf("got %+v, want the three mails that the signer has not got", l)
	}
	if l := lines["lane-1"]; l.Unfinished != 2 || l.Untaken != 1 || !l.First.After(before) || !l.Head.After(l.First) || l.LastTaken.Before(before) || l.Slow {
		t.Errorf("got %+v, want one in hand and one that waits", l)
	}
	if l := lines[LineSign]; len(lines) != 3 || l.Unfinished != 1 || l.First.IsZero() {
		t.Errorf("got %+v and %d lines, want one job", l, len(lines))
	}
}

// TestMissingBuckets tells what no mail needs from the rest.
func TestMissingBuckets(t *testing.T) {
	q := innerQueue(t)
	for _, b := range []string{nodeBucket, limitBucket} {
		if err := q.js.DeleteKeyValue(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	o, err := q.Overview(t.Context())
	if err != nil || len(o.Missing) != 1 || !strings.HasPrefix(o.Missing[0], "bucket limits: ") || len(o.Aside) != 1 || !strings.HasPrefix(o.Aside[0], "bucket nodes: ") {
		t.Errorf("got %q and %q, %v", o.Missing, o.Aside, err)
	}
}

func TestLargestGroups(t *testing.T) {
	g := make(groups)
	for i, name := range []string{"a", "b", "b", "c", "c"} {
		g.add(name, &Job{ID: MessageID(rune('a' + i)), Accepted: time.Unix(int64(100-i), 0), Reason: name})
	}
	if got := strings.Join(g.largest(), " "); got != "b c a" {
		t.Errorf("got %s, want the largest first, then by name", got)
	}
	if !g["b"].oldest.Equal(time.Unix(98, 0)) {
		t.Errorf("got %v, want the earlier acceptance", g["b"].oldest)
	}
}
