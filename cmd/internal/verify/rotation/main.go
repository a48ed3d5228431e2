// Command rotation sends mail through a running Postroad without pause and receives it at the other end, while a script changes all that
// can be changed of it, for .ci/verify/rotation.sh:
//
//	rotation -address A -ca FILE -user U -password-file FILE -sink B -dns C -domain D -duration 180s -until FILE
//
// The load goes on for the duration, until the file is there, and until all changes were seen. Every message must arrive once, with good
// signatures of both algorithms by the DNS of that moment. It prints what it saw and ends with status 1 when that is not what is promised,
// or when less was changed than should have been.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"postroad/cmd/internal/sink"
)

type options struct {
	address, ca, user, passwordFile string
	sink, dns, domain, until        string
	rate, least                     float64
	clients, each                   int
	duration, patience, drain       time.Duration
	oldFor                          time.Duration
}

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "rotation:", err)
		os.Exit(1)
	}
}

func read() *options {
	o := &options{}
	flag.StringVar(&o.address, "address", "", "listener with STARTTLS and accounts")
	flag.StringVar(&o.ca, "ca", "", "PEM file of the certificates' authority")
	flag.StringVar(&o.user, "user", "", "account")
	flag.StringVar(&o.passwordFile, "password-file", "", "file with its password, read before each login")
	flag.StringVar(&o.sink, "sink", "", "address to receive mail at")
	flag.StringVar(&o.dns, "dns", "", "name server with the records of keys")
	flag.StringVar(&o.domain, "domain", "sender.example", "that signs")
	flag.StringVar(&o.until, "until", "", "file that says that nothing more will be changed")
	flag.Float64Var(&o.rate, "rate", 210, "mails a second that are sent")
	flag.Float64Var(&o.least, "least", 200, "mails a second that must be accepted")
	flag.IntVar(&o.clients, "clients", 60, "clients that send at the same time")
	flag.IntVar(&o.each, "each", 5, "messages of a session")
	flag.DurationVar(&o.duration, "duration", 3*time.Minute, "of the load, at least")
	flag.DurationVar(&o.patience, "patience", 2*time.Minute, "how much longer it may take until all changes were seen")
	flag.DurationVar(&o.drain, "drain", 2*time.Minute, "how long after the load mail may still arrive")
	flag.DurationVar(&o.oldFor, "old-for", 10*time.Second, "how long every second client goes on with its old password; shorter than the grace")
	flag.Parse()
	return o
}

func run(ctx context.Context) error {
	o := read()
	t := newTally()
	r := newReceiver(o, t)
	s, err := sink.New(sink.Options{Address: o.sink, Message: r.take})
	if err != nil {
		return err
	}
	s.Start()
	l, err := newLoad(o, t)
	if err == nil {
		err = send(ctx, o, t, l)
	}
	if err == nil {
		t.wait(ctx, o.drain)
	}
	stopping, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := errors.Join(err, s.Stop(stopping)); err != nil {
		return err
	}
	return t.report(o)
}

// send runs the load for as long as it must be, and says every ten seconds how it goes.
func send(ctx context.Context, o *options, t *tally, l *load) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { l.run(ctx) })
	begun, said := time.Now(), time.Now()
	for time.Since(begun) < o.duration+o.patience {
		time.Sleep(100 * time.Millisecond)
		if time.Since(said) >= 10*time.Second {
			said = time.Now()
			fmt.Printf("  %4.0f s: %s\n", time.Since(begun).Seconds(), t.line())
		}
		if time.Since(begun) < o.duration {
			continue
		}
		_, err := os.Stat(o.until)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil && len(t.missing()) == 0 {
			break
		}
	}
	cancel()
	wg.Wait()
	t.loadEnded(time.Since(begun))
	return nil
}
