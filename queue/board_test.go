package queue

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"
)

// told collects what a follower hears.
type told struct {
	mu sync.Mutex
	m  map[string]string
}

func (x *told) take(p Posting, isThere bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if isThere {
		x.m[p.Kind+" "+p.Name] = string(p.Data)
	} else {
		delete(x.m, p.Kind+" "+p.Name)
	}
}

func (x *told) is(key, want string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.m[key] == want
}

func TestPostings(t *testing.T) {
	qs := testQueues(t, 2)
	post := func(p Posting) {
		t.Helper()
		if err := qs[0].Post(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	post(Posting{Kind: "limit", Name: "domain=example.net", Data: json.RawMessage(`1`)})
	heard := &told{m: make(map[string]string)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		looked := func(err error) {
			if err == nil && !heard.is("limit domain=example.net", "1") {
				t.Error("a look is over and has not told what was there before")
			}
		}
		if err := qs[1].FollowPostings(ctx, heard.take, looked); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	wait := func(what, key, want string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !heard.is(key, want); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: not heard in a minute", what)
			}
		}
	}
	wait("what was there before", "limit domain=example.net", "1")
	begun := time.Now()
	post(Posting{Kind: "suspension", Name: "(a|b).mx.example.net", Data: json.RawMessage(`2`), Until: time.Now().Add(time.Hour)})
	wait("a new one", "suspension (a|b).mx.example.net", "2")
	t.Logf("heard after %s", time.Since(begun))
	all, err := qs[1].Postings(t.Context())
	if err != nil || len(all) != 2 {
		t.Fatalf("got %+v, %v", all, err)
	}
	var p Posting
	for _, x := range all {
		if x.Kind == "suspension" {
			p = x
		}
	}
	p.Data = json.RawMessage(`3`)
	revision, err := qs[1].PostOver(t.Context(), p)
	if err != nil || revision <= p.Revision {
		t.Fatalf("got %d, %v", revision, err)
	}
	wait("a change", "suspension (a|b).mx.example.net", "3")
	if _, err := qs[0].PostOver(t.Context(), p); !errors.Is(err, ErrOvertaken) {
		t.Errorf("got %v over an old revision, want that it was overtaken", err)
	}
	if err := qs[0].Unpost(t.Context(), p); !errors.Is(err, ErrOvertaken) {
		t.Errorf("got %v for taking an old revision down", err)
	}
	p.Revision = 0
	if err := qs[0].Unpost(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	wait("the end", "suspension (a|b).mx.example.net", "")
	if all, err := qs[0].Postings(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("got %+v, %v after the end", all, err)
	}
	post(Posting{Kind: "suspension", Name: "short", Data: json.RawMessage(`4`), Until: time.Now().Add(time.Hour)})
	wait("one that ends by itself", "suspension short", "4")
	post(Posting{Kind: "suspension", Name: "short", Data: json.RawMessage(`5`), Until: time.Now().Add(time.Second)})
	wait("its end", "suspension short", "")
	if err := qs[0].Post(t.Context(), Posting{Kind: "Big", Name: "x", Data: json.RawMessage(`1`)}); err == nil {
		t.Error("a kind that is no word is taken")
	}
}

// TestPostAfterTheEnd: what was taken down, or is over, leaves a mark that is not in the way of the next.
func TestPostAfterTheEnd(t *testing.T) {
	q := testQueues(t, 1)[0]
	p := Posting{Kind: "circuit", Name: "mx.example.net", Data: json.RawMessage(`1`)}
	again := func(after string) {
		t.Helper()
		if _, err := q.PostOver(t.Context(), p); err != nil {
			t.Errorf("got %v for a posting after %s", err, after)
		}
		if _, err := q.PostOver(t.Context(), p); !errors.Is(err, ErrOvertaken) {
			t.Errorf("got %v over one that is there, want that it was overtaken", err)
		}
	}
	again("nothing")
	if err := q.Unpost(t.Context(), Posting{Kind: p.Kind, Name: p.Name}); err != nil {
		t.Fatal(err)
	}
	again("one that was taken down")
	if err := q.Post(t.Context(), Posting{Kind: p.Kind, Name: p.Name, Data: p.Data, Until: time.Now().Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		s, err := q.getLeader(t.Context(), "KV_"+siteBucket, "$KV."+siteBucket+"."+postingKey{p.Kind, p.Name}.token())
		if errors.Is(err, errAbsent) || err == nil && len(s.data) == 0 {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatal("the posting does not end")
		}
	}
	again("one that is over")
}

// TestPostingThatAReplicaDoesNotShow is not taken for gone.
func TestPostingThatAReplicaDoesNotShow(t *testing.T) {
	q := testQueues(t, 1)[0]
	p := Posting{Kind: "circuit", Name: "mx.example.net", Data: json.RawMessage(`1`)}
	key := postingKey{p.Kind, p.Name}
	var err error
	if p.Revision, err = q.PostOver(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	heard := &told{m: map[string]string{"circuit mx.example.net": "1"}}
	f := &follower{q: q, fn: heard.take, all: map[postingKey]Posting{key: p}}
	if err := f.missing(t.Context(), nil); err != nil || !heard.is("circuit mx.example.net", "1") {
		t.Errorf("it is told to be gone, %v", err)
	}
	if _, err := q.purge(t.Context(), "KV_"+siteBucket, "$KV."+siteBucket+"."+key.token(), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.missing(t.Context(), nil); err != nil || !heard.is("circuit mx.example.net", "") {
		t.Errorf("its end is not told, %v", err)
	}
}

// TestPull moves what waits for some domains, the oldest first, and leaves alone what waits for something else.
func TestPull(t *testing.T) {
	q := innerQueue(t)
	ctx := t.Context()
	var ids []MessageID
	for i := range 6 {
		domain := "example.net"
		if i == 4 {
			domain = "example.org"
		}
		id := oldID(time.Duration(10-i) * time.Minute)
		jobs := q.storeMail(t, id, domain)
		j := jobs[0]
		if i == 3 {
			j.HoldUntil = time.Now().Add(time.Hour) // its sender wants it to wait
		}
		if i == 5 {
			j.LastTry = time.Now()
		}
		ids = append(ids, id)
		if err := q.putJob(ctx, ref{laterSpot("1h"), domain, id, 0, 1}, j); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := q.Waiting(ctx, "example.net"); err != nil || n != 5 {
		t.Errorf("%d wait, %v; want 5", n, err)
	}
	paced := 0
	stop := errors.New("dead again")
	n, err := q.Pull(ctx, []string{"example.net"}, time.Now(), 2, func(context.Context) error {
		if paced++; paced > 4 {
			return stop
		}
		return nil
	})
	if err != nil || n != 3 || paced != 5 {
		t.Errorf("moved %d with %d paces, %v; want the three oldest that may go", n, paced, err)
	}
	for i, want := range []Place{PlaceReady, PlaceReady, PlaceReady, PlaceLater, PlaceLater, PlaceLater} {
		found := false
		for e, err := range q.List(ctx, Selection{ID: ids[i]}, 0) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Place != PlaceIncoming {
				found = true
				if e.Place != want {
					t.Errorf("job %d is in %s, want %s", i, e.Place, want)
				}
			}
		}
		if !found {
			t.Errorf("job %d is lost", i)
		}
	}
	if n, err := q.Pull(ctx, []string{"example.net"}, time.Now(), 10, func(context.Context) error { return stop }); n != 0 || err != nil {
		t.Errorf("moved %d, %v after an end", n, err)
	}
	goOn := func(context.Context) error { return nil }
	for want, since := range []time.Time{time.Now().Add(-time.Hour), time.Now()} {
		if n, err := q.Pull(ctx, []string{"example.net"}, since, 10, goOn); n != want || err != nil {
			t.Errorf("moved %d, %v with one that was tried, want %d", n, err, want)
		}
	}
}
