package authority

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"postroad/queue/address"
)

const (
	// leafLife is the longest that many clients take from a server.
	leafLife = 825 * 24 * time.Hour
	rsaBits  = 2048

	maxNames      = 100
	maxCommonName = 64 // octets, by X.520
)

// Request says what a server's certificate is to be like.
type Request struct {
	Names []string // host names, *.example.com, and IP addresses; the first one is also the common name
	RSA   bool     // a key of RSA with 2048 bits, for clients that know nothing else; otherwise ECDSA on P-256
	Now   time.Time
}

// Pair is a server's certificate with its key.
type Pair struct {
	Leaf  *x509.Certificate
	Chain []*x509.Certificate // the leaf, then the cross certificates
	key   crypto.Signer
}

// PEM is the pair as files have it.
func (p *Pair) PEM() (chain, key []byte, err error) {
	for _, c := range p.Chain {
		chain = append(chain, EncodeCertificate(c)...)
	}
	key, err = EncodeKey(p.key)
	return chain, key, err
}

// Issue makes a key and a certificate for it, for 825 days or until the root ends.
func (a *Authority) Issue(r Request) (*Pair, error) {
	p, template, err := begin(r)
	if err != nil {
		return nil, err
	}
	if !r.Now.Before(a.Root.NotAfter) {
		return nil, fmt.Errorf("the root %s has ended on %s: make a new one with --ca", a.Root.Subject, a.Root.NotAfter.Format(time.DateOnly))
	}
	if a.Root.NotAfter.Before(template.NotAfter) {
		template.NotAfter = a.Root.NotAfter
	}
	if p.Leaf, err = sign(template, a.Root, p.key.Public(), a.key); err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	p.Chain = append([]*x509.Certificate{p.Leaf}, a.Cross...)
	return p, a.Check(p.Chain, r.Now)
}

// SelfSigned makes a key and a certificate that nobody vouches for: clients that verify refuse it unless they know it.
func SelfSigned(r Request) (*Pair, error) {
	p, template, err := begin(r)
	if err != nil {
		return nil, err
	}
	if p.Leaf, err = sign(template, template, p.key.Public(), p.key); err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	p.Chain = []*x509.Certificate{p.Leaf}
	return p, nil
}

// begin makes the key and fills in the certificate.
func begin(r Request) (*Pair, *x509.Certificate, error) {
	template, err := leafTemplate(r)
	if err != nil {
		return nil, nil, err
	}
	p := &Pair{}
	if r.RSA {
		p.key, err = rsa.GenerateKey(rand.Reader, rsaBits)
		template.KeyUsage |= x509.KeyUsageKeyEncipherment // TLS 1.2 without forward secrecy
	} else {
		p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	return p, template, nil
}

func leafTemplate(r Request) (*x509.Certificate, error) {
	if len(r.Names) == 0 || len(r.Names) > maxNames {
		return nil, fmt.Errorf("a certificate is for 1 to %d names, not %d", maxNames, len(r.Names))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             r.Now.Add(-early),
		NotAfter:              r.Now.Add(leafLife - early - time.Second), // the last second counts
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, name := range r.Names {
		clean, err := CheckName(name)
		if err != nil {
			return nil, err
		}
		if ip := net.ParseIP(clean); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, clean)
		}
	}
	if first, _ := CheckName(r.Names[0]); len(first) <= maxCommonName {
		t.Subject = pkix.Name{CommonName: first}
	} else {
		t.Subject = pkix.Name{CommonName: "Postroad server"}
	}
	return t, nil
}

// CheckName returns a name as a certificate bears it, and refuses what is neither a host name, a wildcard nor an IP address.
func CheckName(name string) (string, error) {
	if ip := net.ParseIP(strings.Trim(name, "[]")); ip != nil {
		return ip.String(), nil
	}
	host, isWild := strings.CutPrefix(name, "*.")
	clean, err := address.Normalize(strings.TrimSuffix(host, "."))
	if err != nil || address.IsLiteral(clean) {
		return "", fmt.Errorf("%q is no name for a certificate: want a host name, *. and a domain, or an IP address", name)
	}
	if isWild {
		clean = "*." + clean
	}
	return clean, nil
}

// Names are all that a certificate is for, in the form of Request.
func Names(leaf *x509.Certificate) []string {
	names := append([]string(nil), leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// IsSelfSigned reports a certificate that nobody else vouches for.
func IsSelfSigned(leaf *x509.Certificate) bool {
	return bytes.Equal(leaf.RawIssuer, leaf.RawSubject) && leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature) == nil
}

// NewPair joins our key with the certificate that somebody else has issued for it. It refuses what clients would refuse, but for a root that they
// do not know. Errors read as the rest of a sentence about the certificate.
func NewPair(chain []*x509.Certificate, key crypto.Signer, names []string, now time.Time) (*Pair, error) {
	if len(chain) == 0 {
		return nil, errors.New("is none")
	}
	leaf := chain[0]
	if public, is := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !is || !public.Equal(leaf.PublicKey) {
		return nil, errors.New("is for another key than ours")
	}
	for _, name := range names {
		if !slices.Contains(Names(leaf), name) {
			return nil, fmt.Errorf("is not for %s, but for %s", name, strings.Join(Names(leaf), ", "))
		}
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return nil, errors.New("is not for servers (extended key usage)")
	}
	for i, c := range chain {
		switch {
		case now.Before(c.NotBefore):
			return nil, fmt.Errorf("begins at %s, which is yet to come by the clock of this machine (%s)", c.NotBefore.UTC().Format(time.RFC3339), c.Subject)
		case !now.Before(c.NotAfter):
			return nil, fmt.Errorf("has ended at %s by the clock of this machine (%s)", c.NotAfter.UTC().Format(time.RFC3339), c.Subject)
		case i+1 == len(chain):
		default:
			if err := c.CheckSignatureFrom(chain[i+1]); err != nil {
				return nil, fmt.Errorf("has a chain in which %q is not issued by %q, which follows it: %w", c.Subject, chain[i+1].Subject, err)
			}
		}
	}
	return &Pair{Leaf: leaf, Chain: chain, key: key}, nil
}
