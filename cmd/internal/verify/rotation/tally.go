package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// What must have been changed under the load.
const (
	wantSelectors    = 3 // of each algorithm: two rotations
	wantCertificates = 2
	wantPasswords    = 2
)

// tally is what was seen at both ends.
type tally struct {
	begun time.Time

	mu           sync.Mutex
	took         time.Duration // of the load
	lastID       int64
	sent         map[int64]time.Time // accepted messages
	seconds      []int               // accepted in each second
	arrived      map[int64]time.Time
	delays       []time.Duration
	sessions     int
	failures     int
	grace        int         // sessions with an old password
	passwords    map[int]int // sessions by password
	certificates map[string]int
	selectors    map[string]*use
	duplicates   int
	unsigned     int // without good signatures of all algorithms
	bad          int // signatures
	strangers    int
	faults       int
}

// use is what was seen of a selector.
type use struct {
	algorithm   string
	count       int
	first, last time.Time
}

func newTally() *tally {
	return &tally{
		begun: time.Now(), sent: make(map[int64]time.Time), arrived: make(map[int64]time.Time),
		passwords: make(map[int]int), certificates: make(map[string]int), selectors: make(map[string]*use),
	}
}

// fault says the first few at once. The mutex is held.
func (t *tally) fault(format string, args ...any) {
	if t.faults++; t.faults <= 20 {
		fmt.Printf("  %4.0f s: FAULT %s\n", time.Since(t.begun).Seconds(), fmt.Sprintf(format, args...))
	}
}

func (t *tally) with(do func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	do()
}

func (t *tally) newID() (id int64) {
	t.with(func() { t.lastID++; id = t.lastID })
	return id
}

func (t *tally) sessionBegun() { t.with(func() { t.sessions++ }) }

func (t *tally) inGrace() { t.with(func() { t.grace++ }) }

func (t *tally) loggedIn(password int) { t.with(func() { t.passwords[password]++ }) }

func (t *tally) certificate(serial string) { t.with(func() { t.certificates[serial]++ }) }

func (t *tally) loadEnded(took time.Duration) { t.with(func() { t.took = took }) }

func (t *tally) failed(err error) {
	t.with(func() {
		t.failures++
		t.fault("a session failed: %v", err)
	})
}

func (t *tally) stranger(err error) {
	t.with(func() {
		t.strangers++
		t.fault("%v", err)
	})
}

func (t *tally) accepted(id int64) {
	t.with(func() {
		now := time.Now()
		t.sent[id] = now
		second := int(now.Sub(t.begun).Seconds())
		for len(t.seconds) <= second {
			t.seconds = append(t.seconds, 0)
		}
		t.seconds[second]++
		if at, is := t.arrived[id]; is {
			t.delays = append(t.delays, max(0, at.Sub(now)))
		}
	})
}

func (t *tally) delivered(id int64, domain string, signatures []signature) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if first, again := t.arrived[id]; again {
		t.duplicates++
		t.fault("message %d arrived again, %s after the first time", id, now.Sub(first).Round(time.Millisecond))
	} else {
		t.arrived[id] = now
		if at, is := t.sent[id]; is {
			t.delays = append(t.delays, now.Sub(at))
		}
	}
	good := make(map[string]bool)
	for _, s := range signatures {
		u := t.selectors[s.selector]
		if u == nil {
			u = &use{algorithm: s.algorithm, first: now}
			t.selectors[s.selector] = u
		}
		u.count++
		u.last = now
		if s.fault != nil {
			t.bad++
			t.fault("message %d: signature d=%s s=%s a=%s: %v", id, s.domain, s.selector, s.algorithm, s.fault)
			continue
		}
		good[s.domain+" "+s.algorithm] = true
	}
	for _, a := range algorithms {
		if !good[domain+" "+a] {
			t.unsigned++
			t.fault("message %d has %d signatures, and no good one by %s", id, len(signatures), a)
			break
		}
	}
}

// lost counts what was accepted and has not arrived. The mutex is held.
func (t *tally) lost() (n int) {
	for id := range t.sent {
		if _, is := t.arrived[id]; !is {
			n++
		}
	}
	return n
}

// wait waits until all that was accepted has arrived.
func (t *tally) wait(ctx context.Context, limit time.Duration) {
	end := time.Now().Add(limit)
	for time.Now().Before(end) && ctx.Err() == nil {
		n := 0
		t.with(func() { n = t.lost() })
		if n == 0 {
			time.Sleep(2 * time.Second) // would anything arrive twice?
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// missing names the changes that were not seen yet.
func (t *tally) missing() (list []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range algorithms {
		n := 0
		for _, u := range t.selectors {
			if u.algorithm == a {
				n++
			}
		}
		if n < wantSelectors {
			list = append(list, fmt.Sprintf("%d selectors of %s were seen, want %d", n, a, wantSelectors))
		}
	}
	if n := len(t.certificates); n < wantCertificates {
		list = append(list, fmt.Sprintf("%d certificates were seen, want %d", n, wantCertificates))
	}
	if n := len(t.passwords); n < wantPasswords {
		list = append(list, fmt.Sprintf("%d passwords were used, want %d", n, wantPasswords))
	}
	if t.grace == 0 {
		list = append(list, "no session used an old password in its grace")
	}
	return list
}

// line is how it goes.
func (t *tally) line() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	var signing []string
	for name, u := range t.selectors {
		if now.Sub(u.last) < 2*time.Second {
			signing = append(signing, name)
		}
	}
	slices.Sort(signing)
	return fmt.Sprintf("accepted %d, delivered %d, failed sessions %d, bad signatures %d, signing: %s",
		len(t.sent), len(t.arrived), t.failures, t.bad, strings.Join(signing, " "))
}
