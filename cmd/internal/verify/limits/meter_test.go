package main

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var zero = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func after(seconds float64) time.Time { return zero.Add(time.Duration(seconds * float64(time.Second))) }

// even is n messages, a second apart by interval, from begin on.
func even(begin, interval float64, n int) (list []time.Time) {
	for i := range n {
		list = append(list, after(begin).Add(time.Duration(i)*time.Duration(interval*1e6)*time.Microsecond))
	}
	return list
}

func TestWorstWindow(t *testing.T) {
	constant := limits{{zero, 10}}
	for _, tc := range []struct {
		name     string
		messages []time.Time
		limits   limits
		window   time.Duration
		count    int
		excess   float64
	}{
		{"at the limit", even(0, 0.1, 100), constant, time.Second, 10, 0},
		{"above it for a moment", append(even(0, 0.1, 50), even(4.9, 0.01, 5)...), constant, time.Second, 15, 5},
		{"a burst across a second's border", append(even(0.95, 0.001, 10), even(1.05, 0.001, 10)...), constant, time.Second, 20, 10},
		{"a burst is small in a long window", append(even(0.95, 0.001, 10), even(1.05, 0.001, 10)...), constant, 10 * time.Second, 20, -80},
		{"half the limit from second 5 on, kept", append(even(0, 0.1, 50), even(5, 0.2, 25)...), limits{{zero, 10}, {after(5), 5}}, time.Second, 10, 0.5}, // from 4.1 to 5.1
		{"half the limit from second 5 on, not kept", even(0, 0.1, 100), limits{{zero, 10}, {after(5), 5}}, time.Second, 10, 5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMeter()
			m.messages = tc.messages
			w := m.worstOf(tc.window, tc.limits)
			if d := w.excess - tc.excess; d > 0.01 || d < -0.01 {
				t.Errorf("excess: got %.2f (%d messages from second %.2f on), want %.2f", w.excess, w.count, w.at.Sub(zero).Seconds(), tc.excess)
			}
		})
	}
}

func TestMostOpen(t *testing.T) {
	m := newMeter()
	for i, c := range []connection{
		{worker: "a", opened: after(0), closed: after(10)},
		{worker: "b", opened: after(2), closed: after(4)},
		{worker: "c", opened: after(4), closed: after(6)}, // not beside the one before
		{worker: "a", opened: after(5), closed: after(8)},
		{opened: after(20)},
	} {
		m.conns[uint64(i)] = &c
	}
	for _, tc := range []struct {
		name    string
		without []span
		want    int
	}{
		{"all", nil, 3},
		{"one worker does not count for a while", []span{{"a", after(3), after(7)}}, 2},
		{"another time", []span{{"a", after(8), after(9)}}, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got, _ := m.mostOpen(tc.without); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}
