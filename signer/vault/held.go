package vault

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"io"
	"math/big"
	"sync"
	"time"
)

// errWiped is what a signature with a dropped key ends with; who asks for keys
// anew gets those in force.
var errWiped = errors.New("the key was replaced or withdrawn meanwhile: ask for keys again")

// held is a private key in memory that can be overwritten while others still
// have it.
type held struct {
	public crypto.PublicKey

	mu     sync.RWMutex // held for reading by signatures
	signer crypto.Signer
}

// hold makes a key one that can be overwritten; one that is not in memory stays
// as it is.
func hold(s crypto.Signer) crypto.Signer {
	switch s.(type) {
	case *rsa.PrivateKey, ed25519.PrivateKey:
		return &held{public: s.Public(), signer: s}
	}
	return s
}

func (h *held) Public() crypto.PublicKey { return h.public }

func (h *held) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.signer == nil {
		return nil, errWiped
	}
	return h.signer.Sign(rand, digest, opts)
}

// wipe overwrites the key. What crypto/rsa has computed from it for itself, and
// the text that it was parsed from, are out of our hands.
func (h *held) wipe() {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch s := h.signer.(type) {
	case ed25519.PrivateKey:
		clear(s)
	case *rsa.PrivateKey:
		p := &s.Precomputed
		for _, n := range append([]*big.Int{s.D, p.Dp, p.Dq, p.Qinv}, s.Primes...) {
			if n != nil {
				clear(n.Bits())
			}
		}
	}
	h.signer = nil
}

// drop is a key that is in use no more, and since when.
type drop struct {
	key *held
	at  time.Time
}

// retire puts the keys of old that fresh has not aside, to be overwritten.
// Keys.mu is held.
func (k *Keys) retire(old, fresh *shelf) {
	if old == nil {
		return
	}
	for selector, i := range old.items {
		if fresh != nil && fresh.items[selector] == i {
			continue
		}
		if h, is := i.key.Signer.(*held); is {
			k.dropped = append(k.dropped, drop{h, time.Now()})
		}
	}
}

// wipe overwrites the keys that were dropped before a time; all, when it is zero.
func (k *Keys) wipe(before time.Time) {
	k.mu.Lock()
	var now, later []drop
	for _, d := range k.dropped {
		if before.IsZero() || d.at.Before(before) {
			now = append(now, d)
		} else {
			later = append(later, d)
		}
	}
	k.dropped = later
	k.mu.Unlock()
	for _, d := range now {
		d.key.wipe()
	}
}
