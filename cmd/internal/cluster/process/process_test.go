package process

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv("POSTROAD_TEST_CHILD") != "" {
		_, _ = os.Stdout.WriteString("up\n")
		time.Sleep(time.Minute)
		return
	}
	goleak.VerifyTestMain(m)
}

func childSpec(t *testing.T) Spec {
	t.Helper()
	return Spec{
		Name: "child",
		Path: os.Args[0],
		Env:  []string{"POSTROAD_TEST_CHILD=1"},
		Log:  filepath.Join(t.TempDir(), "child.log"),
	}
}

func newLauncher(t *testing.T) *Launcher {
	t.Helper()
	l := NewLauncher()
	t.Cleanup(l.Close)
	return l
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within a minute: %s", what)
}

func TestKeeperStartsAgainAfterKill(t *testing.T) {
	spec := childSpec(t)
	exits := make(chan Exit, 4)
	causes := make(chan bool, 4)
	k := NewKeeper(KeeperOptions{
		Launcher: newLauncher(t),
		Spec:     func() Spec { return spec },
		Pause:    func() time.Duration { return time.Millisecond },
		OnExit:   func(e Exit, killed bool) { exits <- e; causes <- killed },
	})
	if err := k.Start(); err != nil {
		t.Fatal(err)
	}
	first := k.PID()
	if !k.Kill() {
		t.Fatal("there was nothing to kill")
	}
	if e := <-exits; e.Signal != syscall.SIGKILL || !<-causes {
		t.Errorf("got %v, want a kill of our own", e)
	}
	within(t, "second process", func() bool { return k.Running() && k.PID() != first })

	// Somebody else kills it: not our doing.
	if err := syscall.Kill(k.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := <-exits; e.Signal != syscall.SIGKILL || <-causes {
		t.Errorf("got %v, want a kill that is not ours", e)
	}
	within(t, "third process", k.Running)
	if err := k.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if k.Running() {
		t.Error("still running after Stop")
	}
	out, err := os.ReadFile(spec.Log)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Trim(string(out), "up\n") != "" {
		t.Errorf("log: got %q, want only lines of the child", out)
	}
}

func TestKeeperHold(t *testing.T) {
	spec := childSpec(t)
	k := NewKeeper(KeeperOptions{
		Launcher: newLauncher(t),
		Spec:     func() Spec { return spec },
		Pause:    func() time.Duration { return 0 },
	})
	if err := k.Start(); err != nil {
		t.Fatal(err)
	}
	defer k.Stop(t.Context())
	release := k.KillAndHold()
	time.Sleep(50 * time.Millisecond)
	if k.Running() {
		t.Error("runs although it is held down")
	}
	release()
	release() // twice does no harm
	within(t, "start after release", k.Running)
}

func TestStopOfAFrozenProcess(t *testing.T) {
	p, err := newLauncher(t).Start(childSpec(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if got := p.Exit().Signal; got != syscall.SIGTERM {
		t.Errorf("signal: got %v, want %v", got, syscall.SIGTERM)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("signal to an ended process: got %v, want nil", err)
	}
}

func TestStartOfAMissingProgram(t *testing.T) {
	spec := childSpec(t)
	spec.Path = filepath.Join(t.TempDir(), "none")
	k := NewKeeper(KeeperOptions{Launcher: newLauncher(t), Spec: func() Spec { return spec }})
	if err := k.Start(); err == nil {
		t.Error("got nil, want an error")
	}
	if k.Err() == nil || k.Running() || k.Kill() {
		t.Error("a keeper that could not start must say so and have nothing to kill")
	}
}
