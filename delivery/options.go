package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/delivery/bounceclass"
	"postroad/delivery/mx"
	"postroad/delivery/retry"
	"postroad/delivery/route"
	"postroad/delivery/smarthost"
	"postroad/delivery/smtpc"
	"postroad/delivery/source"
	"postroad/delivery/throttle"
	"postroad/delivery/tlspolicy"
	"postroad/queue"
	"postroad/queue/address"
)

// Queue is what a worker needs of the queue; *queue.Queue is one.
type Queue interface {
	// Deliver hands out ready jobs until ctx ends, at most window at a time, each on its own goroutine, and returns
	// when all of them have returned. The context that handle gets lives on after ctx has ended.
	Deliver(ctx context.Context, window int, handle func(context.Context, *queue.Delivery)) error
}

var _ Queue = (*queue.Queue)(nil)

// Routes say where mail leaves; a route.Table does. They may change between two questions.
type Routes interface {
	Lookup(route.Query) route.Route
}

var _ Routes = route.Table{}

// Options say how a Worker delivers. Queue, Hostname and Resolver are required.
type Options struct {
	Queue    Queue
	Hostname string // name of this host in EHLO and Reporting-MTA
	Domain   string // own domain, for the sender of notifications; default: Hostname
	Routes   Routes // default: everything goes to its MX hosts
	Resolver mx.Resolver
	// SmartHosts has the logins and certificates that routes name; without it mail of such routes waits.
	SmartHosts *smarthost.Keeper

	Retry       retry.Policy  // when it is tried again, and when it is given up; the zero Policy has defaults
	DelayNotice time.Duration // after this long the sender is told once that a message waits; default 4 h, negative: never

	DoubleBounce address.Path            // gets a copy of what fails and has no sender; zero: nobody does
	Classes      *bounceclass.Classifier // says why hosts refuse; default: the table of package bounceclass

	Bounces *Bounces // nil: the reverse-path stays as it is, and nothing comes back

	Window          int                 // jobs in hand at a time; default 2000
	Shaping         []throttle.Rule     // limits of sites; what they do not say is as package throttle has it
	Reactions       *throttle.Reactions // to replies; default: those that are built in
	Cluster         throttle.Cluster    // all workers together keep them; nil: this one keeps them alone
	SiteConnections int                 // connections at a time to one site from this worker, at most 1/16 of Window; default 20

	ConnectionMessages int // transactions on one connection; default 100

	TLS          smtpc.TLSMode       // for routes that say nothing; zero is TLSNone, DefaultOptions say TLSMay
	TLSPolicies  *tlspolicy.Policies // nil: what recipients' domains want is not looked up. Its owner closes it after the worker has stopped
	TLSReports   TLSReports          // nil: nothing is counted
	Timeouts     smtpc.Timeouts      // zero fields: the defaults of smtpc
	AllowPrivate bool                // MX hosts may have private, loopback or link-local addresses
	AllowLiteral bool                // mail to domains like [192.0.2.1] goes to that address

	// Sources choose where connections come from; default: the system's choice of addresses, and Hostname in EHLO.
	Sources  *source.Set
	OwnNames []string     // further names of this cluster in MX records: hosts that are not better than they are not tried
	OwnAddrs []netip.Addr // the same by address; those of the machine and of all sources are known

	Suppressor Suppressor // default: none
	Senders    Senders    // default: none

	Taps       Taps // default: nobody listens
	NoChunking bool // no message goes as a chunk, see smtpc.Options.Chunking

	Logger     *slog.Logger          // default: none
	Registerer prometheus.Registerer // default: none
}

// Defaults of Options.
const (
	DefaultDelayNotice        = 4 * time.Hour
	DefaultWindow             = 2000
	DefaultSiteConnections    = 20
	DefaultConnectionMessages = 100
)

// DefaultOptions are Options with every default filled in. Queue, Hostname and Resolver remain to be set.
func DefaultOptions() Options {
	return Options{
		Retry:              retry.DefaultPolicy(),
		DelayNotice:        DefaultDelayNotice,
		Window:             DefaultWindow,
		SiteConnections:    DefaultSiteConnections,
		TLS:                smtpc.TLSMay,
		ConnectionMessages: DefaultConnectionMessages,
	}
}

// complete fills in defaults and reports everything that is wrong.
func (o Options) complete() (Options, error) {
	var wrong []error
	if o.Queue == nil {
		wrong = append(wrong, errors.New("no queue given"))
	}
	if o.Resolver == nil {
		wrong = append(wrong, errors.New("no resolver given"))
	}
	if o.Routes == nil {
		o.Routes = route.Table{}
	}
	var err error
	if o.Hostname, err = address.Normalize(o.Hostname); err != nil {
		wrong = append(wrong, fmt.Errorf("host name: %w", err))
	}
	if o.Domain == "" {
		o.Domain = o.Hostname
	} else if o.Domain, err = address.Normalize(o.Domain); err != nil {
		wrong = append(wrong, fmt.Errorf("own domain: %w", err))
	}
	if o.Sources == nil && err == nil {
		o.Sources, err = source.New(source.Options{System: source.Source{Hostname: o.Hostname}})
		if err != nil {
			wrong = append(wrong, err)
		}
	}
	if o.Retry, err = o.Retry.Complete(); err != nil {
		wrong = append(wrong, err)
	}
	if o.Classes == nil {
		if o.Classes, err = bounceclass.New(nil); err != nil {
			wrong = append(wrong, err)
		}
	}
	setDefault(&o.DelayNotice, DefaultDelayNotice)
	setDefault(&o.Window, DefaultWindow)
	setDefault(&o.SiteConnections, DefaultSiteConnections)
	setDefault(&o.ConnectionMessages, DefaultConnectionMessages)
	if o.Window < 0 || o.SiteConnections < 0 || o.ConnectionMessages < 0 {
		wrong = append(wrong, errors.New("window, connections and messages must be above zero"))
	}
	if o.TLSPolicies == nil {
		o.TLSPolicies = tlspolicy.New(tlspolicy.Options{})
	}
	if o.Reactions == nil {
		if o.Reactions, err = throttle.NewReactions(); err != nil {
			wrong = append(wrong, err)
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if len(wrong) > 0 {
		return Options{}, fmt.Errorf("delivery options: %w", errors.Join(wrong...))
	}
	return o, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
