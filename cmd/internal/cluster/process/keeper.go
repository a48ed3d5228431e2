package process

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"
)

// KeeperOptions say what a Keeper keeps running.
type KeeperOptions struct {
	Launcher *Launcher
	// Spec is asked before every start, so that a run may get its own
	// environment.
	Spec func() Spec
	// Pause is asked how long to wait before the next start; nil means 200 ms.
	Pause func() time.Duration
	// OnExit is told of every end; killed says that Kill caused it. May be nil.
	OnExit func(e Exit, killed bool)
}

// Keeper runs a program again whenever it ends.
type Keeper struct {
	o    KeeperOptions
	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	current *Process
	killed  bool // the end of current is our doing
	held    chan struct{}
	ends    int
	err     error
}

// NewKeeper makes a Keeper that runs nothing yet.
func NewKeeper(o KeeperOptions) *Keeper {
	if o.Pause == nil {
		o.Pause = func() time.Duration { return 200 * time.Millisecond }
	}
	if o.OnExit == nil {
		o.OnExit = func(Exit, bool) {}
	}
	return &Keeper{o: o, stop: make(chan struct{})}
}

// Start runs the program for the first time and keeps it running from then on.
func (k *Keeper) Start() error {
	if _, err := k.launch(); err != nil {
		return err
	}
	k.wg.Go(k.keep)
	return nil
}

var errStopped = errors.New("the keeper is stopped")

// launch starts the program, unless the Keeper is stopped or holds it down: it
// then returns the channel that tells when it may come up.
func (k *Keeper) launch() (held <-chan struct{}, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.stop:
		return nil, errStopped
	default:
	}
	if k.held != nil {
		return k.held, nil
	}
	p, err := k.o.Launcher.Start(k.o.Spec())
	k.killed = false
	if err != nil {
		k.err = err
		return nil, err
	}
	k.current = p
	return nil, nil
}

func (k *Keeper) keep() {
	for {
		k.mu.Lock()
		p := k.current
		k.mu.Unlock()
		<-p.Done()
		k.mu.Lock()
		killed := k.killed
		if !killed {
			k.ends++
		}
		k.mu.Unlock()
		select {
		case <-k.stop:
			return
		default:
		}
		k.o.OnExit(p.Exit(), killed)
		if !k.again() {
			return
		}
	}
}

// again starts the program once more after a pause, and not before it may. It
// reports false when the Keeper is stopped or the start does not work.
func (k *Keeper) again() bool {
	select {
	case <-k.stop:
		return false
	case <-time.After(k.o.Pause()):
	}
	for {
		held, err := k.launch()
		if err != nil {
			return false // Err tells
		}
		if held == nil {
			return true
		}
		select {
		case <-k.stop:
			return false
		case <-held:
		}
	}
}

// Err is the error of a start that did not work; the Keeper has given up then.
func (k *Keeper) Err() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

// Ends is how often the program has ended without Kill.
func (k *Keeper) Ends() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ends
}

// PID is the number of the present process, which may have ended.
func (k *Keeper) PID() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current == nil {
		return 0
	}
	return k.current.PID()
}

// Running reports whether a process is there now.
func (k *Keeper) Running() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current == nil {
		return false
	}
	select {
	case <-k.current.Done():
		return false
	default:
		return true
	}
}

// Kill sends SIGKILL and reports whether there was a process to kill.
func (k *Keeper) Kill() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current == nil {
		return false
	}
	select {
	case <-k.current.Done():
		return false
	default:
	}
	k.killed = true
	return k.current.Signal(syscall.SIGKILL) == nil
}

// KillAndHold kills the process, waits for its end and keeps it down until the
// returned function is called.
func (k *Keeper) KillAndHold() (release func()) {
	held := make(chan struct{})
	k.mu.Lock()
	k.held = held
	k.killed = true
	p := k.current
	k.mu.Unlock()
	if p != nil {
		_ = p.Signal(syscall.SIGKILL) // ended already: just as well
		<-p.Done()
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			k.mu.Lock()
			k.held = nil
			k.mu.Unlock()
			close(held)
		})
	}
}

// Freeze stops the process with SIGSTOP; Thaw lets it go on.
func (k *Keeper) Freeze() error { return k.signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on.
func (k *Keeper) Thaw() error { return k.signal(syscall.SIGCONT) }

func (k *Keeper) signal(sig syscall.Signal) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current == nil {
		return errors.New("nothing runs")
	}
	return k.current.Signal(sig)
}

// Stop ends the process for good: SIGTERM, then SIGKILL when ctx ends. It may
// be called more than once.
func (k *Keeper) Stop(ctx context.Context) error {
	k.mu.Lock()
	select {
	case <-k.stop:
	default:
		close(k.stop)
	}
	p := k.current // launch starts no other from here on
	k.mu.Unlock()
	var err error
	if p != nil {
		err = p.Stop(ctx)
	}
	k.wg.Wait()
	return err
}
