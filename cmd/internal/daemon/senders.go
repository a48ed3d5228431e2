package daemon

import (
	"context"
	"math/rand/v2"
	"time"

	"postroad/cmd/internal/config"
	"postroad/delivery/bouncelimit"
	"postroad/queue"
)

// openSenders opens the watch over senders of whose mail too much is refused.
func (d *Daemon) openSenders() (*bouncelimit.Watch, error) {
	l := d.c.Delivery.BounceLimit
	w, err := bouncelimit.New(bouncelimit.Options{
		Store: d.queue, Policy: bouncelimit.Policy(l.Policy), By: bouncelimit.By(l.By), Window: l.Window, Share: l.Share, Least: l.Least, Count: l.Count,
		Exempt: l.Exempt, Logger: d.log.With("part", "delivery"), Registerer: d.o.Registry,
	})
	if err != nil {
		return nil, err
	}
	d.onStart(w.Start)
	d.onStop(stageWork, "bounce limit", opsLimit, w.Stop)
	d.watch(w.Conditions)
	return w, nil
}

// heldEvery is how often a process looks for mail that has been held for too long. All delivery processes do; each move is made once.
const heldEvery = time.Hour

// returnHeld sends mail back that has been held for longer than delivery.held_max_age.
func (d *Daemon) returnHeld() {
	most := d.c.Delivery.HeldMaxAge
	if most == 0 {
		return
	}
	why := "it was held for " + config.FormatDuration(most) + ", and nobody released it"
	d.background("held mail", opsLimit, func(ctx context.Context) error {
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(heldEvery/2 + rand.N(heldEvery)):
			}
			if n, err := d.queue.Return(ctx, queue.Selection{HeldFor: most}, why); n > 0 || err != nil {
				d.log.Info("mail that was held for too long goes back to its senders", "jobs", n, "err", err)
			}
		}
	})
}
