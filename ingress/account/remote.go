package account

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Records are records of clients that lie with somebody else, such as a Vault.
// Names are clean ones. Each error wraps ErrUnavailable, or is one of those named.
type Records interface {
	// Names lists the clients that there are.
	Names(ctx context.Context) ([]string, error)
	// Read returns the fields of a record and what tells this version from
	// others; ErrUnknown when there is none.
	Read(ctx context.Context, name string) (fields map[string]any, revision string, err error)
	// Write stores a record in place of that revision, a new one for "";
	// ErrChanged when that is not what is there.
	Write(ctx context.Context, name string, fields map[string]any, revision string) error
	// Remove removes a record for good; ErrUnknown when there is none.
	Remove(ctx context.Context, name string) error
}

// RemoteOptions configure a Remote.
type RemoteOptions struct {
	Records Records // required
	// Refresh is how old an answer of Client may be. Default: 15 s.
	Refresh time.Duration
	// MaxStale is how long records that were read once stay in force when they
	// cannot be read any more. Default: 24 h.
	MaxStale time.Duration
	// Logger gets one line for each record that appears, goes, changes, or
	// cannot be used. Default: discards.
	Logger *slog.Logger
}

const (
	defaultRemoteRefresh = 15 * time.Second
	// remoteNewest bounds what wrong passwords cost: a name is asked for once in
	// this time, and so is the list of names.
	remoteNewest = time.Second
	// remoteTimeout bounds one look, remoteHurry one for which there is an older
	// answer.
	remoteTimeout = 5 * time.Second
	remoteHurry   = time.Second
	// remoteLooks is how many looks are remembered for what they took.
	remoteLooks = 64
)

// Remote is a Store over Records. It asks for a client when somebody wants to
// know and the last answer is older than Refresh. A name that is not in the list
// of names costs nothing but time: who guesses names does not reach what is
// behind it, and waits as long as for a record, so that he learns nothing.
type Remote struct {
	*cache
	records Records

	turn   chan struct{} // full while somebody lists the names
	mu     sync.Mutex
	names  map[string]bool
	listed time.Time
	looks  [remoteLooks]time.Duration // what the last looks at records took
	looked int                        // how many there were
}

var _ Store = (*Remote)(nil)

// NewRemote makes a Remote.
func NewRemote(o RemoteOptions) (*Remote, error) {
	if o.Records == nil {
		return nil, errors.New("remote clients: no records given")
	}
	if o.Refresh < 0 || o.MaxStale < 0 {
		return nil, errors.New("remote clients: refresh and max stale must not be negative")
	}
	r := &Remote{records: o.Records, turn: make(chan struct{}, 1)}
	r.cache = newCache(o.Refresh, o.MaxStale, o.Logger, r.read)
	if o.Refresh == 0 {
		r.refresh = defaultRemoteRefresh
	}
	r.newest = min(remoteNewest, r.refresh)
	return r, nil
}

