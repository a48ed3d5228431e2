//go:build !unix

package secrets

import (
	"io/fs"
	"os"
)

func ownedByUs(fs.FileInfo) (owner uint32, isOurs bool) { return 0, true }

func giveTo(string, fs.FileInfo) error { return nil }

func lockFile(*os.File) (isBusy bool, err error) { return false, nil }
