package queue

import (
	"time"

	"postroad/queue/address"
)

// Flags are the SMTP properties of a message that its next hop must be able to keep.
type Flags struct {
	EightBit   bool `json:"eightbit,omitempty"`   // BODY=8BITMIME was given (RFC 6152)
	SMTPUTF8   bool `json:"smtputf8,omitempty"`   // SMTPUTF8 was given (RFC 6531)
	RequireTLS bool `json:"requiretls,omitempty"` // REQUIRETLS was given (RFC 8689)
	// TLSOptional: the message says "TLS-Required: No" (RFC 8689 §3): it is to arrive whatever the recipient's domain asks of TLS.
	TLSOptional bool `json:"tls_optional,omitempty"`
}

// Deadline is by when a message is to be delivered (RFC 2852). The zero Deadline is none.
type Deadline struct {
	At     time.Time `json:"at"`
	Return bool      `json:"return,omitempty"` // mode R: after it the message goes back; without (mode N) its sender is told once that it is late
	Trace  bool      `json:"trace,omitempty"`  // the sender is told of every host that it is relayed to
}

// IsZero reports that there is none.
func (d Deadline) IsZero() bool { return d.At.IsZero() }

// Warns reports mode N.
func (d Deadline) Warns() bool { return !d.IsZero() && !d.Return }

// IsOver reports that the message must not be relayed any more.
func (d Deadline) IsOver(now time.Time) bool { return d.Return && !now.Before(d.At) }

// Recipient is one forward-path with its DSN parameters (RFC 3461 §4), carried unchanged.
type Recipient struct {
	Path   address.Path `json:"path"`
	ORCPT  string       `json:"orcpt,omitempty"`  // as received: addr-type ";" xtext
	Notify []string     `json:"notify,omitempty"` // NEVER, or of SUCCESS FAILURE DELAY; empty: not given
	// Owner is who looks after the list that led to this recipient: what goes out to it has him for a reverse-path, unless that of the
	// envelope is null (RFC 5321 §3.9.2). The null Path: there is no such list.
	Owner address.Path `json:"owner,omitzero"`
}

// Envelope is everything that SMTP said about a message, and what we know of its origin. It never
// changes after acceptance.
type Envelope struct {
	ReversePath address.Path `json:"reverse_path"` // the zero Path is <>
	Recipients  []Recipient  `json:"recipients"`
	ENVID       string       `json:"envid,omitempty"` // as received, xtext
	RET         string       `json:"ret,omitempty"`   // FULL, HDRS or not given
	Flags       Flags        `json:"flags"`
	HoldUntil   time.Time    `json:"hold_until,omitzero"` // not relayed before (RFC 4865); zero: at once
	Deadline    Deadline     `json:"deadline,omitzero"`

	Client     string    `json:"client,omitempty"` // account, or the network that was trusted
	Class      string    `json:"class,omitempty"`  // account class
	RemoteAddr string    `json:"remote_addr,omitempty"`
	Helo       string    `json:"helo,omitempty"`
	HeaderFrom string    `json:"header_from,omitempty"` // domain of the author, A-label in lower case
	Accepted   time.Time `json:"accepted"`
	Incoming   bool      `json:"incoming,omitempty"` // from anybody, to an address that bounces come back to: never signed, nobody is told of it
	Maker      MessageID `json:"maker,omitempty"`    // of a notification: the message it reports on
}
