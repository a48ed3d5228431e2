package main

import (
	"context"
	"time"

	"postroad/cmd/internal/cluster/process"
	"postroad/cmd/internal/verify/stage"
)

// server is the process under test, with every role. It is started several times on the same data.
type server struct {
	*stage.Process
	launcher            *process.Launcher
	queue, health, smtp string // addresses
}

// restart is one end and one start, with times from the start on.
type restart struct {
	isKill       bool
	stop         time.Duration // from the signal to the end of the process
	began        time.Time
	ready, first time.Duration // until /readyz said yes; until a mail to another domain was through
}

// restart ends the process, by a kill or in order, and starts it again.
func (s *server) restart(ctx context.Context, kill bool) (restart, error) {
	began := time.Now()
	end := s.Stop
	if kill {
		end = s.Kill
	}
	if err := end(); err != nil {
		return restart{}, err
	}
	r := restart{isKill: kill, stop: time.Since(began), began: time.Now()}
	var err error
	r.ready, err = s.Start(ctx)
	return r, err
}

// close ends whatever runs.
func (s *server) close() {
	_ = s.Kill()
	s.launcher.Close()
}
