package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// machine is what the figures depend on besides the relays.
type machine struct {
	dir   string
	syncs []time.Duration // writes of one message with their sync, taken between the measurements
	loads []string        // load averages of the last minute, taken at the same times
}

// look takes samples while no relay runs: what shows then is other work on this machine.
func (m *machine) look(size int) error {
	const samples = 100
	path := filepath.Join(m.dir, "sync")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	message := make([]byte, size)
	for i := range samples {
		if _, err = f.WriteAt(message, int64(i*size)); err != nil {
			break
		}
		began := time.Now()
		if err = f.Sync(); err != nil {
			break
		}
		m.syncs = append(m.syncs, time.Since(began))
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		load, _, _ := strings.Cut(string(text), " ")
		m.loads = append(m.loads, load)
	}
	return errors.Join(err, f.Close(), os.Remove(path))
}

func (m *machine) String() string {
	slices.Sort(m.syncs)
	at := func(percent int) float64 {
		if len(m.syncs) == 0 {
			return 0
		}
		return m.syncs[len(m.syncs)*percent/100].Seconds() * 1000
	}
	return fmt.Sprintf("%d processors; a write with its sync takes %.2f ms (p50) to %.2f ms (p99) here; load average before each measurement %s",
		runtime.NumCPU(), at(50), at(99), strings.Join(m.loads, " "))
}
