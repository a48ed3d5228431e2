package keyring

import (
	"context"
	"errors"
	"time"
)

// State is where a key is in its life. Only an Active one signs.
type State string

// The states, in their order. Gates between them are the caller's business.
const (
	Generated State = "generated" // its record is to be published
	Published State = "published" // its record is seen everywhere; it is the spare
	Active    State = "active"    // it signs
	Retiring  State = "retiring"  // it signs no more, but mail that it signed is on its way: its record stays
	Revoked   State = "revoked"   // its record is to have an empty p=; the private half is destroyed
	Removed   State = "removed"   // its record is to be deleted; the selector is never used again
)

// Entry is what is known of a key besides its private half.
type Entry struct {
	Domain    string    `json:"domain"`
	Selector  string    `json:"selector"`
	Algorithm Algorithm `json:"algorithm"`
	Bits      int       `json:"bits"`   // of an RSA key; 256 for Ed25519
	Record    string    `json:"record"` // value of its TXT record, see Record
	State     State     `json:"state"`
	History   []Step    `json:"history"`      // ascending; the last one is State
	By        string    `json:"by,omitempty"` // who made it
	// InTransit says that the private half is in a transit engine, where no Create
	// of a store makes one.
	InTransit bool `json:"in_transit,omitempty"`

	// Revision tells this version of the entry from others; only its store reads it.
	Revision string `json:"-"`
}

// Step is a change of state.
type Step struct {
	State State     `json:"state"`
	At    time.Time `json:"at"`
	Why   string    `json:"why,omitempty"`
}

// Since is when the key came into its state; zero when nobody wrote that down.
func (e *Entry) Since() time.Time {
	if n := len(e.History); n > 0 {
		return e.History[n-1].At
	}
	return time.Time{}
}

// Store is a Source whose keys live: what the dkim commands work on. A key that somebody has put there by hand, without a state, is
// Active. Keys returns the Active ones. Any implementation must pass keyringtest.RunStore.
type Store interface {
	Source
	// Entries lists the keys of a domain, those that are Removed too, by selector; of all domains, by domain and selector, for "". A
	// domain without any gives none and no error. An error tells of what cannot be read; the other entries are returned even then.
	Entries(ctx context.Context, domain string) ([]Entry, error)
	// Create stores a new key as Generated, made by somebody. ErrExists: the selector has a key, or had one.
	Create(ctx context.Context, key Key, by string) (Entry, error)
	// Change brings an entry that this store returned into another state and returns it anew. ErrChanged: somebody else changed it
	// meanwhile, and nothing happened. The private half is destroyed, for good, with the change to Revoked or Removed, from which there
	// is no way back. An error beside an entry in the new state says that the state is changed and the private half is left.
	Change(ctx context.Context, e Entry, to State, why string) (Entry, error)
	// Load reads one key with its private half, whatever its state. ErrNoKey: there is none, or not any more.
	Load(ctx context.Context, domain, selector string) (Key, error)
}

// ErrChanged says that somebody else changed a key at the same time.
var ErrChanged = errors.New("the key was changed by somebody else meanwhile")
