package account

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/xdg-go/stringprep"
)

// Password is what verifies one password. At least one of the verifiers is set, or the record holds the password itself: see InClear.
type Password struct {
	ID       string // tells the passwords of a client apart, in logs and reports
	Created  time.Time
	NotAfter time.Time // the end of its grace; zero: none
	SCRAM    *SCRAM
	Argon2id *Argon2id

	clear *clearText // in place of a verifier
}

// ValidAt tells whether the password is good at a time.
func (p *Password) ValidAt(t time.Time) bool { return p.NotAfter.IsZero() || t.Before(p.NotAfter) }

// text is all that makes this verifier what it is, but not how long it is good.
func (p *Password) text() string {
	var b strings.Builder
	b.WriteString(p.ID)
	if p.SCRAM != nil {
		b.WriteString(" " + p.SCRAM.String())
	}
	if p.Argon2id != nil {
		b.WriteString(" " + p.Argon2id.String())
	}
	return b.String()
}

const (
	// generatedLength gives 32 × log2(54) = 184 bits.
	generatedLength = 32
	// alphabet leaves out what people take for one another when they type a
	// password from paper: 0 O, 1 I l, 5 S. No character needs quoting anywhere.
	alphabet = "ABCDEFGHJKLMNPQRTUVWXYZabcdefghijkmnopqrstuvwxyz2346789"

	minPasswordLength = 8 // characters
	maxPasswordOctets = 1024

	maxPasswords = 2
	idLength     = 8

	// GeneratedIterations suffice for a password that nobody can guess: what
	// they make costly is guessing, and PLAIN costs us the same, 1 ms.
	GeneratedIterations = minIterations
	// chosenIterations are for passwords of people. The client pays them too.
	chosenIterations = 30_000
)

// GeneratePassword makes a password of 32 characters with 180 bits or more of
// randomness.
func GeneratePassword() string { return random(generatedLength) }

func random(length int) string {
	const most = 256 - 256%len(alphabet) // octets from here on would favour some characters
	var b strings.Builder
	octets := make([]byte, 2*length)
	for {
		_, _ = rand.Read(octets) // never fails
		for _, o := range octets {
			if int(o) >= most {
				continue
			}
			b.WriteByte(alphabet[int(o)%len(alphabet)])
			if b.Len() == length {
				return b.String()
			}
		}
	}
}

// ErrPassword says that a password cannot be taken; the text says why.
var ErrPassword = errors.New("this password cannot be used")

// CheckPassword tells whether a password that somebody chose can be used.
func CheckPassword(password string) error {
	prepared, err := prepare(password)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPassword, err)
	}
	if utf8.RuneCountInString(prepared) < minPasswordLength {
		return fmt.Errorf("%w: it has less than %d characters", ErrPassword, minPasswordLength)
	}
	return nil
}

// prepare brings a password to the form in which it is hashed: SASLprep (RFC
// 4013), as SCRAM and PLAIN want it (RFC 5802 §5.1, RFC 4616 §2).
func prepare(password string) (string, error) {
	switch {
	case password == "":
		return "", errors.New("it is empty")
	case len(password) > maxPasswordOctets:
		return "", fmt.Errorf("it is longer than %d octets", maxPasswordOctets)
	case !utf8.ValidString(password):
		return "", errors.New("it is not UTF-8")
	}
	if isPrinting(password) {
		return password, nil // SASLprep changes nothing
	}
	prepared, err := stringprep.SASLprep.Prepare(password)
	if err != nil {
		return "", fmt.Errorf("it has a character that SASLprep does not allow: %w", err)
	}
	if prepared == "" {
		return "", errors.New("nothing of it is left after SASLprep")
	}
	return prepared, nil
}

func isPrinting(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// Kind is how a password is hashed.
type Kind int

const (
	// Generated is for passwords of GeneratePassword: SCRAM-SHA-256 with the
	// fewest iterations. A costly hash protects a password that can be guessed
	// when the record is stolen. This one cannot, so that a fleet pays nothing
	// for what it does not need, and every mechanism works with it.
	Generated Kind = iota
	// Chosen is for passwords of people: argon2id, the best that there is against
	// guessing. SCRAM does not work with it, so that clients must use PLAIN or
	// LOGIN.
	Chosen
	// ChosenSCRAM is for passwords of people whose client insists on SCRAM.
	ChosenSCRAM
)

// SetPassword gives the client a new password, good at once. The newest one so
// far stays good until the end of its grace, at most, and none at all without
// grace; another one before it is dropped at once, and reported.
//
// A SCRAM client learns salt and iterations before it proves anything, and says
// nothing of which password it has: both passwords must go by the same. So the
// new verifier takes those of the old one as long as that is good.
func (c *Client) SetPassword(password string, kind Kind, now time.Time, grace time.Duration) (dropped []Password, err error) {
	prepared, err := prepare(password)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPassword, err)
	}
	now = now.UTC().Truncate(time.Second)
	var kept []Password
	for _, p := range c.Passwords {
		switch {
		case !p.ValidAt(now):
		case grace <= 0 || len(kept) > 0:
			dropped = append(dropped, p)
		default:
			if err := p.hash(now); err != nil {
				return nil, fmt.Errorf("hash the old password: %w", err)
			}
			if end := now.Add(grace); p.NotAfter.IsZero() || end.Before(p.NotAfter) {
				p.NotAfter = end
			}
			kept = append(kept, p)
		}
	}
	fresh := Password{ID: random(idLength), Created: now}
	if len(kept) > 0 && !fresh.Created.After(kept[0].Created) {
		fresh.Created = kept[0].Created.Add(time.Second) // the newest by its date
	}
	if kind == Chosen {
		fresh.Argon2id = newArgon2id(prepared)
	} else {
		salt, iterations := newSalt(), GeneratedIterations
		if kind == ChosenSCRAM {
			iterations = chosenIterations
		}
		if len(kept) > 0 && kept[0].SCRAM != nil {
			salt, iterations = kept[0].SCRAM.Salt, kept[0].SCRAM.Iterations
		}
		if fresh.SCRAM, err = newSCRAM(prepared, salt, iterations); err != nil {
			return nil, fmt.Errorf("hash the password: %w", err)
		}
	}
	c.Passwords = append([]Password{fresh}, kept...)
	return dropped, nil
}

// newestFirst orders passwords by their date.
func newestFirst(passwords []Password) {
	slices.SortStableFunc(passwords, func(a, b Password) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
}
