//go:build !linux

package main

import (
	"context"
	"os"
)

// askHidden is not made for this system: a password is given by a file or the environment.
func askHidden(context.Context, *os.File) (string, error) { return "", errNoTerminal }
