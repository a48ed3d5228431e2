package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/queue"
	"postroad/queue/address"
)

// Queue is where accepted mail goes. *queue.Queue is one.
type Queue interface {
	// NewID names a message before it is accepted.
	NewID() queue.MessageID
	// Accept stores the message: nil, and nothing else, allows a 250. An error
	// of payload.Read must make it fail with nothing kept. queue.ErrFull (also
	// wrapped) becomes 452 4.3.1, every other error 451.
	Accept(ctx context.Context, id queue.MessageID, env queue.Envelope, payload io.Reader) error
	// Full reports that new mail should be refused. It must not block.
	Full() bool
	// Record notes a fact. It must not block.
	Record(queue.Event)
	// Spend takes n from a limit that is counted over the whole cluster, all or nothing.
	Spend(ctx context.Context, key string, n int, l queue.Limit) (queue.Spent, error)
	// Seen finds the message that was accepted under a key before.
	Seen(ctx context.Context, key [32]byte) (queue.MessageID, bool, error)
	// Remember notes a key for Seen.
	Remember(ctx context.Context, key [32]byte, id queue.MessageID) error
}

var _ Queue = (*queue.Queue)(nil)

// AuthMode is how a listener takes accounts.
type AuthMode int

// The modes. Trusted networks need no account where it is optional; where it
// is required they do.
const (
	AuthNone AuthMode = iota
	AuthOptional
	AuthRequired
)

// Listener is one address to accept connections on.
type Listener struct {
	Address         string         // host:port; ":0" lets the kernel choose
	Socket          net.Listener   // taken instead of Address when set, for example from a supervisor
	TrustedNetworks []netip.Prefix // whose clients may relay; all others get 550 5.7.1 at RCPT. Empty: nobody
	TLS             *tls.Config    // offers STARTTLS when set
	Implicit        bool           // TLS from the first byte (RFC 8314 §3.3); needs TLS

	// Await waits for TLS that is not to be had yet, until its ctx ends; it takes the place of TLS. Until it returns, nobody listens on
	// Address: clients go elsewhere at once, and the other listeners serve.
	Await func(ctx context.Context) (*tls.Config, error)

	Auth        AuthMode // needs Options.Accounts
	AuthInClear bool     // AUTH also without TLS: passwords can be read on the way

	// ProxyNetworks are the addresses of load balancers. When there are any, a connection from them must begin with a PROXY header, which
	// says who the client is, and a connection from anybody else is refused.
	ProxyNetworks []netip.Prefix

	Bounces bool // anybody may send to the addresses of Options.Bounces

	Banner         string // said behind our name in the greeting; "ESMTP" by default
	NormalizeLines bool   // a bare LF becomes CRLF and a bare CR a blank, instead of 550; neither ever ends a message

	MaxConnections           int // on this listener; 0: as many as Options.MaxConnections lets in
	MaxConnectionsPerAddress int // on this listener; 0: as many as Options.MaxConnectionsPerAddress lets in
}

// Options say how to receive. A zero field takes the default of DefaultOptions.
type Options struct {
	Queue     Queue      // where mail goes; required
	Hostname  string     // our name in the banner, in EHLO and in Received; required
	Listeners []Listener // at least one

	OwnDomain string   // completes addresses without a domain (RFC 6409 §6.2); default: Hostname
	Accounts  Accounts // who may log in; needed where a listener asks for it
	Uses      Uses     // remembers who logged in with what; default: nobody
	Rewriter  Rewriter // default: addresses stay as they are
	Policy    Policy   // what the classes of clients may do
	Bounces   *Bounces // addresses of our own that anybody may send to; nil: none

	// TakesNoMail reports that the domain of a reverse-path says that it takes no mail (RFC 7505 §4.2): such mail is refused, for what comes back
	// of it would reach nobody. It is asked for clients only, must not take long, and says false when it does not know. Default: nobody is asked.
	TakesNoMail func(ctx context.Context, domain string) bool

	MaxMessageBytes  int64 // octets of a message as the client sends it, announced by SIZE; 50 MiB
	MaxRecipients    int   // recipients of one message; more get 452 4.5.3; 1000
	MaxHops          int   // Received fields of a message; more are a loop; 50
	MaxHeaderBytes   int   // octets of a message's header; 256 KiB
	MaxHeaderFields  int   // fields of a header; 1000. Lines of a header: five times as many
	PassLongLines    bool  // let lines above 998 octets through (RFC 5322 §2.1.1); false: 550 5.6.0
	MaxErrors        int   // 5xx replies since the last accepted message, before 421 and the end; 50
	MaxIdleCommands  int   // commands that bring no mail since the last accepted message, likewise; 100
	MaxCommandLength int   // octets of a command line with its CRLF; 4096 (RFC 5321 §4.5.3.1.4 with extensions)

	MaxConnections           int           // at once, over all listeners; 1000
	MaxConnectionsPerAddress int           // at once from one IPv4 address or IPv6 /64; 200
	MaxConnectionRate        int           // new ones a minute from an address that is not trusted; 0: any number
	MaxAuthFailures          int           // in one session, before 421 and the end; 3
	MaxStrikes               int           // sessions in a row from one address that we ended for errors, before it is banned; 20
	BanTime                  time.Duration // 10 min

	IdleTimeout      time.Duration // wait for a whole command, or for more of the body; 5 min (RFC 5321 §4.5.3.2.7)
	MessageTimeout   time.Duration // the longest that the content of one message may take; 1 h
	WriteTimeout     time.Duration // wait for the client to take replies; 1 min
	HandshakeTimeout time.Duration // of TLS; 30 s
	LingerTimeout    time.Duration // time to let a client read the last reply after we hang up; 2 s

	Logger     *slog.Logger          // default: discards
	Registerer prometheus.Registerer // default: metrics are kept but not registered
}

