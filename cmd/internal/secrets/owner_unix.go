//go:build unix

package secrets

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// ownedByUs accepts a file of ours. The superuser gives what he makes to whom it belongs.
func ownedByUs(info fs.FileInfo) (owner uint32, isOurs bool) {
	st, is := info.Sys().(*syscall.Stat_t)
	if !is {
		return 0, true
	}
	us := os.Geteuid()
	return st.Uid, us == 0 || int(st.Uid) == us
}

// giveTo gives what the superuser has made to the owner of something else.
func giveTo(path string, to fs.FileInfo) error {
	st, is := to.Sys().(*syscall.Stat_t)
	if !is || os.Geteuid() != 0 || st.Uid == 0 {
		return nil
	}
	return os.Chown(path, int(st.Uid), int(st.Gid))
}

// lockFile takes a lock that other processes see; isBusy says that one of them has it.
func lockFile(f *os.File) (isBusy bool, err error) {
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
		return true, nil
	}
	return false, err
}
