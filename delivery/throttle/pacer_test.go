package throttle_test

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postroad/delivery/throttle"
	"postroad/queue"
)

// TestFarMoreThanAnHoursWorth sends ten times what the rate lets through in the longest time for which a job is put aside. All go about as
// fast as the rate says, and those that are left do not lose to the ones that came with them.
func TestFarMoreThanAnHoursWorth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rate := queue.Rate{Count: 200, Window: time.Hour}
		const jobs = 2000
		p := throttle.NewPacer(throttle.Alone(), func() int { return 1 })
		begun := time.Now()
		var mu sync.Mutex
		var sent []time.Duration // after the begin
		var wg sync.WaitGroup
		for range jobs {
			wg.Go(func() {
				for !hasTurn(t, p, rate) {
				}
				mu.Lock()
				defer mu.Unlock()
				sent = append(sent, time.Since(begun))
			})
		}
		wg.Wait()
		p.Stop()
		for i, at := range sent {
			ideal := time.Duration(i) * rate.Every()
			if at < ideal || at > ideal*13/10+10*time.Minute {
				t.Fatalf("job %d of %d went after %s, want about %s", i, jobs, at, ideal)
			}
		}
		t.Logf("%d jobs in %s", jobs, sent[jobs-1])
	})
}

// hasTurn comes with a job once, and waits as long as it is told to when there is no turn.
func hasTurn(t *testing.T, p *throttle.Pacer, rate queue.Rate) bool {
	delay := p.Delay("site", rate, 0)
	if delay == 0 {
		_, err := p.Turn(t.Context(), "site", rate)
		if err == nil {
			return true
		}
		notYet, is := errors.AsType[*throttle.NotYet](err)
		if !is {
			t.Error(err)
			return true
		}
		delay = notYet.Delay
	}
	time.Sleep(delay)
	return false
}

// TestRelaxedRate is in force with the next job, also where the turns of the old one were hours apart.
func TestRelaxedRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := throttle.NewPacer(throttle.Alone(), func() int { return 1 })
		slow, quick := queue.Rate{Count: 1, Window: 3 * time.Hour}, queue.Rate{Count: 10, Window: time.Second}
		if _, err := p.Turn(t.Context(), "site", slow); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Turn(t.Context(), "site", slow); err == nil || p.Delay("site", slow, 0) < time.Hour {
			t.Fatalf("got %v, and a delay of %s, by the old rate", err, p.Delay("site", slow, 0))
		}
		if delay := p.Delay("site", quick, 0); delay != 0 {
			t.Errorf("put off for %s by the new rate", delay)
		}
		if _, err := p.Turn(t.Context(), "site", quick); err != nil {
			t.Errorf("got %v by the new rate", err)
		}
		p.Stop()
	})
}

// TestDelayCountsWhoIsAhead: those who will join the line stand before who comes later, the turns of a rest aside.
func TestDelayCountsWhoIsAhead(t *testing.T) {
	for _, tc := range []struct {
		name  string
		rate  queue.Rate
		ahead int
		isIn  bool
	}{
		{"the first", queue.Rate{Count: 6, Window: time.Minute}, 0, true},
		{"the second of a slow rate", queue.Rate{Count: 6, Window: time.Minute}, 1, false},
		{"the fourth of four after a rest", queue.Rate{Count: 6, Window: time.Minute, Burst: 4}, 3, true},
		{"the fifth of four after a rest", queue.Rate{Count: 6, Window: time.Minute, Burst: 4}, 4, false},
		{"the last within MaxWait", queue.Rate{Count: 1, Window: time.Second}, 8, true},
		{"the first beyond", queue.Rate{Count: 1, Window: time.Second}, 9, false},
	} {
		p := throttle.NewPacer(throttle.Alone(), func() int { return 1 })
		if delay := p.Delay("site", tc.rate, tc.ahead); (delay == 0) != tc.isIn {
			t.Errorf("%s: put off for %s", tc.name, delay)
		}
	}
}
