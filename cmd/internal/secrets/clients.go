package secrets

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postroad/ingress/account"
	"postroad/signer/vault"
)

// clientRecords keeps records of clients in Vault, clients/<name>. Their revision is the version of the secret and when that was made:
// a secret that is removed and added again counts its versions from 1 again.
type clientRecords struct{ vault *vault.Client }

var _ account.Records = clientRecords{}

func clientPath(name string) string { return KindClients + "/" + name }

// Names implements account.Records.
func (r clientRecords) Names(ctx context.Context) ([]string, error) {
	names, err := r.vault.List(ctx, KindClients)
	isFolder := func(name string) bool { return strings.HasSuffix(name, "/") }
	return slices.DeleteFunc(names, isFolder), unavailable(err)
}

// Read implements account.Records.
func (r clientRecords) Read(ctx context.Context, name string) (map[string]any, string, error) {
	s, err := r.vault.Read(ctx, clientPath(name))
	if err != nil {
		return nil, "", known(err)
	}
	return s.Data, fmt.Sprintf("%d %s", s.Version, s.Created.UTC().Format(time.RFC3339Nano)), nil
}

// Write implements account.Records.
func (r clientRecords) Write(ctx context.Context, name string, fields map[string]any, revision string) error {
	version := 0
	if revision != "" {
		var err error
		number, _, _ := strings.Cut(revision, " ")
		if version, err = strconv.Atoi(number); err != nil {
			return fmt.Errorf("revision %q of client %s is none of Vault's", revision, name)
		}
	} else {
		// One that somebody has deleted by other means leaves its versions.
		m, err := r.vault.Metadata(ctx, clientPath(name))
		switch {
		case errors.Is(err, vault.ErrNotFound):
		case err != nil:
			return known(err)
		case m.Version > 0 && !m.Deleted:
			return fmt.Errorf("client %s: %w", name, account.ErrChanged)
		default:
			version = m.Version
		}
	}
	_, err := r.vault.Write(ctx, clientPath(name), fields, version)
	return known(err)
}

// Remove implements account.Records: passwords' verifiers of all versions are gone with it.
func (r clientRecords) Remove(ctx context.Context, name string) error {
	m, err := r.vault.Metadata(ctx, clientPath(name))
	if err != nil {
		return known(err)
	}
	if m.Version == 0 || m.Deleted {
		return fmt.Errorf("client %s: %w", name, account.ErrUnknown)
	}
	return known(r.vault.Delete(ctx, clientPath(name)))
}

// known puts the errors of Vault into the words of account.
func known(err error) error {
	switch {
	case errors.Is(err, vault.ErrNotFound):
		return fmt.Errorf("%w: %w", account.ErrUnknown, err)
	case errors.Is(err, vault.ErrChanged):
		return fmt.Errorf("%w: %w", account.ErrChanged, err)
	}
	return unavailable(err)
}

// unavailable: whatever Vault refuses, nothing is known of the client.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", account.ErrUnavailable, err)
}
