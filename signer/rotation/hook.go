package rotation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Op is what is to become of a record.
type Op string

// The operations. Each replaces all TXT records of the name, and may be asked
// for again when it is done already.
const (
	OpAdd    Op = "add"    // the name has this value
	OpRevoke Op = "revoke" // the name has this value, with an empty p=
	OpDelete Op = "delete" // the name has no value
)

// Record is a TXT record and what is to become of it.
type Record struct {
	Op    Op     `json:"op"`
	Name  string `json:"name"`            // without a final dot
	Value string `json:"value,omitempty"` // may be longer than 255 octets: then it is several strings of one record
}

// Publisher has records published.
type Publisher interface {
	// Publish returns when the record was handed over; it need not be visible
	// yet. It is asked again after an error, and must not mind.
	Publish(ctx context.Context, r Record) error
}

// Command is a Publisher that runs a program:
//
//	argv… OP NAME [VALUE]
//
// The same stands in its environment as POSTROAD_OP, POSTROAD_NAME and
// POSTROAD_VALUE. It runs without a shell, with no more of our environment than
// PATH, HOME and LANG. Exit status 0 means done; else what it wrote is in the
// error.
type Command struct {
	Argv []string // program and first arguments; required
	Env  []string // more environment, NAME=value
	Dir  string   // where it runs; empty: where we do
	// Timeout is how long it may take. Default: 1 min.
	Timeout time.Duration
}

var _ Publisher = (*Command)(nil)

const (
	defaultHookTimeout = time.Minute
	// hookGrace is for output of what the program left running.
	hookGrace      = 2 * time.Second
	maxHookOutput  = 2000
	hookOutputKeep = 4 << 10
)

// Publish implements Publisher.
func (c *Command) Publish(ctx context.Context, r Record) error {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return errors.New("run hook: no program is given")
	}
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = defaultHookTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it took longer than %v", timeout))
	defer cancel()
	args := append(slices.Clone(c.Argv[1:]), string(r.Op), r.Name)
	if r.Value != "" {
		args = append(args, r.Value)
	}
	cmd := exec.CommandContext(ctx, c.Argv[0], args...)
	cmd.Dir, cmd.WaitDelay = c.Dir, hookGrace
	for _, name := range []string{"PATH", "HOME", "LANG"} {
		if value, is := os.LookupEnv(name); is {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Env = append(cmd.Env, c.Env...)
	cmd.Env = append(cmd.Env, "POSTROAD_OP="+string(r.Op), "POSTROAD_NAME="+r.Name, "POSTROAD_VALUE="+r.Value)
	var output limited
	cmd.Stdout, cmd.Stderr = &output, &output
	err := cmd.Run()
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err != nil {
		return fmt.Errorf("run hook %s %s %s: %w%s", c.Argv[0], r.Op, r.Name, err, output.quote())
	}
	return nil
}

// limited keeps the first octets that are written to it. The program's two
// outputs share one pipe, so that there is one writer.
type limited struct{ b bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.b.Write(p[:min(len(p), max(0, hookOutputKeep-l.b.Len()))])
	return len(p), nil
}

// quote is the output as the end of an error.
func (l *limited) quote() string {
	text := strings.TrimSpace(strings.ToValidUTF8(l.b.String(), "?"))
	if text == "" {
		return ""
	}
	if len(text) > maxHookOutput {
		text = strings.ToValidUTF8(text[:maxHookOutput], "") + "…"
	}
	return fmt.Sprintf(": it wrote %q", text)
}
