package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"postroad/cmd/internal/secrets"
)

// secrets opens what the configuration says secrets are kept in. In Vault a command acts with the token of whoever gives it, not as one of
// the roles.
func (a *app) secrets() (*secrets.Secrets, error) {
	c, _, err := a.load()
	if err != nil {
		return nil, err
	}
	o := secrets.Options{Config: c}
	if c.Secrets.Vault.Address != "" {
		if o.TokenFile, err = a.tokenFile(); err != nil {
			return nil, err
		}
	}
	s, err := secrets.Open(o)
	if err != nil {
		return nil, err
	}
	if err := s.Missing(); err != nil {
		return nil, err
	}
	if err := s.Start(a.ctx); err != nil {
		return nil, err
	}
	a.atEnd(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), 5*time.Second)
		defer cancel()
		return s.Stop(ctx)
	})
	return s, nil
}

// tokenFile is where the token of Vault is: the file that is given, or the one that vault login writes.
func (a *app) tokenFile() (string, error) {
	if a.flags.VaultToken != "" {
		return a.flags.VaultToken, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the token of Vault: %w: give --vault-token", err)
	}
	path := filepath.Join(home, ".vault-token")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return "", usage("secrets are in Vault, and there is no %s: log in with `vault login`, or give --vault-token FILE", path)
	}
	return path, nil
}

// atEnd adds something that happens when the command has ended.
func (a *app) atEnd(fn func() error) { a.ends = append(a.ends, fn) }

// end does it, the last one first.
func (a *app) end() {
	for i := len(a.ends) - 1; i >= 0; i-- {
		if err := a.ends[i](); err != nil {
			a.tell("postroad: %v\n", err)
		}
	}
}
