package daemon

import (
	"context"

	"postroad/delivery"
)

// setDialogue lets operators hear the dialogues of the role delivery while they listen, and says how these go.
func (d *Daemon) setDialogue(o *delivery.Options) error {
	taps, err := d.queue.OpenTaps()
	if err != nil {
		return err
	}
	o.Taps, o.NoChunking = taps, !d.c.Delivery.Chunking
	d.onStop(stageWork, "taps", opsLimit, func(context.Context) error { taps.Close(); return nil })
	return nil
}
