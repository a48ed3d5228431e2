// Package receiver is the mail server at the far end of a crash run. It lives
// in the process that is never killed and writes every delivery into the
// ledger just before it says 250.
//
// Every worker has a port of its own, so that the ledger knows who delivered.
// What happens to a recipient stands in its address (ledger.Want).
//
//	r := receiver.New(receiver.Options{Book: book})
//	addr, err := r.Listen("delivery-1")
//	defer r.Close()
package receiver

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"strings"
	"sync"
	"time"

	"postroad/cmd/internal/cluster/ledger"
)

const (
	maxConns    = 512
	readTimeout = 2 * time.Minute
	writeLimit  = 30 * time.Second
)

// Options say how the receiver behaves.
type Options struct {
	Book *ledger.Book
	// Grey is how long a greylisted recipient is put off after its first try.
	// Default 3 s.
	Grey time.Duration
	// Report is told of a recipient (ledger.WantBack) whose mail was just taken, and of its reverse-path, once: it is to say that the mail has
	// failed. It must not block. Nil: nobody does.
	Report func(reversePath, recipient string)
	// Pause is asked before the reply to the final dot; nil means none.
	Pause func() time.Duration
}

// Receiver is the far end.
type Receiver struct {
	o  Options
	wg sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	released  bool
	listeners []net.Listener
	conns     map[net.Conn]struct{}
	open      map[string]int       // dialogues between MAIL and the reply to the dot, by worker
	first     map[string]time.Time // first try of what is not taken at once, by recipient
}

// New makes a receiver that listens nowhere yet.
func New(o Options) *Receiver {
	if o.Grey == 0 {
		o.Grey = 3 * time.Second
	}
	if o.Pause == nil {
		o.Pause = func() time.Duration { return 0 }
	}
	if o.Report == nil {
		o.Report = func(string, string) {}
	}
	return &Receiver{
		o: o, conns: make(map[net.Conn]struct{}),
		open: make(map[string]int), first: make(map[string]time.Time),
	}
}

// Listen opens a port for one worker.
func (r *Receiver) Listen(worker string) (net.Addr, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w", worker, err)
	}
	r.mu.Lock()
	r.listeners = append(r.listeners, ln)
	r.mu.Unlock()
	r.wg.Go(func() { r.accept(ln, worker) })
	return ln.Addr(), nil
}

// Release lets the recipients through that wait.
func (r *Receiver) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.released = true
}

// Open is how many dialogues are open with a worker, or with all for "".
func (r *Receiver) Open(worker string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if worker != "" {
		return r.open[worker]
	}
	n := 0
	for _, c := range r.open {
		n += c
	}
	return n
}

// Close ends everything and waits for it.
func (r *Receiver) Close() error {
	r.mu.Lock()
	r.closed = true
	var err error
	for _, ln := range r.listeners {
		err = errors.Join(err, ln.Close())
	}
	r.listeners = nil
	for c := range r.conns {
		_ = c.Close() // only to wake its reader
	}
	r.mu.Unlock()
	r.wg.Wait()
	if err != nil {
		return fmt.Errorf("close the receiver: %w", err)
	}
	return nil
}

func (r *Receiver) accept(ln net.Listener, worker string) {
	for {
		c, err := ln.Accept()
		if err != nil {
			r.mu.Lock()
			closed := r.closed
			r.mu.Unlock()
			if closed {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors: let some go
			continue
		}
		if !r.add(c) {
			_ = c.Close() // full
			continue
		}
		r.wg.Go(func() {
			defer r.drop(c)
			newSession(r, c, worker).serve()
		})
	}
}

func (r *Receiver) add(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || len(r.conns) >= maxConns {
		return false
	}
	r.conns[c] = struct{}{}
	return true
}

func (r *Receiver) drop(c net.Conn) {
	_ = c.Close() // the session is over
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

func (r *Receiver) count(worker string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open[worker] += n
}

// mood is where the first try of a moody recipient fails.
type mood int

const (
	moodNone mood = iota
	moodRCPT      // 450 to RCPT
	moodDot       // 451 to the dot
	moodDrop      // hangs up in the middle of the content
	moodMute      // hangs up instead of answering the dot
	moods
)

// verdict is the reply to RCPT, and what goes wrong later in the transaction.
func (r *Receiver) verdict(to string) (reply string, m mood) {
	const taken = "250 2.1.5 taken"
	if _, ok := ledger.ParseSender(to); ok {
		return taken, moodNone
	}
	a, ok := ledger.ParseAddress(to)
	if !ok {
		return "550 5.1.1 not an address of this run", moodNone
	}
	switch a.Want {
	case ledger.WantBounce:
		return "550 5.1.1 no such mailbox", moodNone
	case ledger.WantWait:
		if !r.isReleased() {
			return "450 4.2.1 mailbox waits", moodNone
		}
	case ledger.WantReturn, ledger.WantCancel:
		return "450 4.2.1 mailbox waits for an operator", moodNone
	case ledger.WantGrey:
		if first, _ := r.try(to); time.Since(first) < r.o.Grey {
			return "450 4.7.1 greylisted", moodNone
		}
	case ledger.WantMoody:
		if _, again := r.try(to); !again {
			if m = moodOf(to); m == moodRCPT {
				return "450 4.3.0 not now", m
			}
		}
	}
	return taken, m
}

func (r *Receiver) isReleased() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.released
}

// try notes the first try of a recipient and says whether there was one.
func (r *Receiver) try(to string) (first time.Time, again bool) {
	key := strings.ToLower(to)
	r.mu.Lock()
	defer r.mu.Unlock()
	first, again = r.first[key]
	if !again {
		first = time.Now()
		r.first[key] = first
	}
	return first, again
}

func moodOf(to string) mood {
	h := fnv.New32a()
	h.Write([]byte(strings.ToLower(to)))
	return moodRCPT + mood(h.Sum32()%uint32(moods-moodRCPT))
}
