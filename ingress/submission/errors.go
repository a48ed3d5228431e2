package submission

import "errors"

// Causes of a refused header; match them with errors.Is.
var (
	// ErrFrom says that From is missing or comes more than once (RFC 5322 §3.6).
	ErrFrom = errors.New("there must be exactly one such field")
	// ErrRepeated says that a field comes more than once that may come once only.
	ErrRepeated = errors.New("there must be at most one such field")
	// ErrAddress says that no address can be read.
	ErrAddress = errors.New("no valid address in it")
	// ErrAmbiguous says that others may read an address in another way.
	ErrAmbiguous = errors.New("others may read its addresses in another way")
	// ErrSender says that several authors need a Sender, and that we cannot name one.
	ErrSender = errors.New("several authors need a Sender field too")
	// ErrNeedsUTF8 says that an address cannot be written without SMTPUTF8.
	ErrNeedsUTF8 = errors.New("an address with letters outside of ASCII needs SMTPUTF8")
	// Err8Bit says that octets above 127 stand where they cannot be encoded.
	Err8Bit = errors.New("octets outside of ASCII here need SMTPUTF8")
	// ErrNotUTF8 says that a message with SMTPUTF8 holds something else.
	ErrNotUTF8 = errors.New("not in UTF-8")
)

// Error is every error of this package. Its text is one line of ASCII that may
// be told to the client.
type Error struct {
	Field string // the name of the field; "" when it is about what is no field
	Err   error  // one of the causes above
	Inner error  // what package address says, if it was asked; holds foreign text
}

func (e *Error) Error() string {
	if e.Field == "" {
		return "header: " + e.Err.Error()
	}
	return e.Field + " field: " + e.Err.Error()
}

// Unwrap gives the cause, and what is behind it.
func (e *Error) Unwrap() []error {
	if e.Inner == nil {
		return []error{e.Err}
	}
	return []error{e.Err, e.Inner}
}

// Enhanced is the status code that goes with a 550 (RFC 3463 §3.7; RFC 6531 §7).
func (e *Error) Enhanced() [3]int {
	switch {
	case errors.Is(e.Err, ErrNeedsUTF8):
		return [3]int{5, 6, 7}
	case errors.Is(e.Err, Err8Bit):
		return [3]int{5, 6, 9}
	}
	return [3]int{5, 6, 0}
}
