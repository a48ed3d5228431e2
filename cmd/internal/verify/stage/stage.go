// Package stage is where checks of a whole postroad play: processes of it that are started, killed and stopped, mail that is put into
// their queue without an ingress, a name server for their look-ups, and hosts where nobody answers.
//
//	q, err := stage.NewProcess(launcher, "queue", program, dir, text)  // text: its configuration
//	err = q.Start(ctx)                                                 // ready when it returns
//	in, err := stage.OpenMouth(ctx, url, "check")
//	err = in.Fill(ctx, 10_000, 64, func(i int) stage.Mail { … })
//
// Every wait is bounded, and what was started ends with the launcher.
package stage

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"time"
)

// FreePorts finds n addresses on 127.0.0.1 that nobody listens on. Their ports are none that the system gives to clients.
func FreePorts(n int) ([]string, error) {
	var addresses []string
	for tries := 0; len(addresses) < n; tries++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.N(20000)))
		if err != nil && tries < 100 { // somebody has it
			continue
		}
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}

// PortOf is the port of an address.
func PortOf(address string) string { _, port, _ := net.SplitHostPort(address); return port }

// Pause waits for d, or until ctx ends; then it returns its error.
func Pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// Until asks again and again, at most for limit, until yes says yes.
func Until(ctx context.Context, limit, every time.Duration, what string, yes func() (bool, error)) error {
	for end := time.Now().Add(limit); ; {
		ok, err := yes()
		if ok {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within %s: %s (%v)", limit, what, err)
		}
		if err := Pause(ctx, every); err != nil {
			return err
		}
	}
}

// Say prints a line.
func Say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// Load is the load average of the machine, in three figures.
func Load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	fields := strings.Fields(string(text))
	return strings.Join(fields[:min(3, len(fields))], " ")
}
