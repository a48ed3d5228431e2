package queue

import (
	"time"

	"postroad/queue/address"
)

// Kind says where a job's mail lies: accepted from a client, or made by us.
type Kind string

// The kinds of mail.
const (
	KindMail Kind = "mail"
	KindDSN  Kind = "dsn"
)

// Job is one step that is to be done for one part of a message: the
// recipients of one domain, at most MaxPartRecipients. It is small, moves
// between the places of the queue and carries everything but the content.
type Job struct {
	ID     MessageID `json:"id"`
	Kind   Kind      `json:"kind"`
	Part   int       `json:"part"`  // k, from 0
	Parts  int       `json:"parts"` // parts of the whole message
	Move   int       `json:"move"`  // m, raised at every change of place
	Domain string    `json:"domain"`

	ReversePath address.Path `json:"reverse_path"`
	Recipients  []Recipient  `json:"recipients"`
	ENVID       string       `json:"envid,omitempty"`
	RET         string       `json:"ret,omitempty"`
	Flags       Flags        `json:"flags"`
	Client      string       `json:"client,omitempty"`
	Class       string       `json:"class,omitempty"`
	HeaderFrom  string       `json:"header_from,omitempty"`
	Accepted    time.Time    `json:"accepted"`
	HoldUntil   time.Time    `json:"hold_until,omitzero"` // not relayed before; an operator's retry, or his release of what was held, moves it to the present
	Deadline    Deadline     `json:"deadline,omitzero"`
	Incoming    bool         `json:"incoming,omitempty"` // see Envelope
	Maker       MessageID    `json:"maker,omitempty"`

	Signatures string `json:"signatures,omitempty"` // DKIM-Signature fields with their CRLF, to be prepended
	Size       int64  `json:"size"`                 // octets of the content without Signatures
	Chunks     int    `json:"chunks,omitempty"`     // slices that the content is stored in, 0: with its envelope
	MailSeq    uint64 `json:"mail_seq"`             // a stream position at or after which the mail must be visible; never an identity

	Tries     int       `json:"tries,omitempty"` // attempts at SMTP so far
	LastTry   time.Time `json:"last_try,omitzero"`
	Source    string    `json:"source,omitempty"`    // egress source of the last try; empty: without a name
	Reason    string    `json:"reason,omitempty"`    // why it waits, for people: last reply or our own words
	Delayed   bool      `json:"delayed,omitempty"`   // a delay notice was sent
	Notified  bool      `json:"notified,omitempty"`  // a notification was made: its mark may lie beside the mail
	Returned  string    `json:"returned,omitempty"`  // an operator, or a policy of his, sends it back to its sender, in these words
	Released  bool      `json:"released,omitempty"`  // was held, and an operator let it go: no policy holds it again
	Unsigned  bool      `json:"unsigned,omitempty"`  // has not passed the signer yet: goes back there when it is due
	Remaining []Class   `json:"remaining,omitempty"` // further delay classes before it is due
	Due       time.Time `json:"due,omitzero"`        // when it is expected to leave `later`, for people
}

// Began is when the job's time began to count, for retries and expiry: its acceptance, or its release if it was held.
func (j *Job) Began() time.Time { return later(j.Accepted, j.HoldUntil) }

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// MaxPartRecipients bounds the recipients of one part.
const MaxPartRecipients = 100
