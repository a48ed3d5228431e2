// Package load sends mail into a cluster as a fleet of hosts would, and writes
// every 250 into the ledger: what counts as accepted is what the client saw.
//
//	c := load.New(load.Options{Targets: addrs, Book: book, Messages: 20000, Seed: 1})
//	err := c.Run(ctx) // until Messages are accepted, or ctx ends
package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"postroad/cmd/internal/cluster/ledger"
)

// Options say how much is sent, and where to.
type Options struct {
	Targets  []string // host:port of the ingress processes
	Book     *ledger.Book
	Messages int           // how many must be accepted
	Enough   func() bool   // asked when they are: go on until it says so; nil: it is
	Rate     float64       // messages per second over all sessions; 0: no limit
	Sessions int           // default 16
	Domains  int           // next-hop domains; default 24
	Waiting  int           // messages at the start, and one in 200 later, that wait for the whole run
	Seed     uint64        // of the messages each session sends
	Timeout  time.Duration // for one reply; default 60 s
}

// Stats are what the client saw besides 250.
type Stats struct {
	Refused map[int]int64 // replies that are not 2xx, by code
	Broken  int64         // connections that ended before the reply
}

// Client is the fleet.
type Client struct {
	o        Options
	next     atomic.Int64 // messages begun
	accepted atomic.Int64
	pace     chan struct{}

	mu    sync.Mutex
	stats Stats
}

// New makes a client that does nothing yet.
func New(o Options) *Client {
	if o.Sessions == 0 {
		o.Sessions = 16
	}
	if o.Domains == 0 {
		o.Domains = 24
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	c := &Client{o: o, stats: Stats{Refused: make(map[int]int64)}}
	if o.Rate > 0 {
		c.pace = make(chan struct{}, 64)
	}
	return c
}

// Run sends until enough is accepted or ctx ends.
func (c *Client) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	if c.pace != nil {
		wg.Go(func() { c.keepPace(ctx) })
	}
	for i := range c.o.Sessions {
		wg.Go(func() {
			c.host(ctx, rand.New(rand.NewPCG(c.o.Seed, uint64(i))))
			if c.done() {
				cancel()
			}
		})
	}
	wg.Wait()
	if !c.done() {
		return fmt.Errorf("accepted %d of %d messages: %w", c.accepted.Load(), c.o.Messages, context.Cause(ctx))
	}
	return nil
}

// Accepted is the number of messages that were answered 250.
func (c *Client) Accepted() int { return int(c.accepted.Load()) }

// Stats are the numbers so far.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Stats{Refused: make(map[int]int64, len(c.stats.Refused)), Broken: c.stats.Broken}
	for code, n := range c.stats.Refused {
		s.Refused[code] = n
	}
	return s
}

func (c *Client) done() bool {
	return c.accepted.Load() >= int64(c.o.Messages) && (c.o.Enough == nil || c.o.Enough())
}

// keepPace hands out Rate permits a second, at most a few at once.
func (c *Client) keepPace(ctx context.Context) {
	const tick = 10 * time.Millisecond
	t := time.NewTicker(tick)
	defer t.Stop()
	owed := 0.0
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		owed = min(owed+c.o.Rate*tick.Seconds(), float64(cap(c.pace)))
		for ; owed >= 1; owed-- {
			select {
			case c.pace <- struct{}{}:
			default:
			}
		}
	}
}

// host is one host of the fleet: connection after connection, each with some
// messages.
func (c *Client) host(ctx context.Context, rng *rand.Rand) {
	for ctx.Err() == nil && !c.done() {
		if c.connection(ctx, rng) {
			continue
		}
		select { // the target is away
		case <-ctx.Done():
		case <-time.After(time.Duration(20+rng.IntN(80)) * time.Millisecond):
		}
	}
}

// connection sends a few messages over one connection; false: it broke.
func (c *Client) connection(ctx context.Context, rng *rand.Rand) bool {
	s, err := dial(ctx, c.o.Targets[rng.IntN(len(c.o.Targets))], c.o.Timeout)
	if err != nil {
		return false
	}
	defer s.close()
	for range 1 + rng.IntN(20) {
		if c.done() || !c.permit(ctx) {
			break
		}
		if !c.message(s, rng) {
			return false
		}
	}
	s.quit()
	return true
}

func (c *Client) permit(ctx context.Context) bool {
	if c.pace == nil {
		return ctx.Err() == nil
	}
	select {
	case <-ctx.Done():
		return false
	case <-c.pace:
		return true
	}
}

// message sends one message; false: the connection is of no more use.
func (c *Client) message(s *session, rng *rand.Rand) bool {
	n := c.next.Add(1)
	token := "m" + strconv.FormatInt(n, 36)
	recipients, size := c.plan(rng, token, int(n))
	r, err := s.send(ledger.Sender(token), recipients, ledger.Compose(rng, token, recipients[0], size))
	switch {
	case err != nil:
		c.note(func(st *Stats) { st.Broken++ })
		return false
	case r.code/100 != 2:
		c.note(func(st *Stats) { st.Refused[r.code]++ })
		return r.code != 421
	}
	c.o.Book.Accept(ledger.Message{Token: token, ID: r.id, Recipients: r.taken, Accepted: time.Now()})
	c.accepted.Add(1)
	return true
}

func (c *Client) note(f func(*Stats)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.stats)
}

// plan says who gets message n, and how large it is.
func (c *Client) plan(rng *rand.Rand, token string, n int) (recipients []string, size int) {
	size = 500 + rng.IntN(8000)
	domain := func() string { return "d" + strconv.Itoa(rng.IntN(c.o.Domains)) + "." + ledger.RecipientDomain }
	add := func(w ledger.Want, domain string) {
		recipients = append(recipients, ledger.Address{Token: token, Index: len(recipients), Want: w, Domain: domain}.String())
	}
	fates := []ledger.Want{ledger.WantOK, ledger.WantOK, ledger.WantOK, ledger.WantGrey, ledger.WantMoody, ledger.WantBounce}
	if c.o.Waiting > 0 && (n <= c.o.Waiting || n%200 == 0) {
		w := ledger.WantWait
		switch rng.IntN(8) {
		case 0:
			w = ledger.WantReturn
		case 1:
			w = ledger.WantCancel
		}
		add(w, string(w)+strconv.Itoa(rng.IntN(3))+"."+ledger.RecipientDomain)
		return recipients, size
	}
	switch p := rng.IntN(1000); {
	case p < 4: // in chunks
		size = 1<<20 + rng.IntN(2<<20)
		add(ledger.WantOK, domain())
	case p < 90: // several parts
		for range 2 + rng.IntN(4) {
			add(fates[rng.IntN(len(fates))], domain())
		}
	case p < 140: // several recipients of one part
		d := domain()
		for range 2 + rng.IntN(4) {
			add(fates[rng.IntN(len(fates))], d)
		}
	case p < 180:
		add(ledger.WantGrey, domain())
	case p < 220:
		add(ledger.WantMoody, domain())
	case p < 250:
		add(ledger.WantBounce, domain())
	case p < 280:
		add(ledger.WantBack, domain())
	default:
		add(ledger.WantOK, domain())
	}
	return slices.Clip(recipients), size
}
