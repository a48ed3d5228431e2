package daemon

import (
	"fmt"

	"postroad/delivery"
	"postroad/delivery/throttle"
)

// shape gives the role delivery its limits, which all processes keep together through the queue.
func (d *Daemon) shape(o *delivery.Options) error {
	reactions, err := throttle.NewReactions(d.c.Delivery.ReactionRules()...)
	if err != nil {
		return fmt.Errorf("delivery.reactions: %w", err)
	}
	o.Shaping, o.Reactions, o.Cluster = d.c.Delivery.ShapingRules(), reactions, throttle.Shared(d.queue)
	return nil
}
