package tlspolicy

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postroad/queue/address"
)

// Mode says what an MTA-STS policy wants done about a host that fails it (RFC 8461 §5).
type Mode string

// The modes.
const (
	Enforce Mode = "enforce" // do not deliver there
	Testing Mode = "testing" // deliver, and report
	NoMode  Mode = "none"    // as if there were no policy
)

// Bounds of MTA-STS (RFC 8461 §3.1 to §3.3).
const (
	maxPolicyBytes = 64 << 10
	maxPolicyAge   = 31557600 * time.Second // a year
	maxPatterns    = 200
	maxIDBytes     = 32
	maxAgeDigits   = 10
)

// STS is an MTA-STS policy.
type STS struct {
	Mode   Mode
	MaxAge time.Duration
	MX     []string // patterns, lower case: a host name, or *. and a domain
}

// Lines is the policy as it might have been published, for reports and for the store: without what says nothing to us.
func (s *STS) Lines() []string {
	lines := []string{"version: STSv1", "mode: " + string(s.Mode), "max_age: " + strconv.Itoa(int(s.MaxAge/time.Second))}
	for _, pattern := range s.MX {
		lines = append(lines, "mx: "+pattern)
	}
	return lines
}

// Causes of a refused policy or record; match them with errors.Is.
var (
	ErrPolicy = errors.New("not an MTA-STS policy")
	ErrRecord = errors.New("not an MTA-STS record")
)

// ParseSTS reads a policy (RFC 8461 §3.2). Unknown fields are left alone; of a field that comes twice the first one counts, but for mx.
func ParseSTS(text string) (STS, error) {
	var s STS
	if len(text) > maxPolicyBytes {
		return s, fmt.Errorf("%w: longer than 64 KiB", ErrPolicy)
	}
	seen := make(map[string]bool)
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" {
			continue
		}
		key, value, isField := strings.Cut(line, ":")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !isField || key == "" || hasControl(line) {
			return s, fmt.Errorf("%w: line %.100q", ErrPolicy, line)
		}
		if seen[key] && key != "mx" {
			continue
		}
		seen[key] = true
		if err := s.set(key, value); err != nil {
			return s, err
		}
	}
	switch {
	case !seen["version"], !seen["mode"], !seen["max_age"]:
		return s, fmt.Errorf("%w: version, mode or max_age is missing", ErrPolicy)
	case s.Mode != NoMode && len(s.MX) == 0:
		return s, fmt.Errorf("%w: no mx", ErrPolicy)
	}
	return s, nil
}

func (s *STS) set(key, value string) error {
	switch key {
	case "version":
		if value != "STSv1" {
			return fmt.Errorf("%w: version %.20q", ErrPolicy, value)
		}
	case "mode":
		s.Mode = Mode(value)
		if s.Mode != Enforce && s.Mode != Testing && s.Mode != NoMode {
			return fmt.Errorf("%w: mode %.20q", ErrPolicy, value)
		}
	case "max_age":
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil || len(value) > maxAgeDigits {
			return fmt.Errorf("%w: max_age %.20q", ErrPolicy, value)
		}
		s.MaxAge = time.Duration(min(n, uint64(maxPolicyAge/time.Second))) * time.Second
	case "mx":
		pattern, err := parsePattern(value)
		if err != nil {
			return fmt.Errorf("%w: mx %.300q: %w", ErrPolicy, value, err)
		}
		if len(s.MX) < maxPatterns {
			s.MX = append(s.MX, strings.Clone(pattern)) // not all of the text
		}
	}
	return nil
}

func parsePattern(s string) (string, error) {
	name, isWildcard := strings.CutPrefix(s, "*.")
	name, err := address.Normalize(strings.TrimSuffix(name, "."))
	if err != nil {
		return "", err
	}
	if address.IsLiteral(name) {
		return "", errors.New("an address")
	}
	if isWildcard {
		return "*." + name, nil
	}
	return name, nil
}

// Matches reports that a host of an MX record is one that the policy names. A wildcard stands for exactly one label (RFC 8461 §4.1).
func (s *STS) Matches(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	_, parent, _ := strings.Cut(host, ".")
	return slices.ContainsFunc(s.MX, func(pattern string) bool {
		base, isWildcard := strings.CutPrefix(pattern, "*.")
		return isWildcard && base == parent || !isWildcard && pattern == host
	})
}

// parseRecord gives the id in the TXT records of _mta-sts (RFC 8461 §3.1): exactly one may begin with v=STSv1.
func parseRecord(records []string) (id string, err error) {
	found := 0
	var record string
	for _, r := range records {
		if version, _, _ := strings.Cut(r, ";"); strings.TrimRight(version, " \t") == "v=STSv1" && strings.Contains(r, ";") {
			record = r
			found++
		}
	}
	if found != 1 {
		return "", fmt.Errorf("%w: %d records of version STSv1", ErrRecord, found)
	}
	for field := range strings.SplitSeq(record, ";") {
		key, value, _ := strings.Cut(strings.Trim(field, " \t"), "=")
		if key != "id" {
			continue
		}
		if value == "" || len(value) > maxIDBytes || strings.ContainsFunc(value, isNoIDRune) {
			return "", fmt.Errorf("%w: id %.50q", ErrRecord, value)
		}
		return value, nil
	}
	return "", fmt.Errorf("%w: no id", ErrRecord)
}

func isNoIDRune(r rune) bool {
	return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}
