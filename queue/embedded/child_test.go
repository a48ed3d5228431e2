package embedded

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childEnv names the part that this test binary plays as a child process.
const (
	childEnv    = "POSTROAD_TEST_CHILD"
	childDirEnv = "POSTROAD_TEST_DIR"
)

// childRoles are what a child process can be; each prints lines for its parent.
var childRoles = map[string]func(dir string) error{
	"hold":             hold,
	"limit":            limitFileSize,
	"return-emptied":   returnEmptied,
	"return-compacted": returnCompacted,
}

func child(role string) int {
	if err := childRoles[role](os.Getenv(childDirEnv)); err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

// childProcess is a process that ends with the test at the latest.
type childProcess struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
}

// startChild waits until the child has said "ready".
func startChild(t *testing.T, role, dir string) *childProcess {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), childEnv+"="+role, childDirEnv+"="+dir)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &childProcess{cmd: cmd, stdin: stdin, lines: bufio.NewScanner(stdout)}
	t.Cleanup(func() { c.kill(t) })
	if line := c.line(t); line != "ready" {
		t.Fatalf("child said %q, want ready", line)
	}
	return c
}

// line reads the next line that the child prints.
func (c *childProcess) line(t *testing.T) string {
	t.Helper()
	timeout := time.AfterFunc(2*time.Minute, func() { _ = c.cmd.Process.Kill() })
	defer timeout.Stop()
	if !c.lines.Scan() {
		t.Fatalf("child ended without a line: %v", c.lines.Err())
	}
	return strings.TrimSpace(c.lines.Text())
}

func (c *childProcess) kill(t *testing.T) {
	t.Helper()
	if c.cmd.ProcessState != nil {
		return
	}
	_ = c.cmd.Process.Signal(syscall.SIGKILL)
	_ = c.cmd.Wait()
}

// hold runs a server until its parent goes away.
func hold(dir string) error {
	s, err := Start(Options{Dir: dir})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return s.Stop(context.Background())
}
