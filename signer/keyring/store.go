package keyring

import (
	"context"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Entries implements Store. A destruction of a private half that was
// interrupted is finished here.
func (d *Dir) Entries(ctx context.Context, domain string) ([]Entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	if domain != "" {
		name, ok := CleanDomain(domain)
		if !ok {
			return nil, nil
		}
		return d.entriesOf(ctx, name)
	}
	list, err := os.ReadDir(d.root)
	if err != nil {
		return nil, d.absent(err)
	}
	var entries []Entry
	var errs []error
	for _, e := range list { // ordered by name
		clean, ok := CleanDomain(e.Name())
		if !ok || clean != e.Name() {
			continue // Check tells of it
		}
		some, err := d.entriesOf(ctx, clean)
		entries = append(entries, some...)
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return entries, errors.Join(errs...)
}

// absent tells a directory that is still to be made, by the first Create, from
// one that is out of reach.
func (d *Dir) absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if info, err := os.Stat(d.secrets); err == nil && info.IsDir() {
			return nil
		}
	}
	return d.outOfReach(err)
}

func (d *Dir) entriesOf(ctx context.Context, domain string) ([]Entry, error) {
	dir := filepath.Join(d.root, domain)
	list, err := readDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(d.root); err != nil {
			return nil, d.absent(err)
		}
		return nil, nil
	}
	if err != nil {
		return nil, d.classify(dir, err)
	}
	selectors := make(map[string]bool)
	for _, e := range list {
		selector, is := strings.CutSuffix(e.Name(), extension)
		if !is {
			selector, is = strings.CutSuffix(e.Name(), stateExtension)
		}
		if is && isName(selector) {
			selectors[selector] = true
		}
	}
	var entries []Entry
	var errs []error
	for selector := range selectors {
		if err := ctx.Err(); err != nil {
			return entries, errors.Join(append(errs, fmt.Errorf("list keys of %s: %w", domain, err))...)
		}
		e, err := readEntry(dir, domain, selector)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		entries = append(entries, e)
		if e.State.Gone() {
			errs = append(errs, destroy(filepath.Join(dir, selector+extension)))
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Selector, b.Selector) })
	return entries, errors.Join(errs...)
}

// readEntry reads the entry of a key, from the key itself when it has no state
// file. fs.ErrNotExist: there is neither.
func readEntry(dir, domain, selector string) (Entry, error) {
	e, err := readState(dir, domain, selector)
	if !errors.Is(err, fs.ErrNotExist) {
		return e, err
	}
	f, err := readFile(dir, domain, selector)
	if err := errors.Join(err, f.err); err != nil {
		return Entry{}, err
	}
	return byHand(f.key), nil
}

// Create implements Store.
func (d *Dir) Create(ctx context.Context, key Key, by string) (Entry, error) {
	if err := checkKey(&key); err != nil {
		return Entry{}, fmt.Errorf("create key: %w", err)
	}
	dir := filepath.Join(d.root, key.Domain)
	fail := func(err error) (Entry, error) {
		return Entry{}, fmt.Errorf("create key %s of %s: %w", key.Selector, key.Domain, err)
	}
	if err := d.mayWrite(dir); err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	unlock, err := lock(ctx, dir)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	for _, e := range []string{extension, stateExtension} {
		if _, err := os.Lstat(filepath.Join(dir, key.Selector+e)); !errors.Is(err, fs.ErrNotExist) {
			if err == nil {
				err = ErrExists
			}
			return fail(err)
		}
	}
	e := entryOf(key)
	e.By = cut(by)
	e.step(Generated, "", time.Now().UTC().Round(0))
	// The state comes first: a key file without one would sign.
	if err := writeState(dir, &e); err != nil {
		return fail(err)
	}
	if err := store(dir, key); err != nil {
		return fail(errors.Join(err, os.Remove(filepath.Join(dir, key.Selector+stateExtension))))
	}
	if err := errors.Join(syncDir(d.root), syncDir(d.secrets)); err != nil {
		return fail(err)
	}
	return e, nil
}

// checkKey cleans the domain of a key, and refuses what could not be read again.
func checkKey(k *Key) error {
	name, ok := CleanDomain(k.Domain)
	if !ok {
		return fmt.Errorf("%q is no domain name in A-label form", k.Domain)
	}
	k.Domain = name
	if !isName(k.Selector) {
		return fmt.Errorf("%q is no selector for %s: want lower-case letters, digits and hyphens", k.Selector, name)
	}
	switch s := k.Signer.(type) {
	case *rsa.PrivateKey:
		if bits := s.N.BitLen(); k.Algorithm == RSA && minRSABits <= bits && bits <= maxRSABits {
			return nil
		}
	case ed25519.PrivateKey:
		if k.Algorithm == Ed25519 {
			return nil
		}
	}
	return fmt.Errorf("%s of %s is a %T for %q: want a private key of RSA with %d to %d bits, or of Ed25519",
		k.Selector, name, k.Signer, k.Algorithm, minRSABits, maxRSABits)
}

