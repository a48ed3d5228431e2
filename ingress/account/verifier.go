package account

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
)

// Bounds of verifiers, so that no record can burn the machine or is worth
// nothing.
const (
	minIterations = 4096 // RFC 7677 §4
	maxIterations = 600_000

	minArgonMemory = 7 << 10   // KiB
	maxArgonMemory = 128 << 10 // KiB
	maxArgonTime   = 10
	maxArgonLanes  = 4

	minSaltOctets = 8
	maxSaltOctets = 64
	minKeyOctets  = 16
	maxKeyOctets  = 64

	// maxVerifierOctets is more than any verifier within the bounds takes.
	maxVerifierOctets = 512
)

// SCRAM verifies a password by SCRAM-SHA-256, or the password itself. It does
// not contain the password, but who has it can play the server.
type SCRAM struct {
	Iterations int
	Salt       []byte
	StoredKey  [sha256.Size]byte
	ServerKey  [sha256.Size]byte
}

const scramTag = "SCRAM-SHA-256"

// newSCRAM makes a verifier (RFC 5802 §3). The password must be prepared.
func newSCRAM(password string, salt []byte, iterations int) (*SCRAM, error) {
	s := &SCRAM{Iterations: iterations, Salt: salt}
	salted, err := s.salted(password)
	if err != nil {
		return nil, err
	}
	s.StoredKey = storedKey(salted)
	s.ServerKey = [sha256.Size]byte(mac(salted, "Server Key"))
	return s, nil
}

// salted is SaltedPassword: the one costly step. It fails in FIPS 140-only mode,
// for a salt that is too short for it.
func (s *SCRAM) salted(password string) ([]byte, error) {
	return pbkdf2.Key(sha256.New, password, s.Salt, s.Iterations, sha256.Size)
}

func storedKey(salted []byte) [sha256.Size]byte { return sha256.Sum256(mac(salted, "Client Key")) }

// matches compares in constant time.
func (s *SCRAM) matches(salted []byte) bool {
	stored := storedKey(salted)
	return subtle.ConstantTimeCompare(stored[:], s.StoredKey[:]) == 1
}

// proof checks a ClientProof over an AuthMessage and returns the signature by
// which the server shows that it knows the password too (RFC 5802 §3).
func (s *SCRAM) proof(proof []byte, message string) (signature []byte, ok bool) {
	if len(proof) != sha256.Size {
		return nil, false
	}
	clientKey := make([]byte, sha256.Size)
	subtle.XORBytes(clientKey, proof, mac(s.StoredKey[:], message))
	stored := sha256.Sum256(clientKey)
	if subtle.ConstantTimeCompare(stored[:], s.StoredKey[:]) != 1 {
		return nil, false
	}
	return mac(s.ServerKey[:], message), true
}

// sameSalt tells whether a client that was told the salt of one computes the
// proof for the other.
func (s *SCRAM) sameSalt(other *SCRAM) bool {
	return s.Iterations == other.Iterations && string(s.Salt) == string(other.Salt)
}

// String prints what ParseSCRAM reads.
func (s *SCRAM) String() string {
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("%s$%d:%s$%s:%s", scramTag, s.Iterations, encode(s.Salt), encode(s.StoredKey[:]), encode(s.ServerKey[:]))
}

// ParseSCRAM reads SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey, the last
// three in base64 (RFC 5803 §2; PostgreSQL keeps its passwords so).
func ParseSCRAM(text string) (*SCRAM, error) {
	if len(text) > maxVerifierOctets {
		return nil, fmt.Errorf("is longer than %d octets", maxVerifierOctets)
	}
	parts := strings.Split(text, "$")
	if len(parts) != 3 || parts[0] != scramTag {
		return nil, fmt.Errorf("want %s$iterations:salt$StoredKey:ServerKey", scramTag)
	}
	iterations, salt, isInfo := strings.Cut(parts[1], ":")
	stored, server, isValue := strings.Cut(parts[2], ":")
	if !isInfo || !isValue {
		return nil, fmt.Errorf("want %s$iterations:salt$StoredKey:ServerKey", scramTag)
	}
	n, err := number(iterations, minIterations, maxIterations)
	if err != nil {
		return nil, fmt.Errorf("iterations: %w", err)
	}
	s := &SCRAM{Iterations: n}
	decode := base64.StdEncoding.Strict().DecodeString
	if s.Salt, err = decode(salt); err != nil || !within(len(s.Salt), minSaltOctets, maxSaltOctets) {
		return nil, fmt.Errorf("salt: want %d to %d octets in base64", minSaltOctets, maxSaltOctets)
	}
	for _, key := range []struct {
		name, text string
		to         *[sha256.Size]byte
	}{{"StoredKey", stored, &s.StoredKey}, {"ServerKey", server, &s.ServerKey}} {
		octets, err := decode(key.text)
		if err != nil || len(octets) != len(key.to) {
			return nil, fmt.Errorf("%s: want %d octets in base64", key.name, len(key.to))
		}
		copy(key.to[:], octets)
	}
	if s.String() != text { // base64 with line breaks, for one
		return nil, errors.New("holds characters that do not belong there")
	}
	return s, nil
}

