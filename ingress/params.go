package ingress

import (
	"bytes"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"postroad/queue"
	"postroad/queue/address"
)

// offer is what the session has offered to the client in the answer to EHLO.
type offer struct {
	isESMTP, isTLS, hasAuth bool
	// maxHold is how long mail may be held on request; 0: FUTURERELEASE is not offered.
	maxHold time.Duration
}

// mailCommand is a MAIL command as it was read (RFC 5321 §4.1.1.2).
type mailCommand struct {
	path  address.Path
	size  int64 // announced by SIZE= (RFC 1870), 0 if not
	envid string
	ret   string
	flags queue.Flags
	// times are what was said of the time: when the mail is to go out and by when to arrive.
	times times
	// unqualified is a local part that came without a domain: path is empty then.
	unqualified string
	err         error // a *refusal when the command is malformed
}

// times are the parameters of MAIL that speak of time.
type times struct {
	said     string    // as they came
	hold     time.Time // HOLDFOR= or HOLDUNTIL= (RFC 4865); zero: not given
	by       int64     // seconds of BY= (RFC 2852)
	hasBy    bool
	isReturn bool // mode R
	isTraced bool
}

// rcptCommand is a RCPT command as it was read (RFC 5321 §4.1.1.3).
type rcptCommand struct {
	recipient queue.Recipient
	hasUTF8   bool // the address was not written in ASCII
	// unqualified is a local part that came without a domain: the path is empty then.
	unqualified string
	err         error
}

const (
	maxEnvid = 100 // RFC 3461 §5.4
	maxOrcpt = 500 // RFC 3461 §5.4
)

// parseMail reads what follows MAIL.
func parseMail(arg []byte, o offer) mailCommand {
	var m mailCommand
	rest, hasFrom := cutPrefixFold(arg, "FROM:")
	if !hasFrom {
		m.err = errArguments
		return m
	}
	path, params, hasPath := cutPath(rest)
	if !hasPath {
		m.err = errReversePath
		return m
	}
	hasUTF8 := !isASCII(path)
	var err error
	switch m.path, err = address.ParseForward(string(path)); {
	case errors.Is(err, address.ErrNoDomain):
		m.unqualified = string(path)
	case err != nil:
		m.err = pathRefusal(err, errReversePath)
		return m
	}
	if !o.isESMTP && len(params) > 0 {
		m.err = errParameter
		return m
	}
	var seen [12]string
	read := func(key, value string, hasValue bool) error { return m.param(o, key, value, hasValue) }
	if m.err = eachParam(params, seen[:0], read); m.err == nil && hasUTF8 && !m.flags.SMTPUTF8 {
		m.err = errNeedsUTF8
	}
	return m
}

// param reads one parameter of MAIL.
func (m *mailCommand) param(o offer, key, value string, hasValue bool) error {
	switch key {
	case "SIZE": // RFC 1870 §4: up to 20 digits
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil && !errors.Is(err, strconv.ErrRange) {
			return errParameterValue
		}
		m.size = int64(min(n, math.MaxInt64))
	case "BODY": // RFC 6152 §2
		switch {
		case strings.EqualFold(value, "8BITMIME"):
			m.flags.EightBit = true
		case !strings.EqualFold(value, "7BIT"):
			return errParameterValue
		}
	case "SMTPUTF8": // RFC 6531 §3.4
		if hasValue {
			return errParameterValue
		}
		m.flags.SMTPUTF8 = true
	case "RET": // RFC 3461 §4.3
		m.ret = strings.ToUpper(value)
		if m.ret != "FULL" && m.ret != "HDRS" {
			return errParameterValue
		}
	case "ENVID": // RFC 3461 §4.4
		if value == "" || len(value) > maxEnvid || !isXtext(value) {
			return errParameterValue
		}
		m.envid = value
	case "REQUIRETLS": // RFC 8689 §3
		if !o.isTLS {
			return errParameter
		}
		if hasValue {
			return errParameterValue
		}
		m.flags.RequireTLS = true
	case "HOLDFOR", "HOLDUNTIL": // RFC 4865 §4
		if o.maxHold == 0 {
			return errParameter
		}
		return m.times.readHold(key, value, time.Now(), o.maxHold)
	case "BY": // RFC 2852 §4
		return m.times.readBy(value)
	case "AUTH": // RFC 4954 §5: who wrote it first is not passed on
		if !o.hasAuth {
			return errParameter
		}
		if value != "<>" && !isXtext(value) {
			return errParameterValue
		}
	default:
		return errParameter
	}
	return nil
}

// readHold reads HOLDFOR=, seconds, or HOLDUNTIL=, a date-time of RFC 3339. What is past is no hold.
func (t *times) readHold(key, value string, now time.Time, most time.Duration) error {
	if !t.hold.IsZero() {
		return errParameterTwice // one of the two
	}
	if key == "HOLDFOR" {
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || len(value) > 9 {
			return errParameterValue
		}
		t.hold = now.Add(time.Duration(n) * time.Second)
	} else {
		at, err := time.Parse(time.RFC3339, value)
		if err != nil {
			return errParameterValue
		}
		t.hold = at
	}
	if t.hold.Sub(now) > most {
		return errHoldTooLong
	}
	t.said += " " + key + "=" + value
	return nil
}

// minDeliverBy is the shortest time, in seconds, for which we promise to return what is not delivered by then: a first retry
// takes place within a minute.
const minDeliverBy = 60

