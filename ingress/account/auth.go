package account

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// What can become of a login, beside success. Errors wrap one of these, and say
// more for the log; the client learns no more than the sentinel.
var (
	// ErrCredentials refuses: 535 5.7.8. The account may be unknown or disabled,
	// the password wrong, the network not allowed: that is for the log only.
	ErrCredentials = errors.New("credentials are not valid")
	// ErrDisabled is an ErrCredentials.
	ErrDisabled = fmt.Errorf("the account is disabled: %w", ErrCredentials)
	// ErrNetwork is an ErrCredentials.
	ErrNetwork = fmt.Errorf("the account may not be used from this address: %w", ErrCredentials)
	// ErrThrottled did not look at the credentials: 454 4.7.0, and hang up.
	ErrThrottled = errors.New("too many failed logins")
	// ErrMalformed says that the client does not speak the mechanism: 501 5.5.2.
	ErrMalformed = errors.New("malformed response")
	// ErrMechanism says that there is no such mechanism here: 504 5.5.4.
	ErrMechanism = errors.New("unknown mechanism")
)

// The mechanisms.
const (
	External  = "EXTERNAL"           // RFC 4422 appendix A
	SCRAMPlus = "SCRAM-SHA-256-PLUS" // RFC 5802, RFC 7677
	SCRAM256  = "SCRAM-SHA-256"
	Plain     = "PLAIN" // RFC 4616
	Login     = "LOGIN" // obsolete, and all that some clients know
)

// AllMechanisms are those that we know, in the order in which they are offered.
func AllMechanisms() []string { return []string{External, SCRAMPlus, SCRAM256, Plain, Login} }

// Peer is the other end of a connection.
type Peer struct {
	Addr netip.Addr           // the client's own address
	TLS  *tls.ConnectionState // nil in clear
}

// Exchange is one login. It is for one goroutine.
type Exchange interface {
	// Next takes what the client sent: nil for no initial response, empty for an
	// empty one. While done is false, the challenge is to be sent, which may be
	// empty. An error ends the exchange. A refusal takes a second or more: it
	// ends early when ctx does.
	Next(ctx context.Context, response []byte) (challenge []byte, done bool, err error)
	// Client is who logged in, when Next said done.
	Client() *Client
	// Verifier tells by which password: its id, and whether it is the client's
	// newest. By certificate it is "" and true.
	Verifier() (id string, isNewest bool)
}

// Options configure an Authenticator. A zero field takes its default.
type Options struct {
	// Source finds the clients. Required.
	Source Source
	// Mechanisms are offered, as far as they are possible. Default: all. Without
	// SCRAM-SHA-256-PLUS, clients that know it may use SCRAM-SHA-256.
	Mechanisms []string
	// ClientCAs are who may sign client certificates; asked at each login by
	// certificate. Certificates that TLS has verified are good without it.
	// Default: nobody, so that only certificates with a listed fingerprint are.
	ClientCAs func() *x509.CertPool
	// SaltKey makes up the salts that SCRAM shows for unknown names. Processes
	// behind one address must share it, else they can be told apart from those
	// of known names. Default: random.
	SaltKey []byte

	// MaxParallel is how many hashes run at once. Default: half of the cores, at
	// least one.
	MaxParallel int
	// MaxWaiting is how many logins may wait for a hash. Default: 256.
	MaxWaiting int
	// ProvenFor is how long credentials that were right are recognised without a
	// hash after their last use. Default: 1 h.
	ProvenFor time.Duration

	// Delay is the least time that a refusal takes. It doubles with each
	// FreeFailures failures, up to LongestDelay. Defaults: 1 s, 5, 8 s.
	Delay        time.Duration
	FreeFailures int
	LongestDelay time.Duration
	// AddressFailures and AccountFailures are where an address or an account is
	// throttled: passwords are refused unheard. Defaults: 20, 50.
	AddressFailures int
	AccountFailures int
	// Forgive is the time after which one failure is forgotten. Default: 15 s.
	Forgive time.Duration

	// Logger gets a line when an address or an account begins to be throttled;
	// single logins are the caller's to log. Default: discards.
	Logger *slog.Logger
	// Registerer gets the metrics. Default: they are kept but not registered.
	Registerer prometheus.Registerer
}

