package address

import (
	"errors"
	"fmt"
)

// Causes of a refused path or domain; match them with errors.Is.
var (
	ErrSyntax   = errors.New("not a mailbox")                                                // no @, text behind the quote, an open quote
	ErrNoDomain = errors.New("a domain is missing")                                          // and the local part is not postmaster
	ErrLocal    = errors.New("the local part holds what no local part may hold")             // controls, bad UTF-8, empty atoms, unquoted specials
	ErrDomain   = errors.New("not a domain name")                                            // of LDH labels, or U-labels
	ErrLiteral  = errors.New("not an address literal")                                       // [192.0.2.1] or [IPv6:2001:db8::1]
	ErrTooLong  = errors.New("longer than SMTP allows: local part 64, domain 255, path 256") // RFC 5321 §4.5.3.1
)

// ParseError is every error of this package: what was read, and why it was refused.
type ParseError struct {
	Text string // as it came, not sanitised
	Err  error  // one of the causes above
}

// Error quotes the text, so that it is safe in a log line.
func (e *ParseError) Error() string {
	const most = 300
	text := e.Text
	if len(text) > most {
		text = text[:most] + "…"
	}
	return fmt.Sprintf("address %q: %v", text, e.Err)
}

// Unwrap gives the cause.
func (e *ParseError) Unwrap() error { return e.Err }
