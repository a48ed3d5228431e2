package daemon

import (
	"bufio"
	"bytes"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// Shares of the machine's memory that the runtime may fill before it collects harder than usual.
const (
	memoryShareNum, memoryShareDen = 3, 8
	leastMemory                    = 192 << 20
)

// limitMemory gives the runtime a soft limit, for the store keeps blocks of what passed lately and a burst of large messages
// would otherwise double that in garbage. GOMEMLIMIT in the environment wins. It returns the limit in octets, 0 for none.
func limitMemory() int64 {
	if os.Getenv("GOMEMLIMIT") != "" {
		return 0
	}
	have := machineMemory()
	if have == 0 {
		return 0
	}
	limit := max(leastMemory, have/memoryShareDen*memoryShareNum)
	debug.SetMemoryLimit(limit)
	return limit
}

// machineMemory is what the machine has, or the control group when that allows less; 0 when neither can be read.
func machineMemory() int64 {
	total := int64(0)
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
			if f := strings.Fields(lines.Text()); len(f) > 1 && f[0] == "MemTotal:" {
				n, _ := strconv.ParseInt(f[1], 10, 64)
				total = n << 10
			}
		}
	}
	if b, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && (total == 0 || n < total) {
			total = n
		}
	}
	return total
}
