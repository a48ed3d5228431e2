package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// window is what the rate is looked at in, in seconds: in each there must be at least half of it.
const window = 10

// report prints what was seen and judges it.
func (t *tally) report(o *options) error {
	var wrong []string
	missing := t.missing()
	t.mu.Lock()
	defer t.mu.Unlock()
	rate, slowest := float64(len(t.sent))/t.took.Seconds(), t.slowest()
	lost := t.lost()
	fmt.Printf("load: %.0f s, %d sessions, %d failed; %d mails accepted, %.1f a second, in the slowest %d s %.1f a second\n",
		t.took.Seconds(), t.sessions, t.failures, len(t.sent), rate, window, slowest)
	fmt.Printf("delivered %d, duplicates %d, lost %d, unsigned %d, bad signatures %d\n", len(t.arrived), t.duplicates, lost, t.unsigned, t.bad)
	if len(t.delays) > 0 {
		slices.Sort(t.delays)
		at := func(q float64) time.Duration {
			return t.delays[int(q*float64(len(t.delays)-1))].Round(time.Millisecond)
		}
		fmt.Printf("from the 250 to delivery: median %s, 99 %% %s, longest %s\n", at(0.5), at(0.99), at(1))
	}
	names := slices.SortedFunc(maps.Keys(t.selectors), func(a, b string) int { return t.selectors[a].first.Compare(t.selectors[b].first) })
	for _, name := range names {
		u := t.selectors[name]
		fmt.Printf("selector %s (%s): %d signatures, from %.1f s to %.1f s\n", name, u.algorithm, u.count, u.first.Sub(t.begun).Seconds(), u.last.Sub(t.begun).Seconds())
	}
	fmt.Printf("certificates, with sessions of each: %s\n", counts(t.certificates))
	fmt.Printf("passwords, with logins of each: %s; %d with the old one in its grace\n", counts(t.passwords), t.grace)
	for _, c := range []struct {
		n    int
		what string
	}{
		{t.failures, "sessions failed"}, {lost, "mails were lost"}, {t.unsigned, "mails arrived without good signatures of both algorithms"},
		{t.bad, "signatures were bad"}, {t.duplicates, "mails arrived again"}, {t.strangers, "mails arrived that nobody sent"},
	} {
		if c.n > 0 {
			wrong = append(wrong, fmt.Sprintf("%d %s", c.n, c.what))
		}
	}
	if rate < o.least || slowest < o.least/2 {
		wrong = append(wrong, fmt.Sprintf("too slow: want %.0f a second", o.least))
	}
	if wrong = append(wrong, missing...); len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	return nil
}

// slowest is the least rate of any window that is whole. The mutex is held.
func (t *tally) slowest() float64 {
	least, sum := -1, 0
	for i, n := range t.seconds {
		sum += n
		if i >= window {
			sum -= t.seconds[i-window]
		}
		if i >= window && (least < 0 || sum < least) && i < len(t.seconds)-1 {
			least = sum
		}
	}
	return float64(max(least, 0)) / window
}

func counts[K comparable](m map[K]int) string {
	var list []string
	for name, n := range m {
		list = append(list, fmt.Sprintf("%v: %d", name, n))
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}
