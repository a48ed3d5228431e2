package keyring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// DirOptions configure a Dir.
type DirOptions struct {
	// Path is the directory of secrets. The keys lie below it in
	// dkim/<domain>/<selector>.pem: PEM, PKCS #8 or PKCS #1, RSA of 1024 to
	// 4096 bits (2048 advised) or Ed25519, not encrypted, mode 0600, owned by
	// the user that runs the process. Required. Beside them lie state files,
	// <selector>.json, which the methods of Store write.
	Path string
	// Refresh is how old an answer may be before the files are looked at again.
	// Default: 2 s.
	Refresh time.Duration
	// MaxStale is how long keys that were read once go on signing when the
	// directory cannot be read any more. Default: 24 h.
	MaxStale time.Duration
	// Logger gets one line for each key file that appears, goes, or cannot be
	// used. Default: discards.
	Logger *slog.Logger
}

const (
	defaultRefresh  = 2 * time.Second
	defaultMaxStale = 24 * time.Hour

	// maxKnown and maxMissing bound the domains that are remembered; names come
	// from outside. A domain beyond them is read again each time.
	maxKnown   = 20_000
	maxMissing = 10_000
	// maxKeys bounds the signatures that one domain can cause.
	maxKeys = 8
	// maxEntries and maxStates bound what is read of one directory. Two keys a
	// month make 4000 state files in 160 years.
	maxEntries = 256
	maxStates  = 4000
)

// Dir is a Store over a directory of key files. It looks at the files of a
// domain when somebody asks for it and the last look is older than Refresh, and
// parses only files that have changed.
//
// Beside <selector>.pem lies <selector>.json with its Entry; a key file without
// one is Active. That file stays when the key is destroyed, so that nobody uses
// the selector again. Whoever changes a key holds a lock on the directory of its
// domain; any number of processes may do so.
type Dir struct {
	secrets  string
	root     string
	refresh  time.Duration
	maxStale time.Duration
	log      *slog.Logger

	mu      sync.Mutex
	known   map[string]*shelf
	missing map[string]time.Time // domains without keys, and when that was seen
	looking map[string]*look
}

var _ Store = (*Dir)(nil)

// NewDir makes a Dir. The directory need not be there yet: until it is, Keys
// reports that it is out of reach. Check tells what is wrong with it.
func NewDir(o DirOptions) (*Dir, error) {
	if o.Path == "" {
		return nil, errors.New("key directory: no path given")
	}
	if o.Refresh < 0 || o.MaxStale < 0 {
		return nil, errors.New("key directory: refresh and max stale must not be negative")
	}
	d := &Dir{
		secrets:  o.Path,
		root:     filepath.Join(o.Path, subdirectory),
		refresh:  o.Refresh,
		maxStale: o.MaxStale,
		log:      o.Logger,
		known:    make(map[string]*shelf),
		missing:  make(map[string]time.Time),
		looking:  make(map[string]*look),
	}
	if d.refresh == 0 {
		d.refresh = defaultRefresh
	}
	if d.maxStale == 0 {
		d.maxStale = defaultMaxStale
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d, nil
}

// subdirectory of the secrets holds the keys; extension is that of a key file.
const (
	subdirectory = "dkim"
	extension    = ".pem"
)

// shelf is what is known of one domain that has key files. It is not changed
// once it is in the map.
type shelf struct {
	files   map[string]file // by selector
	keys    []Key
	err     error     // not nil exactly when there are no keys
	looked  time.Time // last look
	read    time.Time // last look that succeeded
	expired bool      // the directory was out of reach at the last look
}

// look is one look at the files of a domain; whoever else asks waits for it.
type look struct {
	done chan struct{}
	keys []Key
	err  error
}

// Keys implements Source.
func (d *Dir) Keys(ctx context.Context, domain string) ([]Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("look up keys of %s: %w", domain, err)
	}
	name, ok := CleanDomain(domain)
	if !ok {
		return nil, fmt.Errorf("%q is no domain name: %w", domain, ErrNoKey)
	}
	d.mu.Lock()
	if seen, is := d.missing[name]; is && time.Since(seen) < d.refresh {
		d.mu.Unlock()
		return nil, noKey(name)
	}
	old := d.known[name]
	if old != nil && time.Since(old.looked) < d.refresh {
		d.mu.Unlock()
		return old.keys, old.err
	}
	if l := d.looking[name]; l != nil {
		d.mu.Unlock()
		if old != nil && old.err == nil {
			return old.keys, nil // a moment older than Refresh; nobody waits for a disk
		}
		select {
		case <-l.done:
			return l.keys, l.err
		case <-ctx.Done():
			return nil, fmt.Errorf("look up keys of %s: %w", name, ctx.Err())
		}
	}
	l := &look{done: make(chan struct{}), err: errors.New("look at key files did not end")}
	d.looking[name] = l
	d.mu.Unlock()

	defer func() {
		d.mu.Lock()
		delete(d.looking, name)
		d.mu.Unlock()
		close(l.done)
	}()
	l.keys, l.err = d.look(name, old)
	return l.keys, l.err
}

func noKey(domain string) error { return fmt.Errorf("%s: %w", domain, ErrNoKey) }

