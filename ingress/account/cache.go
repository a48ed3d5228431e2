package account

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

const (
	// maxKnown and maxMissing bound the names that are remembered; they come from
	// outside. A name beyond them is looked at each time.
	maxKnown   = 50_000
	maxMissing = 10_000
)

// cache is a Source that remembers what was seen of records, wherever they lie.
type cache struct {
	refresh  time.Duration // how old an answer of Client may be
	newest   time.Duration // how old one of Latest may be
	maxStale time.Duration
	log      *slog.Logger
	// read looks at a record. before is what it gave the last time, and may be
	// given again. The error is for what concerns all records, or may pass by
	// itself. hurry says that there is an older answer: better that than a wait.
	read func(ctx context.Context, name string, before sight, hurry bool) (sight, error)

	mu      sync.Mutex
	known   map[string]*entry
	missing map[string]*entry // names without a record; they must not drive known ones out
}

// sight is a record as it was last read.
type sight struct {
	missing bool
	client  *Client
	err     error // what is wrong with the record and what to do
	mark    any   // by which the reader knows it again
}

// answer is what was seen, or err, in the words of Source.
func (s sight) answer(name string, err error) (*Client, error) {
	switch {
	case err != nil && errors.Is(err, ErrUnavailable):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", err, ErrUnavailable)
	case s.missing:
		return nil, fmt.Errorf("%s: %w", name, ErrUnknown)
	case s.err != nil:
		return nil, fmt.Errorf("%w: %w", s.err, ErrUnavailable)
	}
	return s.client, nil
}

func newCache(refresh, maxStale time.Duration, log *slog.Logger, read func(context.Context, string, sight, bool) (sight, error)) *cache {
	k := &cache{refresh: refresh, maxStale: maxStale, log: log, read: read, known: make(map[string]*entry), missing: make(map[string]*entry)}
	if k.maxStale == 0 {
		k.maxStale = defaultMaxStale
	}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	return k
}

// entry is what is known of one name.
type entry struct {
	turn chan struct{} // full while somebody looks at the record
	last *look         // guarded by cache.mu; nil before the first
	aged time.Time     // looks that began before this are old; guarded by cache.mu
}

// look is what was seen at one time. It is not changed once it is in an entry.
type look struct {
	began  time.Time
	sight  sight
	client *Client // in force
	err    error   // not nil exactly when client is
	read   time.Time
	fault  string // that was logged last
}

// Client implements Source.
func (k *cache) Client(ctx context.Context, name string) (*Client, error) {
	return k.find(ctx, name, k.refresh, true)
}

// Latest implements Source.
func (k *cache) Latest(ctx context.Context, name string) (*Client, error) {
	return k.find(ctx, name, k.newest, false)
}

// find answers with what was seen less than maxAge ago, or by a look. In haste
// it does not wait for the look of somebody else when there is an older answer.
func (k *cache) find(ctx context.Context, name string, maxAge time.Duration, inHaste bool) (*Client, error) {
	asked := time.Now()
	clean, ok := CleanName(name)
	if !ok {
		return nil, fmt.Errorf("%q: %w", brief(name), ErrUnknown)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("look up client %s: %w: %w", clean, ErrUnavailable, err)
	}
	e, last := k.entry(clean)
	fresh := func(l *look) bool {
		return l != nil && (asked.Sub(l.began) < maxAge || l.began.After(asked))
	}
	if fresh(last) {
		return last.client, last.err
	}
	select {
	case e.turn <- struct{}{}:
	default:
		if inHaste && maxAge > 0 && last != nil && last.err == nil {
			return last.client, nil // a moment older than it should be; nobody waits for a disk
		}
		select {
		case e.turn <- struct{}{}:
		case <-ctx.Done():
			return nil, fmt.Errorf("look up client %s: %w: %w", clean, ErrUnavailable, ctx.Err())
		}
	}
	defer func() { <-e.turn }()
	if last = k.lastLook(e); fresh(last) {
		return last.client, last.err // somebody else has looked meanwhile
	}
	now := k.look(ctx, clean, last)
	if ctx.Err() != nil && now.err != nil {
		return nil, now.err // it says more of the caller than of the record
	}
	k.remember(clean, e, now)
	return now.client, now.err
}

