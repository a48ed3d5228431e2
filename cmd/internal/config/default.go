package config

import (
	"net/netip"
	"path/filepath"
	"time"
)

// Default is what holds when nothing is configured: everything in one process, mail accepted from this machine only.
func Default() Config {
	return Config{
		DataDir: "postroad-data",
		Roles:   AllRoles(),
		Queue:   Queue{Replicas: 1, MaxBytes: 10 << 30, Inbox: "_INBOX", Manage: true},
		Ingress: Ingress{
			Listeners:            []Listener{defaultListener()},
			MaxMessage:           50 << 20,
			MaxRecipients:        1000,
			MaxConnections:       1000,
			MaxClientConnections: 200,
			IdleTimeout:          5 * time.Minute,
			LoginFailures:        3,
			BanAfter:             20,
			BanTime:              10 * time.Minute,
			RepeatWindow:         time.Hour,
			Classes:              []ClientClass{},
			AllowedRecipients:    []string{},
			Rewrite:              Rewrite{RecipientDelimiter: "+"},
		},
		Signer: Signer{MissingKey: MissingHold, Domains: []SigningDomain{}, Window: 64, Rotation: Rotation{
			CheckEvery: time.Hour, Selector: "{algo}-{yyyymm}", Resolvers: []string{}, NameServerPort: 53, Hook: []string{}, UpdateTTL: 5 * time.Minute}},
		Secrets: Secrets{Vault: Vault{Mount: "secret", Prefix: "postroad", Transit: "transit", PKI: "pki", Login: VaultAppRole}},
		Delivery: Delivery{
			Retry:           "1m, 5m, 15m, 1h, 4h",
			RetryRules:      []RetryRule{},
			RetryJitter:     10,
			GreylistRetry:   6 * time.Minute,
			MaxAge:          5 * 24 * time.Hour,
			BounceMaxAge:    2 * 24 * time.Hour,
			Suppress:        defaultSuppress(),
			BounceLimit:     defaultBounceLimit(),
			DelayNotice:     4 * time.Hour,
			Chunking:        true,
			DoubleBounce:    DoubleBounceDiscard,
			BounceClasses:   []BounceClass{},
			BounceForward:   true,
			BounceMailboxes: []BounceMailbox{},
			BounceFeedback:  []string{},
			TLSPolicies:     TLSPolicies{DANE: true, MTASTS: true, Ignore: []string{}},
			SiteConnections: 20,
			Window:          2000,
			Shaping:         []Shaping{},
			Reactions:       []Reaction{},
			WarmUp:          defaultWarmUp(),
		},
		Log: Log{Level: LevelInfo, Format: FormatAuto},
	}
}

// defaultListener is a listener before its settings are read.
func defaultListener() Listener {
	return Listener{
		Address:         "127.0.0.1:2525",
		TrustedNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		TLS:             TLSNone,
		Auth:            AuthNone,
		Bounces:         BouncesRefuse,
		LineEnds:        LineEndsReject,
		Banner:          "ESMTP",
	}
}

// defaultClass is a class of clients before its settings are read.
func defaultClass() ClientClass {
	return ClientClass{
		ClientWindow: time.Hour,
		ClassWindow:  time.Hour,
		OverLimit:    OverLimitDefer,
		Submits:      true,
		Idempotent:   true,
	}
}

// Class is what holds for the clients of a class: trusted networks relay by default, accounts submit, and what comes back is bounded.
func (in *Ingress) Class(name string) ClientClass {
	for _, c := range in.Classes {
		if c.Name == name {
			return c
		}
	}
	c := defaultClass()
	c.Name, c.Submits = name, name != ClassNetwork
	if name == ClassBounces {
		c.ClassRecipients = DefaultBounceRecipients
	}
	return c
}

// DefaultBounceRecipients is how much may come back in an hour, where no class bounces says something else.
const DefaultBounceRecipients = 10_000

// Classes with a meaning of their own.
const (
	ClassNetwork = "network"
	ClassDefault = "default"
	ClassBounces = "bounces" // of what anybody sends to delivery.bounce_domain
)

func defaultRoute() Route {
	return Route{Via: "mx", TLS: RouteTLSOpportunistic}
}

// SocketPath is where the admin socket is.
func (c *Config) SocketPath() string {
	if c.Ops.Socket != "" {
		return c.Ops.Socket
	}
	return filepath.Join(c.DataDir, "ops.sock")
}

// SecretsDir is where keys are.
func (c *Config) SecretsDir() string {
	if c.Secrets.Dir != "" {
		return c.Secrets.Dir
	}
	return filepath.Join(c.DataDir, "secrets")
}

// HasRole tells whether this process has a role.
func (c *Config) HasRole(r Role) bool {
	for _, has := range c.Roles {
		if has == r {
			return true
		}
	}
	return false
}
