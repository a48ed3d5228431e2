package address

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Normalize turns a domain of any spelling into the one that we store, compare and look up: an A-label name in
// lower case (RFC 5890 §2.3.2.1), or an address literal (RFC 5321 §4.1.3) printed in one way. It refuses what is
// no host name: empty labels, a final dot, controls, and a last label of digits only, which is an address that
// somebody forgot to put in brackets. Underscores are let through, as most mail servers do: internal hosts have them.
func Normalize(domain string) (string, error) {
	if strings.HasPrefix(domain, "[") {
		return normalizeLiteral(domain)
	}
	name := domain
	if isASCII(name) {
		name = strings.ToLower(name)
	} else {
		if !utf8.ValidString(name) || len(name) > 4*MaxDomain {
			return "", &ParseError{Text: domain, Err: ErrDomain}
		}
		// U-labels are mapped as UTS 46 wants it for look-ups.
		var err error
		if name, err = idna.Lookup.ToASCII(name); err != nil {
			return "", &ParseError{Text: domain, Err: ErrDomain}
		}
	}
	if len(name) > MaxDomain {
		return "", &ParseError{Text: domain, Err: ErrTooLong}
	}
	if !isHostName(name) {
		return "", &ParseError{Text: domain, Err: ErrDomain}
	}
	return name, nil
}

// IsLiteral reports an address literal.
func IsLiteral(domain string) bool { return strings.HasPrefix(domain, "[") }

// Literal gives the address in an address literal.
func Literal(domain string) (netip.Addr, error) {
	inner, isOpen := strings.CutPrefix(domain, "[")
	inner, isClosed := strings.CutSuffix(inner, "]")
	if !isOpen || !isClosed {
		return netip.Addr{}, &ParseError{Text: domain, Err: ErrLiteral}
	}
	const tag = "IPv6:"
	isV6 := len(inner) > len(tag) && strings.EqualFold(inner[:len(tag)], tag)
	if isV6 {
		inner = inner[len(tag):]
	}
	addr, err := netip.ParseAddr(inner)
	if err != nil || addr.Zone() != "" || addr.Is4() == isV6 {
		return netip.Addr{}, &ParseError{Text: domain, Err: ErrLiteral}
	}
	return addr, nil
}

func normalizeLiteral(domain string) (string, error) {
	addr, err := Literal(domain)
	if err != nil {
		return "", err
	}
	if addr.Is4() {
		return "[" + addr.String() + "]", nil
	}
	return "[IPv6:" + addr.String() + "]", nil
}

// isHostName checks Domain of RFC 5321 §4.1.2, in lower case, with underscores as letters.
func isHostName(name string) bool {
	label, isNumber := 0, true // octets of this label so far; it is digits only
	for i := range len(name) {
		switch c := name[i]; {
		case c == '.':
			if label == 0 || name[i-1] == '-' {
				return false
			}
			label, isNumber = 0, true
			continue
		case c >= 'a' && c <= 'z' || c == '_':
			isNumber = false
		case c >= '0' && c <= '9':
		case c == '-' && label > 0:
			isNumber = false
		default:
			return false
		}
		if label++; label > 63 {
			return false
		}
	}
	return label > 0 && !isNumber && name[len(name)-1] != '-'
}
