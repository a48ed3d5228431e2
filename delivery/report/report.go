// Package report reads what comes back from other hosts: delivery status notifications (RFC 3464, RFC 6533), feedback about mail that
// somebody called spam (RFC 5965), and what is neither.
//
//	r, err := report.Parse(mail) // err: the mail could not be read
//	switch r.Kind {
//	case report.Status:   for _, rcpt := range r.Recipients { … }
//	case report.Feedback: … r.Feedback …
//	case report.Text:     … r.Text …
//	}
//
// Anybody may have written it. It is read as far as MaxBytes, MaxDepth and MaxParts go, everything that is malformed is left out, and texts are
// one line of printing ASCII. It proves nothing: that is for an address with a token (package verp).
package report

import (
	"fmt"
	"io"
	"mime"
	"strings"

	"postroad/delivery/bounce"
	"postroad/queue/address"
)

// Bounds of what is read.
const (
	MaxBytes      = 1 << 20  // of a mail
	MaxDepth      = 4        // of parts inside of parts
	MaxParts      = 20       // of all of them together
	MaxRecipients = 100      // of a report
	maxHeader     = 32 << 10 // of the message that is returned
	maxFields     = 500      // of a header or a group
	maxFolded     = 4 << 10  // of a field
	maxText       = 2000
	maxValue      = 500
)

// Kind is what a mail is.
type Kind string

// The kinds.
const (
	Status   Kind = "status"   // a delivery status notification
	Feedback Kind = "feedback" // an abuse report
	Text     Kind = "text"     // anything else: an old kind of bounce, or the answer of a program or a person
)

// Report is a mail that came back.
type Report struct {
	Kind    Kind
	Subject string
	// IsReply says that it answers a message by a program, and is no report: Auto-Submitted: auto-replied (RFC 3834 §5) outside of a
	// multipart/report. Mail of a Text kind that names recipients is none: Exim marks its bounces so too.
	IsReply bool

	ReportingMTA string      // of Status and Feedback
	ENVID        string      // as the sender gave it, without xtext
	Recipients   []Recipient // of Status; of Text when it names those that failed

	Complaint Complaint // of Feedback

	Header []byte // of the message that is returned, at most 32 KiB; nil: there is none
	Text   string // the first text for people, at most 2000 octets
}

// Recipient is what a host says of one recipient (RFC 3464 §2.3).
type Recipient struct {
	Final      address.Path // null: it cannot be read
	Original   string       // addr-type ";" address, without xtext; may be empty
	Action     string       // failed, delayed, delivered, relayed or expanded
	Status     string       // enhanced status code; may be empty
	RemoteMTA  string
	Diagnostic string // without its type
}

// Complaint is what a feedback report says (RFC 5965 §3).
type Complaint struct {
	Type       string         // abuse, fraud, virus, not-spam, auth-failure, other, or what else stands there
	UserAgent  string         // that made the report
	MailFrom   address.Path   // reverse-path of the message
	Recipients []address.Path // often left out or hidden
	SourceIP   string
	Arrival    string
	Domain     string // reported
	Incidents  string // number of messages that it stands for
}

// Parse reads a mail. An error is one of reading, never of what it holds.
func Parse(mail io.Reader) (Report, error) {
	data, err := io.ReadAll(io.LimitReader(mail, MaxBytes))
	if err != nil {
		return Report{}, fmt.Errorf("read what came back: %w", err)
	}
	header, body := readFields(data)
	r := Report{Kind: Text, Subject: clean(header.get("Subject"))}
	w := walker{report: &r}
	w.part(header, body, 0)
	if r.Kind == Text {
		r.failedRecipients(header)
		r.IsReply = len(r.Recipients) == 0 && isReply(header)
	}
	return r, nil
}

// isReply finds the keyword before comments and parameters. A multipart/report is a report, also one that cannot be read.
func isReply(header fields) bool {
	keyword := strings.ToLower(strings.TrimSpace(header.get("Auto-Submitted")))
	if i := strings.IndexAny(keyword, " \t;("); i >= 0 {
		keyword = keyword[:i]
	}
	kind, _, _ := mime.ParseMediaType(header.get("Content-Type"))
	return keyword == "auto-replied" && kind != "multipart/report"
}

// failedRecipients are named in a field of their own by hosts that write no reports.
func (r *Report) failedRecipients(header fields) {
	for text := range strings.SplitSeq(header.get("X-Failed-Recipients"), ",") {
		if p := parsePath(text); !p.IsNull() && len(r.Recipients) < MaxRecipients {
			r.Recipients = append(r.Recipients, Recipient{Final: p, Action: "failed"})
		}
	}
}

func clean(text string) string { return bounce.Clean(text, maxValue) }

// parsePath reads an address as fields have it; the null path is none.
func parsePath(text string) address.Path {
	text = strings.TrimSpace(text)
	if inner, ok := strings.CutPrefix(text, "<"); ok {
		text = strings.TrimSuffix(inner, ">")
	}
	if len(text) > maxValue {
		return address.Path{}
	}
	p, err := address.Parse(text)
	if err != nil {
		return address.Path{}
	}
	return p
}
