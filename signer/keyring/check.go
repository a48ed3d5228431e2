package keyring

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Check looks at every domain in the directory and returns all that is wrong,
// one error per fault. It also reads the keys into memory.
func (d *Dir) Check(ctx context.Context) error {
	list, err := os.ReadDir(d.root)
	if err != nil {
		return d.outOfReach(err)
	}
	var errs []error
	for _, e := range list {
		name := e.Name()
		if strings.HasPrefix(name, ".") {
			continue
		}
		if clean, ok := CleanDomain(name); !ok || clean != name {
			errs = append(errs, fmt.Errorf("%s is not named after a domain: want lower case and A-labels", filepath.Join(d.root, name)))
			continue
		}
		_, err := d.Keys(ctx, name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		states, stray := d.strays(name)
		switch {
		case errors.Is(err, ErrNoKey) && states == 0:
			errs = append(errs, fmt.Errorf("%s holds no key: add <selector>%s or remove it", filepath.Join(d.root, name), extension))
		case err != nil && !errors.Is(err, ErrNoKey):
			errs = append(errs, err)
		default: // a domain whose keys are not Active yet, or not any more, is in order
			errs = append(errs, d.faults(name)...)
		}
		errs = append(errs, stray...)
	}
	return errors.Join(errs...)
}

// faults are the errors of single files of a domain that has usable keys too.
func (d *Dir) faults(domain string) []error {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.known[domain]
	if s == nil {
		return nil
	}
	var errs []error
	for _, selector := range slices.Sorted(maps.Keys(s.files)) {
		if f := s.files[selector]; f.err != nil {
			errs = append(errs, f.err)
		}
	}
	return errs
}

// strays counts the state files of a domain, and tells which of them do not fit
// the key files. Those that spoil a key file are told of by faults.
func (d *Dir) strays(domain string) (int, []error) {
	dir := filepath.Join(d.root, domain)
	list, err := readDir(dir)
	if err != nil {
		return 0, nil // Keys has said so
	}
	states := 0
	var errs []error
	for _, e := range list {
		selector, is := strings.CutSuffix(e.Name(), stateExtension)
		if !is || strings.HasPrefix(selector, ".") {
			continue
		}
		states++
		path := filepath.Join(dir, selector+extension)
		_, err := os.Lstat(path)
		missing := errors.Is(err, fs.ErrNotExist)
		if !isName(selector) {
			errs = append(errs, fmt.Errorf("%s is not named after a selector: remove it", filepath.Join(dir, e.Name())))
			continue
		}
		entry, err := readState(dir, domain, selector)
		switch {
		case err != nil && missing:
			errs = append(errs, err)
		case err != nil: // the fault of its key file
		case missing && !entry.State.Gone():
			errs = append(errs, fmt.Errorf("key file %s is gone and its state file calls it %s: put it back, or remove the key (postroad dkim revoke)", path, entry.State))
		case !missing && entry.State.Gone():
			errs = append(errs, fmt.Errorf("key file %s is still there and its key is %s: postroad dkim list destroys it", path, entry.State))
		}
	}
	return states, errs
}
