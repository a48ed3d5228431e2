package queue

import (
	"context"
	"testing"
	"time"
)

// TestElsewhereSaysNothingOfTheDomain: a job that is left to another process does not make its domain slow, and what it was sent from
// before still holds.
func TestElsewhereSaysNothingOfTheDomain(t *testing.T) {
	t.Parallel()
	q := innerQueue(t)
	j := q.storeMail(t, NewID(), "far.example")[0]
	j.Source = "out2"
	q.storeJob(t, q.readySpot("far.example"), j, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_ = q.Deliver(ctx, 16, func(ctx context.Context, d *Delivery) { // ends with ctx
		defer cancel()
		if err := d.Settle(ctx, Settlement{Remaining: d.Job.Recipients, Delay: time.Second, Elsewhere: true, Reason: "elsewhere"}); err != nil {
			t.Error(err)
		}
	})
	if q.slow.has(encodeToken("far.example"), time.Now()) {
		t.Error("the domain is slow")
	}
	isLater := false
	for e, err := range q.List(t.Context(), Selection{}, 0) {
		if err != nil {
			t.Fatal(err)
		}
		isLater = isLater || e.Place == PlaceLater && e.Job.Source == "out2" && e.Job.Tries == 0
	}
	if !isLater {
		t.Error("it does not wait with its source")
	}
}
