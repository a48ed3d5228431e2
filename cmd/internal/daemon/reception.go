package daemon

import (
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"

	"postroad/cmd/internal/config"
	"postroad/ingress"
	"postroad/ingress/account"
	"postroad/ingress/rewrite"
	"postroad/queue"
)

func (d *Daemon) openIngress(ctx context.Context) error {
	in := &d.c.Ingress
	o := ingress.Options{
		Queue:                    d.queue,
		Hostname:                 d.hostname,
		OwnDomain:                d.domain,
		MaxMessageBytes:          int64(in.MaxMessage),
		MaxRecipients:            in.MaxRecipients,
		MaxConnections:           in.MaxConnections,
		MaxConnectionsPerAddress: in.MaxClientConnections,
		MaxConnectionRate:        in.ConnectionRate,
		MaxAuthFailures:          in.LoginFailures,
		MaxStrikes:               in.BanAfter,
		BanTime:                  in.BanTime,
		IdleTimeout:              in.IdleTimeout,
		PassLongLines:            in.PassLongLines,
		Policy:                   policyOf(in),
		Uses:                     d.queue,
		Logger:                   d.log.With("part", "ingress"),
		Registerer:               d.o.Registry,
	}
	if in.RefuseNullMX {
		o.TakesNoMail = takesNoMail(d.resolver())
	}
	var err error
	if o.Accounts, err = d.openAccounts(ctx); err != nil {
		return err
	}
	if o.Bounces, err = d.takenBack(); err != nil {
		return err
	}
	if o.Rewriter, err = d.openRewriter(); err != nil {
		return err
	}
	sockets, err := d.systemdSockets()
	if err != nil {
		return err
	}
	for i := range in.Listeners {
		listener, err := d.listener(ctx, i, sockets)
		if err != nil {
			return fmt.Errorf("ingress.listeners[%d]: %w", i, err)
		}
		o.Listeners = append(o.Listeners, listener)
	}
	s, err := ingress.New(o)
	if err != nil {
		return portHint(err, "ingress.listeners")
	}
	d.ingress = s
	d.onStart(s.Start)
	d.onStop(stageIngress, "ingress", ingressLimit, s.Stop)
	for i, a := range s.Addrs() {
		if a == nil {
			continue // it waits for its certificate
		}
		l := &in.Listeners[i]
		d.log.Info("accepting mail", "address", a.String(), "tls", l.TLS, "auth", l.Auth, "trusted", l.TrustedNetworks)
	}
	return nil
}

// listener makes the i-th listener.
func (d *Daemon) listener(ctx context.Context, i int, sockets map[string]net.Listener) (ingress.Listener, error) {
	l := &d.c.Ingress.Listeners[i]
	modes := map[config.AuthMode]ingress.AuthMode{config.AuthNone: ingress.AuthNone, config.AuthOptional: ingress.AuthOptional, config.AuthRequired: ingress.AuthRequired}
	out := ingress.Listener{
		Address:                  l.Address,
		TrustedNetworks:          l.TrustedNetworks,
		Implicit:                 l.TLS == config.TLSImplicit,
		Auth:                     modes[l.Auth],
		AuthInClear:              l.AuthInClear,
		ProxyNetworks:            l.ProxyNetworks,
		Bounces:                  l.Bounces == config.BouncesAccept,
		Banner:                   l.Banner,
		NormalizeLines:           l.LineEnds == config.LineEndsNormalize,
		MaxConnections:           l.MaxConnections,
		MaxConnectionsPerAddress: l.MaxClientConnections,
	}
	if name, isSystemd := strings.CutPrefix(l.Address, config.SystemdPrefix); isSystemd {
		socket, isThere := sockets[name]
		if !isThere {
			return out, fmt.Errorf("systemd has given no socket with FileDescriptorName=%s", name)
		}
		out.Socket = socket
	}
	if l.TLS == config.TLSNone {
		return out, nil
	}
	return out, d.openTLS(ctx, l, &out)
}

