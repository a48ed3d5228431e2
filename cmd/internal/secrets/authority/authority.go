// Package authority issues certificates for servers, and is replaced by its successor without a client noticing.
//
//	a, err := authority.New(now)
//	pair, err := a.Issue(authority.Request{Names: []string{"relay.example.com"}, Now: now})
//	next, err := a.Successor(now) // a new root; clients need not know it yet
//
// An authority is a root with its key, the certificates of the roots before it, and a chain of cross certificates: the new root's key,
// certified by the old root, whose key was certified by the one before. A server shows the chain behind its own certificate, so that
// clients verify it which trust any root that has not ended: the newest alone, or only one of the older ones. The key of an old root is
// needed for nothing any more and is not kept.
package authority

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"
)

const (
	rootLife = 10 // years
	// early is how long before now certificates begin: clocks of clients are not all right.
	early = time.Hour
	// maxRoots bounds the roots that an authority remembers, and with them the chain that each handshake carries.
	maxRoots = 8
)

// ErrTooMany says that there are as many roots as a chain may lead through.
var ErrTooMany = fmt.Errorf("there are %d roots that have not ended", maxRoots)

// Authority is a root and what is known of those before it.
type Authority struct {
	Root     *x509.Certificate
	Previous []*x509.Certificate // older roots that have not ended, newest first
	Cross    []*x509.Certificate // newest first: Root's key certified by the root before, that one's by the one before it, …

	key crypto.Signer
}

// New makes an authority: a root with an ECDSA key on P-256, for ten years.
func New(now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of a root: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	// Names of roots differ, so that nobody confuses them: some verifiers look for an issuer by its name alone.
	name := fmt.Sprintf("Postroad root %s %x", now.UTC().Format("2006-01-02"), serial.Bytes()[:3])
	template := rootTemplate(serial, pkix.Name{CommonName: name}, now, now.AddDate(rootLife, 0, 0))
	root, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	return &Authority{Root: root, key: key}, nil
}

func rootTemplate(serial *big.Int, subject pkix.Name, now, end time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               subject,
		NotBefore:             now.Add(-early),
		NotAfter:              end,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// newSerial makes a serial number of 126 bits: positive, and 16 octets as most programs want.
func newSerial() (*big.Int, error) {
	octets := make([]byte, 16)
	if _, err := rand.Read(octets); err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	octets[0] = octets[0]&0x3f | 0x40
	return new(big.Int).SetBytes(octets), nil
}

// sign makes a certificate and looks at it.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Successor makes the authority that takes over: a new root, whose key this one certifies. Roots that have ended are left out.
// ErrTooMany: too many have not.
func (a *Authority) Successor(now time.Time) (*Authority, error) {
	if !now.Before(a.Root.NotAfter) {
		return nil, fmt.Errorf("the root %s has ended on %s and cannot vouch for another one", a.Root.Subject, a.Root.NotAfter.Format(time.DateOnly))
	}
	next, err := New(now)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	end := next.Root.NotAfter
	if a.Root.NotAfter.Before(end) {
		end = a.Root.NotAfter
	}
	template := rootTemplate(serial, next.Root.Subject, now, end)
	template.RawSubject = next.Root.RawSubject
	template.SubjectKeyId = next.Root.SubjectKeyId
	cross, err := sign(template, a.Root, next.Root.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("certify the new root by %s: %w", a.Root.Subject, err)
	}
	next.Previous = append([]*x509.Certificate{a.Root}, a.Previous...)
	next.Cross = append([]*x509.Certificate{cross}, a.Cross...)
	next.forget(now)
	if len(next.Previous) >= maxRoots {
		return nil, ErrTooMany
	}
	for i, root := range next.Previous {
		if most := root.MaxPathLen; most >= 0 && most <= i {
			return nil, fmt.Errorf("the root %s allows %d authorities below it, so clients that know only that root would refuse servers", root.Subject, most)
		}
	}
	return next, nil
}

// forget drops what has ended. Behind a cross certificate that has ended the chain leads nowhere.
func (a *Authority) forget(now time.Time) {
	kept := a.Previous[:0:0]
	for _, root := range a.Previous {
		if now.Before(root.NotAfter) {
			kept = append(kept, root)
		}
	}
	a.Previous = kept
	for i, c := range a.Cross {
		if !now.Before(c.NotAfter) {
			a.Cross = a.Cross[:i:i]
			return
		}
	}
}

// Bundle is what clients should trust, in PEM: the root, and those before it that have not ended.
func (a *Authority) Bundle(now time.Time) []byte {
	var out []byte
	for _, root := range append([]*x509.Certificate{a.Root}, a.Previous...) {
		if now.Before(root.NotAfter) {
			out = append(out, EncodeCertificate(root)...)
		}
	}
	return out
}

// HasIssued reports that the authority, or one of the roots before it, has signed a certificate.
func (a *Authority) HasIssued(leaf *x509.Certificate) bool {
	for _, root := range append([]*x509.Certificate{a.Root}, a.Previous...) {
		if bytes.Equal(leaf.RawIssuer, root.RawSubject) && leaf.CheckSignatureFrom(root) == nil {
			return true
		}
	}
	return false
}

// Check makes sure that a client verifies a chain which trusts nothing but one of the roots, for each of them that has not ended.
func (a *Authority) Check(chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("the chain is empty")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	for _, root := range append([]*x509.Certificate{a.Root}, a.Previous...) {
		if !now.Before(root.NotAfter) {
			continue
		}
		only := x509.NewCertPool()
		only.AddCert(root)
		_, err := chain[0].Verify(x509.VerifyOptions{Roots: only, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		if err != nil {
			return fmt.Errorf("clients that trust only the root %s of %s would refuse it: %w", root.Subject, root.NotBefore.Format(time.DateOnly), err)
		}
	}
	return nil
}

// Fingerprint tells a certificate from all others: "sha256:" and 64 hexadecimal digits.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}
