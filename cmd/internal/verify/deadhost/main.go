// Deadhost shows that a dead domain with very many waiting jobs is nobody else's trouble. It runs a postroad server with
// every role and puts jobs into its queue through the queue's own API; the server signs them, tries each at a host that
// answers 450, and lets it wait. Mail to other domains goes through meanwhile, and is timed before, with the waiting
// jobs there, after an orderly restart, after a kill, and while all of the waiting jobs come due at once.
//
//	go build -o /tmp/postroad ./cmd/postroad
//	go run ./cmd/internal/verify/deadhost -postroad /tmp/postroad -jobs 200000
//
// It prints a table, and ends with status 0 when every bound in verdict.go holds.
//
// With -million there are two servers, of which one has the waiting jobs, and the dead site has two MX hosts, one that never answers and one
// that refuses connections. Mail through both servers is timed in turns, also while the site is there again and its backlog leaves at a limit.
// That wants port 25 of 127.60.0.0/24, so a network of its own and root.
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
	postroad   string
	dir        string
	jobs       int
	publishers int
	mails      int
	rate       float64
	settle     time.Duration
	slack      time.Duration
	patience   time.Duration
	storm      bool
	strict     bool

	million   bool
	limit     int
	tried     float64
	rounds    int
	returning time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "deadhost:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	var f flags
	flag.StringVar(&f.postroad, "postroad", "", "the `program` under test")
	flag.StringVar(&f.dir, "dir", "", "work `directory`; default: a temporary one, removed at the end")
	flag.IntVar(&f.jobs, "jobs", 200_000, "how many jobs wait")
	flag.IntVar(&f.publishers, "publishers", 64, "how many put mail into the queue at the same time")
	flag.IntVar(&f.mails, "mails", 200, "mails to other domains in each measurement")
	flag.Float64Var(&f.rate, "rate", 20, "of them, in a second")
	flag.DurationVar(&f.settle, "settle", 150*time.Second, "longest wait for a garbage collection before memory is read; Go makes one every 2m")
	flag.DurationVar(&f.patience, "patience", 45*time.Minute, "longest wait for the jobs to be tried")
	flag.DurationVar(&f.slack, "slack", 0, "by how much more any latency may be above that of the empty queue, on a machine that has other work")
	flag.BoolVar(&f.storm, "storm", true, "let all jobs come due at once in the end")
	flag.BoolVar(&f.strict, "strict", false, "fail too when jobs that are ready for the dead domain delay other domains of its lane")
	flag.BoolVar(&f.million, "million", false, "the other check: a site with a silent and a closed MX host, beside a server with an empty queue")
	flag.IntVar(&f.limit, "limit", 200, "of it: messages a second when the site is there again")
	flag.Float64Var(&f.tried, "tried", 1, "of it: of the jobs, those that must wait as long as the schedule says; others wait for room at the site")
	flag.IntVar(&f.rounds, "rounds", 5, "of it: measurements of each server in each state")
	flag.DurationVar(&f.returning, "returning", 3*time.Minute, "of it: how long the backlog is watched while it leaves")
	flag.Parse()
	if f.postroad == "" || flag.NArg() > 0 || f.jobs < 1 || f.mails < 1 {
		return errors.New("give -postroad PROGRAM, and numbers above 0 (-help lists the flags)")
	}
	if f.dir == "" {
		if f.dir, err = os.MkdirTemp("", "deadhost-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(f.dir)) }()
	}
	if f.million {
		return runMillion(ctx, f)
	}
	slog.SetLogLoggerLevel(slog.LevelWarn)
	c, err := newCheck(f)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.run(ctx); err != nil {
		c.table()
		return errors.Join(err, c.server.LastWords())
	}
	return c.verdict()
}
