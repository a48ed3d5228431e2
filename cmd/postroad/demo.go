package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/daemon"
	"postroad/cmd/internal/ops"
	"postroad/cmd/internal/sink"
	"postroad/cmd/internal/telemetry"
	"postroad/queue"
	"postroad/signer/keyring"
)

type demoCmd struct {
	Once   bool   `help:"End after the first message: status 0 when it arrived with good signatures."`
	Listen string `default:"127.0.0.1:2525" placeholder:"ADDRESS" help:"Where mail is accepted."`
}

const (
	demoDomain  = "demo.example"
	demoTimeout = 30 * time.Second
	demoSender  = "rider@" + demoDomain
	demoForward = "you@elsewhere.example"
)

// demo is a running demo.
type demo struct {
	a       *app
	dir     string
	sink    *sink.Sink
	daemon  *daemon.Daemon
	address string
	socket  string
	records map[string]string // DNS name to TXT record
	arrived chan arrival
}

// Run shows the whole road.
func (c demoCmd) Run(a *app) (err error) {
	d, err := c.start(a)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), demoTimeout)
		defer cancel()
		err = errors.Join(err, d.stop(ctx))
	}()
	if err := d.first(); err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	if c.Once {
		return nil
	}
	d.invite()
	for {
		select {
		case <-a.ctx.Done():
			return nil
		case m := <-d.arrived:
			if err := d.report(m); err != nil {
				return err
			}
		}
	}
}

// start makes keys, a sink and a server with every role, all in a temporary directory.
func (c demoCmd) start(a *app) (_ *demo, err error) {
	dir, err := os.MkdirTemp("", "postroad-demo-")
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	d := &demo{a: a, dir: dir, records: make(map[string]string), arrived: make(chan arrival, 100)}
	defer func() {
		if err != nil {
			_ = d.stop(context.WithoutCancel(a.ctx))
		}
	}()
	secrets := filepath.Join(dir, "secrets")
	for selector, algorithm := range map[string]keyring.Algorithm{"rsa": keyring.RSA, "ed25519": keyring.Ed25519} {
		key, err := keyring.Generate(secrets, demoDomain, selector, algorithm)
		if err != nil {
			return nil, fmt.Errorf("demo: make key: %w", err)
		}
		d.records[selector+"._domainkey."+demoDomain] = keyring.Record(key)
	}
	if d.sink, err = sink.New(sink.Options{Hostname: "mx.elsewhere.example", Message: d.take}); err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	d.sink.Start()
	cfg := d.config(c.Listen, secrets)
	if err := cfg.Check(); err != nil {
		return nil, usage("--listen: %w", err)
	}
	log := telemetry.NewLogger(a.err, telemetry.LogOptions{Level: slog.LevelWarn, Format: telemetry.FormatText})
	d.daemon, err = daemon.New(a.ctx, daemon.Options{Config: cfg, Logger: log, Version: version()})
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("demo: %s is in use by another program (another demo?): stop it, or choose another with --listen 127.0.0.1:2526", c.Listen)
	}
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	d.daemon.Start()
	d.address, d.socket = d.daemon.Addrs()[0].String(), cfg.SocketPath()
	if !a.flags.JSON {
		a.say("Every role runs in this process; its data is in %s and goes when it ends.\n", dir)
		a.say("Mail is accepted on %s. A sink on %s plays the rest of the world.\n\n", d.address, d.sink.Addr())
	}
	return d, nil
}

func (d *demo) config(listen, secrets string) *config.Config {
	c := config.Default()
	c.Hostname, c.Domain = "relay."+demoDomain, demoDomain
	c.DataDir = filepath.Join(d.dir, "data")
	c.Secrets.Dir = secrets
	c.Queue.MaxBytes = 1 << 30
	c.Ingress.Listeners[0].Address = listen
	c.Signer.MissingKey = config.MissingPass // mail of other domains is welcome too
	c.Signer.Rotation.CheckEvery = 0         // there is no such domain in the DNS
	c.Delivery.Routes = []config.Route{{
		Domains: []string{"*"}, Via: fmt.Sprintf("smtp:[127.0.0.1]:%d", d.sink.Addr().(*net.TCPAddr).Port),
		TLS: config.RouteTLSNone, AllowPrivate: true,
	}}
	return &c
}

func (d *demo) stop(ctx context.Context) error {
	var errs []error
	if d.daemon != nil {
		errs = append(errs, d.daemon.Stop(ctx))
	}
	if d.sink != nil {
		errs = append(errs, d.sink.Stop(ctx))
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

// first sends a message through, checks its signatures and prints its way.
func (d *demo) first() error {
	ctx, cancel := context.WithTimeout(d.a.ctx, demoTimeout)
	defer cancel()
	sent := time.Now()
	reply, err := sendMail(ctx, d.address, demoSender, demoForward, demoMessage)
	if err != nil {
		return err
	}
	if !d.a.flags.JSON {
		d.a.say("Sent a message from <%s> to <%s>: %s\n", demoSender, demoForward, reply)
	}
	var m arrival
	select {
	case m = <-d.arrived:
	case <-ctx.Done():
		return fmt.Errorf("the message did not arrive within %v: %w", demoTimeout, ctx.Err())
	}
	if !d.a.flags.JSON {
		d.a.say("It arrived %v after it was sent.\n", m.at.Sub(sent).Round(100*time.Microsecond))
	}
	if err := d.report(m); err != nil {
		return err
	}
	if err := mustBeSigned(m.signatures); err != nil {
		return err
	}
	return d.way(ctx, idOf(reply))
}

// way prints the trace once it is complete: events come in bundles, a moment after the fact.
func (d *demo) way(ctx context.Context, id string) error {
	c := ops.NewClient(d.socket)
	for {
		events, err := collect(c.Trace(ctx, ops.TraceFilter{ID: id}))
		if err != nil {
			return fmt.Errorf("trace: %w", err)
		}
		if len(events) > 0 && events[len(events)-1].Type == queue.Finished {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the trace of %s is not complete: %w", id, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
	if d.a.flags.JSON {
		return printEvents(d.a, c.Trace(ctx, ops.TraceFilter{ID: id}))
	}
	d.a.say("\nIts way, as `postroad trace %s` tells it:\n", id)
	return story(d.a, c, ops.TraceFilter{ID: id})
}

// invite says how to send more.
func (d *demo) invite() {
	if d.a.flags.JSON {
		return
	}
	host, port, _ := net.SplitHostPort(d.address)
	lines := []string{
		"",
		"Send more from another terminal; each message is shown here. Paste",
		"",
		fmt.Sprintf("  swaks --server %s --from you@%s --to anyone@elsewhere.example", d.address, demoDomain),
		"",
		"or, without swaks,",
		"",
		fmt.Sprintf("  (for l in 'EHLO me.example' 'MAIL FROM:<you@%s>' 'RCPT TO:<anyone@elsewhere.example>' DATA $'From: you@%s\\r\\nSubject: hello\\r\\n\\r\\nhello\\r\\n.' QUIT; do sleep 0.2; printf '%%s\\r\\n' \"$l\"; done) | nc %s %s", demoDomain, demoDomain, host, port),
		"",
		"and ask the running server, for example:",
		"",
		fmt.Sprintf("  go run ./cmd/postroad --socket %s trace --since 1h", d.socket),
		fmt.Sprintf("  go run ./cmd/postroad --socket %s queue list", d.socket),
		"",
		"Ctrl-C ends the demo.",
		"",
		"",
	}
	d.a.say("%s", strings.Join(lines, "\n"))
}
