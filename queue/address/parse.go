package address

import (
	"strings"
	"unicode/utf8"
)

// Parse reads local@domain in SMTP syntax, quoted local parts included (RFC 5321 §4.1.2, RFC 6531 §3.3). The empty
// string is the null path: where SMTP allows none, ask IsNull. Source routes are an error here, see ParseForward.
func Parse(s string) (Path, error) {
	if s == "" {
		return Path{}, nil
	}
	if !utf8.ValidString(s) {
		return Path{}, &ParseError{Text: s, Err: ErrLocal}
	}
	local, domain, err := split(s)
	if err != nil {
		return Path{}, &ParseError{Text: s, Err: err}
	}
	return New(local, domain)
}

// ParseForward reads what stands between angle brackets: as Parse, with a
// source route in front, which is checked and dropped (RFC 5321 §4.1.1.3 and
// appendix C).
func ParseForward(s string) (Path, error) {
	rest := s
	if strings.HasPrefix(rest, "@") {
		route, mailbox, found := strings.Cut(rest, ":")
		// The colon of an IPv6 literal is not the end of the route.
		for found && strings.Count(route, "[") > strings.Count(route, "]") {
			var more string
			more, mailbox, found = strings.Cut(mailbox, ":")
			route += ":" + more
		}
		if !found || mailbox == "" {
			return Path{}, &ParseError{Text: s, Err: ErrSyntax}
		}
		for hop := range strings.SplitSeq(route, ",") {
			domain, isHop := strings.CutPrefix(hop, "@")
			if !isHop {
				return Path{}, &ParseError{Text: s, Err: ErrSyntax}
			}
			if _, err := Normalize(domain); err != nil {
				return Path{}, err
			}
		}
		rest = mailbox
	}
	return Parse(rest)
}

// split takes a mailbox apart and removes the quoting of its local part. The
// domain comes back as it was written; it is empty when there is no @.
func split(s string) (local, domain string, err error) {
	if s[0] != '"' {
		at := strings.IndexByte(s, '@')
		if at < 0 {
			return s, "", nil
		}
		local, domain = s[:at], s[at+1:]
		if !isDotString(local) {
			return "", "", ErrLocal
		}
	} else {
		var end int
		if local, end, err = unquote(s); err != nil {
			return "", "", err
		}
		if end >= len(s) || s[end] != '@' {
			return "", "", ErrSyntax
		}
		domain = s[end+1:]
	}
	if domain == "" {
		return "", "", ErrNoDomain
	}
	return local, domain, nil
}

// unquote reads a Quoted-string at the start of s and says where it ends.
func unquote(s string) (text string, end int, err error) {
	var b strings.Builder
	escaped := false
	for i, r := range s[1:] {
		switch {
		case !isText(r) || escaped && r >= utf8.RuneSelf:
			// quoted-pairSMTP is ASCII (RFC 5321 §4.1.2).
			return "", 0, ErrLocal
		case escaped:
			escaped = false
			b.WriteRune(r)
		case r == '\\':
			escaped = true
		case r == '"':
			return b.String(), i + 2, nil
		default:
			b.WriteRune(r)
		}
	}
	return "", 0, ErrSyntax
}

// isDotString reports a local part that needs no quotes (RFC 5321 §4.1.2,
// with UTF-8 as RFC 6531 §3.3 adds it to atext).
func isDotString(s string) bool {
	if s == "" || s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..") {
		return false
	}
	for _, r := range s {
		if r != '.' && !isAtext(r) {
			return false
		}
	}
	return true
}

// isAtext follows RFC 5322 §3.2.3.
func isAtext(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return true
	case r >= utf8.RuneSelf:
		return isText(r)
	}
	return strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", r)
}

// isText reports what may stand in a quoted string: printing ASCII with the
// space, and UTF-8 without the C1 controls.
func isText(r rune) bool { return r >= ' ' && r < 0x7f || r >= 0xa0 }

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