// DefaultOptions are the defaults of all fields that have one.
func DefaultOptions() Options {
	return Options{
		MaxMessageBytes:          50 << 20,
		MaxRecipients:            1000,
		MaxHops:                  50,
		MaxHeaderBytes:           256 << 10,
		MaxHeaderFields:          1000,
		MaxErrors:                50,
		MaxIdleCommands:          100,
		MaxCommandLength:         4096,
		MaxConnections:           1000,
		MaxConnectionsPerAddress: 200,
		MaxAuthFailures:          3,
		MaxStrikes:               20,
		BanTime:                  10 * time.Minute,
		IdleTimeout:              5 * time.Minute,
		MessageTimeout:           time.Hour,
		WriteTimeout:             time.Minute,
		HandshakeTimeout:         30 * time.Second,
		LingerTimeout:            2 * time.Second,
		Logger:                   slog.New(slog.DiscardHandler),
	}
}

// complete fills in defaults and checks what has none.
func (o *Options) complete() error {
	d := DefaultOptions()
	o.MaxMessageBytes = orDefault(o.MaxMessageBytes, d.MaxMessageBytes)
	o.MaxRecipients = orDefault(o.MaxRecipients, d.MaxRecipients)
	o.MaxHops = orDefault(o.MaxHops, d.MaxHops)
	o.MaxHeaderBytes = orDefault(o.MaxHeaderBytes, d.MaxHeaderBytes)
	o.MaxHeaderFields = orDefault(o.MaxHeaderFields, d.MaxHeaderFields)
	o.MaxErrors = orDefault(o.MaxErrors, d.MaxErrors)
	o.MaxIdleCommands = orDefault(o.MaxIdleCommands, d.MaxIdleCommands)
	o.MaxCommandLength = orDefault(o.MaxCommandLength, d.MaxCommandLength)
	o.MaxConnections = orDefault(o.MaxConnections, d.MaxConnections)
	o.MaxConnectionsPerAddress = orDefault(o.MaxConnectionsPerAddress, d.MaxConnectionsPerAddress)
	o.MaxAuthFailures = orDefault(o.MaxAuthFailures, d.MaxAuthFailures)
	o.MaxStrikes = orDefault(o.MaxStrikes, d.MaxStrikes)
	o.BanTime = orDefault(o.BanTime, d.BanTime)
	o.IdleTimeout = orDefault(o.IdleTimeout, d.IdleTimeout)
	o.MessageTimeout = orDefault(o.MessageTimeout, d.MessageTimeout)
	o.WriteTimeout = orDefault(o.WriteTimeout, d.WriteTimeout)
	o.HandshakeTimeout = orDefault(o.HandshakeTimeout, d.HandshakeTimeout)
	o.LingerTimeout = orDefault(o.LingerTimeout, d.LingerTimeout)
	if o.Logger == nil {
		o.Logger = d.Logger
	}
	if o.Rewriter == nil {
		o.Rewriter = unchanged{}
	}

	var errs []error
	if o.Queue == nil {
		errs = append(errs, errors.New("a queue is missing"))
	}
	if len(o.Listeners) == 0 {
		errs = append(errs, errors.New("a listener is missing"))
	}
	if name, err := address.Normalize(o.Hostname); err != nil {
		errs = append(errs, fmt.Errorf("hostname: %w", err))
	} else {
		o.Hostname = name
	}
	if o.OwnDomain == "" {
		o.OwnDomain = o.Hostname
	}
	if name, err := address.Normalize(o.OwnDomain); err != nil {
		errs = append(errs, fmt.Errorf("own domain: %w", err))
	} else {
		o.OwnDomain = name
	}
	if o.MaxCommandLength < 512 || o.MaxCommandLength > inputBytes/2 {
		errs = append(errs, fmt.Errorf("the longest command must be 512 to %d octets, not %d", inputBytes/2, o.MaxCommandLength))
	}
	for i := range o.Listeners {
		if l := &o.Listeners[i]; l.Bounces && (o.Bounces == nil || l.Auth == AuthRequired) {
			errs = append(errs, fmt.Errorf("listener %s: it takes bounces from anybody: that needs a domain for them, and no login", l.Address))
		}
		errs = append(errs, o.Listeners[i].check(o.Accounts != nil)...)
	}
	return errors.Join(errs...)
}

// check finds what is wrong with a listener.
func (l *Listener) check(hasAccounts bool) (errs []error) {
	fault := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("listener %s: "+format, append([]any{l.Address}, args...)...))
	}
	hasTLS := l.TLS != nil || l.Await != nil
	if l.Implicit && !hasTLS {
		fault("implicit TLS needs a certificate")
	}
	if l.Auth != AuthNone && !hasAccounts {
		fault("logging in needs accounts")
	}
	if l.Auth != AuthNone && !hasTLS && !l.AuthInClear {
		fault("logging in needs TLS, unless passwords may go in clear")
	}
	for _, trusted := range l.TrustedNetworks {
		if !trusted.IsValid() {
			fault("a trusted network is not valid")
		}
		for _, balancer := range l.ProxyNetworks {
			// Whoever reaches the balancer would be trusted when its own
			// connections are: health checks, or a header of the kind LOCAL.
			if plain(trusted).Overlaps(plain(balancer)) {
				fault("trusted network %s holds the load balancer %s, which makes an open relay", trusted, balancer)
			}
		}
	}
	for _, balancer := range l.ProxyNetworks {
		if !balancer.IsValid() {
			fault("the network of a load balancer is not valid")
		}
	}
	return errs
}

func orDefault[T int | int64 | time.Duration](value, otherwise T) T {
	if value > 0 {
		return value
	}
	return otherwise
}
