// Package tlsrpt tells domains how TLS went with their hosts, as far as they ask for it (RFC 8460).
//
// A Book counts the sessions of one process and adds them to what all processes have counted, one tally for each domain and UTC day. A
// Sender turns the tallies of days that are over into reports and sends them, by mail or HTTPS, spread over hours; there must be one at a
// time in the cluster.
//
//	b := tlsrpt.NewBook(tlsrpt.BookOptions{Store: store, Names: names})
//	b.Note(result)
//	go b.Run(ctx)
//	s := tlsrpt.NewSender(tlsrpt.SenderOptions{…})
//	go queue.Lead(ctx, "tls-reports", s.Run)
//
// Counts are not mail: what a process has not added yet when it is killed, minutes of it, is lost.
package tlsrpt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"postroad/delivery/mx"
)

// Store keeps tallies for all processes.
type Store interface {
	// Get gives a value and its revision; nothing when there is none.
	Get(ctx context.Context, key string) (value []byte, revision uint64, err error)
	// Put replaces the value of that revision, for ttl; an empty one is removed. The error wraps ErrChanged when it has another revision.
	Put(ctx context.Context, key string, value []byte, revision uint64, ttl time.Duration) error
	// Keys lists those that have a value.
	Keys(ctx context.Context) ([]string, error)
}

// ErrChanged says that another process was quicker.
var ErrChanged = errors.New("the tally has changed")

// Names looks records up; *mx.DNS does. Errors are as those of mx.Resolver.
type Names interface {
	LookupTXT(ctx context.Context, name string) ([]string, error)
}

const (
	flushEvery   = 5 * time.Minute
	flushTimeout = time.Minute
	flushWidth   = 16     // domains at a time
	maxDomains   = 20_000 // between two flushes
	mergeTries   = 10
	tallyKept    = 3 * 24 * time.Hour // after it was last added to; a report that cannot be sent for so long is given up (RFC 8460 §5.3)
	dayLayout    = time.DateOnly
)

// BookOptions say where a Book adds its counts. Store and Names are required.
type BookOptions struct {
	Store  Store
	Names  Names
	Logger *slog.Logger // default: none
}

// Book counts sessions. Make it with NewBook.
type Book struct {
	o BookOptions

	mu      sync.Mutex
	tallies map[tallyKey]*Tally
}

// tallyKey is a domain on a UTC day.
type tallyKey struct{ day, domain string }

func (k tallyKey) String() string { return k.day + " " + k.domain }

// NewBook makes an empty Book.
func NewBook(o BookOptions) *Book {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Book{o: o, tallies: make(map[tallyKey]*Tally)}
}

// Note counts one session. It never blocks on the network; of more than 20,000 domains in five minutes the others are not counted.
func (b *Book) Note(r Result) {
	k := tallyKey{time.Now().UTC().Format(dayLayout), r.Domain}
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.tallies[k]
	if t == nil {
		if len(b.tallies) >= maxDomains {
			return
		}
		t = &Tally{}
		b.tallies[k] = t
	}
	t.add(r)
}

// Run adds the counts to the store now and then, and a last time when ctx ends.
func (b *Book) Run(ctx context.Context) {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			b.flush(last)
			return
		case <-tick.C:
			b.flush(ctx)
		}
	}
}

// flush adds what was counted for domains that want reports. What cannot be added is kept for the next time.
func (b *Book) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	b.mu.Lock()
	tallies := b.tallies
	b.tallies = make(map[tallyKey]*Tally)
	b.mu.Unlock()
	free := make(chan struct{}, flushWidth)
	var wg sync.WaitGroup
	for k, t := range tallies {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			if err := b.add(ctx, k, t); err != nil {
				b.o.Logger.Debug("counts for a TLS report wait", "domain", k.domain, "error", err)
				b.giveBack(k, t)
			}
		})
	}
	wg.Wait()
}

// giveBack keeps counts for the next flush, as long as the report of their day is not sent: later ones would make a second one.
func (b *Book) giveBack(k tallyKey, t *Tally) {
	if day, err := time.Parse(dayLayout, k.day); err != nil || time.Since(day) > 24*time.Hour+settleTime {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if newer := b.tallies[k]; newer != nil {
		t.merge(*newer)
	} else if len(b.tallies) >= maxDomains {
		return
	}
	b.tallies[k] = t
}

// add adds one tally, if the domain asks for reports.
func (b *Book) add(ctx context.Context, k tallyKey, t *Tally) error {
	uris, err := destinations(ctx, b.o.Names, k.domain)
	if err != nil || len(uris) == 0 {
		return err
	}
	for range mergeTries {
		err = update(ctx, b.o.Store, k.String(), func(e *entry) { e.Tally.merge(*t) })
		if !errors.Is(err, ErrChanged) {
			return err
		}
	}
	return err
}

// entry is the stored form of a tally.
type entry struct {
	Tally Tally    `json:"tally"`
	ID    string   `json:"id,omitempty"`   // of the report, once it is being sent
	Done  []string `json:"done,omitempty"` // destinations that have it
}

func load(ctx context.Context, s Store, key string) (entry, uint64, error) {
	var e entry
	data, revision, err := s.Get(ctx, key)
	if err != nil || len(data) == 0 {
		return e, revision, err
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return entry{}, revision, nil // of another version: begin anew
	}
	return e, revision, nil
}

func update(ctx context.Context, s Store, key string, change func(*entry)) error {
	e, revision, err := load(ctx, s, key)
	if err != nil {
		return err
	}
	change(&e)
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode tally: %w", err)
	}
	return s.Put(ctx, key, data, revision, tallyKept)
}

// destinations are where a domain wants its reports; none when it wants none.
func destinations(ctx context.Context, names Names, domain string) ([]string, error) {
	records, err := names.LookupTXT(ctx, "_smtp._tls."+domain)
	if errors.Is(err, mx.ErrNoName) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseRecord(records), nil
}
