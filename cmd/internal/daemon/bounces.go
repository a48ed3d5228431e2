package daemon

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"postroad/cmd/internal/config"
	"postroad/delivery"
	"postroad/delivery/bounceclass"
	"postroad/ingress"
	"postroad/queue"
	"postroad/queue/address"
	"postroad/queue/verp"
)

const (
	ringEvery = time.Minute     // between two looks at the keys for bounce addresses
	ringSoon  = 2 * time.Second // while there are none
	keepEvery = time.Hour       // between two looks whether a new one is due
)

// setBounces fills in what becomes of mail that comes back.
func (d *Daemon) setBounces(o *delivery.Options) error {
	classes, err := bounceclass.New(d.c.Delivery.BounceRules())
	if err != nil {
		return fmt.Errorf("delivery.bounce_classes: %w", err)
	}
	o.Classes, o.DoubleBounce = classes, d.c.Delivery.DoubleBounceAddress()
	ring, err := d.bounceRing()
	if err != nil || ring == nil {
		return err
	}
	o.Bounces = &delivery.Bounces{Ring: ring, Origins: d.queue, Wanted: d.c.Ingress.WantsVERP, Forward: d.c.Delivery.BounceForward}
	return nil
}

// takenBack are the addresses at which ingress takes mail from anybody; nil: none.
func (d *Daemon) takenBack() (*ingress.Bounces, error) {
	ring, err := d.bounceRing()
	if err != nil || ring == nil {
		return nil, err
	}
	b := &ingress.Bounces{Ring: ring, Mailboxes: d.c.Delivery.BounceAddresses(), Feedback: make(map[string]bool)}
	for _, local := range d.c.Delivery.BounceFeedback {
		b.Feedback[strings.ToLower(local)] = true
	}
	return b, nil
}

// bounceRing makes and reads the addresses that bounces come back to, with the keys that the cluster has; nil: there are none.
func (d *Daemon) bounceRing() (*verp.Ring, error) {
	if d.ring != nil || d.c.Delivery.BounceDomain == "" {
		return d.ring, nil
	}
	name, err := address.Normalize(d.c.Delivery.BounceDomain)
	if err != nil {
		return nil, fmt.Errorf("delivery.bounce_domain: %w", err)
	}
	d.ring = verp.New(name)
	k := &ringKeeper{d: d, ring: d.ring, since: time.Now()}
	d.watch(k.conditions)
	d.background("bounce addresses", opsLimit, k.run)
	return d.ring, nil
}

// ringKeeper reads the keys for bounce addresses, again and again.
type ringKeeper struct {
	d     *Daemon
	ring  *verp.Ring
	since time.Time

	mu  sync.Mutex
	err error // of the last look
}

func (k *ringKeeper) run(ctx context.Context) error {
	for {
		keys, err := k.d.queue.SharedKeys(ctx, verp.KeyName)
		if err == nil {
			k.ring.SetKeys(keys)
		}
		k.mu.Lock()
		k.err = err
		k.mu.Unlock()
		pause := ringEvery
		if !k.ring.Ready() {
			pause = ringSoon
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// conditions tell of keys that are not there half a minute after the start.
func (k *ringKeeper) conditions() []queue.Condition {
	if k.ring.Ready() || time.Since(k.since) < 30*time.Second {
		return nil
	}
	c := queue.Condition{Part: "bounces", Since: k.since, Text: "there are no keys for bounce addresses: mail keeps its own reverse-path, bounces are answered 451",
		Do: "run a process with the role ops and the same delivery.bounce_domain: it makes them"}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil {
		c.Text += " (" + k.err.Error() + ")"
	}
	return []queue.Condition{c}
}

// keepBounceKeys makes the keys, in processes of operators: they may write them.
func (d *Daemon) keepBounceKeys() {
	if d.c.Delivery.BounceDomain == "" || !d.c.HasRole(config.RoleOps) {
		return
	}
	d.background("keys for bounce addresses", opsLimit, func(ctx context.Context) error {
		for {
			pause := keepEvery
			if err := d.queue.KeepSharedKeys(ctx, verp.KeyName, verp.KeyLife, verp.KeyKept); err != nil {
				d.log.Warn("keys for bounce addresses are not kept", "err", err)
				pause = ringEvery
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pause):
			}
		}
	})
}
