package account

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"postroad/queue/address"
)

// Sender is one address, all of a domain (@domain), or all of every domain
// below one (.domain).
type Sender struct {
	local  string // empty: any
	domain string
	below  bool
}

// ParseSender reads user@domain, @domain or .domain.
func ParseSender(text string) (Sender, error) {
	if domain, ok := strings.CutPrefix(text, "@"); ok {
		if name, err := address.Normalize(domain); err == nil {
			return Sender{domain: name}, nil
		}
	} else if domain, ok := strings.CutPrefix(text, "."); ok {
		if name, err := address.Normalize(domain); err == nil && !address.IsLiteral(name) {
			return Sender{domain: name, below: true}, nil
		}
	} else if path, err := address.Parse(text); err == nil && path.Local != "" && path.Domain != "" {
		return Sender{local: path.Local, domain: path.Domain}, nil
	}
	return Sender{}, fmt.Errorf("%q is no sender: write user@domain, @domain, or .domain for every domain below it", brief(text))
}

// String prints what ParseSender reads.
func (s Sender) String() string {
	switch {
	case s.below:
		return "." + s.domain
	case s.local == "":
		return "@" + s.domain
	}
	return address.Path{Local: s.local, Domain: s.domain}.String()
}

// matches ignores the case of local parts: nobody gives two of them that differ
// in nothing else to different people (RFC 5321 §2.4).
func (s Sender) matches(path address.Path) bool {
	if s.below {
		return strings.HasSuffix(path.Domain, "."+s.domain)
	}
	return path.Domain == s.domain && (s.local == "" || strings.EqualFold(s.local, path.Local))
}

// Certificate names client certificates: a DNS name that stands in them, for
// those that a trusted authority has signed, or sha256: and the fingerprint of
// one, whoever signed it.
type Certificate string

const fingerprintTag = "sha256:"

// ParseCertificate reads a DNS name, or a SHA-256 fingerprint in hexadecimal
// with or without colons.
func ParseCertificate(text string) (Certificate, error) {
	lower := strings.ToLower(text)
	if digits, ok := strings.CutPrefix(lower, fingerprintTag); ok {
		digits = strings.ReplaceAll(digits, ":", "")
		if sum, err := hex.DecodeString(digits); err != nil || len(sum) != sha256.Size {
			return "", fmt.Errorf("%q: want the %d hexadecimal digits of a SHA-256 fingerprint after %s", brief(text), 2*sha256.Size, fingerprintTag)
		}
		return Certificate(fingerprintTag + digits), nil
	}
	name, err := address.Normalize(lower)
	if err != nil || address.IsLiteral(name) {
		return "", fmt.Errorf("%q: want a DNS name, or %s and a fingerprint", brief(text), fingerprintTag)
	}
	return Certificate(name), nil
}

// fingerprint is the Certificate that is this one and no other.
func fingerprint(cert *x509.Certificate) Certificate {
	sum := sha256.Sum256(cert.Raw)
	return Certificate(fingerprintTag + hex.EncodeToString(sum[:]))
}

// ParseNetwork reads a prefix or a single address. V4-mapped ones become what
// they stand for: addresses of clients are compared unmapped.
func ParseNetwork(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is no network: write an address with a mask, such as 10.0.0.0/8 or 2001:db8::/32", brief(text))
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	const mapped = 96 // bits before the IPv4 address
	if prefix.Addr().Is4In6() {
		if prefix.Bits() < mapped {
			return netip.Prefix{}, fmt.Errorf("%q: a v4-mapped network has a mask of at least /%d", text, mapped)
		}
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-mapped)
	}
	if prefix != prefix.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has bits behind its mask: write %s, or %s for that one address", text, prefix.Masked(), prefix.Addr())
	}
	return prefix, nil
}
