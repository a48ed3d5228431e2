package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
)

// Server receives mail on its listeners.
type Server struct {
	options   Options
	metrics   *metrics
	library   *smtp.Server
	listeners []*listener

	ctx    context.Context // of Queue.Accept
	cancel context.CancelFunc

	arriving context.Context // until no more listeners may come
	arrived  context.CancelFunc

	serving  sync.WaitGroup // one per listener
	messages gate           // Data calls, some of them on goroutines of go-smtp
	stopOnce sync.Once
	stopErr  error

	mu         sync.Mutex
	conns      map[*conn]struct{}
	addresses  map[netip.Prefix]int // connections by address
	visitors   visitors
	uses       *useWriter
	isStopping bool
	gone       chan struct{} // closed when stopping and the last connection has ended
}

// cutGrace is the time that connections get to say 421 after Stop's patience
// has ended.
const cutGrace = time.Second

// New binds all listeners but those that await their TLS. Connections wait until
// Start.
func New(o Options) (*Server, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("ingress: %w", err)
	}
	s, err := newServer(o)
	if err != nil {
		return nil, err
	}
	for _, l := range o.Listeners {
		socket, err := l.Socket, error(nil)
		if socket == nil {
			socket, err = net.Listen("tcp", l.Address)
		}
		if err == nil && l.Await != nil && l.Socket == nil {
			socket, err = nil, socket.Close() // it can be had: arrive takes it again
		}
		if err != nil {
			s.cancel()
			return nil, errors.Join(fmt.Errorf("ingress: listen on %s: %w", l.Address, err), s.closeListeners())
		}
		s.listen(socket, l)
	}
	return s, nil
}

// newServer makes a server without sockets of its own.
func newServer(o Options) (*Server, error) {
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, fmt.Errorf("ingress: register metrics: %w", err)
	}
	s := &Server{
		options:   o,
		metrics:   m,
		conns:     make(map[*conn]struct{}),
		addresses: make(map[netip.Prefix]int),
		visitors:  newVisitors(&o),
		uses:      newUseWriter(o.Uses, o.Logger),
		gone:      make(chan struct{}),
	}
	s.messages.empty = make(chan struct{})
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.arriving, s.arrived = context.WithCancel(s.ctx)
	// Only the order of commands is go-smtp's: its limits, timeouts and TLS
	// stay off, since the guard has better ones (TestS1, S4, S8, S9, S17).
	s.library = smtp.NewServer(smtp.BackendFunc(s.newSession))
	s.library.Domain = o.Hostname
	s.library.MaxLineLength = lineBytes
	s.library.EnableSMTPUTF8 = true
	s.library.EnableDSN = true
	s.library.ErrorLog = libraryLog{o.Logger}
	return s, nil
}

func (s *Server) listen(socket net.Listener, l Listener) {
	if l.Banner == "" {
		l.Banner = "ESMTP"
	}
	balancers := make([]netip.Prefix, len(l.ProxyNetworks))
	for i, p := range l.ProxyNetworks {
		balancers[i] = plain(p)
	}
	s.listeners = append(s.listeners, &listener{Listener: l, socket: socket, srv: s, trusted: trust(l.TrustedNetworks), balancers: balancers,
		isAwaiting: l.Await != nil})
}

// Start serves until Stop.
func (s *Server) Start() {
	s.uses.start()
	for _, l := range s.listeners {
		s.serving.Go(func() {
			if !s.arrive(l) {
				return
			}
			err := s.library.Serve(l)
			if err != nil && !errors.Is(err, net.ErrClosed) {
				s.options.Logger.Error("listener ended", "address", l.Addr().String(), "error", err.Error())
			}
		})
	}
}

// Addrs are the addresses of the listeners, in their order; nil for one that
// awaits its TLS.
func (s *Server) Addrs() []net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	addrs := make([]net.Addr, len(s.listeners))
	for i, l := range s.listeners {
		if !l.isAwaiting {
			addrs[i] = l.Addr()
		}
	}
	return addrs
}

// Stop ends the service: no new connections, 421 4.3.2 to idle clients, and to
// the others when their transaction has ended. When ctx ends first, input is
// cut off, Accept is cancelled, and after a second the sockets are closed.
// It may be called more than once; every call waits for the end.
func (s *Server) Stop(ctx context.Context) error {
	s.stopOnce.Do(func() { s.stopErr = s.stop(ctx) })
	return s.stopErr
}

func (s *Server) stop(ctx context.Context) error {
	defer s.cancel()
	defer s.uses.end()
	err := s.closeListeners()
	s.serving.Wait()
	s.mu.Lock()
	s.isStopping = true
	if len(s.conns) == 0 {
		close(s.gone)
	}
	s.mu.Unlock()
	s.eachConn(func(c *conn) { c.drain(false) })

	select {
	case <-s.gone:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("ingress: stop: %w", ctx.Err()))
		s.cancel()
		s.eachConn(func(c *conn) { c.drain(true) })
		select {
		case <-s.gone:
		case <-time.After(cutGrace):
			s.eachConn(func(c *conn) { _ = c.raw.Close() })
		}
	}
	// The connections are closed: what still runs ends by itself, unless the
	// queue does not obey its context.
	s.cancel()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), cutGrace)
	defer cancel()
	if shutErr := s.library.Shutdown(last); shutErr != nil && !errors.Is(shutErr, net.ErrClosed) {
		err = errors.Join(err, fmt.Errorf("ingress: stop sessions: %w", shutErr))
	}
	if !s.messages.close(last) {
		err = errors.Join(err, errors.New("ingress: stop: the queue still holds a message"))
	}
	return err
}

func (s *Server) closeListeners() error {
	var errs []error
	s.mu.Lock()
	s.arrived()
	var all []*listener
	for _, l := range s.listeners {
		if l.socket != nil {
			all = append(all, l)
		}
	}
	s.mu.Unlock()
	for _, l := range all {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Server) eachConn(do func(*conn)) {
	s.mu.Lock()
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		do(c)
	}
}

// libraryLog takes what go-smtp has to say: panics of a session, mostly.
type libraryLog struct{ logger *slog.Logger }

func (l libraryLog) Printf(format string, args ...any) {
	l.logger.Error("smtp library", "error", fmt.Sprintf(format, args...))
}

func (l libraryLog) Println(args ...any) {
	l.logger.Error("smtp library", "error", fmt.Sprint(args...))
}

// gate counts what is inside, and lets nothing in once it is closed.
type gate struct {
	mu       sync.Mutex
	inside   int
	isClosed bool
	empty    chan struct{} // closed when closed and empty
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isClosed {
		return false
	}
	g.inside++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.isClosed {
		close(g.empty)
	}
}

// close lets nothing in any more and waits until all have left, or ctx ends.
func (g *gate) close(ctx context.Context) bool {
	g.mu.Lock()
	if !g.isClosed && g.inside == 0 {
		close(g.empty)
	}
	g.isClosed = true
	g.mu.Unlock()
	select {
	case <-g.empty:
		return true
	case <-ctx.Done():
		return false
	}
}
