package throttle

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postroad/queue"
)

// board is one that a test plays the others at.
type board struct {
	mu       sync.Mutex
	tell     func(p queue.Posting, isThere bool)
	looked   func(error)
	posts    []queue.Posting
	refusals map[string]error // by kind
	unposted int
	pulls    []pull
	singles  []pull // of one job
	hang     bool   // pulls do not end by themselves
	hung     int    // those that ended all the same
}

type pull struct {
	domains []string
	since   time.Time
	after   time.Duration // since the test began
}

var began time.Time

func (b *board) FollowPostings(ctx context.Context, fn func(p queue.Posting, isThere bool), looked func(error)) error {
	b.mu.Lock()
	b.tell, b.looked = fn, looked
	b.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (b *board) Post(_ context.Context, p queue.Posting) error {
	_, err := b.PostOver(context.Background(), p)
	return err
}

func (b *board) PostOver(_ context.Context, p queue.Posting) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refusals[p.Kind]; err != nil {
		return 0, err
	}
	b.posts = append(b.posts, p)
	return uint64(100 + len(b.posts)), nil
}

func (b *board) Unpost(context.Context, queue.Posting) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unposted++
	return nil
}

func (b *board) Pull(ctx context.Context, domains []string, since time.Time, _ int, _ func(context.Context) error) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	domains = slices.Sorted(slices.Values(domains))
	b.pulls = append(b.pulls, pull{domains, since, time.Since(began)})
	if b.hang {
		b.mu.Unlock()
		<-ctx.Done()
		b.mu.Lock()
		b.hung++
	}
	return 0, ctx.Err()
}

// pulled are the pulls so far.
func (b *board) pulled() []pull {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.pulls)
}

func (b *board) PullOne(_ context.Context, domains []string) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.singles = append(b.singles, pull{domains: slices.Clone(domains), after: time.Since(began)})
	return true, nil
}

func (b *board) Record(queue.Event) {}

// atBoard runs a test with Sites that follow a board, in a time of its own.
func atBoard(t *testing.T, test func(t *testing.T, s *Sites, b *board)) {
	synctest.Test(t, func(t *testing.T) {
		began = time.Now()
		b := &board{refusals: make(map[string]error)}
		s, err := NewSites(SitesOptions{Board: b, Pace: func(string) (time.Duration, error) { return time.Millisecond, nil }})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		synctest.Wait()
		test(t, s, b)
		s.Stop()
	})
}

func circuit(path string, revision uint64, domains ...string) queue.Posting {
	return queue.Posting{Kind: KindCircuit, Name: path, Data: encode(Circuit{Path: path, Until: time.Now().Add(time.Minute), Domains: domains}), Revision: revision}
}

// TestReturnIsKnownAtOnce: who closes a circuit does not wait until it is told of that.
func TestReturnIsKnownAtOnce(t *testing.T) {
	atBoard(t, func(t *testing.T, s *Sites, b *board) {
		b.tell(circuit(path, 7), true)
		if _, isDead := s.Dead(path); !isDead {
			t.Fatal("not dead")
		}
		s.Lives(path)
		if _, isDead := s.Dead(path); isDead {
			t.Error("dead while its circuit is being closed")
		}
		synctest.Wait()
		if _, isDead := s.Dead(path); isDead || b.unposted != 1 {
			t.Errorf("dead: %v, taken down %d times", isDead, b.unposted)
		}
		s.Died(Circuit{Path: path})
		synctest.Wait()
		if n := len(b.posts); n != 1 || b.posts[0].Revision != 0 {
			t.Errorf("got %+v when it dies again, want a new posting", b.posts)
		}
	})
}

// TestFirstReadingIsAwaited: nothing begins before what is posted was read, unless that cannot be done in time.
func TestFirstReadingIsAwaited(t *testing.T) {
	for _, tc := range []struct {
		name    string
		answers time.Duration // of the board; zero: never
		want    time.Duration
	}{
		{"at once", time.Nanosecond, time.Nanosecond},
		{"after a while", 5 * time.Second, 5 * time.Second},
		{"never", 0, firstReading},
	} {
		atBoard(t, func(t *testing.T, s *Sites, b *board) {
			b.looked(errors.New("no answer"))
			if tc.answers > 0 {
				time.AfterFunc(tc.answers, func() { b.looked(nil); b.looked(nil) })
			}
			s.Await(t.Context())
			if took := time.Since(began); took != tc.want {
				t.Errorf("%s: waited %s, want %s", tc.name, took, tc.want)
			}
		})
	}
}

