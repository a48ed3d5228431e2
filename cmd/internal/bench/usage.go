package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// clockTick is the unit of CPU times in /proc: USER_HZ is 100 on every Linux.
const clockTick = 10 * time.Millisecond

// memoryEvery is how often memory is looked at; adding it up costs the kernel some work.
const memoryEvery = 500 * time.Millisecond

// usage is what processes took during a run.
type usage struct {
	cpu, own   time.Duration
	peakMemory int64
	processes  int
}

// usageWatch reads process trees. A process that ends is counted on by its parent, which waits for it, so nothing is
// lost when a server's children come and go.
type usageWatch struct {
	roots    []int
	cpu, own time.Duration // at the beginning

	stopping chan struct{}
	wg       sync.WaitGroup
	peak     usage
}

func startUsage(roots []int) (*usageWatch, error) {
	w := &usageWatch{roots: roots, own: ownCPU(), stopping: make(chan struct{})}
	var err error
	if w.cpu, err = treeCPU(roots); err != nil {
		return nil, err
	}
	if len(roots) > 0 {
		w.wg.Go(w.memory)
	}
	return w, nil
}

func (w *usageWatch) memory() {
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	for {
		select {
		case <-w.stopping:
			return
		case <-tick.C:
		}
		octets, n := treeMemory(w.roots)
		if octets > w.peak.peakMemory {
			w.peak.peakMemory, w.peak.processes = octets, n
		}
	}
}

func (w *usageWatch) stop() usage {
	close(w.stopping)
	w.wg.Wait()
	u := w.peak
	u.own = ownCPU() - w.own
	if cpu, err := treeCPU(w.roots); err == nil {
		u.cpu = cpu - w.cpu
	}
	return u
}

func ownCPU() time.Duration {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// treeCPU adds up the roots, their descendants and those that have ended.
func treeCPU(roots []int) (time.Duration, error) {
	if len(roots) == 0 {
		return 0, nil
	}
	all, err := processes()
	if err != nil {
		return 0, err
	}
	var ticks int64
	for _, pid := range tree(all, roots) {
		ticks += all[pid].ticks
	}
	for _, root := range roots {
		if _, ok := all[root]; !ok {
			return 0, fmt.Errorf("process %d does not run", root)
		}
	}
	return time.Duration(ticks) * clockTick, nil
}

// treeMemory adds up the proportional set sizes: shared pages count once in all.
func treeMemory(roots []int) (octets int64, n int) {
	all, err := processes()
	if err != nil {
		return 0, 0
	}
	pids := tree(all, roots)
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(line, "Pss:"); ok {
				kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
				octets += kib << 10
			}
		}
	}
	return octets, len(pids)
}

type process struct {
	parent int
	ticks  int64 // user and system time, and that of children that ended
}

// tree lists the roots and everything below them.
func tree(all map[int]process, roots []int) []int {
	children := make(map[int][]int)
	for pid, p := range all {
		children[p.parent] = append(children[p.parent], pid)
	}
	var found []int
	for todo := append([]int(nil), roots...); len(todo) > 0; {
		pid := todo[len(todo)-1]
		todo = append(todo[:len(todo)-1], children[pid]...)
		if _, ok := all[pid]; ok {
			found = append(found, pid)
		}
	}
	return found
}

func processes() (map[int]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	all := make(map[int]process)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		if p, err := parseStat(text); err == nil {
			all[pid] = p
		}
	}
	return all, nil
}

var errStat = errors.New("unknown form of /proc/PID/stat")

// parseStat reads proc(5)'s stat: fields 4 (parent) and 14–17 (times). The name in field 2 may hold anything.
func parseStat(text []byte) (process, error) {
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return process{}, errStat
	}
	fields := strings.Fields(string(text[end+1:])) // the first is field 3
	if len(fields) < 15 {
		return process{}, errStat
	}
	number := func(field int) int64 {
		n, _ := strconv.ParseInt(fields[field-3], 10, 64)
		return n
	}
	return process{parent: int(number(4)), ticks: number(14) + number(15) + number(16) + number(17)}, nil
}
