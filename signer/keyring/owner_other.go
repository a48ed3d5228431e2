//go:build !unix

package keyring

import (
	"errors"
	"io/fs"
	"os"
)

const (
	checksMode = false
	nonblock   = 0
)

type identity struct{}

func identify(fs.FileInfo) identity { return identity{} }

func ownedByUs(fs.FileInfo) (owner uint32, ok bool) { return 0, true }

// tryLock has no means here: keys are changed on Unix only.
func tryLock(*os.File) (bool, error) { return false, errors.ErrUnsupported }
