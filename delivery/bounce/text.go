package bounce

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Octets of a line: as people like it, and what leaves room below the 998 of RFC 5322 §2.1.1.
const (
	lineWidth = 76
	maxLine   = 900
)

// MaxText bounds what a remote host can put into a notification or an event.
const MaxText = 1000

// Clean makes text that somebody else wrote fit for a header, a notification or a log line: printing ASCII on one line,
// at most limit octets (RFC 3464 §2.3.6). Controls and spaces in a row become one space, other octets a question mark.
func Clean(text string, limit int) string {
	var b strings.Builder
	b.Grow(min(len(text), limit))
	isGap := true // at the start nothing needs a space
	for _, r := range text {
		if b.Len() >= limit {
			break
		}
		switch {
		case r <= ' ' || r == 0x7f:
			if !isGap {
				b.WriteByte(' ')
			}
			isGap = true
			continue
		case r < 0x7f:
			b.WriteByte(byte(r))
		default:
			b.WriteByte('?')
		}
		isGap = false
	}
	return strings.TrimRight(b.String(), " ")
}

// DecodeXtext undoes xtext (RFC 3461 §4). It reports false for what is no xtext, or decodes to controls.
func DecodeXtext(s string) (string, bool) {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '+':
			if i+2 >= len(s) {
				return "", false
			}
			high, okHigh := hexDigit(s[i+1])
			low, okLow := hexDigit(s[i+2])
			if c = high<<4 | low; !okHigh || !okLow || c < ' ' || c == 0x7f {
				return "", false
			}
			i += 2
		case c <= ' ' || c == '=' || c >= 0x7f:
			return "", false
		}
		b.WriteByte(c)
	}
	return b.String(), true
}

// EncodeXtext makes xtext (RFC 3461 §4) of what DecodeXtext gave.
func EncodeXtext(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c > ' ' && c < 0x7f && c != '+' && c != '=' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "+%02X", c)
		}
	}
	return b.String()
}

// EncodeORCPT makes what ORCPT says of what a report says of the original recipient: addr-type ";" address.
func EncodeORCPT(original string) string {
	kind, text, found := strings.Cut(original, ";")
	if kind, text = strings.TrimSpace(kind), strings.TrimSpace(text); !found || kind == "" || text == "" {
		return ""
	}
	if strings.EqualFold(kind, "utf-8") {
		return kind + ";" + text // has an encoding of its own (RFC 6533 §3)
	}
	return kind + ";" + EncodeXtext(text)
}

var unitext = regexp.MustCompile(`\\x\{[0-9A-Fa-f]{2,6}\}`)

// DecodeUnitext undoes the form that addresses of type utf-8 have in ASCII (RFC 6533 §3). What is no character, or a control, stays.
func DecodeUnitext(s string) string {
	return unitext.ReplaceAllStringFunc(s, func(point string) string {
		n, err := strconv.ParseInt(point[3:len(point)-1], 16, 32)
		if r := rune(n); err == nil && r >= ' ' && r != 0x7f && utf8.ValidRune(r) {
			return string(r)
		}
		return point
	})
}

// EncodeUnitext makes that form, utf-8-addr-xtext, which is printing ASCII without what xtext gives a meaning to.
func EncodeUnitext(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r > ' ' && r < 0x7f && !strings.ContainsRune(`\+=`, r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\x{%02X}`, r)
		}
	}
	return b.String()
}

// hexDigit takes upper case only, as xtext wants it.
func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

func (r Report) subject() string {
	if r.IsDouble {
		return "A mail without a sender could not be delivered"
	}
	switch r.worst() {
	case Failed:
		return "Your mail could not be delivered"
	case Delayed:
		return "Your mail is delayed"
	case Delivered:
		return "Your mail has been delivered"
	}
	return "Your mail has been relayed"
}

// groups are the parts of the text for people, in the order of their weight.
var groups = []struct {
	action Action
	intro  string
}{
	{Failed, "Your mail could not be delivered to the following recipients. It will not be tried again."},
	{Delayed, "Your mail could not be delivered to the following recipients yet. There is nothing for you to do:\r\n" +
		"it will be tried again, and you will hear from us if that is given up."},
	{Relayed, "Your mail was handed on for the following recipients to a host that does not report delivery.\r\n" +
		"You will not hear from us about them again unless something goes wrong."},
	{Delivered, "Your mail was delivered to the following recipients."},
	{Expanded, "Your mail was delivered to the following addresses and handed on to the recipients behind them."},
}

// doubleIntro is for the operator, who is told in place of a sender.
const doubleIntro = "A mail with the null reverse-path, most likely a notification, could not be delivered to the\r\n" +
	"following recipients. It will not be tried again, and nobody else is told."

// text is the part for people.
func (r Report) text(o original) []byte {
	var b bytes.Buffer
	b.WriteString("This is the mail system of " + r.Hostname + ".\r\n")
	for _, g := range groups {
		isFirst := true
		for _, rcpt := range r.Recipients {
			if rcpt.Action != g.action {
				continue
			}
			if isFirst && r.IsDouble {
				b.WriteString("\r\n" + doubleIntro + "\r\n")
				isFirst = false
			}
			if isFirst {
				b.WriteString("\r\n" + g.intro + "\r\n")
				isFirst = false
			}
			rcpt.describe(&b)
		}
	}
	if r.worst() == Delayed {
		for _, rcpt := range r.Recipients {
			if rcpt.Action == Delayed && !rcpt.WillRetryUntil.IsZero() {
				b.WriteString("\r\nIt will be tried until " + rcpt.WillRetryUntil.Format(dateLayout) + ".\r\n")
				break
			}
		}
	}
	switch {
	case o.contentType == "":
	case o.isFull:
		b.WriteString("\r\n" + r.whose() + " is attached.\r\n")
	default:
		b.WriteString("\r\nThe header of " + strings.ToLower(r.whose()) + " is attached.\r\n")
	}
	return b.Bytes()
}

func (r Report) whose() string {
	if r.IsDouble {
		return "The mail"
	}
	return "Your mail"
}

func (rcpt Recipient) describe(b *bytes.Buffer) {
	f := &fields{}
	f.add("\r\n  recipient", rcpt.Path.String())
	if rcpt.RemoteMTA != "" {
		f.add("  host", Clean(rcpt.RemoteMTA, 300))
	}
	if rcpt.Diagnostic != "" {
		f.fold("  reason", Clean(rcpt.Diagnostic, MaxText))
	}
	b.Write(f.Bytes())
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
