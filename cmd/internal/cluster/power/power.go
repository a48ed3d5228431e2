// Package power makes disks that lose power.
//
// A Disk is an ext4 image on a loop device. Cut shuts the mounted file system
// down with its ioctl, without a flush of the journal: from then on nothing is
// written any more, and what was not synced is gone at the next mount. It
// needs root, loop devices and mkfs.ext4.
//
//	d, err := power.New(ctx, dir, 4<<30)
//	d.Cut()           // the process that uses it may live on for a moment
//	d.Mount(ctx)      // after that process is dead: unmount, recover, mount
//	defer d.Close(ctx)
package power

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ioctlShutdown  = 0x8004587d // EXT4_IOC_SHUTDOWN, the same as XFS's
	noLogFlush     = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
	commandTimeout = time.Minute
	unmountTries   = 600
)

// Disk is one image.
type Disk struct {
	image   string
	dir     string
	mounted bool
}

// New makes an image of the given size (sparse) below dir and mounts it.
func New(ctx context.Context, dir string, size int64) (*Disk, error) {
	d := &Disk{image: filepath.Join(dir, "disk.img"), dir: filepath.Join(dir, "disk")}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a mount point: %w", err)
	}
	f, err := os.Create(d.image)
	if err != nil {
		return nil, fmt.Errorf("make a disk image: %w", err)
	}
	err = f.Truncate(size)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("make a disk image: %w", err)
	}
	if err := run(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", d.image); err != nil {
		return nil, err
	}
	if err := d.Mount(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// Dir is where the disk is mounted.
func (d *Disk) Dir() string { return d.dir }

// Cut takes the power away. Every later write and sync fails.
func (d *Disk) Cut() error {
	fd, err := unix.Open(d.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", d.dir, err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetPointerInt(fd, ioctlShutdown, noLogFlush); err != nil {
		return fmt.Errorf("shut %s down: %w", d.dir, err)
	}
	return nil
}

// Mount mounts the disk, again if need be; the journal brings back what was
// synced. Nobody may use it any more.
func (d *Disk) Mount(ctx context.Context) error {
	if err := d.unmount(ctx); err != nil {
		return err
	}
	if err := run(ctx, "mount", "-o", "loop", d.image, d.dir); err != nil {
		return err
	}
	d.mounted = true
	return nil
}

func (d *Disk) unmount(ctx context.Context) error {
	if !d.mounted {
		return nil
	}
	var err error
	for range unmountTries { // the kernel may still hold files of a dead process
		if err = run(ctx, "umount", d.dir); err == nil {
			d.mounted = false
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
	return err
}

// Close unmounts the disk and removes its image.
func (d *Disk) Close(ctx context.Context) error {
	if err := d.unmount(ctx); err != nil {
		return err
	}
	if err := os.Remove(d.image); err != nil {
		return fmt.Errorf("remove a disk image: %w", err)
	}
	return nil
}

func run(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}
