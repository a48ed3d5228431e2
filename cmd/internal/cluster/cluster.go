// Package cluster runs a whole Postroad cluster as processes on loopback, for
// tests that kill, stop and cut off any of them.
//
// Build makes the programs. Servers are three nats-servers with the
// configuration of deploy/nats, their connections led through links that can be
// cut. Roles are the postroad processes, on an embedded queue or on Servers.
// The parts below it know nothing of the cluster: process (children that are
// started again), cut (links), receiver (the far end), load (the clients),
// ledger (the account), power (disks that lose power). The program chaos puts
// all of it together.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"postroad/cmd/internal/cluster/process"
)

// Programs are what a cluster is made of.
type Programs struct {
	Root     string // of the module
	Postroad string // built with failpoints
	NATS     string // nats-server of the version in go.mod
}

// Build makes the programs below dir; nats-server only when withNATS says so.
func Build(ctx context.Context, dir string, withPostroad, withNATS bool) (Programs, error) {
	out, err := goTool(ctx, "", "list", "-m", "-f", "{{.Dir}}", "postroad")
	if err != nil {
		return Programs{}, err
	}
	p := Programs{Root: strings.TrimSpace(out)}
	if withPostroad {
		p.Postroad = filepath.Join(dir, "postroad")
		if _, err := goTool(ctx, p.Root, "build", "-tags", "failpoints", "-o", p.Postroad, "./cmd/postroad"); err != nil {
			return p, err
		}
	}
	if withNATS {
		p.NATS = filepath.Join(dir, "nats-server")
		if _, err := goTool(ctx, p.Root, "build", "-o", p.NATS, "github.com/nats-io/nats-server/v2"); err != nil {
			return p, err
		}
	}
	return p, nil
}

func goTool(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w: %s", args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}

// freeAddr is a loopback address that nobody listens on. Processes that are
// started again need the same one each time, so the kernel cannot choose; and
// it must be none that the kernel gives to a client while they are dead.
func freeAddr() (string, error) {
	var ln net.Listener
	err := errors.New("none was tried")
	for tries := 0; err != nil; tries++ {
		if tries > 100 {
			return "", fmt.Errorf("find a free port: %w", err)
		}
		ln, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+rand.N(20000)))
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return addr, nil
}

// waitUp waits until the program that k keeps accepts connections at addr. One
// that cannot start is given up after a few ends.
func waitUp(ctx context.Context, k *process.Keeper, addr string) error {
	const mostEnds = 3
	before := k.Ends()
	for {
		d := net.Dialer{Timeout: time.Second}
		c, err := d.DialContext(ctx, "tcp", addr)
		if err == nil {
			return c.Close()
		}
		if n := k.Ends() - before; n >= mostEnds {
			return fmt.Errorf("it ended %d times; see its log", n)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nobody listens at %s: %w", addr, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
