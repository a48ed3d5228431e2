package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/ops"
	"postroad/cmd/internal/secrets"
	"postroad/delivery"
	"postroad/delivery/mx"
	"postroad/delivery/smtpc"
	"postroad/queue"
	"postroad/signer"
	"postroad/signer/keyring"
)

// How long each role may take to stop.
const (
	ingressLimit  = 10 * time.Second
	deliveryLimit = 30 * time.Second
	signerLimit   = 10 * time.Second
	opsLimit      = 5 * time.Second
)

func (d *Daemon) openOps(context.Context) error {
	d.o.Registry.MustRegister(ops.NewCollector(d.queue, d.log))
	s, err := ops.New(ops.Options{
		Queue:    d.queue,
		Socket:   d.c.SocketPath(),
		Address:  d.c.Ops.Address,
		Gatherer: d.o.Registry,
		Ready:    d.ready,
		Version:  d.o.Version,
		Self:     d.self,
		Embedded: d.store != nil,
		Logger:   d.log.With("part", "ops"),
	})
	if err != nil {
		return portHint(err, "ops.address")
	}
	d.ops = s
	d.keepBounceKeys()
	d.onStart(s.Start)
	d.onStop(stageOps, "ops", opsLimit, s.Stop)
	d.log.Info("admin socket open", "socket", d.c.SocketPath())
	if a := s.Addr(); a != nil {
		d.log.Info("health and metrics open", "address", a.String())
	}
	return nil
}

// openSecrets opens what keys and accounts are in. Without Vault nothing happens yet.
func (d *Daemon) openSecrets(ctx context.Context) error {
	var err error
	d.secrets, err = secrets.Open(secrets.Options{Config: d.c, Logger: d.log, Registerer: d.o.Registry})
	if err != nil {
		return err
	}
	if err := d.secrets.Start(ctx); err != nil {
		return err
	}
	d.onStop(stageSecrets, "secrets", opsLimit, d.secrets.Stop)
	d.watch(d.secrets.Conditions)
	return nil
}

func (d *Daemon) openSigner(ctx context.Context) error {
	if err := d.secrets.MakeDirectories("dkim"); err != nil {
		return err
	}
	keys, err := d.secrets.Keys()
	if err != nil {
		return err
	}
	if dir, is := keys.(*keyring.Dir); is {
		if err := dir.Check(ctx); err != nil {
			d.log.Warn("some keys cannot be used", "secrets", d.secrets.Where(), "err", err)
		}
		d.warnOfMissingKeys()
	}
	if err := d.secrets.Preload(); err != nil {
		return err
	}
	o := d.c.SignerOptions(d.domain)
	o.MaxAge, o.Window, o.Expiry = d.c.Delivery.MaxAge, d.c.Signer.Window, d.c.Signer.Expiry
	o.Queue, o.Keys = d.queue, keys
	o.Logger, o.Registerer = d.log.With("part", "signer"), d.o.Registry
	s, err := signer.New(o)
	if err != nil {
		return err
	}
	d.onStart(s.Start)
	d.onStop(stageWork, "signer", signerLimit, s.Stop)
	d.watch(s.Conditions)
	if err := d.openRotation(keys); err != nil {
		return err
	}
	d.facts = append(d.facts, func(facts map[string]string) {
		facts["keys"] = s.Summary()
		if d.secrets.IsVault() {
			facts["vault"] = d.secrets.Where()
		}
	})
	return nil
}

// warnOfMissingKeys tells a newcomer why no mail leaves.
func (d *Daemon) warnOfMissingKeys() {
	dir := filepath.Join(d.c.SecretsDir(), "dkim")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return
	}
	if d.c.Signer.MissingKey != config.MissingPass {
		d.log.Warn("there is no DKIM key: mail is accepted and waits for one; put keys in place, or set signer.missing_key: pass",
			"want", filepath.Join(dir, "DOMAIN", "SELECTOR.pem"))
	}
}

func (d *Daemon) openDelivery(context.Context) error {
	routes, err := d.openRoutes()
	if err != nil {
		return err
	}
	smartHosts, err := d.openSmartHosts()
	if err != nil {
		return err
	}
	policy, err := d.c.RetryPolicy()
	if err != nil {
		return fmt.Errorf("delivery.retry: %w", err)
	}
	o := delivery.Options{
		Queue:           d.queue,
		Hostname:        d.hostname,
		Domain:          d.domain,
		Routes:          routes,
		SmartHosts:      smartHosts,
		Resolver:        d.resolver(),
		Retry:           policy,
		DelayNotice:     d.c.Delivery.DelayNotice,
		Window:          d.c.Delivery.Window,
		SiteConnections: d.c.Delivery.SiteConnections,
		TLS:             smtpc.TLSMay,
		Logger:          d.log.With("part", "delivery"),
		Registerer:      d.o.Registry,
	}
	if err := d.setBounces(&o); err != nil {
		return err
	}
	if err := d.setTLS(&o); err != nil {
		return err
	}
	if o.DelayNotice == 0 {
		o.DelayNotice = -1 // never
	}
	if err := d.openSources(&o); err != nil {
		return err
	}
	if err := d.shape(&o); err != nil {
		return err
	}
	if o.Suppressor, err = d.openSuppressions(); err != nil {
		return err
	}
	if err := d.setDialogue(&o); err != nil {
		return err
	}
	if o.Senders, err = d.openSenders(); err != nil {
		return err
	}
	d.returnHeld()
	w, err := delivery.New(o)
	if err != nil {
		return err
	}
	d.watch(w.Conditions)
	d.onStart(w.Start)
	d.onStop(stageWork, "delivery", deliveryLimit, w.Stop)
	return nil
}

// resolver is the one name service of the process, with one cache.
func (d *Daemon) resolver() mx.Resolver {
	if d.o.Resolver != nil {
		return d.o.Resolver
	}
	if d.names == nil {
		d.names = d.newResolver()
	}
	return d.names
}

func (d *Daemon) newResolver() mx.Resolver {
	dns, err := mx.NewDNS(mx.DNSOptions{Servers: d.c.Delivery.Resolvers, Trusted: addrsOf(d.c.Delivery.TrustedResolvers)})
	if err != nil {
		d.log.Warn("no name servers: only routes to fixed hosts work; set delivery.resolvers", "err", err)
		c := queue.Condition{Part: "delivery", Text: "there are no name servers: mail goes to fixed hosts only", Do: "set delivery.resolvers", Since: time.Now()}
		d.watch(func() []queue.Condition { return []queue.Condition{c} })
		return noResolver{err}
	}
	return dns
}

// noResolver answers for a machine without name servers: mail to be looked up waits.
type noResolver struct{ cause error }

func (n noResolver) LookupMX(context.Context, string) (mx.MXAnswer, error) {
	return mx.MXAnswer{}, fmt.Errorf("%w: %w", mx.ErrLookup, n.cause)
}

func (n noResolver) LookupHost(context.Context, string) (mx.HostAnswer, error) {
	return mx.HostAnswer{}, fmt.Errorf("%w: %w", mx.ErrLookup, n.cause)
}

// portHint says what to do about a port that cannot be had.
func portHint(err error, setting string) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w: another program has this port; stop it, or change %s", err, setting)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: ports below 1024 need CAP_NET_BIND_SERVICE; give it, or change %s", err, setting)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w: this machine does not have that address; change %s", err, setting)
	}
	return err
}
