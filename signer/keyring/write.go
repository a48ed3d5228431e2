package keyring

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

const (
	// lockTimeout bounds the wait for others that change keys of the domain, who
	// need milliseconds.
	lockTimeout = 10 * time.Second
	lockPause   = 5 * time.Millisecond
)

// lock keeps other processes, and others in this one, from changing the keys in
// dir until unlock is called.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		took, err := tryLock(f)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
		if took {
			return func() { f.Close() }, nil // which unlocks; it was only read
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for somebody else who changes keys in %s: %w", dir, ctx.Err()), f.Close())
		}
	}
}

// mayWrite refuses the superuser where the keys belong to somebody else, whose
// signer could not read what he writes.
func (d *Dir) mayWrite(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, path := range []string{dir, d.root, d.secrets} {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if owner, ok := ownedByUs(info); !ok {
			return fmt.Errorf("%s belongs to user %d, and a key that the superuser writes could not be read by the signer: run the command as that user", path, owner)
		}
		return nil
	}
	return nil
}

// writeState writes the state file of e, whole or not at all.
func writeState(dir string, e *Entry) error {
	data, err := encodeEntry(e)
	if err != nil {
		return err
	}
	passing, err := writePassing(dir, e.Selector, data)
	if err != nil {
		return err
	}
	if err := os.Rename(passing, filepath.Join(dir, e.Selector+stateExtension)); err != nil {
		return errors.Join(err, os.Remove(passing))
	}
	return syncDir(dir)
}

// destroy overwrites a key file and removes it. Where it is a link, what it
// leads to is overwritten too, if that is a key. A file that is not there is as
// wanted.
func destroy(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = overwrite(path, !info.Mode().IsRegular())
		if gone := os.Remove(path); gone != nil || err == nil {
			err = errors.Join(err, gone)
		}
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("destroy private half: do it by hand, %s or a copy of it may be left: %w", path, err)
	}
	return nil
}

func overwrite(path string, onlyKeys bool) error {
	data, fault, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a link to nothing
	}
	if err != nil {
		return err
	}
	if onlyKeys {
		if fault != nil {
			return fmt.Errorf("what it leads to %w", fault)
		}
		if _, _, _, err := ParseKey(data); err != nil {
			return fmt.Errorf("what it leads to %w", err)
		}
	}
	clear(data)
	if !onlyKeys {
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|nonblock, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() {
		_, err = f.Write(make([]byte, min(info.Size(), maxFileBytes)))
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
