//go:build unix

package keyring

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// checksMode says that permission bits mean something here.
const checksMode = true

// nonblock keeps the opening of a FIFO from waiting for its writer.
const nonblock = syscall.O_NONBLOCK

// identity tells a file from another one of the same name.
type identity struct {
	inode uint64
	owner uint32
}

func identify(info fs.FileInfo) identity {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return identity{st.Ino, st.Uid}
	}
	return identity{}
}

func ownedByUs(info fs.FileInfo) (owner uint32, ok bool) {
	owner = identify(info).owner
	return owner, int(owner) == os.Geteuid()
}

// tryLock takes the lock on an open directory; it goes when f is closed.
func tryLock(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
		return false, nil
	}
	return err == nil, err
}
