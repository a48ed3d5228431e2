package queue

import (
	"context"
	"testing"
	"time"
)

// A window of twelve slices slides by one of them.
func TestAddBounced(t *testing.T) {
	var slices []bounceSlice
	var total Bounced
	for _, tt := range []struct {
		slot int64
		add  Bounced
		want Bounced
	}{
		{100, Bounced{10, 1}, Bounced{10, 1}},
		{100, Bounced{5, 0}, Bounced{15, 1}},
		{111, Bounced{1, 1}, Bounced{16, 2}},
		{112, Bounced{1, 0}, Bounced{2, 1}}, // the first has gone
		{110, Bounced{1, 0}, Bounced{3, 1}}, // a clock that is behind
		{200, Bounced{}, Bounced{}},         // all have gone
		{200, Bounced{2, 2}, Bounced{2, 2}}, //
		{195, Bounced{}, Bounced{2, 2}},     // seen by a clock that is behind
	} {
		if slices, total = addBounced(slices, tt.add, tt.slot); total != tt.want {
			t.Errorf("slot %d, adding %v: got %v, want %v", tt.slot, tt.add, total, tt.want)
		}
	}
	for slot := range int64(1000) {
		slices, _ = addBounced(slices, Bounced{1, 0}, 1000-slot)
	}
	if len(slices) > 2*bounceSlices {
		t.Errorf("got %d slices", len(slices))
	}
}

func TestCountBounced(t *testing.T) {
	q := innerQueue(t)
	const workers = 4
	errs := make(chan error)
	for range workers {
		go func() {
			_, err := q.CountBounced(context.Background(), "web@01", Bounced{Ended: 10, Refused: 1}, time.Hour)
			errs <- err
		}()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	got, err := q.CountBounced(t.Context(), "web@01", Bounced{}, time.Hour)
	if want := (Bounced{10 * workers, workers}); got != want || err != nil {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if got, err := q.CountBounced(t.Context(), "nobody", Bounced{}, time.Hour); got != (Bounced{}) || err != nil {
		t.Errorf("nobody: got %v, %v", got, err)
	}
	if _, err := q.CountBounced(t.Context(), "", Bounced{}, time.Hour); err == nil {
		t.Error("no sender was counted")
	}
}
