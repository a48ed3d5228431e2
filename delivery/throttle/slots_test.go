package throttle_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postroad/delivery/throttle"
	"postroad/queue"
)

// full is a cluster in which others have all slots but some.
type full struct {
	free int

	mu     sync.Mutex
	claims []queue.Claim
}

func (f *full) Join(func(string)) (throttle.Member, error) { return f, nil }
func (f *full) Life() context.Context                      { return context.Background() }
func (f *full) Members() int                               { return 2 }
func (f *full) Leave(context.Context)                      {}
func (f *full) Claim(_ context.Context, _ context.Context, _ string, c queue.Claim) (queue.Claimed, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.claims = append(f.claims, c)
	have := min(c.Want, f.free)
	return queue.Claimed{Have: have, Fair: have}, nil
}

// wants is what the cluster believes that the process wants.
func (f *full) wants() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.claims[len(f.claims)-1].Want
}

// TestWantIsTakenBack: others hold back for who waits, so who waits no more says so.
func TestWantIsTakenBack(t *testing.T) {
	for _, tc := range []struct {
		name       string
		free, want int // then
	}{
		{"nothing was got, nothing is wanted", 0, 0},
		{"less was got, and is enough", 2, 2},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := &full{free: tc.free}
			s, err := throttle.NewSlots(f, throttle.Users{Granted: func(string) {}, Yield: func(string) {}, Lost: func() {}})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Stop(context.Background())
			synctest.Wait()
			s.Need("site", throttle.Need{Limit: 4, Want: 4})
			time.Sleep(5 * time.Second)
			if got := f.wants(); got != 4 {
				t.Errorf("%s: wants %d while it waits for 4", tc.name, got)
			}
			s.Need("site", throttle.Need{Limit: 4, Use: tc.want, Want: tc.want})
			time.Sleep(15 * time.Second)
			if got := f.wants(); got != tc.want {
				t.Errorf("%s: still wants %d, want %d", tc.name, got, tc.want)
			}
			before := len(f.claims)
			time.Sleep(time.Minute)
			if len(f.claims) != before {
				t.Errorf("%s: goes on to claim", tc.name)
			}
		})
	}
}

// reborn is a cluster that knows what its only member has, and whose member begins a second life.
type reborn struct {
	mu     sync.Mutex
	life   context.Context
	stored int // what the member has
}

func (r *reborn) Join(func(string)) (throttle.Member, error) { return r, nil }
func (r *reborn) Members() int                               { return 1 }
func (r *reborn) Leave(context.Context)                      {}
func (r *reborn) Life() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.life
}

func (r *reborn) begin(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.life, r.stored = ctx, 0
}

func (r *reborn) Claim(_, life context.Context, _ string, c queue.Claim) (queue.Claimed, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if life != r.life {
		return queue.Claimed{}, queue.ErrNoMember
	}
	r.stored = max(min(c.Use, r.stored), min(c.Want, c.Limit))
	return queue.Claimed{Have: r.stored, Fair: c.Limit}, nil
}

// TestClaimAcrossLives: a claim that began in one life and asks in the next must not give back what another has got meanwhile, or more
// connections are used than are leased.
func TestClaimAcrossLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, end := context.WithCancel(t.Context())
		defer end()
		second, endSecond := context.WithCancel(t.Context())
		defer endSecond()
		r := &reborn{life: first}
		const path = "site"
		var s *throttle.Slots
		asked, goOn := make(chan struct{}), make(chan struct{})
		var once sync.Once
		s, err := throttle.NewSlots(r, throttle.Users{Granted: func(string) {}, Lost: func() {}, Yield: func(string) {
			once.Do(func() {
				s.Keep(path, 1)
				close(asked)
				<-goOn
			})
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Stop(context.Background())
		synctest.Wait()
		s.Need(path, throttle.Need{Limit: 5, Want: 5})
		time.Sleep(time.Second)
		s.Need(path, throttle.Need{Limit: 5, Use: 1, Want: 1})
		<-asked // 10 s later it gives back four
		r.begin(second)
		end()
		synctest.Wait()
		s.Need(path, throttle.Need{Limit: 5, Want: 5})
		synctest.Wait()
		close(goOn)
		synctest.Wait()
		for range 20 {
			r.mu.Lock()
			stored := r.stored
			r.mu.Unlock()
			if have, _ := s.Have(path); have > stored {
				t.Fatalf("it uses %d connections, and has %d", have, stored)
			}
			time.Sleep(250 * time.Millisecond)
		}
		if have, _ := s.Have(path); have != 5 {
			t.Errorf("it has %d in the end, want the 5 that it wants", have)
		}
	})
}
