package daemon

import (
	"postroad/delivery/suppress"
)

// openSuppressions opens the list of those who are not to be written to. It stops after delivery, which tells it of refusals.
func (d *Daemon) openSuppressions() (*suppress.List, error) {
	s := d.c.Delivery.Suppress
	list, err := suppress.New(suppress.Options{
		Store: d.queue, Reasons: s.Reasons, After: s.After, Within: s.Within, Keep: s.Keep,
		Logger: d.log.With("part", "delivery"), Registerer: d.o.Registry,
	})
	if err != nil {
		return nil, err
	}
	d.onStart(list.Start)
	d.onStop(stageWork, "suppressions", opsLimit, list.Stop)
	d.watch(list.Conditions)
	return list, nil
}
