package submission

import (
	"bytes"
	"net/mail"
)

// HiddenHost stands for a host that is not to be named (RFC 6761 §6.4).
const HiddenHost = "hidden.invalid"

// appendHidden writes a Received field that says nothing but when. Hops are
// counted by these fields to find loops (RFC 5321 §6.3), so each one stays.
func appendHidden(out []byte, f field) []byte {
	const (
		dateLayout = "Mon, 02 Jan 2006 15:04:05 -0700" // RFC 5322 §3.3
		mostDate   = 100
	)
	out = append(out, "Received: from "+HiddenHost+" by "+HiddenHost...)
	value := f.value()
	if i := bytes.LastIndexByte(value, ';'); i >= 0 && len(value)-i < mostDate {
		if date, err := mail.ParseDate(string(bytes.TrimSpace(unfold(value[i+1:])))); err == nil {
			out = append(out, ";\r\n\t"...)
			out = date.AppendFormat(out, dateLayout)
		}
	}
	return append(out, "\r\n"...)
}
