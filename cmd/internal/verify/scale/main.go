// Scale shows what more delivery workers bring when the network is what bounds. Mail for many domains on fewer sites, found by MX records,
// waits in a queue process; then one, two and four delivery processes take their share of it to receivers that are 200 ms away. It tells
// the throughput of each, beside the CPU time that was used, and how many messages went over a connection.
//
//	go build -o /tmp/postroad ./cmd/postroad
//	go build -o /tmp/scale ./cmd/internal/verify/scale
//	unshare --net sh -c 'ip link set lo up && /tmp/scale -postroad /tmp/postroad -mails 100000'
//
// The receivers listen on port 25 of 127.50.0.0/24, so it wants a network of its own and root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

type flags struct {
	postroad    string
	dir         string
	mails       int
	domains     int
	sites       int
	connections int
	roundTrip   time.Duration
	patience    time.Duration
	linear      float64
	busy        float64
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	var f flags
	flag.StringVar(&f.postroad, "postroad", "", "the `program` under test")
	flag.StringVar(&f.dir, "dir", "", "work `directory`; default: a temporary one, removed at the end")
	flag.IntVar(&f.mails, "mails", 100_000, "in all, divided so that each number of workers has the same time")
	flag.IntVar(&f.domains, "domains", 1000, "of the recipients")
	flag.IntVar(&f.sites, "sites", 50, "that they are on, at most 250")
	flag.IntVar(&f.connections, "connections", 2, "of a worker to a site")
	flag.DurationVar(&f.roundTrip, "round-trip", 200*time.Millisecond, "of the network to the receivers")
	flag.DurationVar(&f.patience, "patience", 20*time.Minute, "longest wait in each part")
	flag.Float64Var(&f.linear, "linear", 0.85, "of the throughput that the number of workers promises, what must be there")
	flag.Float64Var(&f.busy, "busy", 0.9, "of the machine's CPU time in use, from where on the CPU is what bounds")
	flag.Parse()
	if f.postroad == "" || flag.NArg() > 0 || f.sites < 1 || f.sites > 250 || f.domains < f.sites || f.mails < 700 {
		return errors.New("give -postroad PROGRAM, 1 to 250 sites, as many domains at least, and 700 mails at least (-help lists the flags)")
	}
	if f.dir == "" {
		if f.dir, err = os.MkdirTemp("", "scale-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(f.dir)) }()
	}
	slog.SetLogLoggerLevel(slog.LevelError) // a queue without an ingress has no bucket of accounts, and says so
	c, err := newCheck(f)
	defer c.close()
	if err != nil {
		return err
	}
	if err := c.run(ctx); err != nil {
		return errors.Join(err, c.queue.LastWords())
	}
	return c.verdict()
}
