//go:build failpoints

// Package failpoint names the steps of the queue protocol at which a crash test may kill the process, and the faults that
// it may plant.
//
// POSTROAD_FAILPOINT="<step>:<n>" kills the process with SIGKILL the n-th time that it comes to the step.
// POSTROAD_PLANT="<fault>,…" makes Planted true for the named faults.
package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

var (
	armedStep, armedAt = parse(os.Getenv("POSTROAD_FAILPOINT"))
	planted            = "," + os.Getenv("POSTROAD_PLANT") + ","
	hits               atomic.Int64
)

func parse(s string) (step string, n int64) {
	step, count, _ := strings.Cut(s, ":")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		n = 1
	}
	return step, n
}

// Hit marks a named step.
func Hit(step string) {
	if step == armedStep && hits.Add(1) == armedAt {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// Planted reports a deliberate fault, for tests that must see the harness fail.
func Planted(fault string) bool { return strings.Contains(planted, ","+fault+",") }