// Argon2id verifies a password by argon2id (RFC 9106).
type Argon2id struct {
	Memory uint32 // KiB
	Time   uint32 // passes
	Lanes  uint8
	Salt   []byte
	Key    []byte
}

// newArgon2id makes a verifier: 64 MiB and three passes, the second choice of
// RFC 9106 §4, but in one lane. The attacker's cost is the same, and one hash
// takes one core here and leaves the others to the mail.
func newArgon2id(password string) *Argon2id {
	a := &Argon2id{Memory: 64 << 10, Time: 3, Lanes: 1, Salt: newSalt()}
	a.Key = a.hash(password, sha256.Size)
	return a
}

func (a *Argon2id) hash(password string, octets int) []byte {
	return argon2.IDKey([]byte(password), a.Salt, a.Time, a.Memory, a.Lanes, uint32(octets))
}

// matches compares in constant time.
func (a *Argon2id) matches(password string) bool {
	return subtle.ConstantTimeCompare(a.hash(password, len(a.Key)), a.Key) == 1
}

// String prints what ParseArgon2id reads.
func (a *Argon2id) String() string {
	encode := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, a.Memory, a.Time, a.Lanes, encode(a.Salt), encode(a.Key))
}

// ParseArgon2id reads $argon2id$v=19$m=KiB,t=passes,p=lanes$salt$key, the form
// of most programs that make such hashes.
func ParseArgon2id(text string) (*Argon2id, error) {
	const form = "$argon2id$v=19$m=65536,t=3,p=1$salt$key"
	if len(text) > maxVerifierOctets {
		return nil, fmt.Errorf("is longer than %d octets", maxVerifierOctets)
	}
	parts := strings.Split(text, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return nil, errors.New("want " + form)
	}
	if parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return nil, fmt.Errorf("has %q: want v=%d", brief(parts[2]), argon2.Version)
	}
	a := &Argon2id{}
	costs := strings.Split(parts[3], ",")
	if len(costs) != 3 {
		return nil, errors.New("want " + form)
	}
	for i, cost := range []struct {
		tag         string
		least, most int
		set         func(int)
	}{
		{"m=", minArgonMemory, maxArgonMemory, func(n int) { a.Memory = uint32(n) }},
		{"t=", 1, maxArgonTime, func(n int) { a.Time = uint32(n) }},
		{"p=", 1, maxArgonLanes, func(n int) { a.Lanes = uint8(n) }},
	} {
		value, ok := strings.CutPrefix(costs[i], cost.tag)
		if !ok {
			return nil, errors.New("want " + form)
		}
		n, err := number(value, cost.least, cost.most)
		if err != nil {
			return nil, fmt.Errorf("%s%s: %w", cost.tag, brief(value), err)
		}
		cost.set(n)
	}
	decode := base64.RawStdEncoding.Strict().DecodeString
	var err error
	if a.Salt, err = decode(parts[4]); err != nil || !within(len(a.Salt), minSaltOctets, maxSaltOctets) {
		return nil, fmt.Errorf("salt: want %d to %d octets in base64 without padding", minSaltOctets, maxSaltOctets)
	}
	if a.Key, err = decode(parts[5]); err != nil || !within(len(a.Key), minKeyOctets, maxKeyOctets) {
		return nil, fmt.Errorf("key: want %d to %d octets in base64 without padding", minKeyOctets, maxKeyOctets)
	}
	if a.String() != text {
		return nil, errors.New("holds characters that do not belong there")
	}
	return a, nil
}

// number reads a plain decimal number.
func number(text string, least, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || strconv.Itoa(n) != text {
		return 0, errors.New("want a plain number")
	}
	if !within(n, least, most) {
		return 0, fmt.Errorf("want %d to %d", least, most)
	}
	return n, nil
}

func within(n, least, most int) bool { return least <= n && n <= most }

func mac(key []byte, message string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(message))
	return h.Sum(nil)
}

const saltOctets = 16

func newSalt() []byte {
	salt := make([]byte, saltOctets)
	_, _ = rand.Read(salt) // never fails
	return salt
}
