package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Format is the number of the data directory's layout. A directory with a
// higher number was written by a newer Postroad and is refused.
const Format = 1

// Files of the data directory beside the store itself.
const (
	versionFile = "VERSION" // Format, decimal
	lockFile    = "LOCK"    // held by flock while a process uses the directory; its content is the process id
	cleanFile   = "CLEAN"   // written by Stop, removed by Start
	probeFile   = "PROBE"   // written again and again to see that the disk takes writes
)

// ErrInUse says that another process holds the data directory.
var ErrInUse = errors.New("data directory is in use")

// ErrNewerFormat says that a newer Postroad wrote the data directory.
var ErrNewerFormat = errors.New("data directory has a newer format")

// directory is a data directory held by this process.
type directory struct {
	path string
	lock *os.File
}

// openDirectory makes the directory if need be, locks it and checks its format.
func openDirectory(path string) (*directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	d := &directory{path: path, lock: lock}
	if err := d.take(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return d, nil
}

func (d *directory) take() error {
	if err := syscall.Flock(int(d.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock data directory %s: %w", d.path, err)
		}
		pid := make([]byte, 20)
		n, _ := d.lock.ReadAt(pid, 0)
		return fmt.Errorf("%w: %s is held by process %s; stop it or choose another directory",
			ErrInUse, d.path, strings.TrimSpace(string(pid[:n])))
	}
	if err := d.lock.Truncate(0); err != nil {
		return fmt.Errorf("lock data directory: %w", err)
	}
	if _, err := d.lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("lock data directory: %w", err)
	}
	return d.checkFormat()
}

func (d *directory) checkFormat() error {
	text, err := os.ReadFile(filepath.Join(d.path, versionFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read format of the data directory: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("read format of the data directory: %s holds %q, want a number; is this a data directory of Postroad?",
			filepath.Join(d.path, versionFile), strings.TrimSpace(string(text)))
	}
	if n > Format {
		return fmt.Errorf("%w: %s has format %d and this Postroad knows up to %d; run the newer Postroad again, "+
			"or let that one empty the queue before you go back", ErrNewerFormat, d.path, n, Format)
	}
	return nil
}

// begin marks the directory as used and reports whether the last use had no
// proper end. After it, only end makes the directory clean again.
func (d *directory) begin() (unclean bool, err error) {
	version := filepath.Join(d.path, versionFile)
	_, versionErr := os.Stat(version)
	known := versionErr == nil
	clean := filepath.Join(d.path, cleanFile)
	err = os.Remove(clean)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("mark data directory as used: %w", err)
	}
	unclean = known && err != nil
	if !known {
		if err := writeSynced(version, strconv.Itoa(Format)+"\n"); err != nil {
			return false, fmt.Errorf("write format of the data directory: %w", err)
		}
	}
	if err := syncDirectory(d.path); err != nil {
		return false, fmt.Errorf("mark data directory as used: %w", err)
	}
	return unclean, nil
}

// end marks the directory as clean, if it is, and lets go of it.
func (d *directory) end(clean bool) error {
	var err error
	if clean {
		err = writeSynced(filepath.Join(d.path, cleanFile), "")
		if err == nil {
			err = syncDirectory(d.path)
		}
		if err != nil {
			err = fmt.Errorf("mark data directory as clean: %w", err)
		}
	}
	return errors.Join(err, d.close())
}

// close lets go of the directory; closing the file ends the lock.
func (d *directory) close() error {
	if err := d.lock.Close(); err != nil {
		return fmt.Errorf("unlock data directory: %w", err)
	}
	return nil
}

// writeSynced writes a small file whose content is on the disk when it returns.
func writeSynced(path, content string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDirectory makes made and removed names of a directory lasting.
func syncDirectory(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
