package queue

import "time"

// Class is a constant delay; each has one FIFO, in which the order of arrival is the order of being due.
type Class string

// classes, longest first.
var classes = []struct {
	name  Class
	delay time.Duration
}{
	{"4h", 4 * time.Hour},
	{"1h", time.Hour},
	{"15m", 15 * time.Minute},
	{"5m", 5 * time.Minute},
	{"1m", time.Minute},
	{"10s", 10 * time.Second},
}

// ShortestDelay is the shortest time for which a job can be put aside; less is waited in hand.
const ShortestDelay = 10 * time.Second

// maxComponents bounds the moves that one delay may cost; what is left then is rounded up.
const maxComponents = 10

func (c Class) delay() time.Duration {
	for _, k := range classes {
		if k.name == c {
			return k.delay
		}
	}
	return 0
}

// decompose makes a delay of classes, longest first: 37 min = 15 + 15 + 5 + 1 + 1, but never more than maxComponents of
// them, the last one rounded up. The result is never empty.
func decompose(d time.Duration) []Class {
	d = (d + ShortestDelay - 1).Truncate(ShortestDelay)
	var out []Class
	for _, k := range classes {
		for d >= k.delay && (len(out) < maxComponents-1 || k.delay >= 4*time.Hour && len(out) < 64) {
			out = append(out, k.name)
			d -= k.delay
		}
	}
	if d <= 0 && len(out) > 0 {
		return out
	}
	last := classes[0].name
	for _, k := range classes {
		if k.delay >= d {
			last = k.name
		}
	}
	return append(out, last)
}

// holdSteps are the first delay classes of a long wait that is to end on time, and never early: those of 4 h, at the end those of
// at least 5 min, then the rest. Who comes out of them early waits once more; with the many steps that this saves decompose would round.
func holdSteps(left time.Duration) []Class {
	switch {
	case left >= 4*time.Hour:
		left = min(left, maxHoldSteps*4*time.Hour).Truncate(4 * time.Hour)
	case left >= 5*time.Minute:
		left = left.Truncate(5 * time.Minute)
	}
	return decompose(left)
}

const maxHoldSteps = 42 // a week
