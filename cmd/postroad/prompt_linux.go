package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// askHidden reads a line from a terminal that does not show it. A signal ends the wait, and the terminal is as it was after it.
func askHidden(ctx context.Context, in *os.File) (string, error) {
	fd := int(in.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", errNoTerminal
	}
	hidden := *before
	hidden.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &hidden); err != nil {
		return "", fmt.Errorf("hide what is typed: %w", err)
	}
	defer func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) }()
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && err != unix.EINTR {
			return "", fmt.Errorf("wait for the terminal: %w", err)
		}
		if n > 0 {
			return firstLine(in)
		}
	}
}
