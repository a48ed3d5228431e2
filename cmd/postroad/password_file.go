package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// passwordFile is a password on its way to whoever will use it: under a passing name until it is in force, so that neither is there without
// the other, whatever breaks in between.
type passwordFile struct {
	path    string
	passing string // "" once it is kept or dropped
}

// newPasswordFile writes a password to a file of mode 0600. One that is there already is not touched: it may be of another place.
func newPasswordFile(dir, name, password string) (*passwordFile, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of passwords: %w", err)
	}
	p := &passwordFile{path: filepath.Join(dir, name)}
	if _, err := os.Lstat(p.path); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = errors.New("it is there already, perhaps of another environment: move it away")
		}
		return nil, fmt.Errorf("write password to %s: %w", p.path, err)
	}
	f, err := os.CreateTemp(dir, "."+name+"-*") // with mode 0600
	if err != nil {
		return nil, fmt.Errorf("write password: %w", err)
	}
	p.passing = f.Name()
	_, err = f.WriteString(password + "\n")
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		p.drop()
		return nil, fmt.Errorf("write password: %w", err)
	}
	return p, nil
}

// keep gives the file its name.
func (p *passwordFile) keep() error {
	passing := p.passing
	p.passing = "" // from now on it is the only place where the password is
	if err := os.Rename(passing, p.path); err != nil {
		return fmt.Errorf("the password is in force and lies in %s: %w", passing, err)
	}
	return nil
}

// leave leaves the file under its passing name, which it returns: whether the password is in force is not known, and the next attempt makes another.
func (p *passwordFile) leave() string {
	passing := p.passing
	p.passing = ""
	return passing
}

// drop removes what is not kept.
func (p *passwordFile) drop() {
	if p != nil && p.passing != "" {
		_ = os.Remove(p.passing)
		p.passing = ""
	}
}
