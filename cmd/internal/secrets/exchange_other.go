//go:build !linux

package secrets

import "errors"

func exchange(string, string) error { return errors.ErrUnsupported }
