package main

import (
	"slices"
	"sync"
	"time"
)

// meter keeps what the receiver saw: each message at its final dot, each connection from accept to the client's QUIT or its end.
type meter struct {
	mu       sync.Mutex
	messages []time.Time
	numbers  map[string]int // arrivals of each message
	conns    map[uint64]*connection
}

type connection struct {
	worker         string // as it named itself in EHLO; "" until its first message or its end
	opened, closed time.Time
	messages       int
}

func newMeter() *meter {
	return &meter{numbers: make(map[string]int), conns: make(map[uint64]*connection)}
}

func (m *meter) opened(session uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conns[session] = &connection{opened: time.Now()}
}

func (m *meter) closed(session uint64, worker string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.conns[session]
	c.worker, c.closed = worker, time.Now()
}

func (m *meter) message(session uint64, worker, number string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.messages = append(m.messages, time.Now())
	m.numbers[number]++
	c := m.conns[session]
	c.worker = worker
	c.messages++
}

func (m *meter) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.messages)
}

// twice counts further copies of a message.
func (m *meter) twice() (n int) {
	for _, k := range m.numbers {
		n += k - 1
	}
	return n
}

// perConnection is the mean of messages on those connections that had any.
func (m *meter) perConnection() float64 {
	used := 0
	for _, c := range m.conns {
		if c.messages > 0 {
			used++
		}
	}
	return float64(len(m.messages)) / float64(max(1, used))
}

// step is a limit from a moment on.
type step struct {
	from  time.Time
	limit float64 // messages a second
}

// limits is what holds when; in the order of time.
type limits []step

// allowed is how many messages the limits let through between two moments.
func (l limits) allowed(from, to time.Time) (n float64) {
	for i, s := range l {
		begin, end := s.from, to
		if i == 0 || begin.Before(from) {
			begin = from
		}
		if i+1 < len(l) && l[i+1].from.Before(to) {
			end = l[i+1].from
		}
		if end.After(begin) {
			n += s.limit * end.Sub(begin).Seconds()
		}
	}
	return n
}

// worst is the window with the largest excess over the limits.
type worst struct {
	window time.Duration
	at     time.Time // its beginning
	count  int
	excess float64 // above what the limits allow; below zero: they were not reached
}

// worstOf looks at every window that begins or ends with a message. A count can be largest in no other.
func (m *meter) worstOf(window time.Duration, l limits) worst {
	w := worst{window: window, excess: -1e9}
	first := 0 // of the messages within window before the i-th
	for i, at := range m.messages {
		for at.Sub(m.messages[first]) >= window {
			first++
		}
		last, _ := slices.BinarySearchFunc(m.messages[i:], at.Add(window), time.Time.Compare)
		for _, c := range []worst{
			{at: at.Add(-window), count: i - first + 1},
			{at: at, count: last},
		} {
			if c.excess = float64(c.count) - l.allowed(c.at, c.at.Add(window)); c.excess > w.excess {
				w.at, w.count, w.excess = c.at, c.count, c.excess
			}
		}
	}
	return w
}

// span is a time during which the connections of one worker do not count.
type span struct {
	worker   string
	from, to time.Time
}

// mostOpen is the largest number of connections at one moment, without those of the worker of a span during it.
func (m *meter) mostOpen(without []span) (most int, at time.Time) {
	type change struct {
		at time.Time
		by int
	}
	var changes []change
	add := func(from, to time.Time) {
		if to.After(from) {
			changes = append(changes, change{from, 1}, change{to, -1})
		}
	}
	now := time.Now()
	for _, c := range m.conns {
		from, to := c.opened, c.closed
		if to.IsZero() {
			to = now
		}
		for _, s := range without {
			if s.worker == c.worker && s.from.Before(to) && from.Before(s.to) {
				add(from, s.from)
				from = s.to
			}
		}
		add(from, to)
	}
	slices.SortFunc(changes, func(a, b change) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return a.by - b.by
	})
	open := 0
	for _, c := range changes {
		if open += c.by; open > most {
			most, at = open, c.at
		}
	}
	return most, at
}

// between counts the messages from one moment to another.
func (m *meter) between(from, to time.Time) int {
	i, _ := slices.BinarySearchFunc(m.messages, from, time.Time.Compare)
	j, _ := slices.BinarySearchFunc(m.messages, to, time.Time.Compare)
	return j - i
}

// perSecond counts the messages of each second from a moment on.
func (m *meter) perSecond(from time.Time) (counts []int) {
	for _, at := range m.messages {
		i := int(at.Sub(from) / time.Second)
		for len(counts) <= i {
			counts = append(counts, 0)
		}
		if i >= 0 {
			counts[i]++
		}
	}
	return counts
}
