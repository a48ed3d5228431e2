package acme

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"golang.org/x/crypto/acme"
)

// hints say what to do about problems (RFC 8555 §6.7).
var hints = map[string]string{
	"accountDoesNotExist":     "the account is gone: give --account NAME for another one",
	"badNonce":                "give the command again",
	"caa":                     "a CAA record of the domain forbids it: add this authority there",
	"connection":              "the authority cannot reach the name servers: see that they answer to everybody",
	"dns":                     "the authority cannot look the name up: see the delegation of its zone, DNSSEC, and that its name servers answer to everybody",
	"externalAccountRequired": "give --eab-kid and --eab-key-file, as the authority has told you",
	"incorrectResponse":       "the authority has seen another record: see who else publishes at that name",
	"invalidContact":          "give another --email",
	"rejectedIdentifier":      "it issues nothing for that name: leave it out, or ask another authority",
	"serverInternal":          "it is in trouble itself: try again later",
	"unauthorized":            "see that name servers show everybody the same, that no other command publishes at that name, and that the account may have this name",
	"unsupportedContact":      "give another --email",
	"userActionRequired":      "do what it says, perhaps agree to new terms",
}

// explain says what was being done, what the authority says of it, and what to do. ctx is that of the step.
func explain(ctx context.Context, err error, format string, args ...any) error {
	doing := fmt.Sprintf(format, args...)
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing, context.Cause(ctx))
	}
	if failed, is := errors.AsType[*acme.AuthorizationError](err); is {
		for _, one := range failed.Errors {
			if _, is := errors.AsType[*acme.Error](one); is {
				err = one
			}
		}
	}
	if failed, is := errors.AsType[*acme.OrderError](err); is && failed.Problem != nil {
		err = failed.Problem
	}
	problem, isProblem := errors.AsType[*acme.Error](err)
	_, isUnknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, isNoJSON := errors.AsType[*json.SyntaxError](err)
	switch {
	case isProblem:
		return fmt.Errorf("%s: %w", doing, said(problem))
	case isUnknown:
		return fmt.Errorf("%s: %w: if the authority is your own, give its root with --ca FILE", doing, err)
	case isNoJSON:
		return fmt.Errorf("%s: the answer is no JSON (%w): see that --directory is the directory of an ACME server", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// said is a problem in the authority's own words.
func said(p *acme.Error) error {
	kind := p.ProblemType[strings.LastIndex(p.ProblemType, ":")+1:]
	text := fmt.Sprintf("the authority says %d %s: %s", p.StatusCode, clean(kind), clean(p.Detail))
	for i, sub := range p.Subproblems {
		if i == 5 {
			break
		}
		text += "; " + clean(sub.String())
	}
	if p.Instance != "" {
		text += " (" + clean(p.Instance) + ")"
	}
	if wait, is := acme.RateLimit(p); is {
		at := "in some hours"
		if wait > 0 {
			at = "after " + time.Now().Add(wait).Format(time.DateTime)
		}
		return fmt.Errorf("%s: try again %s; a timer may as well do it at its next turn", text, at)
	}
	if hint := hints[kind]; hint != "" {
		text += ": " + hint
	}
	return errors.New(text)
}

// clean keeps what others wrote on one line, and bounds it.
func clean(s string) string {
	const octets = 500
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > octets {
		s = strings.ToValidUTF8(s[:octets], "") + "…"
	}
	return s
}