// complete fills in defaults and checks what has none.
func (o *Options) complete() error {
	if o.Source == nil {
		return errors.New("a source of clients is missing")
	}
	if len(o.Mechanisms) == 0 {
		o.Mechanisms = AllMechanisms()
	}
	for _, m := range o.Mechanisms {
		if !slices.Contains(AllMechanisms(), m) {
			return fmt.Errorf("there is no mechanism %q: want %s", m, strings.Join(AllMechanisms(), ", "))
		}
	}
	if len(o.SaltKey) == 0 {
		o.SaltKey = make([]byte, 32)
		_, _ = rand.Read(o.SaltKey) // never fails
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.MaxParallel = orDefault(o.MaxParallel, max(1, runtime.GOMAXPROCS(0)/2))
	o.MaxWaiting = orDefault(o.MaxWaiting, 256)
	o.ProvenFor = orDefault(o.ProvenFor, time.Hour)
	o.Delay = orDefault(o.Delay, time.Second)
	o.FreeFailures = orDefault(o.FreeFailures, 5)
	o.LongestDelay = max(orDefault(o.LongestDelay, 8*time.Second), o.Delay)
	o.AddressFailures = orDefault(o.AddressFailures, 20)
	o.AccountFailures = orDefault(o.AccountFailures, 50)
	o.Forgive = orDefault(o.Forgive, 15*time.Second)
	return nil
}

func orDefault[T int | time.Duration](value, otherwise T) T {
	if value > 0 {
		return value
	}
	return otherwise
}

// Authenticator lets clients log in. It runs no goroutine and needs no end.
type Authenticator struct {
	options Options
	key     []byte // of digests, made anew with each process
	hashes  *hasher
	guard   *guard
	metrics *metrics

	mu      sync.Mutex
	proven  *table[digest, string] // text of the password that the credentials are right for
	refused *table[digest, string] // revision of the record that they were wrong for
}

// Bounds of what is remembered of credentials.
const (
	maxProven  = 50_000
	maxRefused = 10_000
	refusedFor = time.Hour
)

// New makes an Authenticator.
func New(o Options) (*Authenticator, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("make authenticator: %w", err)
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("make authenticator: %w", err)
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return &Authenticator{
		options: o,
		key:     key,
		hashes:  newHasher(o.MaxParallel, o.MaxWaiting, m.waiting),
		guard:   newGuard(&o),
		metrics: m,
		proven:  newTable[digest, string](maxProven, o.ProvenFor),
		refused: newTable[digest, string](maxRefused, refusedFor),
	}, nil
}

// Mechanisms are those that this peer can use, the best first. Whether a
// password may be sent in clear is for the caller to decide.
func (a *Authenticator) Mechanisms(peer Peer) []string {
	var out []string
	for _, m := range AllMechanisms() {
		if a.offers(m, peer) {
			out = append(out, m)
		}
	}
	return out
}

func (a *Authenticator) offers(mechanism string, peer Peer) bool {
	if !slices.Contains(a.options.Mechanisms, mechanism) {
		return false
	}
	switch mechanism {
	case External:
		return peer.TLS != nil && len(peer.TLS.PeerCertificates) > 0
	case SCRAMPlus:
		return canBind(peer.TLS)
	}
	return true
}

// Begin starts a login.
func (a *Authenticator) Begin(mechanism string, peer Peer) (Exchange, error) {
	mechanism = strings.ToUpper(mechanism)
	if !a.offers(mechanism, peer) {
		a.metrics.logins.WithLabelValues("other", "mechanism").Inc()
		return nil, ErrMechanism
	}
	t := &attempt{auth: a, mechanism: mechanism, peer: peer, from: addressKey(peer.Addr)}
	x := &exchange{attempt: t}
	switch mechanism {
	case External:
		x.step = t.external
	case Plain:
		x.step = t.plain
	case Login:
		x.step = (&login{attempt: t}).name
	default:
		x.step = (&scram{attempt: t, isPlus: mechanism == SCRAMPlus, mustBind: a.offers(SCRAMPlus, peer)}).first
	}
	return x, nil
}

// Current is the record of a client that logged in a while ago, as it is now.
// ErrCredentials says that it may not go on. While nothing is known, the record
// that it logged in with holds.
func (a *Authenticator) Current(ctx context.Context, c *Client, addr netip.Addr) (*Client, error) {
	t := &attempt{auth: a, peer: Peer{Addr: addr}, name: c.Name}
	v, err := t.look(ctx, a.options.Source.Client)
	if err != nil {
		return c, nil
	}
	return v.client, v.denied
}
