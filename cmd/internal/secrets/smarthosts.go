package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"postroad/delivery/smarthost"
	"postroad/signer/vault"
)

// SmartHosts are the secrets by which delivery proves itself to next hops: smarthosts/<name> and tls/<name>.
func (s *Secrets) SmartHosts() smarthost.Source {
	if s.vault == nil {
		return smartHostFiles{dirTree{s.o.Config.SecretsDir()}}
	}
	return smartHostRecords{s.vault}
}

// smartHostRecords are secrets in Vault.
type smartHostRecords struct{ vault *vault.Client }

// Login implements smarthost.Source.
func (r smartHostRecords) Login(ctx context.Context, name string) (map[string]any, string, error) {
	if err := checkName(KindSmarthosts, name); err != nil {
		return nil, "", fmt.Errorf("%w: %w", smarthost.ErrMissing, err)
	}
	s, err := r.vault.Read(ctx, KindSmarthosts+"/"+name)
	if err != nil {
		return nil, "", missingOrAway(err)
	}
	// A secret that is removed and added again counts its versions from 1 again.
	return s.Data, fmt.Sprintf("%d %s", s.Version, s.Created.UTC().Format(time.RFC3339Nano)), nil
}

// Certificate implements smarthost.Source.
func (r smartHostRecords) Certificate(ctx context.Context, name string) (chain, key []byte, err error) {
	if err := checkName(KindTLS, name); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", smarthost.ErrMissing, err)
	}
	s, err := r.vault.Read(ctx, KindTLS+"/"+name)
	if err != nil {
		return nil, nil, missingOrAway(err)
	}
	for field, to := range map[string]*[]byte{fieldCertificate: &chain, fieldPrivateKey: &key} {
		text, ok := s.Data[field].(string)
		if !ok || text == "" {
			return nil, nil, fmt.Errorf("%w: it has no field %s", smarthost.ErrBad, field)
		}
		*to = []byte(text)
	}
	return chain, key, nil
}

// missingOrAway puts errors of Vault into the words of smarthost.
func missingOrAway(err error) error {
	if errors.Is(err, vault.ErrNotFound) {
		return fmt.Errorf("%w: %w", smarthost.ErrMissing, err)
	}
	return fmt.Errorf("%w: %w", smarthost.ErrAway, err)
}

// smartHostFiles are secrets in a directory: smarthosts/<name>.json, and tls/<name>/cert.pem with key.pem.
type smartHostFiles struct{ tree dirTree }

// Login implements smarthost.Source.
func (f smartHostFiles) Login(_ context.Context, name string) (map[string]any, string, error) {
	if err := checkName(KindSmarthosts, name); err != nil {
		return nil, "", fmt.Errorf("%w: %w", smarthost.ErrMissing, err)
	}
	text, err := readField(f.tree.dir(KindSmarthosts, name)+".json", true)
	if err != nil {
		return nil, "", f.missingOrBad(err)
	}
	var fields map[string]any
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		return nil, "", fmt.Errorf("%w: it is no JSON object: %w", smarthost.ErrBad, err)
	}
	return fields, revisionOf(text)[:24], nil
}

// Certificate implements smarthost.Source.
func (f smartHostFiles) Certificate(_ context.Context, name string) (chain, key []byte, err error) {
	if err := checkName(KindTLS, name); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", smarthost.ErrMissing, err)
	}
	for field, to := range map[string]*[]byte{fieldCertificate: &chain, fieldPrivateKey: &key} {
		text, err := readField(filepath.Join(f.tree.dir(KindTLS, name), fileOf(field)), field == fieldPrivateKey)
		if err != nil {
			return nil, nil, f.missingOrBad(err)
		}
		*to = []byte(text)
	}
	return chain, key, nil
}

// missingOrBad puts errors of files into the words of smarthost.
func (f smartHostFiles) missingOrBad(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", smarthost.ErrMissing, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w: it must belong to the user that runs this process", smarthost.ErrAway, err)
	}
	return fmt.Errorf("%w: %w", smarthost.ErrBad, err)
}
