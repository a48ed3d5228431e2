package authority

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// Fields of a secret that holds an authority.
const (
	FieldCertificate = "certificate"
	FieldPrivateKey  = "private_key"
	FieldPrevious    = "previous"
	FieldCross       = "cross"
)

// Fields is the authority as a secret holds it, all in PEM.
func (a *Authority) Fields() (map[string]string, error) {
	key, err := EncodeKey(a.key)
	if err != nil {
		return nil, err
	}
	fields := map[string]string{FieldCertificate: string(EncodeCertificate(a.Root)), FieldPrivateKey: string(key)}
	for field, list := range map[string][]*x509.Certificate{FieldPrevious: a.Previous, FieldCross: a.Cross} {
		for _, c := range list {
			fields[field] += string(EncodeCertificate(c))
		}
	}
	return fields, nil
}

// Parse reads what Fields has made, or a root that people have put there with certificate and private_key. Without the private key it
// is good for all but Issue and Successor. Errors read as the rest of a sentence about the secret.
func Parse(fields map[string]string, withKey bool) (*Authority, error) {
	roots, err := ParseCertificates([]byte(fields[FieldCertificate]))
	switch {
	case err != nil:
		return nil, fmt.Errorf("has a %s that %w", FieldCertificate, err)
	case len(roots) != 1:
		return nil, fmt.Errorf("has %d certificates in the field %s: want the root, in PEM", len(roots), FieldCertificate)
	case !roots[0].IsCA:
		return nil, fmt.Errorf("has a certificate of %s that may not issue others: want a root", roots[0].Subject)
	}
	a := &Authority{Root: roots[0]}
	for field, to := range map[string]*[]*x509.Certificate{FieldPrevious: &a.Previous, FieldCross: &a.Cross} {
		if *to, err = ParseCertificates([]byte(fields[field])); err != nil {
			return nil, fmt.Errorf("has a field %s that %w", field, err)
		}
	}
	if !withKey {
		return a, nil
	}
	if a.key, err = ParseKey([]byte(fields[FieldPrivateKey])); err != nil {
		return nil, fmt.Errorf("has a %s that %w", FieldPrivateKey, err)
	}
	if public, is := a.key.Public().(interface{ Equal(crypto.PublicKey) bool }); !is || !public.Equal(a.Root.PublicKey) {
		return nil, fmt.Errorf("has a %s that is not the one of its %s", FieldPrivateKey, FieldCertificate)
	}
	return a, nil
}

// ParseCertificates reads PEM; blocks of other kinds are passed over. Nothing is no error. Errors read as the rest of a sentence.
func ParseCertificates(text []byte) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return list, nil
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("cannot be read: %w", err)
		}
		list = append(list, c)
	}
}

// EncodeCertificate writes one in PEM.
func EncodeCertificate(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// EncodeKey writes a private key in PEM, as PKCS #8.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseKey reads PKCS #8, or what older programs write. Errors read as the rest of a sentence.
func ParseKey(text []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New("is no private key in PEM")
		}
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		default:
			continue // EC PARAMETERS
		}
		if err != nil {
			return nil, fmt.Errorf("cannot be read: %w", err)
		}
		signer, is := key.(crypto.Signer)
		if !is {
			return nil, fmt.Errorf("is a key of type %T, which does not sign", key)
		}
		return signer, nil
	}
}
