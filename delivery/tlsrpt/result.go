package tlsrpt

import (
	"slices"
	"strings"
)

// ResultType says what was wrong with a session (RFC 8460 §4.3). The empty one: nothing.
type ResultType string

// The result types of RFC 8460 §4.3.
const (
	OK                 ResultType = ""
	NoSTARTTLS         ResultType = "starttls-not-supported"
	HostMismatch       ResultType = "certificate-host-mismatch"
	CertificateExpired ResultType = "certificate-expired"
	NotTrusted         ResultType = "certificate-not-trusted"
	ValidationFailure  ResultType = "validation-failure"
	TLSAInvalid        ResultType = "tlsa-invalid"
	DNSSECInvalid      ResultType = "dnssec-invalid"
	DANERequired       ResultType = "dane-required"
	STSFetchError      ResultType = "sts-policy-fetch-error"
	STSInvalid         ResultType = "sts-policy-invalid"
	STSWebPKIInvalid   ResultType = "sts-webpki-invalid"
)

// PolicyType is the kind of policy that a session was held against.
type PolicyType string

// The policy types of RFC 8460 §4.2.
const (
	TLSA     PolicyType = "tlsa"
	STS      PolicyType = "sts"
	NoPolicy PolicyType = "no-policy-found"
)

// Policy is what a session was held against, as reports print it.
type Policy struct {
	Type    PolicyType `json:"policy-type"`
	Strings []string   `json:"policy-string,omitempty"` // TLSA records, or the lines of an MTA-STS policy
	Domain  string     `json:"policy-domain"`           // the recipient's domain, or the TLSA base domain
	MXHosts []string   `json:"mx-host,omitempty"`       // patterns of an MTA-STS policy
}

func (p Policy) key() string {
	return string(p.Type) + "\n" + p.Domain + "\n" + strings.Join(p.Strings, "\n")
}

// Failure is what was wrong with some sessions.
type Failure struct {
	Result      ResultType `json:"result-type"`
	SendingIP   string     `json:"sending-mta-ip,omitempty"`
	MX          string     `json:"receiving-mx-hostname,omitempty"`
	ReceivingIP string     `json:"receiving-ip,omitempty"`
	Sessions    int        `json:"failed-session-count"`
	Info        string     `json:"additional-information,omitempty"`
	Reason      string     `json:"failure-reason-code,omitempty"`
}

// same reports that two failures are one with two counts. The reason is that of the first.
func (f Failure) same(o Failure) bool {
	return f.Result == o.Result && f.SendingIP == o.SendingIP && f.MX == o.MX && f.ReceivingIP == o.ReceivingIP
}

// Result is what became of one session.
type Result struct {
	Domain  string // of the recipients: whose TLSRPT record counts
	Policy  Policy
	Failure Failure // Result OK: it went well. Sessions is not looked at
}

// Tally counts the sessions with one domain on one day, by policy.
type Tally struct {
	Policies []Counts `json:"policies"`
}

// Counts are the sessions that were held against one policy.
type Counts struct {
	Policy   Policy    `json:"policy"`
	Good     int       `json:"good"`
	Bad      int       `json:"bad"`
	Failures []Failure `json:"failures,omitempty"`
}

// Bounds of a tally: a domain may change its policy, or have many broken hosts.
const (
	maxPolicies = 10
	maxFailures = 50
	maxStrings  = 30
	maxText     = 200
)

// add counts one session.
func (t *Tally) add(r Result) {
	one := Counts{Policy: r.Policy, Good: 1}
	if r.Failure.Result != OK {
		r.Failure.Sessions = 1
		r.Failure.Reason = cut(r.Failure.Reason, maxText)
		one.Good, one.Bad, one.Failures = 0, 1, []Failure{r.Failure}
	}
	t.merge(Tally{Policies: []Counts{one}})
}

// merge adds what another one has counted. What is beyond the bounds is counted, but not told apart.
func (t *Tally) merge(o Tally) {
	for _, c := range o.Policies {
		i := slices.IndexFunc(t.Policies, func(have Counts) bool { return have.Policy.key() == c.Policy.key() })
		if i < 0 && len(t.Policies) >= maxPolicies {
			continue
		}
		if i < 0 {
			c.Policy.Strings = c.Policy.Strings[:min(len(c.Policy.Strings), maxStrings)]
			c.Policy.MXHosts = c.Policy.MXHosts[:min(len(c.Policy.MXHosts), maxStrings)]
			t.Policies = append(t.Policies, Counts{Policy: c.Policy})
			i = len(t.Policies) - 1
		}
		t.Policies[i].merge(c)
	}
}

func (c *Counts) merge(o Counts) {
	c.Good += o.Good
	c.Bad += o.Bad
	for _, f := range o.Failures {
		if i := slices.IndexFunc(c.Failures, f.same); i >= 0 {
			c.Failures[i].Sessions += f.Sessions
		} else if len(c.Failures) < maxFailures {
			c.Failures = append(c.Failures, f)
		}
	}
}

// cut keeps a text to n octets of printable ASCII.
func cut(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), n)]
}
