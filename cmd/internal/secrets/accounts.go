package secrets

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"

	"postroad/cmd/internal/secrets/authority"
)

// AccountKey reads the key of the account acme/<name>. ErrNotThere: there is none.
func (s *Secrets) AccountKey(ctx context.Context, name string) (crypto.Signer, error) {
	if err := checkName(KindACME, name); err != nil {
		return nil, err
	}
	i, err := s.tree().read(ctx, KindACME, name, fieldPrivateKey)
	if err != nil {
		return nil, err
	}
	key, err := authority.ParseKey([]byte(i.fields[fieldPrivateKey]))
	if err != nil {
		return nil, fmt.Errorf("secret %s/%s has a %s that %w", KindACME, name, fieldPrivateKey, err)
	}
	return key, nil
}

// MakeAccountKey makes the key of an account that has none, and stores it. If somebody else has done that meanwhile, it is theirs.
func (s *Secrets) MakeAccountKey(ctx context.Context, name string) (crypto.Signer, error) {
	if err := checkName(KindACME, name); err != nil {
		return nil, err
	}
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of an account: %w", err)
	}
	text, err := authority.EncodeKey(made)
	if err != nil {
		return nil, err
	}
	_, writeErr := s.tree().write(ctx, KindACME, name, map[string]string{fieldPrivateKey: string(text)}, nil, "")
	clear(text)
	if writeErr != nil && !errors.Is(writeErr, ErrMaybe) && !errors.Is(writeErr, ErrChanged) {
		return nil, writeErr
	}
	key, err := s.AccountKey(ctx, name)
	if err != nil {
		return nil, errors.Join(writeErr, err)
	}
	return key, nil
}
