package account

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// unsettled is how young a file may be for its time stamp to tell nothing: a
// second write within the clock's grain would leave it the same.
const unsettled = 2 * time.Second

// mark is by what a file is known again.
type mark struct {
	print   print
	settled bool // an equal print means an equal file
}

// print tells whether a file has changed.
type print struct {
	size     int64
	modified int64 // Unix time in ns
	mode     fs.FileMode
	id       identity
}

func printOf(info fs.FileInfo) print {
	return print{info.Size(), info.ModTime().UnixNano(), info.Mode(), identify(info)}
}

func (d *Dir) path(name string) string { return filepath.Join(d.root, name+extension) }

// readFile reads the file of a client if it is not as it was; see cache.read.
func (d *Dir) readFile(_ context.Context, name string, before sight, _ bool) (sight, error) {
	path := d.path(name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := d.directory(); err != nil {
			return sight{}, err
		}
		return sight{missing: true}, nil
	}
	if err != nil {
		return sight{}, d.outOfReach(err)
	}
	seen := printOf(info)
	if old, ok := before.mark.(mark); ok && old.settled && old.print == seen {
		return before, nil
	}
	f, err := d.open(name, path)
	if errors.Is(err, fs.ErrNotExist) {
		return sight{missing: true}, nil // gone in this moment
	}
	if err != nil {
		return sight{}, err
	}
	f.mark = mark{seen, time.Since(info.ModTime()).Abs() > unsettled}
	return f, nil
}

// open reads and checks one file.
func (d *Dir) open(name, path string) (sight, error) {
	bad := func(format string, args ...any) (sight, error) {
		return sight{err: fmt.Errorf("client file %s %w", path, fmt.Errorf(format, args...))}, nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|nonblock, 0)
	if errors.Is(err, fs.ErrPermission) {
		return bad("cannot be read by this user: make it the owner with chown, and chmod 0600")
	}
	if err != nil {
		return sight{}, fmt.Errorf("open client file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return sight{}, fmt.Errorf("look at client file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return bad("is not a regular file: replace it with a record in JSON")
	}
	if mode := info.Mode().Perm(); checksMode && mode&^0o600 != 0 {
		return bad("has mode %04o, others could read or change it: chmod 0600, and set the password again if others had access", mode)
	}
	dir, err := d.directory()
	if err != nil {
		return sight{}, err
	}
	if owner, ok := ownedByUs(info, dir); !ok {
		return bad("belongs to user %d, but this process runs as user %d: chown it", owner, os.Geteuid())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxRecordBytes+1))
	if err != nil {
		return sight{}, fmt.Errorf("read client file: %w", err)
	}
	if len(data) > maxRecordBytes {
		return bad("is larger than %d octets: leave one record in it", maxRecordBytes)
	}
	fields, err := decodeRecord(data)
	if err != nil {
		return bad("%w", err)
	}
	c, err := Decode(name, revisionOf(data), fields)
	if err != nil {
		return bad("%w", err)
	}
	return sight{client: c}, nil
}

func revisionOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

// directory looks at the directory itself.
func (d *Dir) directory() (fs.FileInfo, error) {
	info, err := os.Stat(d.root)
	if err == nil && !info.IsDir() {
		err = errors.New("it is not a directory")
	}
	if err != nil {
		return nil, d.outOfReach(err)
	}
	return info, nil
}

// outOfReach explains why the directory as a whole cannot be read.
func (d *Dir) outOfReach(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("directory of clients %s is not there: mount it, or create it with mode 0700: %w", d.root, err)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("directory of clients %s cannot be read by this user: be the user that the server runs as: %w", d.root, err)
	}
	return fmt.Errorf("directory of clients %s cannot be read: %w", d.root, err)
}

