package account

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"
)

// DirOptions configure a Dir.
type DirOptions struct {
	// Path is the directory of secrets. The records lie below it in
	// clients/<name>.json: mode 0600, owned by the user that runs the process.
	// Required.
	Path string
	// Refresh is how old an answer may be before the file is looked at again.
	// Default: 2 s.
	Refresh time.Duration
	// MaxStale is how long records that were read once stay in force when the
	// directory cannot be read any more. Default: 24 h.
	MaxStale time.Duration
	// Logger gets one line for each record that appears, goes, changes, or
	// cannot be used. Default: discards.
	Logger *slog.Logger
}

const (
	defaultRefresh  = 2 * time.Second
	defaultMaxStale = 24 * time.Hour
)

// Dir is a Store over a directory of files. It looks at the file of a client
// when somebody asks for it and the last look is older than Refresh, and reads
// only files that have changed.
type Dir struct {
	*cache
	root string
}

var _ Store = (*Dir)(nil)

// NewDir makes a Dir. The directory need not be there yet: until it is, Client
// reports that it is out of reach. Check tells what is wrong with it.
func NewDir(o DirOptions) (*Dir, error) {
	if o.Path == "" {
		return nil, errors.New("directory of clients: no path given")
	}
	if o.Refresh < 0 || o.MaxStale < 0 {
		return nil, errors.New("directory of clients: refresh and max stale must not be negative")
	}
	d := &Dir{root: filepath.Join(o.Path, Subdirectory)}
	d.cache = newCache(o.Refresh, o.MaxStale, o.Logger, d.readFile)
	if o.Refresh == 0 {
		d.refresh = defaultRefresh
	}
	return d, nil
}

// Stored reads a record past all that is remembered: the error is one of Source
// also when an older record stays in force.
func (d *Dir) Stored(ctx context.Context, name string) (*Client, error) {
	clean, ok := CleanName(name)
	if !ok {
		return nil, fmt.Errorf("%q: %w", brief(name), ErrUnknown)
	}
	s, err := d.readFile(ctx, clean, sight{}, false)
	return s.answer(clean, err)
}

// Subdirectory is where a Dir keeps its records below its Path.
const Subdirectory = "clients"

// extension is that of a record.
const extension = ".json"
