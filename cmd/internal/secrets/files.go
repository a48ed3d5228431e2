package secrets

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

// maxFieldBytes is far more than any certificate chain takes.
const maxFieldBytes = 1 << 20

// dirTree is a tree in a directory: KIND/NAME/ with a file for each field. A change makes a new directory of them and puts it in place of the
// old one, so that nobody finds a key beside a certificate that is not its own.
type dirTree struct{ root string }

var _ tree = dirTree{}

// fileOf is the file of a field.
func fileOf(field string) string {
	switch field {
	case "certificate":
		return "cert.pem"
	case "private_key":
		return "key.pem"
	}
	return field + ".pem"
}

// single is the field of a kind by which a version is known, and without which there is no secret.
func single(kind string) string {
	if kind == KindACME {
		return fieldPrivateKey
	}
	return fieldCertificate
}

func (t dirTree) dir(kind, name string) string { return filepath.Join(t.root, kind, name) }

func (t dirTree) list(_ context.Context, kind string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(t.root, kind))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s/: %w", kind, err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		name := e.Name()
		info, err := os.Stat(t.dir(kind, name)) // a link to a directory is one
		if kind == KindSmarthosts {
			var is bool
			if name, is = strings.CutSuffix(name, ".json"); !is {
				continue
			}
		} else if err != nil || !info.IsDir() {
			continue
		}
		names = append(names, name)
	}
	return names, nil
}

func (t dirTree) look(_ context.Context, kind, name string) (item, error) {
	path := filepath.Join(t.dir(kind, name), fileOf(single(kind)))
	if kind == KindSmarthosts {
		path = t.dir(kind, name) + ".json"
	}
	info, err := os.Stat(path)
	if err != nil {
		return item{}, t.explain(kind, name, err)
	}
	return item{Version: Version{Modified: info.ModTime()}}, nil
}

func (t dirTree) read(ctx context.Context, kind, name string, fields ...string) (item, error) {
	i, err := t.look(ctx, kind, name)
	if err != nil {
		return i, err
	}
	i.fields = map[string]string{}
	if !slices.Contains(fields, single(kind)) {
		fields = append(slices.Clone(fields), single(kind))
	}
	for _, field := range fields {
		text, err := readField(filepath.Join(t.dir(kind, name), fileOf(field)), field == fieldPrivateKey)
		switch {
		case errors.Is(err, fs.ErrNotExist) && field != single(kind):
		case err != nil:
			return item{}, t.explain(kind, name, err)
		case text != "":
			i.fields[field] = text
		}
	}
	i.revision = revisionOf(i.fields[single(kind)])
	return i, nil
}

func readField(path string, isKey bool) (string, error) {
	info, err := os.Stat(path) // before it is opened: that would wait for the writer of a FIFO
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return "", err
	}
	if mode := info.Mode().Perm(); isKey && mode&othersMay != 0 {
		return "", fmt.Errorf("%s has mode %04o, so others can read it: chmod 0600 it; if they may have read it, it must be replaced", path, mode)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFieldBytes+1))
	if err == nil && len(text) > maxFieldBytes {
		err = fmt.Errorf("%s is larger than %d octets", path, maxFieldBytes)
	}
	return string(text), err
}

func revisionOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func (t dirTree) explain(kind, name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s/%s: %w", kind, name, ErrNotThere)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s/%s: %w: become its owner", kind, name, err)
	}
	return fmt.Errorf("%s/%s: %w", kind, name, err)
}

// patience is how long a change waits for the one of another process.
const patience = 10 * time.Second

func (t dirTree) write(ctx context.Context, kind, name string, fields, _ map[string]string, revision string) (item, error) {
	fail := func(err error) (item, error) { return item{}, fmt.Errorf("write %s/%s: %w", kind, name, err) }
	above := filepath.Join(t.root, kind)
	if err := t.make(above, kind); err != nil {
		return fail(err)
	}
	unlock, err := lockDir(ctx, above)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	place := place{above: above, name: name}
	if err := place.tidy(); err != nil {
		return fail(err)
	}
	found, err := t.read(ctx, kind, name, single(kind))
	switch {
	case errors.Is(err, ErrNotThere) && revision == "":
	case errors.Is(err, ErrNotThere), err == nil && found.revision != revision:
		return fail(ErrChanged)
	case err != nil:
		return fail(err)
	}
	if err := place.replace(fields); err != nil {
		return fail(err)
	}
	return t.read(ctx, kind, name)
}

// make makes the directory of a kind. Those of authorities and of accounts there belong to whoever gives the command: no server needs them.
// Others belong to the owner of all secrets.
func (t dirTree) make(above, kind string) error {
	if _, err := os.Stat(above); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(above, 0o700); err != nil || kind == KindAuthority || kind == KindACME {
		return err
	}
	info, err := os.Stat(t.root)
	if err != nil {
		return err
	}
	return giveTo(above, info)
}

// forget implements tree: of former versions nothing is left.
func (t dirTree) forget(context.Context, string, string) error { return nil }

// lockDir keeps other processes from changing what is in a directory until unlock is called.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		isBusy, err := lockFile(f)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
		if !isBusy {
			return func() { _ = f.Close() }, nil // which unlocks; it was only read
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for somebody else who changes %s: %w", dir, ctx.Err()), f.Close())
		}
	}
}
