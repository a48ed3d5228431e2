package smtpc

import (
	"strconv"
	"strings"

	"postroad/queue"
)

// Limits are what a host takes at most (RFC 9422 §4); 0 is no limit that it told us.
type Limits struct {
	Recipients int // of one transaction (RCPTMAX)
	Messages   int // transactions of one connection (MAILMAX)
	Domains    int // of the recipients of one transaction (RCPTDOMAINMAX)
}

// Limits reads the keyword LIMITS. What cannot be read is no limit (RFC 9422 §3).
func (e Extensions) Limits() Limits {
	var l Limits
	param, _ := e.Param("LIMITS")
	for word := range strings.FieldsSeq(param) {
		name, value, _ := strings.Cut(word, "=")
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 {
			continue
		}
		switch strings.ToUpper(name) {
		case "RCPTMAX":
			l.Recipients = n
		case "MAILMAX":
			l.Messages = n
		case "RCPTDOMAINMAX":
			l.Domains = n
		}
	}
	return l
}

// Fit is how many of the first recipients one transaction may have; at least 1, unless there are none.
func (l Limits) Fit(rcpts []queue.Recipient) int {
	domains := make(map[string]bool)
	for i, r := range rcpts {
		domains[r.Path.Domain] = true
		if i > 0 && (i == l.Recipients || l.Domains > 0 && len(domains) > l.Domains) {
			return i
		}
	}
	return len(rcpts)
}

// TooMany reports that the host has refused a recipient only because it had taken others: he belongs into another
// transaction, at once (RFC 5321 §4.5.3.1.10).
func (r Reply) TooMany() bool {
	return r.Phase == PhaseRcpt && r.Code == 452 && !r.Local && (r.Enhanced == "" || r.Enhanced == "4.5.3")
}
