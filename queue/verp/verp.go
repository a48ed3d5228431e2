// Package verp makes and reads the addresses that bounces come back to: bounces+TOKEN@DOMAIN, where the token names a message, and its
// recipient when there is one, and proves that this cluster has made it.
//
//	r := verp.New("bounces.example.net")
//	r.SetKeys(keys) // of queue.SharedKeys
//	path, ok := r.Path(id, recipient, time.Now())
//	token, err := r.Read(path)
//
// A token is 52 letters and digits of which case does not matter: the message id, 40 bits of a hash of the recipient, and 80 bits of an HMAC
// (RFC 2104) with SHA-256 under the newest key. Tokens of older keys are good for as long as the keys are kept.
package verp

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"postroad/queue"
	"postroad/queue/address"
)

// Lives of keys: a new one is made when the newest is older than KeyLife, and an old one is good for KeyKept after it was replaced. So an
// address is good for 60 days at least after it was last used for mail.
const (
	KeyName = "verp"
	KeyLife = 30 * 24 * time.Hour
	KeyKept = 60 * 24 * time.Hour
	// keyRest is how long a new key is left alone, so that all processes have read it before they meet its tokens.
	keyRest = 10 * time.Minute
)

// Causes of an address that is not taken.
var (
	ErrNotOurs = errors.New("no address that bounces come back to")
	ErrNoKeys  = errors.New("the keys for bounce addresses are not known yet") // temporary
)

const (
	prefix    = "bounces+"
	idSize    = 17 // ULID and shard
	rcptSize  = 5
	macSize   = 10
	tokenSize = idSize + rcptSize + macSize
)

// encoding has no letters with a meaning in local parts, and 32 octets have no padding but the last.
var encoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// Ring makes and reads addresses of one domain. It is safe for concurrent use.
type Ring struct {
	domain string

	mu   sync.RWMutex
	keys []queue.SharedKey // the newest first
}

// New makes a ring without keys for a domain in A-labels and lower case.
func New(domain string) *Ring { return &Ring{domain: domain} }

// Domain is the domain of the addresses.
func (r *Ring) Domain() string { return r.domain }

// SetKeys puts keys in force, the newest first. No keys leave those that are there.
func (r *Ring) SetKeys(keys []queue.SharedKey) {
	if len(keys) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys = keys
}

// Ready reports that there are keys.
func (r *Ring) Ready() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.keys) > 0
}

// Path makes the address for a message; recipient is the null path when it goes to several at once. ok is false without keys.
func (r *Ring) Path(id queue.MessageID, recipient address.Path, now time.Time) (path address.Path, ok bool) {
	key, ok := r.newest(now)
	if !ok || len(id) != ulid.EncodedSize+1 {
		return address.Path{}, false
	}
	u, err := ulid.ParseStrict(string(id[:ulid.EncodedSize]))
	if err != nil {
		return address.Path{}, false
	}
	var token [tokenSize]byte
	copy(token[:], u[:])
	token[idSize-1] = id[ulid.EncodedSize]
	if !recipient.IsNull() {
		hash := hashOf(recipient)
		copy(token[idSize:], hash[:])
	}
	copy(token[idSize+rcptSize:], r.mac(key, token[:]))
	return address.Path{Local: prefix + encoding.EncodeToString(token[:]), Domain: r.domain}, true
}

// newest is the key to make tokens with.
func (r *Ring) newest(now time.Time) ([]byte, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for i, k := range r.keys {
		if now.Sub(k.Made) >= keyRest || i == len(r.keys)-1 {
			return k.Secret, true
		}
	}
	return nil, false
}

// mac is over all of a token but itself, and the domain.
func (r *Ring) mac(key, token []byte) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write(token[:idSize+rcptSize]) // a hash cannot fail
	_, _ = h.Write([]byte(r.domain))
	return h.Sum(nil)[:macSize]
}

// Token is what an address says.
type Token struct {
	ID   queue.MessageID
	rcpt [rcptSize]byte
}

// Read checks an address and reads its token. ErrNoKeys is temporary; ErrNotOurs is for good.
func (r *Ring) Read(path address.Path) (Token, error) {
	text := strings.ToLower(path.Local)
	if path.Domain != r.domain || !strings.HasPrefix(text, prefix) || len(text) != len(prefix)+encoding.EncodedLen(tokenSize) {
		return Token{}, ErrNotOurs
	}
	raw, err := encoding.DecodeString(text[len(prefix):])
	if err != nil {
		return Token{}, ErrNotOurs
	}
	r.mu.RLock()
	keys := r.keys
	r.mu.RUnlock()
	if len(keys) == 0 {
		return Token{}, ErrNoKeys
	}
	for _, k := range keys {
		if hmac.Equal(raw[idSize+rcptSize:], r.mac(k.Secret, raw)) {
			return tokenOf(raw)
		}
	}
	return Token{}, ErrNotOurs
}

func tokenOf(raw []byte) (Token, error) {
	var u ulid.ULID
	copy(u[:], raw)
	id, err := queue.ParseID(u.String() + string(raw[idSize-1:idSize]))
	if err != nil {
		return Token{}, ErrNotOurs
	}
	t := Token{ID: id}
	copy(t.rcpt[:], raw[idSize:])
	return t, nil
}

// HasRecipient reports that the token names a recipient.
func (t Token) HasRecipient() bool { return t.rcpt != [rcptSize]byte{} }

// Names reports that a recipient is the one that the token names.
func (t Token) Names(recipient address.Path) bool {
	return t.HasRecipient() && !recipient.IsNull() && t.rcpt == hashOf(recipient)
}

func hashOf(p address.Path) (out [rcptSize]byte) {
	sum := sha256.Sum256([]byte(p.String()))
	copy(out[:], sum[:])
	out[0] |= 1 // never all zero
	return out
}
