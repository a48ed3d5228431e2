//go:build unix

package account

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
	group uint32
}

func identify(info fs.FileInfo) identity {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return identity{st.Ino, st.Uid, st.Gid}
	}
	return identity{}
}

// ownedByUs accepts a file of ours. The superuser, who changes records for the
// user that the server runs as, also accepts a file of the directory's owner.
func ownedByUs(info, dir fs.FileInfo) (owner uint32, ok bool) {
	owner = identify(info).owner
	us := os.Geteuid()
	return owner, int(owner) == us || us == 0 && owner == identify(dir).owner
}

// giveTo makes the owner of a directory the owner of what the superuser made in
// it, so that the server can read it.
func giveTo(path string, dir fs.FileInfo) error {
	to := identify(dir)
	if os.Geteuid() != 0 || to.owner == 0 {
		return nil
	}
	return os.Chown(path, int(to.owner), int(to.group))
}

// lockFile takes a lock that other processes see; busy says that one of them
// has it.
func lockFile(f *os.File) (busy bool, err error) {
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
		return true, nil
	}
	return false, err
}
