package secrets

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"postroad/ingress/certs"
	"postroad/signer/vault"
)

// Certificate is the certificate tls/<name> with its key: the fields certificate and private_key in Vault, the files cert.pem and
// key.pem in a directory.
func (s *Secrets) Certificate(name string) certs.Pair {
	if s.vault == nil {
		dir := filepath.Join(s.o.Config.SecretsDir(), KindTLS, name)
		return certs.Pair{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	}
	return certs.Pair{Cert: KindTLS + "/" + name, Source: certificate{s.vault, name}}
}

// certificate is one in Vault.
type certificate struct {
	vault *vault.Client
	name  string
}

// Pair implements certs.Source.
func (c certificate) Pair(ctx context.Context) (chain, key []byte, err error) {
	s, err := c.vault.Read(ctx, KindTLS+"/"+c.name)
	if err != nil {
		return nil, nil, awayOrNot(err)
	}
	for field, to := range map[string]*[]byte{fieldCertificate: &chain, fieldPrivateKey: &key} {
		text, ok := s.Data[field].(string)
		if !ok || text == "" {
			return nil, nil, fmt.Errorf("secret %s/%s has no field %s: want certificate and private_key, both in PEM", KindTLS, c.name, field)
		}
		*to = []byte(text)
	}
	return chain, key, nil
}

// awayOrNot puts errors of Vault that may pass by themselves, or when somebody changes a policy, into the words of certs.
func awayOrNot(err error) error {
	switch {
	case errors.Is(err, vault.ErrUnavailable):
		return fmt.Errorf("%w: %w", certs.ErrAway, err)
	case errors.Is(err, vault.ErrDenied):
		return fmt.Errorf("%w: %w", certs.ErrDenied, err)
	}
	return err
}
