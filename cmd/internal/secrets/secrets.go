// Package secrets opens what the configuration says secrets are kept in: a directory of files, or Vault.
//
//	s, err := secrets.Open(secrets.Options{Config: c, Logger: log})
//	err = s.Start(ctx) // logs in to Vault; a directory needs nothing
//	defer s.Stop(ctx)
//	keys, err := s.Keys()       // for the signer and the dkim commands
//	clients, err := s.Clients() // for ingress and the client commands
//	list, err := s.Entries(ctx, "", time.Now()) // of everything, nothing secret in it
//	root, at, err := s.Authority(ctx, "postroad", true) // and StoreAuthority, ServerPair, StorePair to replace them
//
// A role opens only what it needs: with Vault its policy lets it do no more.
package secrets

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/cmd/internal/config"
	"postroad/ingress/account"
	"postroad/signer/keyring"
	"postroad/signer/vault"
)

// Options say what to open.
type Options struct {
	Config *config.Config // checked; required
	// TokenFile holds a token of Vault to be used in place of the configured login: that of the person who gives a command.
	TokenFile  string
	Logger     *slog.Logger          // default: discards
	Registerer prometheus.Registerer // default: none
}

// Secrets is where secrets are.
type Secrets struct {
	o     Options
	vault *vault.Client // nil: a directory
	keys  *vault.Keys   // nil until somebody asks for them

	mu        sync.Mutex
	issued    []*issued         // certificates that Vault issues
	authority authorityOfIssued // that issues them
	onIssued  []func()
	ctx       context.Context // of their renewal; nil until there is one
	cancel    context.CancelFunc
	wg        sync.WaitGroup
}

// Open checks what it can without asking anybody.
func Open(o Options) (*Secrets, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Secrets{o: o}
	v := &o.Config.Secrets.Vault
	if v.Address == "" {
		return s, nil
	}
	var err error
	s.vault, err = vault.New(vault.Options{
		Address:    v.Address,
		Namespace:  v.Namespace,
		CAFile:     v.CA,
		Mount:      strings.Trim(v.Mount, "/"),
		Prefix:     strings.Trim(v.Prefix, "/"),
		Login:      loginOf(v, o.TokenFile),
		Logger:     o.Logger.With("part", "vault"),
		Registerer: o.Registerer,
	})
	if err != nil {
		return nil, fmt.Errorf("secrets.vault: %w", err)
	}
	s.authority = s.vault
	return s, nil
}

func loginOf(v *config.Vault, tokenFile string) vault.Login {
	if tokenFile != "" {
		return &vault.TokenFile{Path: tokenFile}
	}
	switch v.Login {
	case config.VaultKubernetes:
		return &vault.Kubernetes{Role: v.Role, TokenFile: v.SecretFile, Mount: v.LoginMount}
	case config.VaultCert:
		return &vault.Certificate{CertFile: v.Cert, KeyFile: v.Key, Role: v.Role, Mount: v.LoginMount}
	case config.VaultToken:
		return &vault.TokenFile{Path: v.SecretFile}
	}
	return &vault.AppRole{RoleID: v.Role, SecretIDFile: v.SecretFile, Wrapped: v.Wrapped, Mount: v.LoginMount}
}

// Where says it to people.
func (s *Secrets) Where() string {
	if s.vault == nil {
		return s.o.Config.SecretsDir()
	}
	v := &s.o.Config.Secrets.Vault
	return v.Address + " " + strings.Trim(v.Mount, "/") + "/" + strings.Trim(v.Prefix, "/")
}

// IsVault reports that secrets are in Vault.
func (s *Secrets) IsVault() bool { return s.vault != nil }

// Start logs in. A Vault that is out of reach is no error: it goes on in the background.
func (s *Secrets) Start(ctx context.Context) error {
	if s.vault == nil {
		return nil
	}
	if err := s.vault.Start(ctx); err != nil {
		return fmt.Errorf("log in to Vault: %w", err)
	}
	return nil
}

// Stop ends what runs, and gives the token of Vault back.
func (s *Secrets) Stop(ctx context.Context) error {
	err := s.stopIssued(ctx)
	if s.keys != nil {
		err = errors.Join(err, s.keys.Stop(ctx))
	}
	if s.vault != nil {
		err = errors.Join(err, s.vault.Stop(ctx))
	}
	return err
}

// Keys are the DKIM keys. Those of Vault are read ahead after Start.
func (s *Secrets) Keys() (keyring.Store, error) {
	log := s.o.Logger.With("part", "keyring")
	if s.vault == nil {
		keys, err := keyring.NewDir(keyring.DirOptions{Path: s.o.Config.SecretsDir(), Logger: log})
		if err != nil {
			return nil, fmt.Errorf("open keys: %w", err)
		}
		return keys, nil
	}
	if s.keys == nil {
		keys, err := vault.NewKeys(s.vault, vault.KeysOptions{
			Transit: strings.Trim(s.o.Config.Secrets.Vault.Transit, "/"), Logger: log, Registerer: s.o.Registerer,
		})
		if err != nil {
			return nil, fmt.Errorf("open keys: %w", err)
		}
		s.keys = keys
	}
	return s.keys, nil
}

// Preload begins to read the keys of all domains, if they are in Vault, and to look for changes.
func (s *Secrets) Preload() error {
	if s.keys == nil {
		return nil
	}
	return s.keys.Start()
}

// Clients are the accounts.
func (s *Secrets) Clients() (ClientStore, error) {
	log := s.o.Logger.With("part", "accounts")
	if s.vault != nil {
		return account.NewRemote(account.RemoteOptions{Records: clientRecords{s.vault}, Logger: log})
	}
	return account.NewDir(account.DirOptions{Path: s.o.Config.SecretsDir(), Logger: log})
}

// ClientStore is a store of accounts that can be looked through.
type ClientStore interface {
	account.Store
	// Stored reads a record past all that is remembered; the errors are those of Latest.
	Stored(ctx context.Context, name string) (*account.Client, error)
	// Check looks at every record and returns all that is wrong.
	Check(ctx context.Context) error
}

// MakeDirectories makes the directories of the default place. One that somebody named is not made: perhaps it is not mounted.
func (s *Secrets) MakeDirectories(names ...string) error {
	if s.vault != nil || s.o.Config.Secrets.Dir != "" {
		return nil
	}
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(s.o.Config.SecretsDir(), name), 0o700); err != nil {
			return fmt.Errorf("make directory of secrets: %w", err)
		}
	}
	return nil
}

// Missing says that the directory that somebody named is not there.
func (s *Secrets) Missing() error {
	dir := s.o.Config.Secrets.Dir
	if s.vault != nil || dir == "" {
		return nil
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("secrets.dir %s is not there: mount it, or create it with mode 0700", dir)
	}
	return nil
}
