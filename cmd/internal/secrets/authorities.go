package secrets

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"postroad/cmd/internal/secrets/authority"
)

// tree is where the secrets lie.
func (s *Secrets) tree() tree {
	if s.vault != nil {
		return vaultTree{s.vault}
	}
	return dirTree{s.o.Config.SecretsDir()}
}

// What is said of a certificate where everybody sees it who may look at its secret.
const (
	aboutFingerprint = "fingerprint"
	aboutNotAfter    = "not_after"
	aboutNames       = "names"
	aboutIssuer      = "issuer"
	aboutRoots       = "roots" // of an authority: how many there were before
)

// aboutAll are all names under which something may be said of one version and not of the next.
var aboutAll = []string{aboutFingerprint, aboutNotAfter, aboutNames, aboutIssuer, aboutRoots}

func aboutOf(c *x509.Certificate) map[string]string {
	return map[string]string{
		aboutFingerprint: authority.Fingerprint(c),
		aboutNotAfter:    c.NotAfter.UTC().Format(time.RFC3339),
		aboutNames:       strings.Join(authority.Names(c), " "),
		aboutIssuer:      c.Issuer.String(),
	}
}

// Authority reads the authority ca/<name>; its private key only when that is asked for. ErrNotThere: there is none.
func (s *Secrets) Authority(ctx context.Context, name string, withKey bool) (*authority.Authority, Version, error) {
	if err := checkName(KindAuthority, name); err != nil {
		return nil, Version{}, err
	}
	fields := []string{authority.FieldCertificate, authority.FieldPrevious, authority.FieldCross}
	if withKey {
		fields = append(fields, authority.FieldPrivateKey)
	}
	i, err := s.tree().read(ctx, KindAuthority, name, fields...)
	if err != nil {
		return nil, Version{}, err
	}
	a, err := authority.Parse(i.fields, withKey)
	if err != nil {
		return nil, Version{}, fmt.Errorf("secret %s/%s %w", KindAuthority, name, err)
	}
	return a, i.Version, nil
}

// StoreAuthority puts an authority in place of that version; an empty one is for the first. ErrChanged: it is another one meanwhile.
// ErrMaybe: look whether it is there.
func (s *Secrets) StoreAuthority(ctx context.Context, name string, a *authority.Authority, v Version) (Version, error) {
	fields, err := a.Fields()
	if err != nil {
		return Version{}, err
	}
	about := aboutOf(a.Root)
	about[aboutRoots] = fmt.Sprint(len(a.Previous))
	i, err := s.tree().write(ctx, KindAuthority, name, fields, about, v.revision)
	return i.Version, err
}

// ForgetRoots destroys the private keys of former roots: what they vouch for, they have signed already.
func (s *Secrets) ForgetRoots(ctx context.Context, name string) error {
	return s.tree().forget(ctx, KindAuthority, name)
}

// ServerPair reads the certificate tls/<name> with what stands behind it. ErrNotThere: there is none.
func (s *Secrets) ServerPair(ctx context.Context, name string) ([]*x509.Certificate, Version, error) {
	if err := checkName(KindTLS, name); err != nil {
		return nil, Version{}, err
	}
	i, err := s.tree().read(ctx, KindTLS, name, fieldCertificate)
	if err != nil {
		return nil, Version{}, err
	}
	chain, err := authority.ParseCertificates([]byte(i.fields[fieldCertificate]))
	if err == nil && len(chain) == 0 {
		err = errors.New("is none")
	}
	if err != nil {
		return nil, i.Version, fmt.Errorf("secret %s/%s has a certificate that %w", KindTLS, name, err)
	}
	return chain, i.Version, nil
}

// StorePair puts a server's certificate with its key in place of that version. Errors are those of StoreAuthority.
func (s *Secrets) StorePair(ctx context.Context, name string, p *authority.Pair, v Version) (Version, error) {
	chain, key, err := p.PEM()
	if err != nil {
		return Version{}, err
	}
	fields := map[string]string{fieldCertificate: string(chain), fieldPrivateKey: string(key)}
	clear(key)
	i, err := s.tree().write(ctx, KindTLS, name, fields, aboutOf(p.Leaf), v.revision)
	return i.Version, err
}

// CheckPair reads a server's certificate as a server does, and makes sure that the key is its own.
func (s *Secrets) CheckPair(ctx context.Context, name string) (*x509.Certificate, Version, error) {
	i, err := s.tree().read(ctx, KindTLS, name, fieldCertificate, fieldPrivateKey)
	if err != nil {
		return nil, Version{}, err
	}
	pair, err := tls.X509KeyPair([]byte(i.fields[fieldCertificate]), []byte(i.fields[fieldPrivateKey]))
	if err != nil {
		return nil, i.Version, fmt.Errorf("secret %s/%s cannot be used: %w", KindTLS, name, err)
	}
	return pair.Leaf, i.Version, nil
}

// Algorithm names the kind of key that a certificate is for.
func Algorithm(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", key.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Curve.Params().Name
	}
	return c.PublicKeyAlgorithm.String()
}
