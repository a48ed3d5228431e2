package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/nats-io/nats-server/v2/server"
)

// ErrStore is the cause of every error that was read from a line of the server.
var ErrStore = errors.New("store error")

// logAdapter hands the server's lines to slog and reads from them what the
// server shows in no other way: that its store has failed.
type logAdapter struct {
	log   *slog.Logger
	fatal func(error)

	mu       sync.Mutex
	starting bool
	said     startupLines
}

var _ server.Logger = (*logAdapter)(nil)

// startupLines are what explains a start that did not succeed.
type startupLines struct {
	fatal    string
	warnings []string
}

const maxStartupLines = 20

func (l startupLines) problems() string {
	if len(l.warnings) == 0 {
		return "nothing"
	}
	return strings.Join(l.warnings, "; ")
}

// startup begins or ends the keeping of lines and returns what was kept.
func (a *logAdapter) startup(on bool) startupLines {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.starting = on
	said := a.said
	a.said = startupLines{}
	return said
}

// gaveUp reports that the server said it cannot start.
func (a *logAdapter) gaveUp() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.said.fatal != ""
}

func (a *logAdapter) debug() bool {
	return a.log.Enabled(context.Background(), slog.LevelDebug)
}

func (a *logAdapter) write(level slog.Level, text string) {
	a.log.Log(context.Background(), level, "nats-server", "text", strings.TrimSpace(text))
}

// Noticef takes the lines that tell of the server's ordinary life.
func (a *logAdapter) Noticef(format string, v ...any) {
	a.write(slog.LevelDebug, fmt.Sprintf(format, v...))
}

// Debugf takes lines for developers.
func (a *logAdapter) Debugf(format string, v ...any) {
	a.write(slog.LevelDebug, fmt.Sprintf(format, v...))
}

// Tracef takes protocol lines; they are never asked for.
func (a *logAdapter) Tracef(format string, v ...any) {}

// Warnf takes warnings, which is also what some store failures are.
func (a *logAdapter) Warnf(format string, v ...any) {
	a.judge(slog.LevelWarn, fmt.Sprintf(format, v...), v)
}

// Errorf takes errors.
func (a *logAdapter) Errorf(format string, v ...any) {
	a.judge(slog.LevelError, fmt.Sprintf(format, v...), v)
}

// Fatalf takes what ends the server, which is only ever said while it starts.
func (a *logAdapter) Fatalf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	a.write(slog.LevelError, text)
	a.mu.Lock()
	starting := a.starting
	if starting && a.said.fatal == "" {
		a.said.fatal = text
	}
	a.mu.Unlock()
	if !starting {
		a.fatal(fmt.Errorf("%w: %s", ErrStore, text))
	}
}

func (a *logAdapter) judge(level slog.Level, text string, args []any) {
	a.write(level, text)
	a.mu.Lock()
	if a.starting && len(a.said.warnings) < maxStartupLines {
		a.said.warnings = append(a.said.warnings, strings.TrimSpace(text))
	}
	a.mu.Unlock()
	if storeFailed(text, args) {
		a.fatal(fmt.Errorf("%w: %s", ErrStore, strings.TrimSpace(text)))
	}
}

// fatalErrnos are what a disk says when it is full, gone, broken or read-only.
var fatalErrnos = []syscall.Errno{
	syscall.EIO, syscall.ENOSPC, syscall.EROFS, syscall.EDQUOT, syscall.EFBIG,
	syscall.EACCES, syscall.EPERM, syscall.ENXIO, syscall.ENODEV, syscall.ESTALE, syscall.EMFILE, syscall.ENFILE,
}

// fatalPhrases are the server's own words for a store that it gave up. "error on write store state from purge" is not one
// of them: a purge beside acknowledgements makes a state that is older than the stored one, and the server says so
// (consumer.go purge). When the disk is the cause, its errno stands in the line.
var fatalPhrases = []string{
	"ritical write error",   // filestore.go setWriteErr, stream.go and consumer.go setWriteErrLocked
	"failed to store a msg", // stream.go: the publisher gets no answer
	"will be DISABLED",      // handleOutOfSpace
	"disabling JetStream",   // handleWritePermissionError and others
}

// storePrefixes begin the lines of the store. Lines about clients begin with the
// address and may carry words that a client chose, so only these are read.
var storePrefixes = []string{"Filestore [", "JetStream ", "File system ", "Filesystem ", "Consumer '"}

// storeFailed decides whether a warning or error of the server means that the
// store is not to be trusted any more. Limits that are reached are no such thing.
func storeFailed(text string, args []any) bool {
	for _, arg := range args {
		if err, ok := arg.(error); ok && isFileFailure(err) {
			return true
		}
	}
	text = strings.TrimSpace(text)
	for _, prefix := range storePrefixes {
		if strings.HasPrefix(text, prefix) {
			return saysFailure(text)
		}
	}
	return false
}

// isFileFailure is true for fatalErrnos of a file; those of sockets mean nothing here.
func isFileFailure(err error) bool {
	file, ok := errors.AsType[*fs.PathError](err)
	if !ok {
		return false
	}
	no, ok := errors.AsType[syscall.Errno](file)
	return ok && slices.Contains(fatalErrnos, no)
}

func saysFailure(text string) bool {
	for _, phrase := range fatalPhrases {
		if strings.Contains(text, phrase) {
			return true
		}
	}
	for _, no := range fatalErrnos {
		if strings.Contains(text, no.Error()) {
			return true
		}
	}
	return false
}
