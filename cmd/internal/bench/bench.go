// Package bench puts load on an SMTP server and reports what it bore.
//
// Run opens sessions, sends messages of one size as fast as they are taken or
// at a given rate, and times each from MAIL to the reply to the final dot. With
// a sink, messages that the server relays there are matched by a token that
// each of them carries: that gives the time from MAIL to the arrival, what is
// missing and what came twice. The server may be any; of local processes the
// CPU time and memory are read as well.
//
//	r, err := bench.Run(ctx, bench.Options{Address: "127.0.0.1:2525", Messages: 5000, Sink: "127.0.0.1:2526"})
//	r.WriteText(os.Stdout)
package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Options say how much load goes where.
type Options struct {
	// Address of the SMTP server under load. Required.
	Address string
	// Sessions are kept open at the same time, each with one message under way.
	// 0: 50.
	Sessions int
	// Size of a message in octets, header included; at least 512. 0: 10 KiB.
	Size int
	// Messages to send in all. 0: as many as Duration allows.
	Messages int
	// Duration after which no further message is begun. 0: 10 s, or no end when
	// Messages is given.
	Duration time.Duration
	// Rate bounds the messages begun per second. 0: flat out.
	Rate float64
	// PerSession is the number of messages after which a session is closed and
	// opened anew. 0: never.
	PerSession int
	// Sender and Recipient are the addresses of the envelope. Of Recipient, "%d"
	// becomes the number of the message modulo Domains. Defaults:
	// bench@bench.example and rcpt@dest.example.
	Sender, Recipient string
	// Domains is how many values "%d" in Recipient takes. 0: 1.
	Domains int
	// Hello is the name in EHLO. "": client.example.
	Hello string
	// Sink is the address on which messages come back. "": none is opened, and
	// nothing is known of deliveries.
	Sink string
	// SinkLatency is waited by the sink before it takes a message.
	SinkLatency time.Duration
	// Drain is how long the sink is waited for after the last acceptance, counted
	// from the last arrival. 0: 20 s.
	Drain time.Duration
	// Processes are the roots of process trees on this machine whose CPU time and
	// memory are reported. They must run already.
	Processes []int
	// Timeout of one read or write towards the server. 0: 2 min.
	Timeout time.Duration

	sinkOpen func(net.Addr) // for tests
}

const (
	defaultSessions = 50
	defaultSize     = 10 << 10
	minSize         = 512
	defaultDuration = 10 * time.Second
	defaultDrain    = 20 * time.Second
	defaultTimeout  = 2 * time.Minute
)

func (o *Options) setDefaults() error {
	if o.Address == "" {
		return errors.New("bench: no address of a server given")
	}
	for _, d := range []struct {
		value        *int
		whenNotGiven int
	}{{&o.Sessions, defaultSessions}, {&o.Size, defaultSize}, {&o.Domains, 1}} {
		if *d.value == 0 {
			*d.value = d.whenNotGiven
		}
	}
	if o.Sessions < 0 || o.Messages < 0 || o.Rate < 0 || o.Domains < 0 || o.PerSession < 0 {
		return errors.New("bench: a number below 0 makes no sense")
	}
	if o.Size < minSize {
		return fmt.Errorf("bench: size %d is below %d, which header and token need", o.Size, minSize)
	}
	if o.Duration == 0 && o.Messages == 0 {
		o.Duration = defaultDuration
	}
	if o.Drain == 0 {
		o.Drain = defaultDrain
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	for _, d := range []struct {
		value        *string
		whenNotGiven string
	}{{&o.Sender, "bench@bench.example"}, {&o.Recipient, "rcpt@dest.example"}, {&o.Hello, "client.example"}} {
		if *d.value == "" {
			*d.value = d.whenNotGiven
		}
	}
	return nil
}

// run is one measurement under way.
type run struct {
	o       Options
	book    *book
	limiter *rate.Limiter
	next    chan int      // numbers of messages to send
	ended   chan struct{} // closed when there are no more

	mu     sync.Mutex
	errors map[string]int // what was refused or broke, by reply
}

// Run puts the load on the server and waits until everything that was accepted
// has reached the sink, or Drain is over.
func Run(ctx context.Context, o Options) (Report, error) {
	if err := o.setDefaults(); err != nil {
		return Report{}, err
	}
	r := &run{o: o, book: newBook(), limiter: rate.NewLimiter(rate.Inf, 1), next: make(chan int), ended: make(chan struct{}), errors: make(map[string]int)}
	if o.Rate > 0 {
		r.limiter = rate.NewLimiter(rate.Limit(o.Rate), max(1, int(o.Rate/100)))
	}
	in, err := r.openSink()
	if err != nil {
		return Report{}, err
	}
	defer in.close()
	usage, err := startUsage(o.Processes)
	if err != nil {
		return Report{}, err
	}
	began := time.Now()
	sent := r.send(ctx)
	accepting := time.Since(began)
	r.drain(ctx, in)
	used := usage.stop()

	report := r.book.report(began)
	report.Server, report.Size, report.Sessions = o.Address, o.Size, o.Sessions
	report.Sent, report.Errors, report.Sink = sent, r.errors, o.Sink != ""
	report.AcceptSeconds = accepting.Seconds()
	if !report.Sink {
		report.Missing = 0
	}
	report.use(used)
	return report, ctx.Err()
}

// send lets every session take numbers until there are no more, and returns how many were given out.
func (r *run) send(ctx context.Context) (sent int) {
	var wg sync.WaitGroup
	for range r.o.Sessions {
		wg.Go(func() { r.session(ctx) })
	}
	end := ctx
	if r.o.Duration > 0 {
		var cancel context.CancelFunc
		end, cancel = context.WithTimeout(ctx, r.o.Duration)
		defer cancel()
	}
	for ; r.o.Messages == 0 || sent < r.o.Messages; sent++ {
		if r.limiter.Wait(end) != nil {
			break
		}
		select {
		case r.next <- sent:
			continue
		case <-end.Done():
		}
		break
	}
	close(r.next)
	close(r.ended)
	wg.Wait()
	return sent
}

// drain waits for the sink. It looks for progress, so a slow server gets the time that it needs.
func (r *run) drain(ctx context.Context, in *receiver) {
	if in == nil {
		return
	}
	const step = 5 * time.Millisecond
	tick := time.NewTicker(step)
	defer tick.Stop()
	var seen int
	for quiet := time.Duration(0); quiet < r.o.Drain; quiet += step {
		accepted, arrived := r.book.counts()
		if arrived >= accepted {
			return
		}
		if arrived != seen {
			seen, quiet = arrived, 0
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// failed counts a refusal or a broken session by its text, of which only a bounded number is kept.
func (r *run) failed(err error) {
	const maxTexts = 50
	r.mu.Lock()
	defer r.mu.Unlock()
	text := err.Error()
	if reply, ok := errors.AsType[*textproto.Error](err); ok {
		text = fmt.Sprintf("%03d %s", reply.Code, reply.Msg)
	}
	if _, known := r.errors[text]; !known && len(r.errors) >= maxTexts {
		text = "others"
	}
	r.errors[text]++
}