// readBy reads seconds, which may be past in mode N, ";", the mode and a wish for traces.
func (t *times) readBy(value string) error {
	seconds, mode, _ := strings.Cut(strings.ToUpper(value), ";")
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil || len(strings.TrimLeft(seconds, "+-")) > 9 {
		return errParameterValue
	}
	mode, t.isTraced = strings.CutSuffix(mode, "T")
	t.isReturn = mode == "R"
	switch {
	case !t.isReturn && mode != "N", t.isReturn && n <= 0:
		return errParameterValue
	case t.isReturn && n < minDeliverBy:
		return errDeadline
	}
	t.by, t.hasBy = n, true
	t.said += " BY=" + value
	return nil
}

// deadline is what BY= says of a message that was accepted now. The time counts from its release.
func (t *times) deadline(now time.Time) queue.Deadline {
	if !t.hasBy {
		return queue.Deadline{}
	}
	from := now
	if t.hold.After(now) {
		from = t.hold
	}
	return queue.Deadline{At: from.Add(time.Duration(t.by) * time.Second), Return: t.isReturn, Trace: t.isTraced}
}

// parseRcpt reads what follows RCPT.
func parseRcpt(arg []byte) rcptCommand {
	var r rcptCommand
	rest, hasTo := cutPrefixFold(arg, "TO:")
	if !hasTo {
		r.err = errArguments
		return r
	}
	path, params, hasPath := cutPath(rest)
	if !hasPath {
		r.err = errForwardPath
		return r
	}
	r.hasUTF8 = !isASCII(path)
	var err error
	switch r.recipient.Path, err = address.ParseForward(string(path)); {
	case errors.Is(err, address.ErrNoDomain):
		r.unqualified = string(path)
	case err != nil:
		r.err = pathRefusal(err, errForwardPath)
		return r
	case r.recipient.Path.IsNull(): // <>
		r.err = errForwardPath
		return r
	}
	var seen [8]string
	r.err = eachParam(params, seen[:0], r.param)
	return r
}

// param reads one parameter of RCPT.
func (r *rcptCommand) param(key, value string, _ bool) error {
	switch key {
	case "ORCPT": // RFC 3461 §4.2, RFC 6533 §3
		kind, text, hasText := strings.Cut(value, ";")
		if !hasText || !isAtom(kind) || text == "" || len(value) > maxOrcpt {
			return errParameterValue
		}
		if !isXtext(text) && !(strings.EqualFold(kind, "utf-8") && isUnitext(text)) {
			return errParameterValue
		}
		r.recipient.ORCPT = value
	case "NOTIFY": // RFC 3461 §4.1
		for word := range strings.SplitSeq(strings.ToUpper(value), ",") {
			switch word {
			case "NEVER", "SUCCESS", "FAILURE", "DELAY":
			default:
				return errParameterValue
			}
			for _, other := range r.recipient.Notify {
				if word == "NEVER" || other == "NEVER" || word == other {
					return errParameterValue
				}
			}
			r.recipient.Notify = append(r.recipient.Notify, word)
		}
	default:
		return errParameter
	}
	return nil
}

// eachParam calls read for every parameter, its keyword in upper case.
func eachParam(params []byte, seen []string, read func(key, value string, hasValue bool) error) error {
	for word := range bytes.FieldsSeq(params) {
		key, value, hasValue := strings.Cut(string(word), "=")
		if hasValue && value == "" {
			return errParameterValue
		}
		key = strings.ToUpper(key)
		for _, other := range seen {
			if other == key {
				return errParameterTwice
			}
		}
		seen = append(seen, key)
		if err := read(key, value, hasValue); err != nil {
			return err
		}
	}
	return nil
}

// cutPath takes <path> off the front of s; brackets inside of quotes do not
// count. Blanks before it are tolerated, as everywhere.
func cutPath(s []byte) (path, params []byte, ok bool) {
	s = bytes.TrimLeft(s, " ")
	if len(s) == 0 || s[0] != '<' {
		return nil, nil, false
	}
	inQuotes := false
	for i := 1; i < len(s); i++ {
		switch b := s[i]; {
		case inQuotes && b == '\\':
			i++
		case b == '"':
			inQuotes = !inQuotes
		case !inQuotes && b == '>':
			params = s[i+1:]
			if len(params) > 0 && params[0] != ' ' {
				return nil, nil, false
			}
			return s[1:i], params, true
		}
	}
	return nil, nil, false
}

func cutPrefixFold(s []byte, prefix string) ([]byte, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(string(s[:len(prefix)]), prefix) {
		return nil, false
	}
	return s[len(prefix):], true
}

// isXtext follows RFC 3461 §4; the decoded text is printing ASCII.
func isXtext(s string) bool {
	for i := 0; i < len(s); i++ {
		switch b := s[i]; {
		case b == '+':
			if i+2 >= len(s) || !isUpperHex(s[i+1]) || !isUpperHex(s[i+2]) {
				return false
			}
			if n, _ := strconv.ParseUint(s[i+1:i+3], 16, 8); n < ' ' || n > '~' {
				return false
			}
			i += 2
		case b < '!' || b > '~' || b == '=':
			return false
		}
	}
	return true
}

// isUnitext takes what utf-8-addr-unitext may hold (RFC 6533 §3), roughly: it
// is carried and never decoded.
func isUnitext(s string) bool {
	for _, r := range s {
		if r < '!' || r == 0x7f || r == '+' || r == '=' || r == '\uFFFD' || r >= 0x80 && r < 0xa0 {
			return false
		}
	}
	return true
}

func isUpperHex(b byte) bool { return b >= '0' && b <= '9' || b >= 'A' && b <= 'F' }

func isAtom(s string) bool {
	for i := range len(s) {
		if b := s[i]; !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '-') {
			return false
		}
	}
	return s != ""
}

func isASCII(p []byte) bool {
	for _, b := range p {
		if b >= 0x80 {
			return false
		}
	}
	return true
}
