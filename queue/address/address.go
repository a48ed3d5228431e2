// Package address holds mailbox paths as SMTP speaks of them.
//
// A Path is a reverse-path or a forward-path. It is a plain comparable value
// whose parts are canonical: the local part without its quotes and in its
// original case, the domain as an A-label in lower case. So two paths are the
// same mailbox exactly when they are equal with ==.
//
//	p, err := address.Parse(`"John Doe"@Bücher.example`)
//	p.Local    // John Doe
//	p.Domain   // xn--bcher-kva.example
//	p.String() // "John Doe"@xn--bcher-kva.example
//
// Print paths with String and nothing else: it quotes what must be quoted, so
// that a local part can never end the path early or bring in a parameter.
package address

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Octet limits of RFC 5321 §4.5.3.1. They are applied to what String prints.
const (
	MaxLocal  = 64
	MaxDomain = 255
	MaxPath   = 256 // with the angle brackets
)

// Path is a reverse-path or forward-path without its angle brackets and source route. The zero Path is the
// null path <>. Local is the unquoted local part in its original case; Domain is an A-label domain in lower case,
// or an address literal with its brackets. Only postmaster (RFC 5321 §4.5.1) may be without a domain.
type Path struct{ Local, Domain string }

// New makes a path of an unquoted local part and a domain in any spelling. It
// is for callers that get the two already taken apart.
func New(local, domain string) (Path, error) {
	p := Path{Local: local}
	if domain == "" {
		if !isPostmaster(local) {
			return Path{}, &ParseError{Text: local, Err: ErrNoDomain}
		}
		return p, nil
	}
	var err error
	if p.Domain, err = Normalize(domain); err != nil {
		return Path{}, err
	}
	if err := p.check(); err != nil {
		return Path{}, &ParseError{Text: local + "@" + domain, Err: err}
	}
	return p, nil
}

// String prints the path in SMTP syntax, quoted where it must be; "" for the null path. Parse(p.String()) is p.
// A Path that was put together by hand and holds what no path may hold is printed with question marks instead.
func (p Path) String() string {
	if p.Domain == "" {
		if p.Local == "" || isPostmaster(p.Local) {
			return p.Local
		}
		return `"` + escape(p.Local) + `"`
	}
	if isDotString(p.Local) {
		return p.Local + "@" + cleanDomain(p.Domain)
	}
	return `"` + escape(p.Local) + `"@` + cleanDomain(p.Domain)
}

// IsNull reports the null path.
func (p Path) IsNull() bool { return p == Path{} }

// NeedsSMTPUTF8 reports that the path can only be given to a server that
// offers SMTPUTF8 (RFC 6531 §3.2). Domains are A-labels, so it depends on the
// local part alone.
func (p Path) NeedsSMTPUTF8() bool { return !isASCII(p.Local) }

// MarshalText prints the path for JSON. It refuses a Path that would not be
// the same after reading it again.
func (p Path) MarshalText() ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("print path: %w", &ParseError{Text: p.Local + "@" + p.Domain, Err: err})
	}
	return []byte(p.String()), nil
}

// UnmarshalText reads what MarshalText printed.
func (p *Path) UnmarshalText(text []byte) error {
	read, err := Parse(string(text))
	if err != nil {
		return err
	}
	*p = read
	return nil
}

// check says whether the parts are canonical and within their limits.
func (p Path) check() error {
	if p.IsNull() || p.Domain == "" && isPostmaster(p.Local) {
		return nil
	}
	if p.Domain == "" {
		return ErrNoDomain
	}
	if !utf8.ValidString(p.Local) || strings.ContainsFunc(p.Local, func(r rune) bool { return !isText(r) }) {
		return ErrLocal
	}
	if canonical, err := Normalize(p.Domain); err != nil || canonical != p.Domain {
		return ErrDomain
	}
	printed := len(p.String())
	if printed-len(p.Domain)-1 > MaxLocal || printed+2 > MaxPath {
		return ErrTooLong
	}
	return nil
}

// escape prints a local part as the inside of a Quoted-string (RFC 5321 §4.1.2).
func escape(local string) string {
	var b strings.Builder
	b.Grow(len(local) + 8)
	for _, r := range local {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case !isText(r):
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// cleanDomain is the identity for every domain that Normalize made.
func cleanDomain(domain string) string {
	for i := range len(domain) {
		if c := domain[i]; c <= ' ' || c >= 0x7f || c == '<' || c == '>' || c == '@' || c == '"' {
			return strings.Map(func(r rune) rune {
				if r <= ' ' || r >= 0x7f || r == '<' || r == '>' || r == '@' || r == '"' {
					return '?'
				}
				return r
			}, domain)
		}
	}
	return domain
}

func isPostmaster(local string) bool { return strings.EqualFold(local, "postmaster") && isASCII(local) }