// TestPullsOfWhatWaited: one process pulls what all know of, each what only it knows of, and again for what comes late.
func TestPullsOfWhatWaited(t *testing.T) {
	for _, c := range []struct {
		name  string
		claim error
		want  []string // nil: no pull
		own   string   // domain that only this process knows of
	}{
		{"the first to claim", nil, []string{"own.example", "shared.example"}, "own.example"},
		{"overtaken", queue.ErrOvertaken, []string{"own.example"}, "own.example"},
		{"overtaken, and knows nothing of its own", queue.ErrOvertaken, nil, "shared.example"},
		{"the queue does not answer", context.DeadlineExceeded, []string{"own.example", "shared.example"}, "own.example"},
	} {
		t.Run(c.name, func(t *testing.T) {
			atBoard(t, func(t *testing.T, s *Sites, b *board) {
				b.refusals[kindPull] = c.claim
				p := circuit(path, 7, "shared.example")
				b.tell(p, true)
				s.Waits(path, c.own)
				b.tell(p, false)
				time.Sleep(time.Minute)
				synctest.Wait()
				if c.want == nil {
					if len(b.pulls) > 0 {
						t.Errorf("got %+v, want no pull", b.pulls)
					}
					return
				}
				for i, after := range []time.Duration{0, 5 * time.Second, 15 * time.Second} {
					if len(b.pulls) <= i || !slices.Equal(b.pulls[i].domains, c.want) || b.pulls[i].after != after || !b.pulls[i].since.Equal(began) {
						t.Fatalf("got %+v, want pulls of %v at once, after 5 and 15 s", b.pulls, c.want)
					}
				}
			})
		})
	}
}

// TestProbeWithoutMail: when the time of a dead path is over, one process makes one of its jobs ready, and leaves it to whoever probes.
func TestProbeWithoutMail(t *testing.T) {
	for _, c := range []struct {
		name   string
		claim  error
		change func(*Circuit)
		want   bool
	}{
		{"nobody probes", nil, nil, true},
		{"another process does it", queue.ErrOvertaken, nil, false},
		{"somebody probes", nil, func(c *Circuit) { c.ProbeUntil = c.Until.Add(time.Hour) }, false},
		{"nothing waits", nil, func(c *Circuit) { c.Domains = nil }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			atBoard(t, func(t *testing.T, s *Sites, b *board) {
				b.refusals[kindProbe] = c.claim
				it := Circuit{Path: path, Until: time.Now().Add(time.Minute), Domains: []string{"shared.example"}}
				if c.change != nil {
					c.change(&it)
				}
				b.tell(queue.Posting{Kind: KindCircuit, Name: path, Data: encode(it), Revision: 7}, true)
				time.Sleep(time.Minute - time.Second)
				synctest.Wait()
				b.mu.Lock()
				early := len(b.singles)
				b.mu.Unlock()
				time.Sleep(2 * shareEvery)
				synctest.Wait()
				b.mu.Lock()
				defer b.mu.Unlock()
				if early > 0 || len(b.singles) > 0 != c.want {
					t.Fatalf("%d jobs before its time and %+v after it, want some: %v", early, b.singles, c.want)
				}
				if c.want && !slices.Equal(b.singles[0].domains, it.Domains) {
					t.Errorf("got a job of %v, want %v", b.singles[0].domains, it.Domains)
				}
			})
		})
	}
}

// TestPullGoesOnElsewhere: a pull of which its process says no more is taken over, once; one that goes on or is done is not.
func TestPullGoesOnElsewhere(t *testing.T) {
	for _, c := range []struct {
		name   string
		beats  bool
		isDone bool
		claim  error
		want   bool
	}{
		{name: "its process is gone", want: true},
		{name: "it goes on", beats: true},
		{name: "it is done", isDone: true},
		{name: "another has taken it over", claim: queue.ErrOvertaken},
	} {
		t.Run(c.name, func(t *testing.T) {
			atBoard(t, func(t *testing.T, s *Sites, b *board) {
				b.refusals[kindPull] = c.claim
				p := queue.Posting{Kind: kindPull, Name: "7", Revision: 50,
					Data: encode(pulling{Of: path, Path: path, Domains: []string{"a.example"}, Since: began.Add(-time.Minute), IsDone: c.isDone})}
				for i := range 12 {
					if i == 0 || c.beats {
						p.Revision++
						b.tell(p, true)
					}
					if i < 3 && len(b.pulled()) > 0 {
						t.Fatalf("pulled after %s", time.Since(began))
					}
					time.Sleep(pullBeat)
					synctest.Wait()
				}
				if !c.want {
					if len(b.pulled()) > 0 {
						t.Errorf("got %+v, want no pull", b.pulled())
					}
					return
				}
				if len(b.pulled()) < len(pullPauses) || !slices.Equal(b.pulled()[0].domains, []string{"a.example"}) || !b.pulled()[0].since.Equal(began.Add(-time.Minute)) {
					t.Fatalf("got %+v, want the same pull", b.pulled())
				}
				if first := b.posts[0]; first.Kind != kindPull || first.Name != "7" || first.Revision != 51 {
					t.Errorf("got %+v, want it claimed over what was there", first)
				}
				var last pulling
				if err := json.Unmarshal(b.posts[len(b.posts)-1].Data, &last); err != nil || !last.IsDone {
					t.Errorf("got %+v, %v in the end, want that it is done", last, err)
				}
			})
		})
	}
}

