package account

import (
	"crypto/subtle"
	"sync"
	"time"
)

// clearID is the id of a password that stands in the record itself.
const clearID = "plain"

// clearText is a password that stands in the record itself, for who adds a secret by the means of its store alone. It gets a verifier in memory,
// with the salt that is made up for names without any: so nobody can tell from outside what kind of record it is.
type clearText struct {
	text string // prepared

	mu   sync.Mutex
	made *SCRAM // nil until somebody logs in
}

// verifier is made once for each salt, of which an Authenticator has one for a name.
func (c *clearText) verifier(salt []byte) (*SCRAM, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made != nil && subtle.ConstantTimeCompare(c.made.Salt, salt) == 1 {
		return c.made, nil
	}
	s, err := newSCRAM(c.text, salt, GeneratedIterations)
	if err == nil {
		c.made = s
	}
	return s, err
}

// InClear tells whether the record holds the password itself. Everybody who may read the record knows it; SetPassword ends that.
func (c *Client) InClear() bool {
	for _, p := range c.Passwords {
		if p.InClear() {
			return true
		}
	}
	return false
}

// InClear tells whether the record holds the password itself and no verifier. When it was set is not known then.
func (p *Password) InClear() bool { return p.clear != nil }

// hash puts a verifier in place of the password itself. Somebody may have chosen that, so it gets the iterations for such ones.
func (p *Password) hash(now time.Time) error {
	if p.clear == nil {
		return nil
	}
	s, err := newSCRAM(p.clear.text, newSalt(), chosenIterations)
	if err != nil {
		return err
	}
	p.SCRAM, p.clear, p.Created = s, nil, now.Add(-time.Second)
	return nil
}