// entry finds what is known of a name, or makes an empty entry for it.
func (k *cache) entry(name string) (*entry, *look) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.known[name]
	if e == nil {
		e = k.missing[name]
	}
	if e == nil {
		e = &entry{turn: make(chan struct{}, 1)}
		k.missing[name] = e
		evict(k.missing, maxMissing, name)
	}
	return e, e.last
}

func (k *cache) lastLook(e *entry) *look {
	k.mu.Lock()
	defer k.mu.Unlock()
	return e.last
}

// remember keeps what was seen.
func (k *cache) remember(name string, e *entry, l *look) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e.last = l
	if !l.began.After(e.aged) {
		e.last = l.old()
	}
	if l.client != nil {
		delete(k.missing, name)
		k.known[name] = e
		evict(k.known, maxKnown, name)
		return
	}
	delete(k.known, name)
	k.missing[name] = e
	evict(k.missing, maxMissing, name)
}

// Changed says that somebody has changed the record of a client: the next
// question looks at it.
func (k *cache) Changed(name string) {
	if clean, ok := CleanName(name); ok {
		k.age(clean)
	}
}

// age makes the next answer for a name come from a new look.
func (k *cache) age(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range []map[string]*entry{k.known, k.missing} {
		if e := m[name]; e != nil {
			e.aged = time.Now()
			if e.last != nil {
				e.last = e.last.old()
			}
		}
	}
}

// old is the same look, made long ago.
func (l *look) old() *look {
	aged := *l
	aged.began = time.Time{}
	return &aged
}

// evict brings m back to its bound; any entry but the newest may go.
func evict[V any](m map[string]V, bound int, newest string) {
	for name := range m {
		if len(m) <= bound {
			return
		}
		if name != newest {
			delete(m, name)
		}
	}
}

// look looks at the record of a client, and decides what is in force from now on.
func (k *cache) look(ctx context.Context, name string, last *look) *look {
	if last == nil {
		last = &look{}
	}
	now := &look{began: time.Now()}
	s, err := k.read(ctx, name, last.sight, last.client != nil)
	switch {
	case err != nil:
		return k.stale(name, last, now, err)
	case s.missing:
		if last.client != nil {
			k.log.Info("client gone", "client", name)
		}
		now.err = fmt.Errorf("%s: %w", name, ErrUnknown)
	case s.err != nil:
		k.broken(name, last, now, s)
	default:
		now.sight, now.client, now.read = s, s.client, now.began
		if last.client != nil && last.client.revision == s.client.revision {
			now.client = last.client // touched, not changed
		} else {
			k.log.Info("client read", "client", name, "revision", shownRevision(s.client), "disabled", s.client.Disabled)
		}
	}
	return now
}

// shownRevision is for the log. That of a file is a hash of all that is in it, and a password must not be guessed by it.
func shownRevision(c *Client) string {
	if c.InClear() {
		return "-"
	}
	return c.revision
}

// broken keeps the old record in force, and says so once.
func (k *cache) broken(name string, last, now *look, s sight) {
	now.sight, now.client, now.read, now.fault = s, last.client, now.began, s.err.Error()
	if now.client == nil {
		now.err = fmt.Errorf("%w: %w", s.err, ErrUnavailable)
	}
	if last.fault == now.fault {
		return
	}
	if now.client == nil {
		k.log.Error("client cannot be used", "client", name, "err", s.err)
	} else {
		k.log.Error("client cannot be read, what was read before stays in force", "client", name, "revision", shownRevision(now.client), "err", s.err)
	}
}

// stale answers when records cannot be read.
func (k *cache) stale(name string, last, now *look, err error) *look {
	now.sight, now.read, now.fault = last.sight, last.read, err.Error()
	if last.client == nil || now.began.Sub(last.read) > k.maxStale {
		if !errors.Is(err, ErrUnavailable) {
			err = fmt.Errorf("%w: %w", err, ErrUnavailable)
		}
		now.err = err
		return now
	}
	now.client = last.client
	if last.fault != now.fault {
		k.log.Error("clients cannot be read, logging in goes on with the records in memory", "client", name,
			"until", last.read.Add(k.maxStale), "err", err)
	}
	return now
}
