package stage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"postroad/cmd/internal/cluster/process"
	"postroad/cmd/internal/ops"
	"postroad/queue"
)

const (
	startLimit = 5 * time.Minute
	stopLimit  = 90 * time.Second
	getLimit   = 15 * time.Second
	countLimit = 30 * time.Second
	lastLines  = 15
)

// Process is a postroad process. It may be started several times on the same data.
type Process struct {
	Name     string
	Data     string // directory
	program  string
	config   string // file
	log      string // file
	socket   string // of the admin API and of /readyz, unless the process has no such role
	hasOps   bool
	launcher *process.Launcher
	running  *process.Process // nil: not started
	address  string           // of /readyz and /metrics; "" asks the socket
}

// Settings are what NewProcess writes into a configuration by itself.
type Settings struct {
	Hostname string
	Roles    string // with commas; "": all
	Queue    string // the lines below "queue: "
	Metrics  string // address of /readyz and /metrics; only with the role ops
	More     string // whole lines
}

// NewProcess writes the configuration of a process whose files are dir/name.yaml, dir/name.log and dir/name/.
func NewProcess(l *process.Launcher, program, dir, name string, s Settings) (*Process, error) {
	p := &Process{
		Name: name, Data: filepath.Join(dir, name), program: program, launcher: l, address: s.Metrics,
		config: filepath.Join(dir, name+".yaml"), log: filepath.Join(dir, name+".log"),
	}
	p.socket = filepath.Join(p.Data, "ops.sock")
	p.hasOps = s.Roles == "" || strings.Contains(s.Roles, "ops")
	text := fmt.Sprintf("hostname: %s\ndata_dir: %s\n", s.Hostname, p.Data)
	if s.Roles != "" {
		text += fmt.Sprintf("roles: [%s]\n", s.Roles)
	}
	text += "queue: {" + s.Queue + "}\n"
	if s.Metrics != "" {
		text += fmt.Sprintf("ops: {address: %q}\n", s.Metrics)
	}
	return p, os.WriteFile(p.config, []byte(text+s.More), 0o600)
}

// Config is its configuration file.
func (p *Process) Config() string { return p.config }

// Start runs the program and waits until it says that it is ready; it tells how long that took. A process without the role ops is only
// started.
func (p *Process) Start(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	run, err := p.launcher.Start(process.Spec{Name: p.Name, Path: p.program, Args: []string{"serve", "-c", p.config}, Log: p.log})
	if err != nil {
		return 0, err
	}
	p.running = run
	for p.hasOps && !p.isReady(ctx) {
		select {
		case <-run.Done():
			return 0, fmt.Errorf("%s did not start: %s", p.Name, run.Exit())
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Since(began) > startLimit {
			return 0, fmt.Errorf("%s is not ready after %s", p.Name, startLimit)
		}
	}
	return time.Since(began), nil
}

func (p *Process) isReady(ctx context.Context) bool {
	resp, err := p.get(ctx, "/readyz")
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// get asks over TCP, or the socket when there is no address.
func (p *Process) get(ctx context.Context, path string) (*http.Response, error) {
	host, dial := p.address, (&net.Dialer{}).DialContext
	if host == "" {
		host = "postroad"
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", p.socket)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+path, nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: getLimit, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	return client.Do(req)
}

// Stop ends the process in order, and it is an error when it does not end so.
func (p *Process) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if err := p.running.Stop(ctx); err != nil {
		return err
	}
	if e := p.running.Exit(); e.Code != 0 {
		return fmt.Errorf("%s did not stop in order: %s", p.Name, e)
	}
	return nil
}

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() error {
	if p.running == nil {
		return nil
	}
	if err := p.running.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.running.Done()
	return nil
}

// Signal sends a signal, SIGSTOP say.
func (p *Process) Signal(sig syscall.Signal) error { return p.running.Signal(sig) }

// Fault tells of a process that has ended by itself, with the end of its log.
func (p *Process) Fault() error {
	if p.running == nil {
		return nil
	}
	select {
	case <-p.running.Done():
		if p.running.Exit().Signal != syscall.SIGKILL {
			return fmt.Errorf("%s\n%w", p.running.Exit(), p.LastWords())
		}
	default:
	}
	return nil
}

// LastWords are the end of its log as an error.
func (p *Process) LastWords() error {
	text, err := os.ReadFile(p.log)
	if err != nil || len(text) == 0 {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return fmt.Errorf("the log of %s ends with:\n%s", p.Name, strings.Join(lines[max(0, len(lines)-lastLines):], "\n"))
}

// Ops is the operators' way in.
func (p *Process) Ops() *ops.Client { return ops.NewClient(p.socket) }

// Counts tells what is in the queue.
func (p *Process) Counts(ctx context.Context) (queue.Counts, error) {
	ctx, cancel := context.WithTimeout(ctx, countLimit)
	defer cancel()
	return p.Ops().Counts(ctx)
}

// Settle waits for a garbage collection that begins after now, so that what memory holds is in use.
func (p *Process) Settle(ctx context.Context, most time.Duration) error {
	quiet := time.Now()
	for time.Since(quiet) < most {
		m, err := p.Metrics(ctx)
		if err != nil {
			return err
		}
		if m["go_memstats_last_gc_time_seconds"] > float64(quiet.UnixMilli())/1000+1 {
			return nil
		}
		if err := Pause(ctx, time.Second); err != nil {
			return err
		}
	}
	return nil
}

// Metrics reads the figures; labels are part of the name.
func (p *Process) Metrics(ctx context.Context) (map[string]float64, error) {
	resp, err := p.get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	values := make(map[string]float64)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if number, err := strconv.ParseFloat(value, 64); ok && err == nil {
			values[name] = number
		}
	}
	return values, lines.Err()
}

// Memory is what a process takes, in octets.
type Memory struct {
	RSS, Heap, Disk int64 // resident set; live heap, after a garbage collection; disk space
}

// Memory reads it.
func (p *Process) Memory(ctx context.Context) (m Memory, err error) {
	figures, err := p.Metrics(ctx)
	if err != nil {
		return m, err
	}
	m.RSS, m.Heap = p.status("VmRSS"), int64(figures["go_memstats_heap_alloc_bytes"])
	m.Disk, err = diskUse(p.Data)
	return m, err
}

// Peak is the largest resident set so far, in octets.
func (p *Process) Peak() int64 { return p.status("VmHWM") }

// CPU is the CPU time that the process has used; it stays what it was when the process has ended.
func (p *Process) CPU() time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.running.PID()))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	var ticks int64
	for _, f := range fields[11:13] { // proc(5): utime and stime are fields 14 and 15
		n, _ := strconv.ParseInt(f, 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100 on every Linux
}

// status reads a size from /proc/PID/status.
func (p *Process) status(name string) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.running.PID()))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// diskUse adds up the blocks of all files below dir.
func diskUse(dir string) (octets int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return ignoreMissing(err)
		}
		info, err := d.Info()
		if err != nil {
			return ignoreMissing(err)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			octets += st.Blocks * 512
		}
		return nil
	})
	return octets, err
}

// ignoreMissing: the store removes files while they are counted.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
