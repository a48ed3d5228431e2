package vault

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"postroad/signer/keyring"
)

const (
	minRSABits     = 1024 // RFC 8301 §3.2: signers must not go below
	advisedRSABits = 2048
	maxRSABits     = 4096 // RFC 8301 §3.2: verifiers need not take more

	// maxSteps and maxWhy bound the history of a key, maxWhy also who made it.
	maxSteps = 64
	maxWhy   = 400
)

func secretPath(domain, selector string) string { return directory + "/" + domain + "/" + selector }

// isSelector: a selector has the form of a domain name (RFC 6376 §3.1).
func isSelector(s string) bool {
	clean, ok := keyring.CleanDomain(s)
	return ok && clean == s
}

func isState(s keyring.State) bool {
	switch s {
	case keyring.Generated, keyring.Published, keyring.Active, keyring.Retiring, keyring.Revoked, keyring.Removed:
		return true
	}
	return false
}

// step brings an entry into another state; the latest steps of a long history
// stay.
func step(e *keyring.Entry, to keyring.State, why string, now time.Time) {
	if last := e.Since(); now.Before(last) {
		now = last // the clock was set back
	}
	e.State = to
	steps := append(e.History[:len(e.History):len(e.History)], keyring.Step{State: to, At: now, Why: shorten(why, maxWhy)})
	e.History = steps[max(0, len(steps)-maxSteps):]
}

// fields are those of a secret for an entry, all but the key.
func fields(e keyring.Entry) (map[string]any, error) {
	history, err := json.Marshal(e.History)
	if err != nil {
		return nil, fmt.Errorf("encode history of %s: %w", e.Selector, err)
	}
	return map[string]any{
		"state": string(e.State), "algorithm": string(e.Algorithm), "bits": e.Bits,
		"record": e.Record, "history": string(history), "by": e.By,
	}, nil
}

// open understands a secret: its entry, and its key unless that is destroyed.
// ErrBadKey says what is wrong with it and what to do; other errors, of a
// transit key, may pass.
func (k *Keys) open(ctx context.Context, domain, selector string, s Secret) (keyring.Entry, crypto.Signer, error) {
	bad := func(format string, args ...any) (keyring.Entry, crypto.Signer, error) {
		what := fmt.Errorf(format, args...)
		return keyring.Entry{}, nil, fmt.Errorf("secret %s %w: %w", secretPath(domain, selector), what, keyring.ErrBadKey)
	}
	text := func(name string) string { v, _ := s.Data[name].(string); return v }
	e := keyring.Entry{
		Domain: domain, Selector: selector, State: keyring.State(text("state")), By: text("by"),
		Algorithm: keyring.Algorithm(text("algorithm")), Record: text("record"), Revision: strconv.Itoa(s.Version),
	}
	if e.State == "" {
		e.State = keyring.Active
	}
	e.InTransit = text("transit_key") != ""
	if !isState(e.State) {
		return bad("has state %q: want generated, published, active, retiring, revoked or removed", brief(string(e.State)))
	}
	// A history that cannot be read, after a change by hand, must stop no mail.
	if json.Unmarshal([]byte(text("history")), &e.History) != nil {
		e.History = nil
	}
	if n := len(e.History); n > 0 && e.History[n-1].State != e.State {
		step(&e, e.State, "by hand", s.Created)
	}
	if e.State.Gone() {
		e.Bits = number(s.Data["bits"])
		return e, nil, nil
	}
	var signer crypto.Signer
	var err error
	switch material, name := text("private_key"), text("transit_key"); {
	case material != "" && name != "":
		return bad("holds a private_key and a transit_key: leave one of them")
	case material != "":
		data := []byte(material)
		if signer, _, _, err = keyring.ParseKey(data); err != nil {
			err = fmt.Errorf("has a private_key that %w", err)
		}
		clear(data)
	case name != "":
		signer, err = k.transit.key(ctx, name, number(s.Data["transit_version"]))
		if err != nil && !errors.Is(err, keyring.ErrBadKey) {
			return keyring.Entry{}, nil, fmt.Errorf("key %s of %s: %w", selector, domain, err)
		}
	default:
		return bad("holds no key: want the field private_key with a PEM text, or transit_key and transit_version")
	}
	if err != nil {
		return bad("%w", err)
	}
	claimed := e
	if err := describe(&e, signer); err != nil {
		return bad("%w", err)
	}
	if claimed.Algorithm != "" && claimed.Algorithm != e.Algorithm || claimed.Record != "" && !keyring.SameKey(claimed.Record, e.Record) {
		return bad("holds another key than the one that its algorithm and record speak of: make a new key under a new selector")
	}
	return e, signer, nil
}

