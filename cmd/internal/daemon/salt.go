package daemon

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"postroad/ingress/account"
)

const (
	// saltFile is beside the records of clients, which are the only other secret that all nodes share and nobody else knows. Its name keeps
	// it out of lists of clients.
	saltFile = ".salt"
	// saltBytes is how much of it is made, and the least that is taken.
	saltBytes = 32
)

// saltOfFile reads what made-up salts come from where secrets are files, so that they outlive certificates. A node alone makes it, once. In a
// cluster it is taken when it is there: nobody knows whether the nodes share the directory, and if not, each would make up its own. Nil: there is none.
func (d *Daemon) saltOfFile() ([]byte, error) {
	path := filepath.Join(d.c.SecretsDir(), account.Subdirectory, saltFile)
	text, err := readSalt(path)
	if !errors.Is(err, fs.ErrNotExist) || len(d.c.Queue.URLs) > 0 {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return text, err
	}
	if err := makeSalt(path); err != nil && !errors.Is(err, fs.ErrExist) {
		d.log.Warn("salts of unknown names cannot be kept: to one who compares answers before and after a certificate's key changes, they tell names of accounts from others",
			"err", err)
		return nil, nil
	}
	return readSalt(path)
}

func readSalt(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read salt: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 || info.Size() < saltBytes || info.Size() > 4096 {
		return nil, fmt.Errorf("read salt: %s has mode %s and %d octets: want a file of mode 0600 with %d to 4096 octets", path, mode, info.Size(), saltBytes)
	}
	return os.ReadFile(path)
}

// makeSalt writes it in one step, unless somebody else was faster.
func makeSalt(path string) error {
	f, err := os.CreateTemp(filepath.Dir(path), saltFile+"-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	text := make([]byte, saltBytes)
	if _, err := rand.Read(text); err != nil {
		return errors.Join(err, f.Close())
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}
