//go:build !unix

package account

import (
	"io/fs"
	"os"
)

const (
	checksMode = false
	nonblock   = 0
)

type identity struct{}

func identify(fs.FileInfo) identity { return identity{} }

func ownedByUs(_, _ fs.FileInfo) (owner uint32, ok bool) { return 0, true }

func giveTo(string, fs.FileInfo) error { return nil }

func lockFile(*os.File) (busy bool, err error) { return false, nil }
