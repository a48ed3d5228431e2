package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Bounced is how many recipients of somebody's mail came to an end of late, and how many of them hosts refused for good.
type Bounced struct {
	Ended   int
	Refused int
}

const (
	bounceBucket   = "bounces"
	bounceMaxBytes = 16 << 20 // in memory: as many as 50,000 senders
	bounceSlices   = 12       // of a window
	bounceTries    = 10       // against other processes that count the same sender
	maxSender      = 200      // octets
)

// bounceSlice is what ended within one slice of time.
type bounceSlice struct {
	Slot    int64 `json:"t"` // number of the slice since 1970
	Ended   int   `json:"n"`
	Refused int   `json:"b"`
}

// CountBounced adds to the counts of a sender and returns what the whole cluster has counted within the window; all processes must use the
// same window, an hour say. Adding nothing only asks. The counts are in memory of the servers: a restart of all of them forgets.
func (q *Queue) CountBounced(ctx context.Context, sender string, add Bounced, window time.Duration) (Bounced, error) {
	if sender == "" || len(sender) > maxSender || window < bounceSlices*time.Second {
		return Bounced{}, fmt.Errorf("count bounces of %.200q within %s: want 1 to %d octets and %s at least", sender, window, maxSender, bounceSlices*time.Second)
	}
	bucket, token := casBucket{q, bounceBucket}, encodeToken(sender)
	var err error
	for try := range bounceTries {
		var data []byte
		var revision uint64
		if data, revision, err = bucket.read(ctx, token, try > 0); err != nil {
			break
		}
		var slices []bounceSlice
		if len(data) > 0 && json.Unmarshal(data, &slices) != nil {
			slices = nil // of another version
		}
		var total Bounced
		slices, total = addBounced(slices, add, time.Now().Unix()/int64((window/bounceSlices).Seconds()))
		if add == (Bounced{}) {
			return total, nil
		}
		if data, err = json.Marshal(slices); err != nil {
			break
		}
		if _, err = bucket.write(ctx, token, data, revision, window); err == nil {
			return total, nil
		}
		if !errors.Is(err, errConflict) {
			break
		}
	}
	return Bounced{}, fmt.Errorf("count bounces of %s: %w", sender, err)
}

// addBounced adds to the slice of now and leaves out those that the window has left behind.
func addBounced(old []bounceSlice, add Bounced, now int64) ([]bounceSlice, Bounced) {
	total := add
	slices := []bounceSlice{{Slot: now, Ended: add.Ended, Refused: add.Refused}}
	for _, s := range old {
		switch {
		case s.Slot == now:
			slices[0].Ended += s.Ended
			slices[0].Refused += s.Refused
		case s.Slot > now-bounceSlices && len(slices) < 2*bounceSlices: // also those of a clock that is ahead
			slices = append(slices, s)
		default:
			continue
		}
		total.Ended += s.Ended
		total.Refused += s.Refused
	}
	return slices, total
}
