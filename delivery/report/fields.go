package report

import (
	"regexp"
	"strings"

	"postroad/delivery/bounce"
	"postroad/queue/address"
)

// readStatus reads the groups of a delivery report: one about the message, one about each recipient (RFC 3464 §2.1).
func (r *Report) readStatus(data []byte) {
	message, rest := readFields(data)
	var list []Recipient
	for len(rest) > 0 && len(list) < MaxRecipients {
		var group fields
		if group, rest = readFields(rest); len(group) == 0 {
			continue
		}
		if rcpt, ok := readRecipient(group); ok {
			list = append(list, rcpt)
		}
	}
	if len(list) == 0 || r.Kind == Status {
		return
	}
	r.Kind, r.Recipients = Status, list
	r.ReportingMTA = typed(message.get("Reporting-MTA"))
	r.ENVID = clean(message.get("Original-Envelope-Id"))
}

var (
	statusCode = regexp.MustCompile(`^[245]\.[0-9]{1,3}\.[0-9]{1,3}\b`)
	actions    = map[string]bool{"failed": true, "delayed": true, "delivered": true, "relayed": true, "expanded": true}
)

func readRecipient(group fields) (Recipient, bool) {
	action, _, _ := strings.Cut(strings.ToLower(group.get("Action")), " ")
	rcpt := Recipient{
		Action:     action,
		Status:     statusCode.FindString(group.get("Status")),
		RemoteMTA:  typed(group.get("Remote-MTA")),
		Diagnostic: typed(group.get("Diagnostic-Code")),
		Original:   original(group.get("Original-Recipient")),
	}
	kind, text, _ := strings.Cut(group.get("Final-Recipient"), ";")
	if strings.EqualFold(strings.TrimSpace(kind), "utf-8") {
		text = bounce.DecodeUnitext(text)
	}
	rcpt.Final = parsePath(text)
	return rcpt, actions[action]
}

// original brings an address of type utf-8 into its form in ASCII (RFC 6533 §3); in message/global-delivery-status it may stand as it is.
func original(value string) string {
	if kind, text, found := strings.Cut(value, ";"); found && strings.EqualFold(strings.TrimSpace(kind), "utf-8") {
		value = kind + "; " + bounce.EncodeUnitext(bounce.DecodeUnitext(strings.TrimSpace(text)))
	}
	return clean(value)
}

// OriginalPath is the address in Original; the null path: none.
func (rcpt Recipient) OriginalPath() address.Path {
	kind, text, _ := strings.Cut(rcpt.Original, ";")
	if strings.EqualFold(strings.TrimSpace(kind), "utf-8") {
		text = bounce.DecodeUnitext(text)
	}
	return parsePath(text)
}

// typed takes the type off a value: dns; mx.example.net.
func typed(value string) string {
	if _, text, found := strings.Cut(value, ";"); found {
		value = text
	}
	return clean(value)
}

// readFeedback reads the fields of a feedback report (RFC 5965 §3). Feedback-Type is what it cannot do without.
func (r *Report) readFeedback(data []byte) {
	f, _ := readFields(data)
	kind := strings.ToLower(clean(f.get("Feedback-Type")))
	if kind == "" || r.Kind == Feedback {
		return
	}
	c := Complaint{
		Type:      kind,
		UserAgent: clean(f.get("User-Agent")),
		MailFrom:  parsePath(f.get("Original-Mail-From")),
		SourceIP:  clean(f.get("Source-IP")),
		Arrival:   clean(f.get("Arrival-Date") + f.get("Received-Date")),
		Domain:    clean(f.get("Reported-Domain")),
		Incidents: clean(f.get("Incidents")),
	}
	for _, text := range f["original-rcpt-to"] {
		if p := parsePath(text); !p.IsNull() && len(c.Recipients) < MaxRecipients {
			c.Recipients = append(c.Recipients, p)
		}
	}
	r.Kind, r.Complaint = Feedback, c
	r.ReportingMTA = typed(f.get("Reporting-MTA"))
	r.ENVID = clean(f.get("Original-Envelope-Id"))
}

// ReturnPath is the reverse-path that the returned message bears in its header, for hosts that say it nowhere else.
func (r *Report) ReturnPath() address.Path {
	f, _ := readFields(r.Header)
	return parsePath(f.get("Return-Path"))
}
