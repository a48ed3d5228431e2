// Package bounce writes delivery status notifications: multipart/report messages (RFC 6522) that tell the sender what
// became of his recipients, in words and as fields (RFC 3464), with his message or its header behind.
//
// Fill in a Report and call Write. The result is a whole message with CRLF, in 7 bits (only the To field of a sender
// whose own address needs SMTPUTF8 is not), that goes out under the null reverse-path:
//
//	payload, err := bounce.Report{
//		ID: id, Hostname: "mx1.example.net", Domain: "example.net", To: job.ReversePath, Date: time.Now(), …
//		Recipients: []bounce.Recipient{{Path: rcpt, Action: bounce.Failed, Status: "5.1.1", Diagnostic: reply}},
//		Original: mail, Size: size,
//	}.Write()
//
// What a remote host said is only ever printed through Clean. Whom to tell, and about what, is decided by the caller.
package bounce

import (
	"errors"
	"fmt"
	"io"
	"time"

	"postroad/queue/address"
)

// Action is what became of a recipient (RFC 3464 §2.3.3).
type Action string

// The actions that a relay reports.
const (
	Failed    Action = "failed"
	Delayed   Action = "delayed"
	Delivered Action = "delivered" // as another host reports it
	Expanded  Action = "expanded"  // likewise: handed on to several
	Relayed   Action = "relayed"   // handed to a host that cannot report delivery (RFC 3461 §5.2.2)
)

// Recipient is what became of one recipient.
type Recipient struct {
	Path           address.Path
	ORCPT          string // as received: addr-type ";" xtext; may be empty
	Action         Action
	Status         string    // enhanced status code (RFC 3463)
	RemoteMTA      string    // host that replied; empty: none did
	Diagnostic     string    // its reply, or our own words
	LastAttempt    time.Time // zero: was not tried
	WillRetryUntil time.Time // of Delayed
}

// Report is one notification.
type Report struct {
	ID         string       // of the message reported on: for the X-Postroad-Queue-ID field
	UniqueID   string       // left side of the Message-ID field, unique in Domain
	Hostname   string       // reporting MTA
	Domain     string       // own domain, of From and Message-ID
	To         address.Path // reverse-path of the message
	IsDouble   bool         // that is the null reverse-path, and To an operator (RFC 5321 §4.5.5)
	Date       time.Time    // of the notification
	Arrival    time.Time    // when the message was accepted
	DeliverBy  time.Time    // by when the sender wanted it delivered (RFC 2852 §5); zero: he did not say
	ENVID      string       // as received, xtext; may be empty
	Recipients []Recipient

	ReturnFull bool      // the whole message is wanted, not only its header (RFC 3461 §4.3)
	SMTPUTF8   bool      // the message came with SMTPUTF8: what is not ASCII goes back as RFC 6533 says
	Original   io.Reader // the message; read only as far as it is needed; nil: nothing is returned
	Size       int64     // of Original
}

// Octets of the original message that are returned at most.
const (
	MaxReturn       = 64 << 10 // of a whole message; a larger one comes back as its header
	maxReturnHeader = 32 << 10 // a longer header is cut behind a field
)

// ErrNoSender says that a notification would go to the null reverse-path (RFC 5321 §4.5.5).
var ErrNoSender = errors.New("no notification to the null reverse-path")

// Write makes the message.
func (r Report) Write() ([]byte, error) {
	if r.To.IsNull() {
		return nil, ErrNoSender
	}
	original, err := r.readOriginal()
	if err != nil {
		return nil, fmt.Errorf("read the message to return: %w", err)
	}
	text, status := r.text(original), r.status()
	w := &writer{boundary: boundary(r.UniqueID, text, status.body, original.body)}
	r.header(w)
	w.part(section{contentType: "text/plain; charset=us-ascii", description: "Notification", body: text})
	w.part(status)
	if original.contentType != "" {
		w.part(original.section)
	}
	w.end()
	return w.Bytes(), nil
}

func (r Report) header(w *writer) {
	w.field("Date", r.Date.Format(dateLayout))
	w.field("From", "Mail Delivery <mailer-daemon@"+r.Domain+">")
	w.field("To", "<"+r.To.String()+">")
	w.field("Subject", r.subject())
	w.field("Message-ID", "<"+Clean(r.UniqueID, 200)+"@"+r.Domain+">")
	w.field("Auto-Submitted", "auto-replied") // a direct answer to a message, not a periodic one: RFC 3834 §5
	w.field("MIME-Version", "1.0")
	reportType := "delivery-status"
	if r.isGlobal() {
		reportType = "global-delivery-status" // the type of the second part: RFC 6522 §3
	}
	w.line("Content-Type: multipart/report; report-type=" + reportType + ";")
	w.line("\tboundary=\"" + w.boundary + "\"")
	w.line("")
	w.line("This is a delivery status notification in MIME format.")
}

// dateLayout is date-time of RFC 5322 §3.3.
const dateLayout = "Mon, 2 Jan 2006 15:04:05 -0700"

// isGlobal reports that the addresses need the forms of RFC 6533.
func (r Report) isGlobal() bool {
	if !r.SMTPUTF8 {
		return false
	}
	for _, rcpt := range r.Recipients {
		if rcpt.Path.NeedsSMTPUTF8() || !isASCII(rcpt.ORCPT) {
			return true
		}
	}
	return false
}

// worst is the action that names the whole report.
func (r Report) worst() Action {
	worst := Delivered
	for _, rcpt := range r.Recipients {
		switch {
		case rcpt.Action == Failed:
			return Failed
		case rcpt.Action == Delayed:
			worst = Delayed
		case worst == Delivered && rcpt.Action != Delivered:
			worst = Relayed
		}
	}
	return worst
}
