package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// fatals collects what OnFatal is told.
type fatals chan error

func newFatals() fatals { return make(fatals, 10) }

func (f fatals) note(err error) { f <- err }

func (f fatals) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-f:
		return err
	case <-time.After(time.Minute):
		t.Fatal("OnFatal was not called")
		return nil
	}
}

// smallBlocks is a stream limit that makes the server use blocks of 32 kB.
const smallBlocks = 120_000

// TestFullDisk lets the second block of a stream be /dev/full, which takes no
// byte: the publisher gets no answer at all, and only the log tells.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	told := newFatals()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := start(t, Options{Dir: dir, OnFatal: func(err error) {
		told.note(err)
		time.AfterFunc(time.Second, cancel) // an answer would have come by then
	}})
	nc, js := connect(t, s)
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "MAIL", Subjects: []string{"mail.>"}, MaxBytes: smallBlocks}); err != nil {
		t.Fatal(err)
	}
	block := filepath.Join(dir, storeDir, "$G", "streams", "MAIL", "msgs", "2.blk")
	if err := os.Symlink("/dev/full", block); err != nil {
		t.Fatal(err)
	}
	var published error
	for i := 0; i < 40 && published == nil; i++ {
		_, published = js.Publish(ctx, "mail.a.m", make([]byte, 10<<10))
	}
	if !errors.Is(published, context.Canceled) {
		t.Errorf("got error %v, want no answer", published)
	}
	if err := told.wait(t); !errors.Is(err, ErrStore) {
		t.Errorf("OnFatal got %v, want %v", err, ErrStore)
	}
	if s.Err() == nil {
		t.Error("Err is nil after a failure")
	}
	nc.Close()
	stop(t, s)
	if len(told) > 0 {
		t.Errorf("OnFatal was called again: %v", <-told)
	}
	if _, err := os.Stat(filepath.Join(dir, cleanFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a failed store was marked as clean (%v)", err)
	}
}

// TestFileSizeLimit makes writes fail in the middle of a block.
func TestFileSizeLimit(t *testing.T) {
	c := startChild(t, "limit", t.TempDir())
	if got := c.line(t); !strings.Contains(got, "file too large") {
		t.Errorf("OnFatal got %q, want the cause", got)
	}
}

// limitFileSize writes until the kernel refuses, and prints what OnFatal is told.
func limitFileSize(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	told := newFatals()
	s, err := Start(Options{Dir: dir, OnFatal: told.note})
	if err != nil {
		return err
	}
	nc, err := s.Connect()
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "MAIL", Subjects: []string{"mail.>"}}); err != nil {
		return err
	}
	limit := syscall.Rlimit{Cur: 64 << 10, Max: 64 << 10}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	fmt.Println("ready")
	for s.Err() == nil {
		short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		_, _ = js.Publish(short, "mail.a.m", make([]byte, 10<<10))
		cancel()
	}
	fmt.Println(<-told)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}

func TestVanishedDirectory(t *testing.T) {
	dir := t.TempDir()
	told := newFatals()
	s := start(t, Options{Dir: dir, OnFatal: told.note, ProbeInterval: 10 * time.Millisecond})
	if err := os.Rename(filepath.Join(dir, storeDir), filepath.Join(dir, "elsewhere")); err != nil {
		t.Fatal(err)
	}
	if err := told.wait(t); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OnFatal got %v, want %v", err, fs.ErrNotExist)
	}
	stop(t, s)
}

func TestSwitchedOff(t *testing.T) {
	told := newFatals()
	s := start(t, Options{OnFatal: told.note, ProbeInterval: 10 * time.Millisecond})
	if err := s.ns.ShutdownJetStream(); err != nil {
		t.Fatal(err)
	}
	if err := told.wait(t); !errors.Is(err, ErrSwitchedOff) {
		t.Errorf("OnFatal got %v, want %v", err, ErrSwitchedOff)
	}
}

// TestLimitsAreNotFatal fills a stream and the whole store up to their limits.
func TestLimitsAreNotFatal(t *testing.T) {
	told := newFatals()
	s := start(t, Options{OnFatal: told.note, MaxBytes: 64 << 10})
	_, js := connect(t, s)
	ctx := t.Context()
	for _, c := range []jetstream.StreamConfig{
		{Name: "MAIL", Subjects: []string{"mail.>"}, MaxBytes: 16 << 10, Discard: jetstream.DiscardNew},
		{Name: "JOBS", Subjects: []string{"ready.>"}},
	} {
		if _, err := js.CreateStream(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	for _, subject := range []string{"mail.a.m", "ready.1"} {
		for {
			_, err := js.Publish(ctx, subject, make([]byte, 8<<10))
			if api, ok := errors.AsType[*jetstream.APIError](err); ok {
				t.Logf("%s: %v", subject, api)
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Err(); err != nil {
		t.Errorf("a limit counts as failure: %v", err)
	}
}

func TestStoreFailed(t *testing.T) {
	disk := &fs.PathError{Op: "write", Path: "1.blk", Err: syscall.EIO}
	tests := []struct {
		name, format string
		args         []any
		want         bool
	}{
		{"write error", "Filestore [MAIL] Critical write error: %v", []any{disk}, true},
		{"read error", "%s", []any{"Filestore [MAIL] Ignoring non-write error: read 1.blk: input/output error"}, true},
		{"file error in any line", "Error creating consumer: %v", []any{disk}, true},
		{"switched off", "JetStream out of %s resources, will be DISABLED", []any{"File"}, true},
		{"permission", "File system permission denied while writing, disabling JetStream", nil, true},
		{"read-only", "%s", []any{"JetStream failed to store a msg on stream '$G > MAIL': read-only file system"}, true},
		{"stream limit", "JetStream %s resource limits exceeded for account: %q", []any{"file", "$G"}, false},
		{"corrupt record", "Filestore [MAIL] Ignoring non-write error: %v", []any{errors.New("corrupt state file")}, false},
		{"socket out of files", "Temporary Client Accept Error (%v), sleeping", []any{&net.OpError{Op: "accept", Err: os.NewSyscallError("accept", syscall.EMFILE)}}, false},
		{"a client's words", "127.0.0.1:40 - cid:7 - authentication error - User %q", []any{"critical write error: input/output error"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := storeFailed(fmt.Sprintf(tt.format, tt.args...), tt.args); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
