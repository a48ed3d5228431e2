package queue

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
)

// MessageID names one accepted message: a ULID in lower case followed by one
// character for the shard that holds it, 27 characters in all. IDs sort by the
// time of acceptance. It is what logs, the 250 reply and Received carry; the
// Message-ID header field is something else.
type MessageID string

const (
	idLength   = ulid.EncodedSize + 1
	firstShard = '0'
)

// ErrMalformedID says that a text is no message id.
var ErrMalformedID = errors.New("not a message id: want 26 characters of a ULID and one of the shard")

// NewID makes a new id in the only shard of a small queue.
func NewID() MessageID {
	return fromULID(ulid.Make(), firstShard)
}

// DeriveID makes an id that depends on nothing but its arguments: the time and
// shard of the message that is its maker, and what tells it from its siblings.
// A notification made twice, before and after a crash, gets the same id.
func DeriveID(maker MessageID, parts ...string) (MessageID, error) {
	u, err := maker.parse()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(string(maker) + "\x00" + strings.Join(parts, "\x00")))
	if err := u.SetEntropy(sum[:10]); err != nil {
		return "", fmt.Errorf("derive id from %s: %w", maker, err)
	}
	return fromULID(u, maker[idLength-1]), nil
}

// ParseID checks a text that came from outside. Upper case is accepted.
func ParseID(s string) (MessageID, error) {
	id := MessageID(strings.ToLower(s))
	if _, err := id.parse(); err != nil {
		return "", fmt.Errorf("%q: %w", s, err)
	}
	return id, nil
}

// Time is the moment at which the id was made, to the millisecond.
func (id MessageID) Time() time.Time {
	u, err := id.parse()
	if err != nil {
		return time.Time{}
	}
	return ulid.Time(u.Time())
}

func (id MessageID) parse() (ulid.ULID, error) {
	if len(id) != idLength || id[idLength-1] != firstShard {
		return ulid.ULID{}, ErrMalformedID
	}
	u, err := ulid.ParseStrict(string(id[:ulid.EncodedSize]))
	if err != nil {
		return ulid.ULID{}, ErrMalformedID
	}
	return u, nil
}

func fromULID(u ulid.ULID, shard byte) MessageID {
	return MessageID(strings.ToLower(u.String()) + string(shard))
}
