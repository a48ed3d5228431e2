package txt

import (
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

const (
	maxStringOctets = 255 // RFC 1035 §3.3: a character-string
	maxDomainOctets = 253 // RFC 1035 §2.3.4, without the final dot
	maxLabelOctets  = 63
	// maxValueOctets is ample (an RSA key of 4096 bits takes 740), and every way
	// of writing it down fits into a DNS message.
	maxValueOctets = 8 << 10
)

// cleanName returns a name in lower case without the final dot. Only letters,
// digits, hyphens and underscores may be in its labels: names end up in files
// of many syntaxes.
func cleanName(name string) (string, error) {
	clean := strings.ToLower(strings.TrimSuffix(name, "."))
	bad := func(what string) (string, error) { return "", fmt.Errorf("%q is %w: %s", name, ErrBadName, what) }
	if clean == "" || len(clean) > maxDomainOctets {
		return bad("want 1 to 253 characters")
	}
	for label := range strings.SplitSeq(clean, ".") {
		if label == "" || len(label) > maxLabelOctets {
			return bad("want labels of 1 to 63 characters between the dots")
		}
		for i := range len(label) {
			switch c := label[i]; {
			case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return bad("want letters, digits, hyphens and underscores (names of other scripts in their xn-- form)")
			}
		}
	}
	return clean, nil
}

// checkValue refuses what no record can hold.
func checkValue(name, value string) error {
	switch {
	case value == "":
		return fmt.Errorf("TXT record of %s: it has no value", name)
	case len(value) > maxValueOctets:
		return fmt.Errorf("TXT record of %s: its value has %d octets, at most %d", name, len(value), maxValueOctets)
	}
	return nil
}

// split cuts a value into the strings of one record.
func split(value string) []string {
	var parts []string
	for len(value) > maxStringOctets {
		parts = append(parts, value[:maxStringOctets])
		value = value[maxStringOctets:]
	}
	return append(parts, value)
}

// escape writes a string as it stands between quotes in a zone file (RFC 1035 §5.1).
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, `\%03d`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// unescape undoes escape.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	isDigit := func(c byte) bool { return '0' <= c && c <= '9' }
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != '\\' || i+1 == len(s):
			out = append(out, s[i])
		case i+3 < len(s) && isDigit(s[i+1]) && isDigit(s[i+2]) && isDigit(s[i+3]):
			out = append(out, (s[i+1]-'0')*100+(s[i+2]-'0')*10+(s[i+3]-'0'))
			i += 3
		default:
			out = append(out, s[i+1])
			i++
		}
	}
	return string(out)
}

// valueOf joins the strings of a record: the library keeps them escaped.
func valueOf(rr *dns.TXT) string {
	var b strings.Builder
	for _, s := range rr.Txt {
		b.WriteString(unescape(s))
	}
	return b.String()
}

// bare shows a name of the DNS without the final dot.
func bare(fqdn string) string { return strings.TrimSuffix(fqdn, ".") }
