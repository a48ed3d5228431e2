// Package dkim joins the rotation of DKIM keys with what it needs of the rest: the policy of the configuration, what the DNS says, what
// the queue still holds, and whoever publishes records.
//
//	r, err := dkim.New(dkim.Options{Config: c, Store: keys, Sent: dkim.Count(ops)}) // for the commands
//	pass, err := r.Run(ctx, "example.com", demand) // see package rotation
//
//	k, err := dkim.NewKeeper(dkim.KeeperOptions{Config: c, Store: keys, Queue: q}) // for a signer
//	queue.Lead(ctx, dkim.Lease, k.Run)
//
//	signatures, err := dkim.Verify(ctx, dns, message)
//
//	p, err := dkim.NewProofs(c, time.Minute) // for who must prove that a name is ours, by a record that is published in the same way
//	remove, err := p.Publish(ctx, "_acme-challenge.relay.example.com", value)
package dkim

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"postroad/cmd/internal/config"
	"postroad/delivery/txt"
	"postroad/signer/keyring"
	"postroad/signer/rotation"
)

// Options say what a Rotator works on.
type Options struct {
	Config     *config.Config // checked; required
	Store      keyring.Store  // required
	Sent       rotation.Sent  // who counts queued mail; required
	By         string         // who asks for it
	AcceptDead []string       // name servers that need not answer
	// Local lets keys be made outside of the transit engine for a domain whose keys are there. Default: false.
	Local bool
	// Changed is called after each change of a key. Default: nothing.
	Changed func(ctx context.Context, domain string)
	// Make makes keys. Default: RSA of 2048 bits, Ed25519.
	Make   func(domain, selector string, algorithm keyring.Algorithm) (keyring.Key, error)
	Logger *slog.Logger // default: discards
}

// New makes a Rotator by the configuration.
func New(o Options) (*rotation.Rotator, error) {
	dns, err := NewDNS(o.Config, o.Logger)
	if err != nil {
		return nil, err
	}
	return newRotator(o, dns)
}

func newRotator(o Options, dns rotation.Publication) (*rotation.Rotator, error) {
	policy := PolicyOf(o.Config)
	policy.Local = o.Local
	r, err := rotation.New(rotation.Options{
		Store:       o.Store,
		Publication: dns,
		Sent:        o.Sent,
		Publisher:   publisherOf(&o.Config.Signer.Rotation),
		Policy:      policy,
		By:          o.By,
		AcceptDead:  o.AcceptDead,
		Changed:     o.Changed,
		Make:        o.Make,
		Logger:      o.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("signer.rotation: %w", err)
	}
	return r, nil
}

// Settle is after what time every signer has seen a change of a key, with no notice: they ask Vault four times a minute and see a change
// within 30 seconds; of a directory they see it within five. Until then a key that another one replaces goes on signing.
func Settle(c *config.Config) time.Duration {
	if c.Secrets.Vault.Address != "" {
		return 35 * time.Second
	}
	return 10 * time.Second
}

// PolicyOf is the policy of the configuration.
func PolicyOf(c *config.Config) rotation.Policy {
	r := &c.Signer.Rotation
	p := rotation.Policy{
		Settle:      Settle(c),
		Selector:    r.Selector,
		MaxQueueAge: c.Delivery.MaxAge,
		Overlap:     r.Overlap,
		RotateEvery: r.Every,
		KeepSpare:   r.KeepSpare,
		Resolvers:   len(r.Resolvers),
	}
	if p.Resolvers == 0 {
		p.Resolvers = 1 // a machine may know no more
	}
	return p
}

// publisherOf is who publishes records; nil: somebody by hand.
func publisherOf(r *config.Rotation) rotation.Publisher {
	switch {
	case len(r.Hook) > 0:
		return &rotation.Command{Argv: r.Hook}
	case r.UpdateServer != "":
		return update{txt.UpdateOptions{Server: r.UpdateServer, Zone: r.UpdateZone, KeyFile: r.UpdateKey}, r.UpdateTTL}
	}
	return nil
}

// update publishes by dynamic update.
type update struct {
	o   txt.UpdateOptions
	ttl time.Duration // of the records
}

// Publish implements rotation.Publisher.
func (u update) Publish(ctx context.Context, r rotation.Record) error {
	change := txt.Change{Op: txt.Replace, Name: r.Name, Value: r.Value, TTL: u.ttl}
	if r.Op == rotation.OpDelete {
		change.Op = txt.Delete
	}
	return txt.Update(ctx, u.o, change)
}
