package tlsrpt

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"postroad/queue/address"
)

// report is what is sent (RFC 8460 §4.4).
type report struct {
	Organization string         `json:"organization-name"`
	DateRange    dateRange      `json:"date-range"`
	Contact      string         `json:"contact-info"`
	ID           string         `json:"report-id"`
	Policies     []policyReport `json:"policies"`
}

type dateRange struct {
	Start time.Time `json:"start-datetime"`
	End   time.Time `json:"end-datetime"`
}

type policyReport struct {
	Policy   Policy    `json:"policy"`
	Summary  summary   `json:"summary"`
	Failures []Failure `json:"failure-details,omitempty"`
}

type summary struct {
	Good int `json:"total-successful-session-count"`
	Bad  int `json:"total-failure-session-count"`
}

// build makes the report of one domain and day, compressed.
func (o *SenderOptions) build(k tallyKey, t Tally, id string) ([]byte, error) {
	day, err := time.Parse(dayLayout, k.day)
	if err != nil {
		return nil, fmt.Errorf("day of a tally: %w", err)
	}
	r := report{
		Organization: o.Organization, Contact: o.Contact, ID: id,
		DateRange: dateRange{day, day.Add(24*time.Hour - time.Second)},
		Policies:  []policyReport{},
	}
	for _, c := range t.Policies {
		r.Policies = append(r.Policies, policyReport{c.Policy, summary{c.Good, c.Bad}, c.Failures})
	}
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode report: %w", err)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(text); err != nil {
		return nil, fmt.Errorf("compress report: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("compress report: %w", err)
	}
	return b.Bytes(), nil
}

// fileName is that of a report (RFC 8460 §5.1).
func (o *SenderOptions) fileName(k tallyKey, id string) string {
	day, _ := time.Parse(dayLayout, k.day) // checked by build
	unique, _, _ := strings.Cut(id, "@")
	return fmt.Sprintf("%s!%s!%d!%d!%s.json.gz", o.Domain, k.domain, day.Unix(), day.Add(24*time.Hour-time.Second).Unix(), unique)
}

// message is the mail with a report (RFC 8460 §5.3). It says of itself that TLS failures do not matter (RFC 8689 §3).
func (o *SenderOptions) message(k tallyKey, id string, to address.Path, gz []byte, now time.Time) []byte {
	unique, _, _ := strings.Cut(id, "@") // letters and digits
	boundary := "=_" + unique
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\r\n", args...) }
	line("Date: %s", now.UTC().Format(time.RFC1123Z))
	line("From: TLS reports <postmaster@%s>", o.Domain)
	line("To: <%s>", to)
	line("Subject: Report Domain: %s", k.domain)
	line(" Submitter: %s", o.Domain)
	line(" Report-ID: <%s>", id)
	line("Message-ID: <%s>", id)
	line("TLS-Report-Domain: %s", k.domain)
	line("TLS-Report-Submitter: %s", o.Domain)
	line("TLS-Required: No")
	line("Auto-Submitted: auto-generated")
	line("MIME-Version: 1.0")
	line(`Content-Type: multipart/report; report-type="tlsrpt";`)
	line(`	boundary="%s"`, boundary)
	line("")
	line("This is a report in MIME format.")
	line("")
	line("--%s", boundary)
	line("Content-Type: text/plain; charset=us-ascii")
	line("")
	line("This is a report on TLS with the mail hosts of %s on %s (UTC), of", k.domain, k.day)
	line("%s.", o.Domain)
	line("Questions: %s", o.Contact)
	line("")
	line("--%s", boundary)
	line("Content-Type: application/tlsrpt+gzip")
	line("Content-Transfer-Encoding: base64")
	line("Content-Disposition: attachment;")
	line(`	filename="%s"`, o.fileName(k, id))
	line("")
	for text := base64.StdEncoding.EncodeToString(gz); text != ""; {
		n := min(76, len(text))
		line("%s", text[:n])
		text = text[n:]
	}
	line("--%s--", boundary)
	return b.Bytes()
}
