// Chaos breaks a Postroad cluster in every way it knows and accounts for each
// message that was answered 250.
//
// It runs the roles as processes on loopback, sends mail through them to a
// receiver of its own, and meanwhile kills them at random moments and at named
// steps of the queue protocol (-mode embedded), kills, stops and cuts off three
// queue servers as well (-mode r3), or takes the power from the embedded
// queue's disk (-mode power; needs root, loop devices and mkfs.ext4). In the
// end every accepted recipient must be delivered, bounced with a notification,
// or still queued where that is its fate; duplicates must have a cause.
//
// With -plant a deliberate fault is built in, and the run succeeds only when the
// account shows it.
//
//	go run ./cmd/internal/cluster/chaos -mode embedded -messages 20000 -duration 150s -kills 40
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	mode     string
	messages int
	duration time.Duration
	kills    int
	waiting  int
	seed     uint64
	plant    string
	drain    time.Duration
	dir      string
	keep     bool
	postroad string
	nats     string
	verbose  bool
}

// The modes.
const (
	modeEmbedded = "embedded"
	modeR3       = "r3"
	modePower    = "power"
)

// The planted faults, as package failpoint knows them.
var plants = map[string]string{
	"early-250": "250 before the PubAck",
	"early-ack": "acknowledged before the successor is published",
	"lazy-sync": "the embedded server syncs lazily",
}

func main() {
	o := options{}
	flag.StringVar(&o.mode, "mode", modeEmbedded, "embedded, r3 or power")
	flag.IntVar(&o.messages, "messages", 20000, "messages that must be accepted")
	flag.DurationVar(&o.duration, "duration", 150*time.Second, "over which the messages are spread")
	flag.IntVar(&o.kills, "kills", 40, "faults during the load (about): kills and the like, power cuts in power mode")
	flag.IntVar(&o.waiting, "waiting", 200, "messages at the start that wait for the whole run")
	flag.Uint64Var(&o.seed, "seed", 0, "of all that is random; 0: a new one, which is printed")
	flag.StringVar(&o.plant, "plant", "", "deliberate fault that must be caught: early-250, early-ack or lazy-sync")
	flag.DurationVar(&o.drain, "drain", 150*time.Second, "after which what is still queued counts as stuck")
	flag.StringVar(&o.dir, "dir", "", "for stores and logs; default a new directory, removed after success")
	flag.BoolVar(&o.keep, "keep", false, "keep the directory")
	flag.StringVar(&o.postroad, "postroad", "", "program built with -tags failpoints; default: build it")
	flag.StringVar(&o.nats, "nats", "", "nats-server program; default: build it")
	flag.BoolVar(&o.verbose, "v", false, "print every fault")
	flag.Parse()
	if err := o.check(flag.NArg()); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ok, err := run(ctx, o)
	stop()
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(2)
	case !ok:
		os.Exit(1)
	}
}

func (o *options) check(args int) error {
	switch {
	case args > 0:
		return fmt.Errorf("there are only flags")
	case o.mode != modeEmbedded && o.mode != modeR3 && o.mode != modePower:
		return fmt.Errorf("there is no mode %q", o.mode)
	case o.plant != "" && plants[o.plant] == "":
		return fmt.Errorf("there is no planted fault %q", o.plant)
	case o.messages < 1 || o.duration <= 0 || o.kills < 0 || o.drain <= 0:
		return fmt.Errorf("messages, duration and drain must be above zero")
	}
	if o.seed == 0 {
		o.seed = rand.Uint64N(1e9) + 1
	}
	return nil
}

// limit bounds the whole run.
func (o *options) limit() time.Duration { return 8*o.duration + 5*o.drain + 15*time.Minute }
