// Package process runs the programs of a test cluster as children that can be
// killed, stopped and started again.
//
// A Process is one run of a program: its own process group, its output in a
// file (the pipe of a killed child loses the last lines), and the kernel's
// promise that it dies with us. A Keeper runs a program again whenever it ends
// and tells why it ended:
//
//	k := process.NewKeeper(process.KeeperOptions{Spec: spec, OnExit: note})
//	k.Start()
//	k.Kill()             // SIGKILL, then started again after a pause
//	defer k.Stop(ctx)    // SIGTERM, then SIGKILL when ctx ends
package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Spec says what to run.
type Spec struct {
	Name string   // for people and for the ledger
	Path string   // program
	Args []string // without the program's own name
	Env  []string // added to ours
	Log  string   // file that both outputs are appended to
}

// Exit says how a process ended.
type Exit struct {
	Name   string
	At     time.Time
	Code   int            // -1 when a signal ended it
	Signal syscall.Signal // 0 when it ended by itself
}

// String is for logs.
func (e Exit) String() string {
	if e.Signal != 0 {
		return fmt.Sprintf("%s ended by %v", e.Name, e.Signal)
	}
	return fmt.Sprintf("%s ended with status %d", e.Name, e.Code)
}

// Process is one run of a program.
type Process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
	exit Exit
}

// Launcher starts processes from one thread that lives as long as it does: the
// parent death signal is sent when the *thread* that made the child ends.
type Launcher struct {
	work chan func()
	wg   sync.WaitGroup
}

// NewLauncher starts the thread.
func NewLauncher() *Launcher {
	l := &Launcher{work: make(chan func())}
	l.wg.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		for f := range l.work {
			f()
		}
	})
	return l
}

// Close ends the thread, and with it every process still running.
func (l *Launcher) Close() {
	close(l.work)
	l.wg.Wait()
}

// Start runs s.
func (l *Launcher) Start(s Spec) (*Process, error) {
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", s.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(s.Path, s.Args...)
	cmd.Env = append(os.Environ(), s.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	l.work <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	p := &Process{name: s.Name, cmd: cmd, done: make(chan struct{})}
	go p.wait()
	return p, nil
}

func (p *Process) wait() {
	_ = p.cmd.Wait() // what it says is in ProcessState
	state := p.cmd.ProcessState
	p.exit = Exit{Name: p.name, At: time.Now(), Code: state.ExitCode()}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		p.exit.Signal = ws.Signal()
	}
	close(p.done)
}

// PID is the number of the process and of its group.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says how it ended; valid after Done.
func (p *Process) Exit() Exit { return p.exit }

// Signal sends sig to the whole group. A process that has ended is no error.
func (p *Process) Signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := syscall.Kill(-p.PID(), sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %v to %s: %w", sig, p.name, err)
	}
	return nil
}

// Stop asks the process to end and kills it when ctx ends first.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	_ = p.Signal(syscall.SIGCONT) // a stopped process takes no SIGTERM
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return fmt.Errorf("stop %s: %w", p.name, context.Cause(ctx))
}