// read implements cache.read.
func (r *Remote) read(ctx context.Context, name string, before sight, hurry bool) (sight, error) {
	limit := remoteTimeout
	if hurry {
		limit = remoteHurry
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if before.client == nil { // whoever is known is asked for by name
		is, err := r.exists(ctx, name)
		if err != nil {
			return sight{missing: true}, err
		}
		if !is {
			r.pretend(ctx)
			return sight{missing: true}, nil
		}
	}
	return r.look(ctx, name, before)
}

// pretend takes as long as one of the last looks at a record took, as likely as
// it was. Before there was any, it is the list that tells how far the records are.
func (r *Remote) pretend(ctx context.Context) {
	r.mu.Lock()
	took := r.looks[rand.N(max(1, min(r.looked, remoteLooks)))]
	r.mu.Unlock()
	timer := time.NewTimer(took)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// noteLook remembers what a look at a record took.
func (r *Remote) noteLook(took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looks[r.looked%remoteLooks] = took
	if r.looked++; r.looked == 2*remoteLooks {
		r.looked = remoteLooks
	}
}

// exists looks into the list of names, a new one if it is too old for newest.
func (r *Remote) exists(ctx context.Context, name string) (bool, error) {
	asked := time.Now()
	look := func() (is, fresh bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.names[name], asked.Sub(r.listed) < r.newest
	}
	if is, fresh := look(); fresh {
		return is, nil
	}
	select {
	case r.turn <- struct{}{}:
	case <-ctx.Done():
		return false, fmt.Errorf("list clients: %w: %w", ErrUnavailable, ctx.Err())
	}
	defer func() { <-r.turn }()
	if is, fresh := look(); fresh {
		return is, nil // somebody else has listed them meanwhile
	}
	list, err := r.records.Names(ctx)
	if err != nil {
		return false, err
	}
	names := make(map[string]bool, len(list))
	for _, n := range list {
		names[n] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names, r.listed = names, asked
	if r.looked == 0 {
		r.looks[0] = time.Since(asked)
	}
	return names[name], nil
}

// Changed says that somebody has changed the record of a client: the next
// question reads it, past the list of names.
func (r *Remote) Changed(name string) {
	clean, ok := CleanName(name)
	if !ok {
		return
	}
	r.mu.Lock()
	r.listed = time.Time{}
	r.mu.Unlock()
	r.age(clean)
}

// List implements Store.
func (r *Remote) List(ctx context.Context) ([]*Client, error) {
	names, err := r.records.Names(ctx)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var clients []*Client
	var errs []error
	for _, name := range names {
		if clean, ok := CleanName(name); !ok || clean != name {
			errs = append(errs, fmt.Errorf("record %q is not named after a client: want lower-case letters, digits, and . - _ + @ between them", brief(name)))
			continue
		}
		s, err := r.look(ctx, name, sight{})
		switch {
		case err != nil:
			errs = append(errs, err)
		case s.err != nil:
			errs = append(errs, s.err)
		case !s.missing:
			clients = append(clients, s.client)
		}
	}
	return clients, errors.Join(errs...)
}

// look reads a record past the list and what is remembered; before is given again when it is still that.
func (r *Remote) look(ctx context.Context, name string, before sight) (sight, error) {
	asked := time.Now()
	fields, revision, err := r.records.Read(ctx, name)
	if err == nil {
		r.noteLook(time.Since(asked))
	}
	if errors.Is(err, ErrUnknown) {
		return sight{missing: true}, nil
	}
	if err != nil {
		return sight{}, err
	}
	if before.client != nil && before.client.revision == revision {
		return before, nil
	}
	c, err := Decode(name, revision, fields)
	if err != nil {
		return sight{err: fmt.Errorf("record of client %s %w", name, err)}, nil
	}
	return sight{client: c}, nil
}

// Stored reads a record past all that is remembered: the error is one of Source
// also when an older record stays in force.
func (r *Remote) Stored(ctx context.Context, name string) (*Client, error) {
	clean, ok := CleanName(name)
	if !ok {
		return nil, fmt.Errorf("%q: %w", brief(name), ErrUnknown)
	}
	s, err := r.look(ctx, clean, sight{})
	return s.answer(clean, err)
}

// Put implements Store.
func (r *Remote) Put(ctx context.Context, c *Client) error {
	if clean, ok := CleanName(c.Name); !ok || clean != c.Name {
		return fmt.Errorf("store client: %q is no name of a client", brief(c.Name))
	}
	fields := c.Fields()
	if _, err := encodeRecord(c); err != nil { // only what can be read again
		return fmt.Errorf("store client %s: %w", c.Name, err)
	}
	err := r.records.Write(ctx, c.Name, fields, c.revision)
	r.Changed(c.Name) // also when somebody else has changed it, or perhaps we have
	if err != nil {
		return fmt.Errorf("store client %s: %w", c.Name, err)
	}
	return nil
}

// Remove implements Store.
func (r *Remote) Remove(ctx context.Context, name string) error {
	clean, ok := CleanName(name)
	if !ok {
		return fmt.Errorf("%q: %w", brief(name), ErrUnknown)
	}
	if err := r.records.Remove(ctx, clean); err != nil {
		return fmt.Errorf("remove client %s: %w", clean, err)
	}
	r.Changed(clean)
	return nil
}

// Check looks at every record and returns all that is wrong, one error for each.
func (r *Remote) Check(ctx context.Context) error {
	_, err := r.List(ctx)
	return err
}