// List implements Store.
func (d *Dir) List(ctx context.Context) ([]*Client, error) {
	list, err := os.ReadDir(d.root)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", d.outOfReach(err), ErrUnavailable)
	}
	var clients []*Client
	var errs []error
	for _, e := range list {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list clients: %w", err)
		}
		name, ok := strings.CutSuffix(e.Name(), extension)
		if !ok || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if clean, ok := CleanName(name); !ok || clean != name {
			errs = append(errs, fmt.Errorf("client file %s is not named after a client: want lower-case letters, digits, and . - _ + @ between them", d.path(name)))
			continue
		}
		f, err := d.readFile(ctx, name, sight{}, false)
		if err == nil {
			err = f.err
		}
		switch {
		case err != nil:
			errs = append(errs, err)
		case !f.missing:
			clients = append(clients, f.client)
		}
	}
	slices.SortFunc(clients, func(a, b *Client) int { return strings.Compare(a.Name, b.Name) })
	return clients, errors.Join(errs...)
}

// Check looks at every record and returns all that is wrong, one error for each.
func (d *Dir) Check(ctx context.Context) error {
	_, err := d.List(ctx)
	return err
}

// Put implements Store. The file appears whole or not at all.
func (d *Dir) Put(ctx context.Context, c *Client) error {
	if clean, ok := CleanName(c.Name); !ok || clean != c.Name {
		return fmt.Errorf("store client: %q is no name of a client", c.Name)
	}
	data, err := encodeRecord(c)
	if err != nil {
		return fmt.Errorf("store client %s: %w", c.Name, err)
	}
	if err := d.create(); err != nil {
		return fmt.Errorf("store client %s: %w", c.Name, err)
	}
	return d.exclusively(ctx, func(dir fs.FileInfo) error {
		stored, err := os.ReadFile(d.path(c.Name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			stored = nil
		case err != nil:
			return fmt.Errorf("store client %s: %w", c.Name, err)
		}
		if (stored == nil) != (c.revision == "") || stored != nil && revisionOf(stored) != c.revision {
			return fmt.Errorf("store client %s: %w", c.Name, ErrChanged)
		}
		if err := writeFile(d.path(c.Name), data, dir); err != nil {
			return fmt.Errorf("store client %s: %w", c.Name, err)
		}
		return nil
	})
}

// create makes the directory; its owner is that of the directory of secrets.
func (d *Dir) create() error {
	if _, err := os.Stat(d.root); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	secrets := filepath.Dir(d.root)
	if err := os.MkdirAll(d.root, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(secrets)
	if err != nil {
		return err
	}
	return giveTo(d.root, info)
}

// Remove implements Store.
func (d *Dir) Remove(ctx context.Context, name string) error {
	clean, ok := CleanName(name)
	if !ok {
		return fmt.Errorf("%q: %w", brief(name), ErrUnknown)
	}
	return d.exclusively(ctx, func(fs.FileInfo) error {
		err := os.Remove(d.path(clean))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", clean, ErrUnknown)
		}
		if err != nil {
			return fmt.Errorf("remove client: %w", err)
		}
		return syncDir(d.root)
	})
}

// patience is how long a change waits for the one of another process.
const patience = 5 * time.Second

// exclusively runs a change while no other process makes one.
func (d *Dir) exclusively(ctx context.Context, change func(dir fs.FileInfo) error) error {
	dir, err := d.directory()
	if err != nil {
		return fmt.Errorf("%w: %w", err, ErrUnavailable)
	}
	f, err := os.Open(d.root)
	if err != nil {
		return fmt.Errorf("%w: %w", d.outOfReach(err), ErrUnavailable)
	}
	defer f.Close() // and with it the lock
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		busy, err := lockFile(f)
		if err != nil {
			return fmt.Errorf("lock directory of clients: %w", err)
		}
		if !busy {
			return change(dir)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("lock directory of clients, another process changes it: %w", ctx.Err())
		}
	}
}

// writeFile writes a file under a passing name and renames it.
func writeFile(path string, data []byte, dir fs.FileInfo) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // a name that is gone by then, unless something fails
	_, err = f.Write(data)
	if err == nil {
		err = giveTo(f.Name(), dir)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
