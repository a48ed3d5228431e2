// Command fleet measures a running `postroad serve` with many clients at once, for the checks in .ci/verify:
//
//	fleet passwords  -address A -ca FILE -user U -password P -change 'command that prints a new password' -grace 30s
//	fleet bruteforce -address A -ca FILE -user U -password P
//	fleet slow       -address A -plain B
//
// It prints what it saw and ends with status 1 when that is not what is promised.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"
)

type options struct {
	address, plain, ca, user, password, change string
	clients                                    int
	grace, duration                            time.Duration
	pid                                        int
	slower, rate, share                        float64
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if len(os.Args) < 2 {
		return fmt.Errorf("want passwords, bruteforce or slow")
	}
	var o options
	f := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	f.StringVar(&o.address, "address", "", "listener with STARTTLS and accounts")
	f.StringVar(&o.plain, "plain", "", "listener that trusts this machine")
	f.StringVar(&o.ca, "ca", "", "PEM file of the certificate's authority")
	f.StringVar(&o.user, "user", "", "account")
	f.StringVar(&o.password, "password", "", "its password")
	f.StringVar(&o.change, "change", "", "shell command that changes the password and prints the new one")
	f.IntVar(&o.clients, "clients", 50, "clients that send at the same time")
	f.DurationVar(&o.grace, "grace", 8*time.Second, "how long an old password stays valid")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "of each measurement")
	f.Float64Var(&o.slower, "slower", 3, "what \"not noticeably\" means: how much longer the middle of the senders' times may be beside an attack, "+
		"whose own work and TLS share the machine with them")
	f.Float64Var(&o.rate, "rate", attackRate/2, "passwords a second below which an attack shows nothing")
	f.Float64Var(&o.share, "share", 0.8, "of what good clients get alone, what they must get beside slow ones")
	f.IntVar(&o.pid, "pid", 0, "process id of the server, to state its memory")
	_ = f.Parse(os.Args[2:]) // it exits
	switch os.Args[1] {
	case "passwords":
		return passwords(ctx, &o)
	case "bruteforce":
		return bruteforce(ctx, &o)
	case "slow":
		return slow(ctx, &o)
	}
	return fmt.Errorf("there is no check %q", os.Args[1])
}
