package mx

import (
	"errors"
	"fmt"
)

// Causes of an Error, for errors.Is.
var (
	ErrNoName    = errors.New("no such domain")                // NXDOMAIN
	ErrNoAddress = errors.New("no host with a usable address") // no data, or nothing that may be dialled
	ErrNullMX    = errors.New("the domain takes no mail")      // RFC 7505
	ErrLoop      = errors.New("mail for the domain loops back to this host")
	ErrNoFamily  = errors.New("its hosts have addresses of a family only that we do not send from") // temporary
	ErrBogus     = errors.New("the answer is not what DNSSEC proves")                               // temporary
	ErrLookup    = errors.New("name service failed")                                                // temporary
	ErrLiteral   = errors.New("address literals are not accepted")
)

// Error says why there is no host for a domain.
type Error struct {
	Code     int    // of the reply that we would give
	Enhanced string // RFC 3463
	Domain   string
	Err      error // one of the causes above, or wrapping one
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("find a host for %s: %v", e.Domain, e.Err)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Permanent reports that trying later is of no use.
func (e *Error) Permanent() bool { return e.Code/100 == 5 }

// Temporary is the opposite of Permanent.
func (e *Error) Temporary() bool { return !e.Permanent() }
