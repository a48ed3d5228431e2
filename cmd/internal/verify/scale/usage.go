package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"postroad/cmd/internal/verify/stage"
)

// watch reads CPU times at both ends of the part that is timed.
type watch struct {
	queue       *stage.Process
	workers     []*stage.Process
	first, last *cpu
}

// cpu is what has been used up to a moment.
type cpu struct {
	at                  time.Time
	workers, queue, own time.Duration
	busy, all           int64 // of the machine, in ticks
}

func (c *check) watch(workers []*stage.Process) *watch {
	return &watch{queue: c.queue, workers: workers}
}

// look is called again and again with the share that has arrived.
func (w *watch) look(share float64) {
	switch {
	case w.first == nil && share >= first:
		w.first = w.read()
	case w.first != nil && w.last == nil && share >= last:
		w.last = w.read()
	}
}

func (w *watch) read() *cpu {
	c := &cpu{at: time.Now(), queue: w.queue.CPU()}
	for _, p := range w.workers {
		c.workers += p.CPU()
	}
	var own syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &own) == nil {
		c.own = time.Duration(own.Utime.Nano() + own.Stime.Nano())
	}
	c.busy, c.all = machine()
	return c
}

// into tells how many cores were in use between the two looks.
func (w *watch) into(p *part) {
	if w.first == nil || w.last == nil {
		return
	}
	wall := w.last.at.Sub(w.first.at)
	cores := func(from, to time.Duration) float64 { return (to - from).Seconds() / wall.Seconds() }
	p.worker, p.queue, p.self = cores(w.first.workers, w.last.workers), cores(w.first.queue, w.last.queue), cores(w.first.own, w.last.own)
	if all := w.last.all - w.first.all; all > 0 {
		p.machine = float64(w.last.busy-w.first.busy) / float64(all)
	}
}

// machine reads the first line of proc(5)'s /proc/stat: user, nice, system, idle, iowait and more.
func machine() (busy, all int64) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, f := range strings.Fields(line) {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil || i > 8 { // guest time is counted in user already
			continue
		}
		all += n
		if i != 4 && i != 5 {
			busy += n
		}
	}
	return busy, all
}
