package source

import (
	"errors"
	"math"
	"time"

	"postroad/queue"
)

// WarmUp is the plan for sources that are new: receivers trust an address that they do not know with little mail, so it begins with few
// recipients a day and gets the same factor more each day. The zero WarmUp has no plan: every source may do all at once.
type WarmUp struct {
	Days  int // that a source is new; 0: no plan
	First int // recipients on its first day
	Last  int // recipients on its last day as a new one
}

const (
	warmDay     = 24 * time.Hour
	maxWarmDays = 365
	maxPerDay   = 100_000_000
)

var errWarmUp = errors.New("plan for new sources: want 1 to 365 days, and recipients a day from 1 to 100,000,000 that do not fall")

func (w WarmUp) check() error {
	if w == (WarmUp{}) {
		return nil
	}
	if w.Days < 1 || w.Days > maxWarmDays || w.First < 1 || w.Last < w.First || w.Last > maxPerDay {
		return errWarmUp
	}
	return nil
}

// Day is the day of a source in the plan, from 0; less: it has not begun. isWarm: its time as a new one is over, or there is no plan for it.
func (w WarmUp) Day(started, now time.Time) (day int, isWarm bool) {
	if started.IsZero() || w.Days == 0 {
		return 0, true
	}
	day = int(math.Floor(float64(now.Sub(started)) / float64(warmDay)))
	return day, day >= w.Days
}

// PerDay is how many recipients a source may have on a day of the plan.
func (w WarmUp) PerDay(day int) int {
	switch {
	case day < 0:
		return 0
	case day == 0 || w.Days < 2:
		return w.First
	}
	ratio := float64(w.Last) / float64(w.First)
	return int(math.Round(float64(w.First) * math.Pow(ratio, float64(day)/float64(w.Days-1))))
}

// limit is the limit of a source on a day.
func (w WarmUp) limit(day int) queue.Limit {
	return queue.Limit{Count: w.PerDay(day), Window: warmDay}
}

// SpendPrefix begins the names of the limits of sources in the cluster; the source's own follows.
const SpendPrefix = "source/"
