package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// ErrSwitchedOff says that nats-server closed its store by itself, as it does
// on a full disk or when it may no longer write.
var ErrSwitchedOff = errors.New("nats-server switched its store off")

// probeBytes is more than what a file system keeps free inside a block or an
// inode, so that a full disk shows.
const probeBytes = 16 << 10

// watch looks from outside for what the server does not say: a failed write of
// a consumer's state, for one, is not logged (filestore.go flushLoop, 2.15.2).
func (s *Server) watch(ctx context.Context) {
	tick := time.NewTicker(s.o.ProbeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !s.ns.JetStreamEnabled() {
			s.fail(ErrSwitchedOff)
			return
		}
		err := probe(filepath.Join(s.o.Dir, storeDir))
		if err != nil && !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
			s.fail(fmt.Errorf("test write beside the store: %w", err))
			return
		}
	}
}

// probe writes, syncs and removes a file. It lies inside the store's own
// directory: that one may be another mount, or be gone.
func probe(dir string) error {
	path := filepath.Join(dir, probeFile)
	if err := writeSynced(path, string(make([]byte, probeBytes))); err != nil {
		return err
	}
	return os.Remove(path)
}
