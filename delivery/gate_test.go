package delivery

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postroad/delivery/smtpc"
)

// enter gets a pass or fails.
func enter(t *testing.T, g *gate, name string) *pass {
	t.Helper()
	p, refused, err := g.enter(t.Context(), name)
	if p == nil {
		t.Fatalf("not let in: %+v, %v", refused, err)
	}
	return p
}

func leave(p *pass, v verdict) {
	p.leave(v)
	p.done()
}

var unreachable = verdict{failure: &smtpc.Reply{Code: 451, Enhanced: "4.4.1", Lines: []string{"cannot connect"}, Local: true}}

func TestGateKeepsOrderAndSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2, 10)
		first, second := enter(t, g, "a"), enter(t, g, "a")
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				p := enter(t, g, "a")
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				leave(p, verdict{isAlive: true})
			})
			synctest.Wait()
		}
		if len(order) != 0 {
			t.Fatalf("let in above the slots: %v", order)
		}
		leave(first, verdict{})
		wg.Wait()
		leave(second, verdict{})
		for i, got := range order {
			if got != i {
				t.Fatalf("got order %v", order)
			}
		}
		if len(g.sites) != 0 {
			t.Errorf("%d sites are remembered without a reason", len(g.sites))
		}
	})
}

func TestGateWaitIsShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 2)
		p := enter(t, g, "slow")
		var wg sync.WaitGroup
		wait := func(want time.Duration) {
			wg.Go(func() {
				start := time.Now()
				got, refused, err := g.enter(t.Context(), "slow")
				if got != nil || err != nil || refused.isDead || refused.delay != minDelay {
					t.Errorf("got %v, %+v, %v", got, refused, err)
				}
				if took := time.Since(start); took != want {
					t.Errorf("waited %v, want %v", took, want)
				}
			})
			synctest.Wait()
		}
		wait(maxWait)    // within the share
		wait(borrowWait) // above it
		wait(borrowWait)
		time.Sleep(borrowWait + time.Second)
		wait(0) // no more borrowing
		wg.Wait()
		leave(p, verdict{})
	})
}

// A site that never answers must not hold more of the window than its share, once that is known.
func TestSlowSiteKeepsToItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(4, 8)
		for range 4 {
			p := enter(t, g, "slow")
			defer leave(p, verdict{})
		}
		ctx, cancel := context.WithCancel(t.Context())
		inHand := make(chan struct{}, 100)
		most := 0
		var wg sync.WaitGroup
		for range 600 { // ten jobs a second for a minute
			wg.Go(func() {
				inHand <- struct{}{}
				if p, _, _ := g.enter(ctx, "slow"); p != nil {
					t.Error("let in")
				}
				<-inHand
			})
			synctest.Wait()
			most = max(most, len(inHand))
			time.Sleep(100 * time.Millisecond)
		}
		if most > 4+20 { // waiting within the share, and two seconds' worth of borrowers
			t.Errorf("%d jobs were in hand", most)
		}
		cancel()
		wg.Wait()
	})
}

func TestGateContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 4)
		p := enter(t, g, "a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := g.enter(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		leave(p, verdict{})
		leave(enter(t, g, "a"), verdict{})
		if len(g.sites) != 0 {
			t.Errorf("%d sites left", len(g.sites))
		}
	})
}

func TestDeadSiteAndItsReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(4, 8)
		for range deadAfter - 1 {
			leave(enter(t, g, "a"), unreachable)
		}
		leave(enter(t, g, "a"), verdict{isAlive: true}) // one success, and all is forgotten
		for range deadAfter - 1 {
			leave(enter(t, g, "a"), unreachable)
		}
		var passes []*pass
		for range 4 {
			passes = append(passes, enter(t, g, "a"))
		}
		waiting := make(chan *refusal)
		go func() {
			_, refused, _ := g.enter(t.Context(), "a")
			waiting <- refused
		}()
		synctest.Wait()
		for _, p := range passes {
			leave(p, unreachable)
		}
		if refused := <-waiting; refused == nil || !refused.isDead {
			t.Errorf("who waited got %+v, want to be sent away", refused)
		}
		_, refused, _ := g.enter(t.Context(), "a")
		if refused == nil || !refused.isDead || refused.reply.Text() != reasonStart+"cannot connect" {
			t.Fatalf("got %+v, want the memory's reason", refused)
		}
		if n := g.deadSites(); n != 1 {
			t.Errorf("got %d dead sites, want 1", n)
		}

		pause := firstPause
		for range 6 { // probes, one at a time, at growing distances
			time.Sleep(pause - time.Second)
			if p, _, _ := g.enter(t.Context(), "a"); p != nil {
				t.Fatalf("let in before %v", pause)
			}
			time.Sleep(time.Second)
			probe := enter(t, g, "a")
			if p, _, _ := g.enter(t.Context(), "a"); p != nil {
				t.Fatal("two probes at a time")
			}
			leave(probe, unreachable)
			pause = min(2*pause, maxPause)
		}
		time.Sleep(pause)
		leave(enter(t, g, "a"), verdict{}) // a probe that says nothing leaves it to the next
		leave(enter(t, g, "a"), verdict{isAlive: true})
		for range 4 {
			defer leave(enter(t, g, "a"), verdict{})
		}
		if n := g.deadSites(); n != 0 {
			t.Errorf("got %d dead sites, want 0", n)
		}
	})
}

func TestSlowDownAndRecovery(t *testing.T) {
	synctest.Test(t, testSlowDown)
}

func testSlowDown(t *testing.T) {
	g := newGate(8, 16)
	held := enter(t, g, "a")
	leave(enter(t, g, "a"), verdict{isAlive: true, isSlow: true})
	if got := held.site.allowed; got != 4 {
		t.Errorf("after 421: got %v slots, want 4", got)
	}
	leave(enter(t, g, "a"), verdict{isAlive: true, isSlow: true})
	if got := held.site.allowed; got != 4 {
		t.Errorf("after another at the same time: got %v slots, want 4", got)
	}
	time.Sleep(slowFor)
	leave(enter(t, g, "a"), verdict{isFull: true})
	if got := held.site.allowed; got != 1 {
		t.Errorf("with one connection open and no other wanted: got %v slots, want 1", got)
	}
	time.Sleep(slowFor + time.Second)
	leave(held, verdict{})
	held = enter(t, g, "a")
	time.Sleep(time.Second)
	held.leave(verdict{isAlive: true})
	for range 100 {
		leave(enter(t, g, "a"), verdict{isAlive: true})
	}
	if got := held.site.allowed; got != 8 {
		t.Errorf("after 100 successes: got %v slots, want 8", got)
	}
	held.done()
}

func TestMemoriesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(2, 4)
		g.limit = 100
		held := enter(t, g, "held")
		for i := range 1000 {
			for range deadAfter {
				if p, _, _ := g.enter(t.Context(), fmt.Sprint(i)); p != nil {
					leave(p, unreachable)
				}
			}
			if len(g.sites) > 100 {
				t.Fatalf("%d sites are remembered", len(g.sites))
			}
		}
		if g.sites["held"] != held.site {
			t.Error("a site in use was forgotten")
		}
		leave(held, verdict{})

		m := newMemory[int](100, time.Minute)
		for i := range 1000 {
			m.add(i)
			if len(m.until) > 100 {
				t.Fatalf("%d keys are remembered", len(m.until))
			}
		}
		if !m.has(999) {
			t.Error("the latest key was forgotten")
		}
		time.Sleep(2 * time.Minute)
		if m.has(999) {
			t.Error("a key outlived its time")
		}
	})
}

// What is sent away comes back as the site can take it.
func TestBusySiteSpreadsItsJobs(t *testing.T) {
	s := &site{took: 2 * time.Second, allowed: 20, waiting: list.New()}
	now := time.Now()
	count := make(map[time.Duration]int)
	for range 1000 {
		count[s.busy(now, 50, nil).delay]++
	}
	for delay := minDelay; delay < time.Minute; delay += minDelay {
		if got := count[delay]; got < 69 || got > 71 { // 50 in hand, and two seconds' worth
			t.Errorf("%d jobs were put off for %v, want 70", got, delay)
		}
	}
	for range 5000 {
		count[s.busy(now, 50, nil).delay]++
	}
	for delay, got := range count { // more than there are turns for: the same number at each beat
		if delay < minDelay || delay > maxPutOff || got > 6000/int(maxPutOff/minDelay)+70 {
			t.Errorf("%d jobs of 6000 were put off for %v", got, delay)
		}
	}
}
