// Package keyring keeps the private keys that the signer signs with.
//
// Source is the interface that the signer sees; Dir implements it over a
// directory of files. Any implementation must pass keyringtest.Run.
//
//	dir, err := keyring.NewDir(keyring.DirOptions{Path: "/etc/postroad/secrets"})
//	keys, err := dir.Keys(ctx, "example.com")
//
// Generate makes a key file, Record prints what has to stand in the DNS for it.
package keyring

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"strings"
)

// Source finds the keys of a domain. Implementations keep parsed keys in
// memory, show changes within seconds to half a minute, and are safe for
// concurrent use. Domains come from outside: an implementation bounds what it
// remembers of them, and answers ErrNoKey for what is no domain name.
type Source interface {
	// Keys returns the keys that sign for exactly this domain (parents are the
	// caller's business), RSA first, at least one when the error is nil. The
	// slice is shared: callers do not change it. The error is
	//
	//   - ErrNoKey: the source has answered, and there is no key. Final, until
	//     somebody makes one.
	//   - ErrBadKey: the source has answered, but what it keeps for this domain
	//     cannot be used; the text says what is wrong and what to do. Other
	//     domains are not concerned.
	//   - anything else: temporary. The source is out of reach, or ctx has
	//     ended; nothing is known of this domain.
	//
	// Sentinels may be wrapped. While the source is out of reach, keys that
	// were read before may be returned for a bounded time.
	Keys(ctx context.Context, domain string) ([]Key, error)
}

var (
	// ErrNoKey says that a domain has no key at all.
	ErrNoKey = errors.New("no DKIM key")
	// ErrBadKey says that a domain has keys, but none that can be used.
	ErrBadKey = errors.New("unusable DKIM key")
)

// Algorithm is a signature algorithm by the name that a= gives it.
type Algorithm string

// The algorithms (RFC 8301 §3.1, RFC 8463 §3).
const (
	RSA     Algorithm = "rsa-sha256"
	Ed25519 Algorithm = "ed25519-sha256"
)

// Key is one private key with the place of its public half in the DNS:
// <Selector>._domainkey.<Domain>.
type Key struct {
	Domain    string
	Selector  string
	Algorithm Algorithm
	Signer    crypto.Signer
}

// Record is the value of the TXT record for k (RFC 6376 §3.6.1), empty for a
// key of an unknown type. It admits SHA-256 only, for mail and TLS reports
// (RFC 8460 §3). Longer than 255 octets, it must be split into several strings
// of one record in a zone file.
func Record(k Key) string {
	var kind string
	var public []byte
	switch p := k.Signer.Public().(type) {
	case *rsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(p)
		if err != nil {
			return ""
		}
		kind, public = "rsa", der
	case ed25519.PublicKey:
		kind, public = "ed25519", p // the bare key: RFC 8463 §4.2
	default:
		return ""
	}
	// s=* and not s=email:tlsrpt, which admits mail and TLS reports too (RFC 8460 §3): dkimpy takes a list for one unknown service.
	return "v=DKIM1; h=sha256; s=*; k=" + kind + "; p=" + base64.StdEncoding.EncodeToString(public)
}

// SameKey reports that two records that Record wrote, of whatever version, hold the same key: what else they say does not matter.
func SameKey(a, b string) bool {
	_, a, isA := strings.Cut(a, "; k=")
	_, b, isB := strings.Cut(b, "; k=")
	return isA && isB && a == b
}

// byUse orders keys: RSA first, because some verifiers look at the first
// signature only and some do not know Ed25519; then by selector.
func byUse(a, b Key) int {
	rank := func(k Key) int {
		if k.Algorithm == RSA {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Selector, b.Selector))
}

const (
	maxDomainOctets = 253 // RFC 1035 §2.3.4, without the final dot
	maxLabelOctets  = 63
)

// CleanDomain returns the form under which keys of a domain are kept: A-labels,
// lower case, no final dot. It reports false for what is no domain name:
// address literals, names with empty labels, path separators, and so on.
func CleanDomain(domain string) (string, bool) {
	d := strings.ToLower(strings.TrimSuffix(domain, "."))
	return d, isName(d)
}

// isName reports whether s is one or more labels of letters, digits, hyphens
// and underscores: a selector is such a name too (RFC 6376 §3.1).
func isName(s string) bool {
	if len(s) == 0 || len(s) > maxDomainOctets {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > maxLabelOctets || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			switch c := label[i]; {
			case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return false
			}
		}
	}
	return true
}
