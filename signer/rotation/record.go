package rotation

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"postroad/signer/keyring"
)

// record is the key record of a TXT record (RFC 6376 §3.6.1).
type record struct {
	kind     string   // k=
	hashes   []string // h=, nil for all
	services []string // s=, nil for all
	flags    []string // t=
	public   []byte   // p=, empty for a revoked key
}

// revokedValue is the record of a key that is not to be used any more.
const revokedValue = "v=DKIM1; p="

// parseRecord reads the value of a TXT record whose strings were joined. Errors
// read as the rest of a sentence about it.
func parseRecord(text string) (record, error) {
	tags, names, err := parseTags(text)
	if err != nil {
		return record{}, err
	}
	if v, is := tags["v"]; is && (v != "DKIM1" || names[0] != "v") {
		return record{}, errors.New(`has a v= that is not "DKIM1" or not first: verifiers discard it`)
	}
	p, is := tags["p"]
	if !is {
		return record{}, errors.New("has no p=, which holds the key")
	}
	r := record{kind: "rsa"}
	if k, is := tags["k"]; is {
		r.kind = k
	}
	r.hashes, r.services, r.flags = list(tags, "h"), list(tags, "s"), list(tags, "t")
	r.public, err = base64.StdEncoding.DecodeString(strings.Map(dropSpace, p))
	if err != nil {
		return record{}, fmt.Errorf("has a damaged p=: %w", err)
	}
	return r, nil
}

// parseTags reads a tag list (RFC 6376 §3.2).
func parseTags(text string) (tags map[string]string, names []string, err error) {
	tags = make(map[string]string)
	parts := strings.Split(text, ";")
	for n, part := range parts {
		name, value, is := strings.Cut(part, "=")
		name = strings.Trim(name, spaces)
		switch _, twice := tags[name]; {
		case !is && name == "" && n == len(parts)-1 && n > 0:
			continue // the last tag may end with a semicolon
		case !is || !isTagName(name):
			return nil, nil, fmt.Errorf("is no list of tags: %q", excerpt(part))
		case twice:
			return nil, nil, fmt.Errorf("has %s= twice: verifiers discard it", name)
		}
		tags[name] = strings.Trim(value, spaces)
		names = append(names, name)
	}
	return tags, names, nil
}

const spaces = " \t\r\n"

func dropSpace(r rune) rune {
	if strings.ContainsRune(spaces, r) {
		return -1
	}
	return r
}

func isTagName(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c != '_' && (c < '0' || '9' < c)) {
			return false
		}
	}
	return s != ""
}

// list is the value of a tag as words between colons; nil when it is not there.
func list(tags map[string]string, name string) []string {
	value, is := tags[name]
	if !is {
		return nil
	}
	words := []string{}
	for word := range strings.SplitSeq(value, ":") {
		words = append(words, strings.Trim(word, spaces))
	}
	return words
}

// excerpt keeps what others wrote short.
func excerpt(s string) string {
	const octets = 60
	if len(s) > octets {
		s = s[:octets] + "…"
	}
	return s
}

// differs compares a record with ours. The fault is how they differ, as the rest
// of a sentence; verifiers have to come to the same result with both.
func (r *record) differs(ours *record) (Fault, string) {
	switch {
	case len(r.public) == 0:
		return FaultRevoked, "says that the key is revoked (empty p=)"
	case r.kind != ours.kind:
		return FaultWrongKey, fmt.Sprintf("has a key of type %q, ours is %q", excerpt(r.kind), ours.kind)
	case !bytes.Equal(r.public, ours.public):
		return FaultWrongKey, "has another key in p="
	case r.hashes != nil && !slices.Contains(r.hashes, "sha256"):
		return FaultUnusable, fmt.Sprintf("admits only the hashes %q, we sign with sha256", r.hashes)
	case r.services != nil && !slices.Contains(r.services, "email") && !slices.Contains(r.services, "*"):
		return FaultUnusable, fmt.Sprintf("is for the services %q, not for email", r.services)
	case slices.Contains(r.flags, "y"):
		return FaultTesting, "says that the domain is only testing (t=y): verifiers treat its mail as if it were not signed"
	}
	return "", ""
}

// verifies reports what keeps a signature of the private half from being
// verified with the public half in a record.
func verifies(key keyring.Key, text string) error {
	r, err := parseRecord(text)
	if err != nil {
		return fmt.Errorf("the record %w", err)
	}
	content := make([]byte, 32) // unlike any that is signed in earnest
	if _, err := rand.Read(content); err != nil {
		return err
	}
	digest := sha256.Sum256(content)
	hash := crypto.SHA256
	if key.Algorithm == keyring.Ed25519 {
		hash = 0 // RFC 8463 §3: Ed25519 signs the digest as a message
	}
	signature, err := key.Signer.Sign(rand.Reader, digest[:], hash)
	if err != nil {
		return fmt.Errorf("sign a test: %w", err)
	}
	good := false
	switch {
	case key.Algorithm == keyring.Ed25519 && r.kind == "ed25519" && len(r.public) == ed25519.PublicKeySize:
		good = ed25519.Verify(r.public, digest[:], signature)
	case key.Algorithm == keyring.RSA && r.kind == "rsa":
		public, err := x509.ParsePKIXPublicKey(r.public)
		if err != nil {
			return fmt.Errorf("the public half in the record is damaged: %w", err)
		}
		if p, is := public.(*rsa.PublicKey); is {
			good = rsa.VerifyPKCS1v15(p, crypto.SHA256, digest[:], signature) == nil
		}
	}
	if !good {
		return errors.New("a test signature of the private half does not verify with the public half in the record")
	}
	return nil
}
