package retry

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	"postroad/delivery/smtpc"
)

// Failure is the kind of a temporary failure.
type Failure string

// The kinds of failures.
const (
	Connection Failure = "connection" // no connection, or it was lost
	Timeout    Failure = "timeout"    // the host did not answer in time
	Greylisted Failure = "greylisted" // the receiver wants to see us come again (RFC 6647)
	Quota      Failure = "quota"      // the mailbox is full
	TLS        Failure = "tls"        // not the TLS that is wanted
	DNS        Failure = "dns"        // the name service does not say where to go
	Other      Failure = "other"
)

// Failures are all kinds.
func Failures() []Failure {
	return []Failure{Connection, Timeout, Greylisted, Quota, TLS, DNS, Other}
}

// FailureOf tells the kind of a failure by its reply: the peer's, or what we said in its place.
func FailureOf(r smtpc.Reply) Failure {
	_, detail, _ := strings.Cut(r.Enhanced, ".")
	text := strings.ToLower(r.Text())
	switch {
	case r.Phase == smtpc.PhaseStartTLS, r.Local && (detail == "7.4" || detail == "7.5" || detail == "7.10"):
		return TLS
	case r.Local && detail == "4.3":
		return DNS
	case r.Local && strings.Contains(text, "timed out"):
		return Timeout
	case r.Local && (detail == "4.1" || detail == "4.2"):
		return Connection
	case r.Local:
		return Other
	case detail == "2.2", isQuota(text) && (r.Code == 450 || r.Code == 452 || r.Code == 552 || r.Code == 451):
		return Quota
	case isGreylisting(r.Code, r.Enhanced, text):
		return Greylisted
	}
	return Other
}

func isQuota(text string) bool {
	for _, word := range []string{"quota", "mailbox full", "mailbox is full", "over storage"} {
		if strings.Contains(text, word) {
			return true
		}
	}
	return false
}

// Words of receivers that greylist: those that name it, those that do not, and those of others who say much the same.
var (
	namesGreylist = regexp.MustCompile(`gr[ae]y[ -]?list`)
	asksToReturn  = regexp.MustCompile(`(try|come back|retry|attempt) (again )?(later|in \d|in a few|after)|first[- ]time|unknown triplet|not seen before`)
	meansOther    = regexp.MustCompile(`rate|too (many|fast|much)|limit|reputation|spam|block|black|throttl|busy|overload|load|resource|dns|helo|ehlo|virus|storage|space|internal|error`)
)

// isGreylisting recognises a reply by which a receiver sends away whom it does not know yet: 450 or 451 with 4.7.1 or 4.2.0 or no enhanced
// code (RFC 6647 §5.2). text is in lower case.
func isGreylisting(code int, enhanced, text string) bool {
	if code != 450 && code != 451 && code != 421 {
		return false
	}
	if namesGreylist.MatchString(text) {
		return true
	}
	return code != 421 && (enhanced == "4.7.1" || enhanced == "4.2.0") && asksToReturn.MatchString(text) && !meansOther.MatchString(text)
}

// WasGreylisted tells by the reason why a job waited, as notifications show replies, that greylisting was it.
func WasGreylisted(reason string) bool {
	code, rest, _ := strings.Cut(reason, " ")
	n, err := strconv.Atoi(code)
	if err != nil {
		return false
	}
	enhanced, text, _ := strings.Cut(rest, " ")
	if len(enhanced) < 5 || enhanced[0] != '4' || enhanced[1] != '.' {
		enhanced, text = "", rest
	}
	return isGreylisting(n, enhanced, strings.ToLower(text))
}

// Times that receivers name: "come back in 00:05:00", "greylisted for 300 seconds", "in 5 minutes".
var (
	namesClock = regexp.MustCompile(`\b(\d{1,2}):(\d{2}):(\d{2})\b`)
	namesTime  = regexp.MustCompile(`\b(\d{1,4}) ?(s|sec|second|m|min|minute)s?\b`)
)

// maxAsked is the longest time that a receiver can ask us to stay away for by the words of a greylisting.
const maxAsked = 15 * time.Minute

// askedWait is the time after which a greylisting receiver wants us back; 0: it does not say.
func askedWait(text string) time.Duration {
	var d time.Duration
	if m := namesClock.FindStringSubmatch(text); m != nil {
		for i, unit := range []time.Duration{time.Hour, time.Minute, time.Second} {
			n, _ := strconv.Atoi(m[i+1])
			d += time.Duration(n) * unit
		}
	} else if m := namesTime.FindStringSubmatch(strings.ToLower(text)); m != nil {
		n, _ := strconv.Atoi(m[1])
		if d = time.Duration(n) * time.Second; m[2][0] == 'm' {
			d = time.Duration(n) * time.Minute
		}
	}
	return min(d, maxAsked)
}
