package daemon

import (
	"context"
	"time"

	"postroad/cmd/internal/dkim"
	"postroad/queue"
	"postroad/signer/keyring"
)

// rotationLimit is how long a step with a key may take to end: a hook that publishes a record, mostly.
const rotationLimit = 10 * time.Second

// openRotation has the DKIM keys of all domains looked after by one signer of the cluster, and all signers hear of changes.
func (d *Daemon) openRotation(keys keyring.Store) error {
	if err := d.follow(topicKeys, keys); err != nil {
		return err
	}
	keeper, err := dkim.NewKeeper(dkim.KeeperOptions{
		Config:     d.c,
		Store:      keys,
		Queue:      d.queue,
		OwnDomain:  d.domain,
		By:         d.node(),
		Logger:     d.log.With("part", "rotation"),
		Registerer: d.o.Registry,
	})
	if err != nil { // no reason to sign no mail
		d.log.Error("DKIM keys are not looked after: records are not checked, nothing is rotated", "err", err)
		c := queue.Condition{Part: "dkim", Text: "DKIM keys are not looked after: " + err.Error(), Since: time.Now()}
		d.watch(func() []queue.Condition { return []queue.Condition{c} })
		return nil
	}
	if keeper == nil {
		return nil
	}
	if err := d.onNotice(topicKeys, keeper.Notice); err != nil {
		return err
	}
	d.watch(keeper.Conditions)
	d.background("rotation", rotationLimit, func(ctx context.Context) error {
		d.queue.Lead(ctx, dkim.Lease, keeper.Run)
		return ctx.Err()
	})
	return nil
}
