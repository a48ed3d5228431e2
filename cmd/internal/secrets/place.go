package secrets

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// place is where the directory of a secret is, in the directory of its kind. The new one is made beside it under a passing name. Where the
// file system can exchange two directories in one step, it does; else the old one steps aside first. Whatever was interrupted is finished by
// the next change.
type place struct{ above, name string }

func (p place) now() string   { return filepath.Join(p.above, p.name) }
func (p place) fresh() string { return filepath.Join(p.above, "."+p.name+".new") }
func (p place) aside() string { return filepath.Join(p.above, "."+p.name+".old") }

// replace puts a directory with these fields where the secret is.
func (p place) replace(fields map[string]string) error {
	before, err := os.Lstat(p.now())
	isNew := errors.Is(err, fs.ErrNotExist)
	if err != nil && !isNew {
		return err
	}
	if !isNew {
		if err := p.check(before, fields); err != nil {
			return err
		}
	}
	if err := p.prepare(before, fields); err != nil {
		return errors.Join(err, os.RemoveAll(p.fresh()))
	}
	if isNew {
		return errors.Join(os.Rename(p.fresh(), p.now()), syncDir(p.above))
	}
	if err := exchange(p.fresh(), p.now()); err != nil {
		err = os.Rename(p.now(), p.aside())
		if err == nil {
			err = os.Rename(p.fresh(), p.now())
		}
		if err != nil {
			return fmt.Errorf("%w: give the command again", err)
		}
	}
	if err := syncDir(p.above); err != nil {
		return err
	}
	return p.tidy()
}

// check refuses to replace what somebody else keeps.
func (p place) check(before fs.FileInfo, fields map[string]string) error {
	if !before.IsDir() {
		return fmt.Errorf("%s is no directory of its own: somebody else keeps this secret, who has to change it", p.now())
	}
	for field := range fields {
		path := filepath.Join(p.now(), fileOf(field))
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is no file of its own: somebody else keeps this secret, who has to change it", path)
		}
		if owner, isOurs := ownedByUs(info); !isOurs {
			return fmt.Errorf("%s belongs to user %d, who could not read what we write: be that user, or root", path, owner)
		}
	}
	return nil
}

// prepare makes the new directory with its files, all safely on the disk. They belong to whom the old ones belong.
func (p place) prepare(before fs.FileInfo, fields map[string]string) error {
	mode := fs.FileMode(0o700)
	owner := before
	if before == nil {
		var err error
		if owner, err = os.Stat(p.above); err != nil {
			return err
		}
	} else {
		mode = before.Mode().Perm()
	}
	if err := os.Mkdir(p.fresh(), 0o700); err != nil {
		return err
	}
	for field, text := range fields {
		file := fileOf(field)
		path := filepath.Join(p.fresh(), file)
		if err := writeFile(path, text); err != nil {
			return err
		}
		old, err := os.Stat(filepath.Join(p.now(), file))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = giveTo(path, owner)
		case err == nil:
			mode := old.Mode().Perm()
			if field == fieldPrivateKey {
				mode &^= othersMay // servers refuse a key that others may read
			}
			err = errors.Join(os.Chmod(path, mode), giveTo(path, old))
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(syncDir(p.fresh()), giveTo(p.fresh(), owner), os.Chmod(p.fresh(), mode))
}

// othersMay is what the mode of a private key must not have.
const othersMay fs.FileMode = 0o077

func writeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// tidy finishes what was interrupted, and removes what was replaced. Files in it that are none of ours go where the new ones are.
func (p place) tidy() error {
	_, err := os.Lstat(p.now())
	if errors.Is(err, fs.ErrNotExist) {
		// The old one had stepped aside.
		if _, err := os.Lstat(p.aside()); err != nil {
			return os.RemoveAll(p.fresh()) // it was being made for the first time
		}
		if err := errors.Join(os.Rename(p.aside(), p.now()), syncDir(p.above)); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	for _, old := range []string{p.fresh(), p.aside()} {
		entries, err := os.ReadDir(old)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			to := filepath.Join(p.now(), e.Name())
			if _, err := os.Lstat(to); slices.Contains(ourFiles, e.Name()) || !errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err := os.Rename(filepath.Join(old, e.Name()), to); err != nil {
				return err
			}
		}
		if err := os.RemoveAll(old); err != nil {
			return fmt.Errorf("remove the old version in %s: %w: do it by hand", old, err)
		}
	}
	return syncDir(p.above)
}

// ourFiles are all that a version of a secret may consist of.
var ourFiles = []string{"cert.pem", "key.pem", "previous.pem", "cross.pem"}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