// openAccounts reads accounts where a listener asks for them.
func (d *Daemon) openAccounts(ctx context.Context) (ingress.Accounts, error) {
	wanted := false
	for _, l := range d.c.Ingress.Listeners {
		wanted = wanted || l.Auth != config.AuthNone
	}
	if !wanted {
		return nil, nil
	}
	if err := d.secrets.MakeDirectories("clients"); err != nil {
		return nil, err
	}
	source, err := d.secrets.Clients()
	if err != nil {
		return nil, fmt.Errorf("open accounts: %w", err)
	}
	if err := d.follow(topicClients, source); err != nil {
		return nil, err
	}
	salt, err := d.saltKey(ctx)
	if err != nil {
		return nil, err
	}
	a, err := account.New(account.Options{Source: source, SaltKey: salt, Logger: d.log.With("part", "accounts"), Registerer: d.o.Registry})
	if err != nil {
		return nil, fmt.Errorf("open accounts: %w", err)
	}
	return a, nil
}

// openRewriter reads the rules for addresses; without any, addresses that lack a domain are completed all the same.
func (d *Daemon) openRewriter() (ingress.Rewriter, error) {
	r := &d.c.Ingress.Rewrite
	live, err := rewrite.NewLive(rewrite.LiveOptions{
		Files:      rewrite.Files{Rules: r.Rules, Aliases: r.Aliases, Delimiter: r.RecipientDelimiter, OwnDomain: d.domain},
		Logger:     d.log.With("part", "rewrite"),
		Registerer: d.o.Registry,
	})
	if err != nil {
		return nil, fmt.Errorf("ingress.rewrite: %w", err)
	}
	d.onStart(live.Start)
	d.onStop(stageWork, "rewrite", opsLimit, live.Stop)
	d.watch(live.Conditions)
	return live, nil
}

// systemdSockets are the sockets that systemd has opened for us, by name, when a listener wants one. A socket that no listener
// asks for would take clients whom nobody serves, so it is an error.
func (d *Daemon) systemdSockets() (map[string]net.Listener, error) {
	wanted := make(map[string]bool)
	for _, l := range d.c.Ingress.Listeners {
		if name, isSystemd := strings.CutPrefix(l.Address, config.SystemdPrefix); isSystemd {
			wanted[name] = true
		}
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	named, err := activation.ListenersWithNames()
	if err != nil {
		return nil, fmt.Errorf("take sockets from systemd: %w", err)
	}
	sockets, err := chooseSockets(named, wanted)
	if err != nil {
		for _, list := range named {
			for _, socket := range list {
				if socket != nil {
					_ = socket.Close() // the error is said already
				}
			}
		}
	}
	return sockets, err
}

// chooseSockets takes exactly the sockets that are wanted.
func chooseSockets(named map[string][]net.Listener, wanted map[string]bool) (map[string]net.Listener, error) {
	sockets := make(map[string]net.Listener)
	for name, list := range named {
		switch {
		case !wanted[name]:
			return nil, fmt.Errorf("systemd has opened a socket with FileDescriptorName=%s, and no listener has the address %s%s: add one, or remove the socket",
				name, config.SystemdPrefix, name)
		case len(list) != 1:
			return nil, fmt.Errorf("systemd has opened %d sockets with FileDescriptorName=%s: put each into a unit of its own, with a name of its own", len(list), name)
		case list[0] == nil:
			return nil, fmt.Errorf("the socket with FileDescriptorName=%s is no stream socket: use ListenStream=", name)
		}
		if _, isTCP := list[0].Addr().(*net.TCPAddr); !isTCP {
			return nil, fmt.Errorf("the socket with FileDescriptorName=%s is no TCP socket: its clients have no address", name)
		}
		sockets[name] = list[0]
	}
	return sockets, nil
}

// policyOf is what clients may do.
func policyOf(in *config.Ingress) ingress.Policy {
	p := ingress.Policy{
		Classes:    make(map[string]ingress.Class),
		Default:    classOf(in.Class(config.ClassDefault)),
		Recipients: in.AllowedRecipients,
	}
	for _, name := range []string{config.ClassNetwork, config.ClassBounces} {
		p.Classes[name] = classOf(in.Class(name))
	}
	for _, c := range in.Classes {
		p.Classes[c.Name] = classOf(c)
	}
	return p
}

func classOf(c config.ClientClass) ingress.Class {
	return ingress.Class{
		PerClient:       queue.Limit{Count: c.ClientRecipients, Window: c.ClientWindow},
		Together:        queue.Limit{Count: c.ClassRecipients, Window: c.ClassWindow},
		RejectOverLimit: c.OverLimit == config.OverLimitReject,
		Submits:         c.Submits,
		Idempotent:      c.Idempotent,
		HideReceived:    c.HideReceived,
		MaxHold:         c.MaxHold,
	}
}