// look reads the files of a domain and remembers the answer.
func (d *Dir) look(domain string, old *shelf) ([]Key, error) {
	now := time.Now()
	files, err := d.readFiles(domain, old, now)
	switch {
	case errors.Is(err, ErrBadKey):
		fresh := &shelf{err: err, looked: now, read: now}
		d.report(domain, old, fresh)
		d.remember(domain, fresh)
		return nil, err
	case err != nil:
		return d.stale(domain, old, now, err)
	case len(files) == 0:
		d.report(domain, old, &shelf{})
		d.forget(domain, now)
		return nil, noKey(domain)
	}
	fresh := &shelf{files: files, looked: now, read: now}
	fresh.keys, fresh.err = usable(domain, files)
	if errors.Is(fresh.err, ErrNoKey) && (old == nil || old.err == nil) {
		// The states were read one after the other, perhaps while one key took
		// over from another. By now the new one is Active.
		if files, err := d.readFiles(domain, nil, now); err == nil && len(files) > 0 {
			fresh.files = files
			fresh.keys, fresh.err = usable(domain, files)
		}
	}
	d.report(domain, old, fresh)
	d.remember(domain, fresh)
	return fresh.keys, fresh.err
}

// usable picks the keys of files that can be used and are Active. As long as
// there is one, the others cost a line in the log but stop no mail.
func usable(domain string, files map[string]file) ([]Key, error) {
	var keys []Key
	var errs []error
	for _, selector := range slices.Sorted(maps.Keys(files)) {
		if f := files[selector]; f.err != nil {
			errs = append(errs, f.err)
		} else if f.signs() {
			keys = append(keys, f.key)
		}
	}
	if len(keys) > maxKeys {
		return nil, fmt.Errorf("%s has %d keys, and each mail would bear as many signatures; leave at most %d: %w",
			domain, len(keys), maxKeys, ErrBadKey)
	}
	switch {
	case len(keys) == 0 && len(errs) > 1:
		return nil, fmt.Errorf("%w (and %d more key files of %s)", errs[0], len(errs)-1, domain)
	case len(keys) == 0 && len(errs) == 1:
		return nil, errs[0]
	case len(keys) == 0:
		return nil, fmt.Errorf("%w that signs: keys of %s are there but none is active: postroad dkim activate", ErrNoKey, domain)
	}
	slices.SortFunc(keys, byUse)
	return keys, nil
}

// stale answers when the directory cannot be read.
func (d *Dir) stale(domain string, old *shelf, now time.Time, err error) ([]Key, error) {
	if old == nil || old.err != nil || now.Sub(old.read) > d.maxStale {
		return nil, err
	}
	if !old.expired {
		d.log.Error("key files cannot be read, signing goes on with the keys in memory", "domain", domain,
			"until", old.read.Add(d.maxStale), "err", err)
	}
	again := *old
	again.looked, again.expired = now, true
	d.remember(domain, &again)
	return again.keys, nil
}

func (d *Dir) remember(domain string, s *shelf) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.missing, domain)
	d.known[domain] = s
	evict(d.known, maxKnown, domain)
}

func (d *Dir) forget(domain string, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.known, domain)
	d.missing[domain] = now
	evict(d.missing, maxMissing, domain)
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

// report logs what has changed for a domain.
func (d *Dir) report(domain string, old, fresh *shelf) {
	if old == nil {
		old = &shelf{}
	}
	if fresh.err != nil && fresh.files == nil && (old.err == nil || old.err.Error() != fresh.err.Error()) {
		d.log.Error("keys cannot be used", "domain", domain, "err", fresh.err)
	}
	for selector, f := range fresh.files {
		before, was := old.files[selector]
		switch {
		case f.err != nil && (before.err == nil || before.err.Error() != f.err.Error()):
			d.log.Error("key file cannot be used", "domain", domain, "selector", selector, "err", f.err)
		case f.err == nil && !f.signs() && (!was || before.err != nil || before.state != f.state):
			d.log.Info("key does not sign", "domain", domain, "selector", selector, "state", string(f.state))
		case f.signs() && (!was || !before.signs() || before.prints != f.prints):
			d.log.Info("key read", "domain", domain, "selector", selector, "algorithm", f.key.Algorithm)
			if f.advice != "" {
				d.log.Warn("key is weak", "domain", domain, "selector", selector, "advice", f.advice)
			}
		}
	}
	for selector := range old.files {
		if _, is := fresh.files[selector]; !is {
			d.log.Info("key gone", "domain", domain, "selector", selector)
		}
	}
}

// outOfReach explains why the directory as a whole cannot be read.
func (d *Dir) outOfReach(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("key directory %s is not there: mount it, or create it with mode 0700: %w", d.root, err)
	}
	return fmt.Errorf("key directory %s cannot be read: %w", d.root, err)
}

// Reachable says why no keys can be had for any domain at the moment: the
// directory as a whole is out of reach, and there are no keys in memory.
func (d *Dir) Reachable() error {
	f, err := os.Open(d.root)
	if err == nil {
		_, err = f.Readdirnames(1)
		_ = f.Close()
	}
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.known {
		if len(s.keys) > 0 && time.Since(s.read) <= d.maxStale {
			return nil
		}
	}
	return d.outOfReach(err)
}
