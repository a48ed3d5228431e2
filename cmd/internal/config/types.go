package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Role is one of the things that a process can do.
type Role string

// The roles.
const (
	RoleQueue    Role = "queue"
	RoleIngress  Role = "ingress"
	RoleSigner   Role = "signer"
	RoleDelivery Role = "delivery"
	RoleOps      Role = "ops"
)

// TLSMode is how a listener uses TLS.
type TLSMode string

// The modes of a listener.
const (
	TLSNone     TLSMode = "none"
	TLSStart    TLSMode = "starttls"
	TLSImplicit TLSMode = "implicit"
)

// AuthMode is how a listener takes accounts.
type AuthMode string

// The modes of logging in.
const (
	AuthNone     AuthMode = "none"
	AuthOptional AuthMode = "optional"
	AuthRequired AuthMode = "required"
)

// LineEnds is what happens to bare CR and LF.
type LineEnds string

// The ways to take line ends.
const (
	LineEndsReject    LineEnds = "reject"
	LineEndsNormalize LineEnds = "normalize"
)

// BounceMode is whether a listener takes what comes back.
type BounceMode string

// The modes.
const (
	BouncesRefuse BounceMode = "refuse"
	BouncesAccept BounceMode = "accept"
)

func (BounceMode) choices() []string { return words([]BounceMode{BouncesRefuse, BouncesAccept}) }

// OverLimit is the answer to a client that is over its limit.
type OverLimit string

// The answers.
const (
	OverLimitDefer  OverLimit = "defer"
	OverLimitReject OverLimit = "reject"
)

// MissingKey is what happens to mail of a domain without a key.
type MissingKey string

// The policies for a missing key.
const (
	MissingHold  MissingKey = "hold"
	MissingPass  MissingKey = "pass"
	MissingRelay MissingKey = "relay"
)

// VaultLogin is how a process logs in to Vault.
type VaultLogin string

// The ways to log in.
const (
	VaultAppRole    VaultLogin = "approle"
	VaultKubernetes VaultLogin = "kubernetes"
	VaultCert       VaultLogin = "cert"
	VaultToken      VaultLogin = "token"
)

// RouteTLS is how much a route insists on TLS.
type RouteTLS string

// The policies of a route.
const (
	RouteTLSNone          RouteTLS = "none"
	RouteTLSOpportunistic RouteTLS = "opportunistic"
	RouteTLSEncrypt       RouteTLS = "encrypt"
	RouteTLSVerify        RouteTLS = "verify"
)

// LogLevel is the least level that is written.
type LogLevel string

// The levels.
const (
	LevelDebug LogLevel = "debug"
	LevelInfo  LogLevel = "info"
	LevelWarn  LogLevel = "warn"
	LevelError LogLevel = "error"
)

// LogFormat is how log lines look.
type LogFormat string

// The formats.
const (
	FormatAuto LogFormat = "auto"
	FormatText LogFormat = "text"
	FormatJSON LogFormat = "json"
)

// choice is a setting with a fixed set of words.
type choice interface{ choices() []string }

func (Role) choices() []string      { return words(AllRoles()) }
func (TLSMode) choices() []string   { return words([]TLSMode{TLSNone, TLSStart, TLSImplicit}) }
func (AuthMode) choices() []string  { return words([]AuthMode{AuthNone, AuthOptional, AuthRequired}) }
func (LineEnds) choices() []string  { return words([]LineEnds{LineEndsReject, LineEndsNormalize}) }
func (OverLimit) choices() []string { return words([]OverLimit{OverLimitDefer, OverLimitReject}) }
func (MissingKey) choices() []string {
	return words([]MissingKey{MissingHold, MissingPass, MissingRelay})
}
func (VaultLogin) choices() []string {
	return words([]VaultLogin{VaultAppRole, VaultKubernetes, VaultCert, VaultToken})
}
func (RouteTLS) choices() []string {
	return words([]RouteTLS{RouteTLSNone, RouteTLSOpportunistic, RouteTLSEncrypt, RouteTLSVerify})
}
func (LogLevel) choices() []string {
	return words([]LogLevel{LevelDebug, LevelInfo, LevelWarn, LevelError})
}
func (LogFormat) choices() []string { return words([]LogFormat{FormatAuto, FormatText, FormatJSON}) }

// AllRoles are the roles in the order in which they start.
func AllRoles() []Role {
	return []Role{RoleQueue, RoleOps, RoleSigner, RoleDelivery, RoleIngress}
}

func words[T ~string](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = string(v)
	}
	return out
}

// Size is a number of octets, written 52428800, 50MiB, 10GiB, 1.5GiB or 50MB.
type Size int64

// units are tried in this order, so that MiB is not read as B.
var units = []struct {
	name   string
	octets int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// ParseSize reads a size.
func ParseSize(s string) (Size, error) {
	number, factor := strings.TrimSpace(s), int64(1)
	for _, u := range units {
		if n, ok := strings.CutSuffix(number, u.name); ok {
			number, factor = strings.TrimSpace(n), u.octets
			break
		}
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || strings.ContainsAny(number, "eExXpP_iInN") {
		return 0, fmt.Errorf("%q is no size: write octets or a number with a unit, such as 50MiB or 10GiB", s)
	}
	if f < 0 || f*float64(factor) >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is out of range", s)
	}
	if factor == 1 {
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is not a whole number of octets", s)
		}
		return Size(n), nil
	}
	return Size(f * float64(factor)), nil
}

// String prints the size with the largest binary unit that keeps it whole.
func (s Size) String() string {
	for _, u := range []int{3, 2, 1, 0} {
		if o := units[u].octets; s != 0 && int64(s)%o == 0 {
			return strconv.FormatInt(int64(s)/o, 10) + units[u].name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
