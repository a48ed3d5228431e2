package ingress

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
)

// bindAgain is the pause after a port that was free in New and is not now.
const bindAgain = 2 * time.Second

// acceptAgain is the pause after a connection that could not be taken, for want of descriptors say.
const acceptAgain = 100 * time.Millisecond

// errNotYet is for clients of a socket that is open before its listener is.
var errNotYet = &refusal{421, smtp.EnhancedCode{4, 3, 2}, "not ready yet, try again", true}

// arrive waits until l can serve. It reports false when the server stops before.
func (s *Server) arrive(l *listener) bool {
	if l.Await == nil {
		return true
	}
	open := s.turnAllAway(l)
	config, err := l.Await(s.arriving)
	open()
	if err != nil {
		if s.arriving.Err() == nil {
			s.options.Logger.Error("listener will not open", "address", l.Address, "error", err.Error())
		}
		return false
	}
	socket := l.Socket
	for pause := time.Duration(0); socket == nil; pause = bindAgain {
		if !sleep(s.arriving, pause) {
			return false
		}
		if socket, err = net.Listen("tcp", l.Address); err != nil {
			s.options.Logger.Error("listener does not open, it is tried again", "address", l.Address, "error", err.Error())
			socket = nil
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.arriving.Err() != nil {
		_ = socket.Close() // nobody has seen it
		return false
	}
	l.TLS, l.socket, l.isAwaiting = config, socket, false
	s.options.Logger.Info("listener open", "address", socket.Addr().String())
	return true
}

// turnAllAway refuses all clients of a socket that somebody else has opened, where the kernel makes connections already, until open is called.
// Otherwise they would wait for a greeting.
func (s *Server) turnAllAway(l *listener) (open func()) {
	socket, canStop := l.Socket.(interface{ SetDeadline(time.Time) error })
	if !canStop { // nil, mostly: nobody listens
		return func() {}
	}
	ctx, cancel := context.WithCancel(s.arriving)
	var refusing sync.WaitGroup
	refusing.Go(func() {
		for ctx.Err() == nil {
			raw, err := l.Socket.Accept()
			if err == nil {
				l.turnAway(raw, errNotYet)
			} else if errors.Is(err, net.ErrClosed) || !sleep(ctx, acceptAgain) {
				return
			}
		}
	})
	return func() {
		cancel()
		_ = socket.SetDeadline(time.Unix(1, 0)) // ends the Accept
		refusing.Wait()
		_ = socket.SetDeadline(time.Time{})
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
