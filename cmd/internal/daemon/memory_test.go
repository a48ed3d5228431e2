package daemon

import (
	"math"
	"runtime/debug"
	"testing"
)

func TestLimitMemory(t *testing.T) {
	was := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(was)
	debug.SetMemoryLimit(math.MaxInt64)
	t.Setenv("GOMEMLIMIT", "1GiB")
	if n := limitMemory(); n != 0 || debug.SetMemoryLimit(-1) != math.MaxInt64 {
		t.Errorf("limit %d although the environment has one", n)
	}
	t.Setenv("GOMEMLIMIT", "")
	have := machineMemory()
	n := limitMemory()
	if have == 0 {
		if n != 0 {
			t.Errorf("limit %d of unknown memory", n)
		}
		return
	}
	if n < leastMemory || n > max(have, leastMemory) || debug.SetMemoryLimit(-1) != n {
		t.Errorf("limit %d of %d", n, have)
	}
}
