package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"postroad/queue"
	"postroad/queue/address"
	"postroad/queue/embedded"
)

// identify finds out the names of this machine.
func (d *Daemon) identify() error {
	name, given := d.c.Hostname, true
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return fmt.Errorf("find the name of this machine: %w: set hostname", err)
		}
		given = false
	}
	clean, err := address.Normalize(name)
	if err != nil || address.IsLiteral(clean) {
		return fmt.Errorf("the name of this machine, %q, is no domain name: set hostname", name)
	}
	d.hostname, d.domain = clean, clean
	if !given {
		d.log.Info("no hostname configured, taking the machine's", "hostname", clean)
	}
	if d.c.Domain == "" {
		return nil
	}
	if d.domain, err = address.Normalize(d.c.Domain); err != nil {
		return fmt.Errorf("domain: %w", err)
	}
	return nil
}

func (d *Daemon) node() string {
	if d.c.Queue.Node != "" {
		return d.c.Queue.Node
	}
	return d.hostname + "-" + strconv.Itoa(os.Getpid())
}

// openQueue opens the queue, and its store when that is embedded.
func (d *Daemon) openQueue(ctx context.Context) error {
	o := queue.Options{
		Node:              d.node(),
		Replicas:          d.c.Queue.Replicas,
		MaxBytes:          int64(d.c.Queue.MaxBytes),
		SeenWindow:        d.c.Ingress.RepeatWindow,
		Logger:            d.log.With("part", "queue"),
		AckWait:           d.o.AckWait,
		RecreateConsumers: d.o.RecreateConsumers,
		Follow:            !d.c.Queue.Manage,
	}
	unclean := false
	if len(d.c.Queue.URLs) > 0 {
		if err := d.checkMonitors(ctx); err != nil {
			return err
		}
		o.Connect = d.dialer()
		d.log.Info("queue outside this process", "urls", d.c.Queue.URLs)
	} else {
		store, err := d.openStore()
		if err != nil {
			return err
		}
		o.Connect, unclean = store.Connect, store.Unclean()
	}
	q, err := queue.Open(ctx, o)
	if err != nil {
		return fmt.Errorf("open queue: %w", err)
	}
	d.queue = q
	d.watch(q.Conditions)
	d.onStop(stageQueue, "queue", 10*time.Second, q.Close)
	if unclean {
		return d.recoverQueue(ctx)
	}
	return nil
}

// recoverQueue drops what an unclean end of an embedded store may have brought back, before any role takes work. It looks at
// everything there is, so an orderly stop spares it.
func (d *Daemon) recoverQueue(ctx context.Context) error {
	r, err := d.queue.Recover(ctx)
	if err != nil {
		return fmt.Errorf("recover the queue: %w", err)
	}
	if r.Returned+r.LowerMoves > 0 {
		d.log.Info("queue recovered", "report", r)
	}
	return nil
}

// openStore starts the embedded store in the data directory.
func (d *Daemon) openStore() (*embedded.Server, error) {
	dir, err := filepath.Abs(d.c.DataDir)
	if err != nil {
		return nil, fmt.Errorf("find data directory: %w", err)
	}
	need := queue.StoreBytes(int64(d.c.Queue.MaxBytes))
	store, err := embedded.Start(embedded.Options{
		Dir:      dir,
		Listen:   d.c.Queue.Listen,
		MaxBytes: need,
		Logger:   d.log.With("part", "store"),
		OnFatal: func(err error) {
			d.fail(fmt.Errorf("the store in %s cannot be trusted any more, start again when the cause is gone: %w", dir, err))
		},
	})
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	d.store = store
	d.onStop(stageStore, "store", 10*time.Second, store.Stop)
	d.log.Info("store opened", "data_dir", dir, "unclean", store.Unclean())
	if url := store.ClientURL(); url != "" {
		d.log.Info("queue serves other processes", "url", url)
	}
	d.warnOfSpace(dir)
	return store, nil
}

// warnOfSpace compares the limit of stored mail with the disk: the limit must be reached first.
func (d *Daemon) warnOfSpace(dir string) {
	var fs unix.Statfs_t
	if unix.Statfs(dir, &fs) != nil {
		return
	}
	free := int64(fs.Bavail) * int64(fs.Bsize)
	if limit := int64(d.c.Queue.MaxBytes); free < limit {
		d.log.Warn("the disk may be full before the queue says so: lower queue.max_bytes, or make room",
			"free_bytes", free, "max_bytes", limit, "data_dir", dir)
	}
}

// openBackground adds the queue's own work, which any delivery process can do: what waits comes back, and one at a time in the
// cluster puts right what a crash left.
func (d *Daemon) openBackground(context.Context) error {
	d.background("timers", 5*time.Second, d.queue.RunTimers)
	d.background("reconciler", 5*time.Second, d.queue.RunReconciler)
	return nil
}

// ready says whether this process can do its work.
func (d *Daemon) ready() error {
	if d.queue == nil {
		return errors.New("the queue is not open")
	}
	if err := d.queue.Ready(); err != nil {
		return err
	}
	return d.listening()
}