// TestPullIsHeld: who pulls says so while it does, and ends when another has taken over.
func TestPullIsHeld(t *testing.T) {
	atBoard(t, func(t *testing.T, s *Sites, b *board) {
		b.hang = true
		p := circuit(path, 7, "a.example")
		b.tell(p, true)
		b.tell(p, false)
		time.Sleep(10 * pullBeat)
		b.mu.Lock()
		if n := len(b.posts); n < 9 || len(b.pulls) != 1 {
			t.Errorf("said %d times in %s that it pulls, and pulled %d times", n, 10*pullBeat, len(b.pulls))
		}
		b.refusals[kindPull] = queue.ErrOvertaken
		b.mu.Unlock()
		time.Sleep(2 * pullBeat)
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.hung != 1 || len(b.pulls) != 1 {
			t.Errorf("it goes on beside another: ended %d of %d", b.hung, len(b.pulls))
		}
	})
}

// TestDeathThatWasNotPosted brings a pull by the process that knows of it, and a failure that was no death brings none.
func TestDeathThatWasNotPosted(t *testing.T) {
	atBoard(t, func(t *testing.T, s *Sites, b *board) {
		b.refusals[KindCircuit] = context.DeadlineExceeded
		s.Waits(path, "a.example")
		s.Lives(path)
		synctest.Wait()
		if len(b.pulled()) > 0 {
			t.Fatalf("got %+v by a path that was not dead", b.pulled())
		}
		s.Died(Circuit{Path: path, Until: time.Now().Add(time.Minute)})
		s.Waits(path, "b.example")
		time.Sleep(5 * shareEvery)
		s.Lives(path)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(b.pulled()) == 0 || !slices.Equal(b.pulled()[0].domains, []string{"a.example", "b.example"}) {
			t.Errorf("got %+v, want what waits", b.pulled())
		}
		n := len(b.pulled())
		s.Lives(path)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(b.pulled()) != n {
			t.Error("pulled again by a path that lives")
		}
	})
}

// TestDomainsOfTheDead are posted with the circuit, and, when another posts first, later.
func TestDomainsOfTheDead(t *testing.T) {
	atBoard(t, func(t *testing.T, s *Sites, b *board) {
		domains := func() []string {
			b.mu.Lock()
			defer b.mu.Unlock()
			if len(b.posts) == 0 {
				return nil
			}
			c, _ := note(map[string]posted[Circuit]{}, b.posts[len(b.posts)-1], true)
			return c.Domains
		}
		s.Waits(path, "a.example")
		s.Died(Circuit{Path: path, Until: time.Now().Add(time.Hour)})
		synctest.Wait()
		if got := domains(); !slices.Equal(got, []string{"a.example"}) {
			t.Errorf("got %v with the circuit", got)
		}
		s.Waits(path, "b.example")
		b.mu.Lock()
		b.refusals[KindCircuit] = queue.ErrOvertaken
		b.mu.Unlock()
		time.Sleep(2 * shareEvery)
		b.mu.Lock()
		delete(b.refusals, KindCircuit)
		b.mu.Unlock()
		time.Sleep(2 * shareEvery)
		synctest.Wait()
		if got := domains(); !slices.Equal(got, []string{"a.example", "b.example"}) {
			t.Errorf("got %v after somebody else was quicker once", got)
		}
	})
}

// TestDomainsOfTheLivingAreForgotten: what failed once and is not dead takes no room for ever.
func TestDomainsOfTheLivingAreForgotten(t *testing.T) {
	atBoard(t, func(t *testing.T, s *Sites, b *board) {
		b.tell(circuit(path, 7), true)
		s.Waits(path, "a.example")
		s.Waits("mx.example.org", "b.example")
		time.Sleep(4 * shareEvery)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.putOff) != 1 || s.putOff[path] == nil {
			t.Errorf("got %v, want only those of the dead site", s.putOff)
		}
	})
}

const path = "mx.example.net"