// number reads a whole number, also one that was written as a text.
func number(v any) int {
	var text string
	switch v := v.(type) {
	case json.Number:
		text = v.String()
	case string:
		text = v
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return n
}

// describe fills in what follows from a key, and refuses one that verifiers
// refuse. Errors read as the rest of a sentence about the secret.
func describe(e *keyring.Entry, signer crypto.Signer) error {
	switch public := signer.Public().(type) {
	case *rsa.PublicKey:
		e.Algorithm, e.Bits = keyring.RSA, public.N.BitLen()
		if e.Bits < minRSABits || e.Bits > maxRSABits {
			return fmt.Errorf("holds an RSA key of %d bits, verifiers take %d to %d: make one of %d", e.Bits, minRSABits, maxRSABits, advisedRSABits)
		}
	case ed25519.PublicKey:
		e.Algorithm, e.Bits = keyring.Ed25519, 256
	default:
		return fmt.Errorf("holds a key of type %T: DKIM knows RSA and Ed25519", public)
	}
	e.Record = keyring.Record(keyring.Key{Signer: signer})
	return nil
}

func advice(e keyring.Entry) string {
	if e.Algorithm == keyring.RSA && e.Bits < advisedRSABits {
		return fmt.Sprintf("it has %d bits: replace it with one of %d", e.Bits, advisedRSABits)
	}
	return ""
}

// encodeKey writes a private key as PEM, PKCS #8.
func encodeKey(signer crypto.Signer) (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return "", fmt.Errorf("encode key: %w", err)
	}
	defer clear(der)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

const (
	// maxCustomOctets and maxPieces are what Vault takes as custom metadata, less
	// some names for others.
	maxCustomOctets = 512
	maxPieces       = 50
)

// mirror is the custom metadata that repeats an entry, for one version of its
// secret. The whole entry is cut into pieces; the other names are for people.
func mirror(e keyring.Entry, version int) map[string]string {
	custom := map[string]string{"version": strconv.Itoa(version), "state": string(e.State), "algorithm": string(e.Algorithm)}
	if since := e.Since(); !since.IsZero() {
		custom["since"] = since.UTC().Format(time.RFC3339)
	}
	if n := len(e.Record); n > 0 && n <= maxCustomOctets {
		custom["record"] = e.Record
	}
	data, err := json.Marshal(e)
	if err != nil {
		return custom
	}
	text := ascii(data)
	if len(text) > maxPieces*maxCustomOctets {
		return custom // the entry is to be read from the secret
	}
	for n := 0; len(text) > 0; n++ {
		cut := min(len(text), maxCustomOctets)
		custom[piece(n)], text = text[:cut], text[cut:]
	}
	return custom
}

// unused are the names of mirror that an entry has no need of: an earlier, longer
// one may have set them.
func unused(custom map[string]string) []string {
	names := []string{"since", "record"}
	for n := range maxPieces {
		names = append(names, piece(n))
	}
	return slices.DeleteFunc(names, func(name string) bool { _, is := custom[name]; return is })
}

func piece(n int) string { return fmt.Sprintf("entry%02d", n) }

// ascii escapes all else in a JSON text.
func ascii(data []byte) string {
	var b strings.Builder
	for _, r := range string(data) {
		if r < 0x7f {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String()
}

// reflected reads the entry from the metadata of its secret. It reports false
// when that repeats nothing, or another version: somebody has changed the secret
// by hand.
func reflected(m Metadata, domain, selector string) (keyring.Entry, bool) {
	if m.Custom["version"] != strconv.Itoa(m.Version) {
		return keyring.Entry{}, false
	}
	var text strings.Builder
	for n := range maxPieces {
		text.WriteString(m.Custom[piece(n)])
	}
	var e keyring.Entry
	if json.Unmarshal([]byte(text.String()), &e) != nil || e.Domain != domain || e.Selector != selector || !isState(e.State) {
		return keyring.Entry{}, false
	}
	e.Revision = strconv.Itoa(m.Version)
	return e, true
}
