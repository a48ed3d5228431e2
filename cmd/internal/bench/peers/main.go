// Command peers measures Postroad beside Postfix, and beside Postfix with
// OpenDKIM, on this machine: the same load, the same sink, one after the other
// in interleaved rounds, so that a change of the machine meets all of them. It
// prints medians and ratios; single figures of another machine mean little.
//
// Every relay is a private instance in a temporary directory on one file
// system, listens on loopback only and syncs a message before its 250.
// .ci/verify/bench-peers.sh installs what is needed, builds and runs it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"postroad/cmd/internal/bench"
)

type options struct {
	dir      string
	postroad string
	only     string
	jsonFile string
	rounds   int
	messages int
	sessions int
	size     int
}

func main() {
	var o options
	flag.StringVar(&o.dir, "dir", "", "directory for the instances, empty; a temporary one by default. On a memory file system syncs cost nothing, and what is left is CPU")
	flag.StringVar(&o.postroad, "postroad", "", "the postroad program; without it only the others are measured")
	flag.StringVar(&o.only, "only", "", "measure only what has one of these words in its name, separated by commas")
	flag.StringVar(&o.jsonFile, "json", "", "write every report to this file, one a line")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds; each measures every relay once")
	flag.IntVar(&o.messages, "messages", 3000, "messages of one measurement")
	flag.IntVar(&o.sessions, "sessions", 50, "sessions at the same time")
	flag.IntVar(&o.size, "size", 10<<10, "octets of a message")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "bench-peers-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	}
	if err := os.Chmod(o.dir, 0o755); err != nil { // Postfix's processes run as another user
		return err
	}
	key, err := writeKey(filepath.Join(o.dir, "key"))
	if err != nil {
		return err
	}
	var results []*result
	for _, c := range contenders(o.postroad) {
		if wanted(c.name, o.only) {
			results = append(results, &result{contender: c})
		}
	}
	var records []record
	m := &machine{dir: o.dir}
	for round := range o.rounds {
		for _, r := range results {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, o.rounds, r.name)
			if err := m.look(o.size); err != nil {
				return fmt.Errorf("measure the disk: %w", err)
			}
			place := filepath.Join(o.dir, fmt.Sprintf("%d-%s", round, strings.ReplaceAll(r.name, " ", "-")))
			flat, quiet, err := measure(ctx, o, r.contender, place, key)
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			r.flat, r.quiet = append(r.flat, flat), append(r.quiet, quiet)
			records = append(records, record{r.name, round, "flat out", flat}, record{r.name, round, "quiet", quiet})
		}
	}
	if err := writeRecords(o.jsonFile, records); err != nil {
		return err
	}
	return printTable(os.Stdout, o, m, results)
}

func wanted(name, only string) bool {
	if only == "" {
		return true
	}
	for word := range strings.SplitSeq(only, ",") {
		if strings.Contains(name, word) {
			return true
		}
	}
	return false
}

// record is one report with where it belongs.
type record struct {
	Relay  string       `json:"relay"`
	Round  int          `json:"round"`
	Load   string       `json:"load"`
	Report bench.Report `json:"report"`
}

func writeRecords(path string, records []record) error {
	if path == "" {
		return nil
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	e := json.NewEncoder(f)
	for _, r := range records {
		if err := e.Encode(r); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

const (
	warmUp       = 300 // messages before each measurement: processes, connections and caches are then there
	quietRate    = 20  // messages per second when times on an idle system are measured
	quietSeconds = 4
	startTimeout = 20 * time.Second
	stopTimeout  = 20 * time.Second
)

// measure starts a relay in an empty directory, warms it up, puts the full load and then a light one on it, and
// stops it.
func measure(ctx context.Context, o options, c contender, dir, key string) (flat, quiet bench.Report, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return flat, quiet, err
	}
	place := site{dir: dir, key: key}
	if place.listen, err = freeAddress(); err != nil {
		return flat, quiet, err
	}
	if place.sink, err = freeAddress(); err != nil {
		return flat, quiet, err
	}
	relay, err := c.start(ctx, place)
	if err != nil {
		return flat, quiet, err
	}
	defer func() {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err = errors.Join(err, relay.stop(stopCtx))
	}()
	if err := awaitBanner(ctx, place.listen, startTimeout); err != nil {
		return flat, quiet, fmt.Errorf("%w\n%s", err, tail(filepath.Join(dir, "log")))
	}
	load := bench.Options{
		Address: place.listen, Sink: place.sink, Sessions: o.sessions, Size: o.size,
		Sender: "bench@" + domain, Recipient: "rcpt@dest.example", Processes: relay.pids,
	}
	if c.acceptOnly {
		load.Sink = ""
	}
	load.Messages = warmUp
	if _, err := bench.Run(ctx, load); err != nil {
		return flat, quiet, err
	}
	load.Messages = o.messages
	if flat, err = bench.Run(ctx, load); err != nil {
		return flat, quiet, err
	}
	load.Messages, load.Rate, load.Sessions = quietRate*quietSeconds, quietRate, 5
	if quiet, err = bench.Run(ctx, load); err != nil {
		return flat, quiet, err
	}
	return flat, quiet, check(c, flat, dir)
}

// check refuses figures of a relay that did not do its work.
func check(c contender, r bench.Report, dir string) error {
	switch {
	case r.Accepted < r.Sent:
		return fmt.Errorf("accepted %d of %d: %v\n%s", r.Accepted, r.Sent, r.Errors, tail(filepath.Join(dir, "log")))
	case r.Sink && r.Missing > 0:
		return fmt.Errorf("%d of %d did not arrive\n%s", r.Missing, r.Accepted, tail(filepath.Join(dir, "log")))
	case c.signs && r.Signed < r.Delivered, !c.signs && r.Signed > 0:
		return fmt.Errorf("%d of %d were signed", r.Signed, r.Delivered)
	}
	return nil
}