// Change implements Store. With an error and an entry, the state has changed
// and the private half could not be destroyed.
func (d *Dir) Change(ctx context.Context, e Entry, to State, why string) (Entry, error) {
	name, ok := CleanDomain(e.Domain)
	if !ok || !isName(e.Selector) {
		return Entry{}, fmt.Errorf("change key %q of %q: %w", e.Selector, e.Domain, ErrNoKey)
	}
	dir := filepath.Join(d.root, name)
	fail := func(err error) (Entry, error) {
		return Entry{}, fmt.Errorf("change key %s of %s to %s: %w", e.Selector, name, to, err)
	}
	if !to.known() {
		return fail(errors.New("there is no such state"))
	}
	if err := d.mayWrite(dir); err != nil {
		return fail(err)
	}
	unlock, err := lock(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s is not there: %w", dir, ErrChanged)
	}
	if err != nil {
		return fail(err)
	}
	defer unlock()
	now, err := readEntry(dir, name, e.Selector)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail(fmt.Errorf("the key is not there: %w", ErrChanged))
	case err != nil:
		return fail(err)
	case now.Revision != e.Revision:
		return fail(fmt.Errorf("it is %s: %w", now.State, ErrChanged))
	case now.State == to:
		return now, nil
	case now.State.Gone() && to != Removed:
		return fail(fmt.Errorf("it is %s, and its private half is destroyed: make a new key", now.State))
	}
	if to == Active {
		if f, err := readKey(dir, name, e.Selector); err != nil || f.err != nil {
			return fail(errors.Join(err, f.err))
		}
	}
	now.step(to, why, time.Now().UTC().Round(0))
	if err := writeState(dir, &now); err != nil {
		return fail(err)
	}
	d.outdate(name)
	if to.Gone() {
		if err := destroy(filepath.Join(dir, e.Selector+extension)); err != nil {
			return now, fmt.Errorf("key %s of %s is %s now: %w", e.Selector, name, to, err)
		}
	}
	return now, nil
}

// Changed says that somebody has changed the keys of a domain: the next question
// looks at the files.
func (d *Dir) Changed(domain string) {
	if name, ok := CleanDomain(domain); ok {
		d.outdate(name)
	}
}

// outdate makes the next question look at the files.
func (d *Dir) outdate(domain string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.missing, domain)
	if s := d.known[domain]; s != nil {
		old := *s
		old.looked = time.Time{}
		d.known[domain] = &old
	}
}

// Load implements Store.
func (d *Dir) Load(ctx context.Context, domain, selector string) (Key, error) {
	name, ok := CleanDomain(domain)
	if !ok || !isName(selector) {
		return Key{}, fmt.Errorf("key %q of %q: %w", selector, domain, ErrNoKey)
	}
	fail := func(err error) (Key, error) { return Key{}, fmt.Errorf("load key %s of %s: %w", selector, name, err) }
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	dir := filepath.Join(d.root, name)
	k, err := loadKey(dir, name, selector)
	if !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return fail(err)
		}
		return k, nil
	}
	// Perhaps it is just being made, and its state file is there already.
	unlock, err := lock(ctx, dir)
	if err == nil {
		k, err = loadKey(dir, name, selector)
		unlock()
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(d.root); err != nil {
			if err := d.absent(err); err != nil {
				return fail(err)
			}
		}
		err = ErrNoKey
	}
	if err != nil {
		return fail(err)
	}
	return k, nil
}

// loadKey reads a key whatever its state. fs.ErrNotExist: no file is there.
func loadKey(dir, domain, selector string) (Key, error) {
	e, err := readState(dir, domain, selector)
	stated := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Key{}, err
	}
	if stated && e.State.Gone() {
		return Key{}, fmt.Errorf("it is %s: %w", e.State, ErrNoKey)
	}
	f, err := readFile(dir, domain, selector)
	if err := errors.Join(err, f.err); err != nil {
		return Key{}, err
	}
	if stated && !SameKey(Record(f.key), e.Record) {
		return Key{}, fmt.Errorf("the key file is not the key that its state file speaks of: %w", ErrBadKey)
	}
	return f.key, nil
}
