// Limits shows that a limit holds for the whole cluster. It runs a queue process and several delivery workers, feeds them more mail for one
// site than its rule lets through, and measures at the receiver: the messages in every window of 1, 10 and 60 s, and the connections that
// are open at one moment. Meanwhile workers are killed and started again, one is stopped for longer than its leases live, and the limit is
// changed by command and changed back.
//
//	go build -o /tmp/postroad ./cmd/postroad
//	go run ./cmd/internal/verify/limits -postroad /tmp/postroad -duration 5m
//
// With -planted 1 one of the workers has no rule, and it ends with status 0 when the meter shows that.
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
	workers     int
	rate        float64
	connections int
	changed     float64
	block       float64
	ttl         time.Duration
	duration    time.Duration
	roundTrip   time.Duration
	least       float64
	planted     int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "limits:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	var f flags
	flag.StringVar(&f.postroad, "postroad", "", "the `program` under test")
	flag.StringVar(&f.dir, "dir", "", "work `directory`; default: a temporary one, removed at the end")
	flag.IntVar(&f.workers, "workers", 4, "delivery processes, at least 2")
	flag.Float64Var(&f.rate, "rate", 100, "limit of the site, messages a second")
	flag.IntVar(&f.connections, "connections", 10, "limit of the site, connections at a time")
	flag.Float64Var(&f.changed, "changed", 50, "limit that is set by command, messages a second; 0: none is")
	flag.Float64Var(&f.block, "block", 10, "by how many the workers may exceed the limit: what has its turn within a tenth of a second")
	flag.DurationVar(&f.ttl, "ttl", 14*time.Second, "how long a worker keeps its connections that is not heard of")
	flag.DurationVar(&f.duration, "duration", 5*time.Minute, "of the measurement")
	flag.DurationVar(&f.roundTrip, "round-trip", 10*time.Millisecond, "of the network to the receiver")
	flag.Float64Var(&f.least, "least", 0.95, "utilisation of the limit that is wanted")
	flag.IntVar(&f.planted, "planted", 0, "workers without a rule for the site: the meter must show it")
	flag.Parse()
	if f.postroad == "" || flag.NArg() > 0 || f.workers < 2 || f.planted > f.workers {
		return errors.New("give -postroad PROGRAM, and at least 2 workers (-help lists the flags)")
	}
	if f.dir == "" {
		if f.dir, err = os.MkdirTemp("", "limits-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(f.dir)) }()
	}
	slog.SetLogLoggerLevel(slog.LevelError) // a queue without an ingress has no bucket of accounts, and says so
	c, err := newCheck(f)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.run(ctx); err != nil {
		return errors.Join(err, c.lastWords())
	}
	return c.verdict()
}
