// Package ops is the way in for operators and monitoring: an HTTP server of the process, and the client that the command
// line uses.
//
//	s, err := ops.New(ops.Options{Queue: q, Socket: "/var/lib/postroad/ops.sock", Gatherer: reg, Ready: q.Ready})
//	s.Start()
//	defer s.Stop(ctx)
//
//	c := ops.NewClient("/var/lib/postroad/ops.sock")
//	for entry, err := range c.List(ctx, ops.Selection{Domain: "example.com"}, 0) { … }
//
// The unix socket, mode 0600, serves everything. The TCP address, when there is one, serves /healthz, /readyz and /metrics
// only: it has no login.
package ops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/queue"
)

// Queue is what operators see of the queue; *queue.Queue is one.
type Queue interface {
	SiteQueue
	// List yields the jobs that match, at most limit of them (0: all).
	List(ctx context.Context, sel queue.Selection, limit int) iter.Seq2[queue.Entry, error]
	// Retry, Cancel, Release and Resign move what matches and return how many moved.
	Retry(ctx context.Context, sel queue.Selection) (int, error)
	Cancel(ctx context.Context, sel queue.Selection) (int, error)
	Release(ctx context.Context, sel queue.Selection) (int, error)
	Resign(ctx context.Context, sel queue.Selection) (int, error)
	// Return sends what matches back to its senders, with a reason.
	Return(ctx context.Context, sel queue.Selection, why string) (int, error)
	// Hold moves what matches to where only an operator brings it back.
	Hold(ctx context.Context, sel queue.Selection, why string) (int, error)
	// Counts is the queue at a glance.
	Counts(ctx context.Context) (queue.Counts, error)
	// Trace yields the events that match, oldest first.
	Trace(ctx context.Context, f queue.TraceFilter) iter.Seq2[queue.Event, error]
	// Nodes are the processes that have announced themselves of late.
	Nodes(ctx context.Context) ([]queue.Node, error)
	// Uses are the passwords that clients used.
	Uses(ctx context.Context) ([]queue.Use, error)
	// Spendings are the limits of which something was spent of late.
	Spendings(ctx context.Context) ([]queue.Spending, error)
	// Notify tells all processes that something changed.
	Notify(ctx context.Context, topic, name string) error
	// Suppressions, Suppression, Suppress and Unsuppress are for the list of those who are not to be written to.
	Suppressions(ctx context.Context, class *string, target string) iter.Seq2[queue.Suppression, error]
	Suppression(ctx context.Context, key string) (*queue.Suppression, error)
	Suppress(ctx context.Context, s queue.Suppression) error
	Unsuppress(ctx context.Context, class, target string) (bool, error)
	// Overview is the whole queue for people; an error says that it does not answer.
	Overview(ctx context.Context) (queue.Overview, error)
	// Tap yields lines of dialogues with hosts until ctx ends.
	Tap(ctx context.Context, wish queue.TapWish) iter.Seq2[queue.TapLine, error]
}

var _ Queue = (*queue.Queue)(nil)

// Options configure a Server.
type Options struct {
	Queue    Queue               // required
	Socket   string              // path of the unix socket; required
	Address  string              // host:port for health and metrics; empty opens no port
	Gatherer prometheus.Gatherer // of /metrics; required
	Ready    func() error        // nil when this process can do its work; required
	Version  string              // of the program
	Self     func() queue.Node   // this process, now; nil: as it has announced itself
	Embedded bool                // the queue is stored in this process
	Logger   *slog.Logger        // default: none
}

// maxSocketPath is what the operating system takes, less the name of the directory in which the socket is made.
const maxSocketPath = 107 - 12

// Server serves HTTP on the socket and, when asked, on a TCP port.
type Server struct {
	o        Options
	admin    *http.Server
	health   *http.Server
	socket   net.Listener
	port     net.Listener // nil without Address
	draining atomic.Bool
	wg       sync.WaitGroup

	live    context.Context // of requests that last: it ends with Stop
	endLive context.CancelFunc

	gathering  chan struct{} // full while somebody finds out the status
	lastStatus *Status       // of who has that turn; not changed any more
}

// New binds the sockets.
func New(o Options) (*Server, error) {
	if o.Queue == nil || o.Gatherer == nil || o.Ready == nil || o.Socket == "" {
		return nil, errors.New("ops options need Queue, Socket, Gatherer and Ready")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, gathering: make(chan struct{}, 1)}
	var err error
	if s.socket, err = listenUnix(o.Socket); err != nil {
		return nil, fmt.Errorf("open admin socket: %w", err)
	}
	if o.Address != "" {
		if s.port, err = net.Listen("tcp", o.Address); err != nil {
			_ = s.socket.Close()
			_ = os.Remove(o.Socket)
			return nil, fmt.Errorf("open ops.address: %w", err)
		}
	}
	s.live, s.endLive = context.WithCancel(context.Background())
	s.admin, s.health = s.newHTTP(s.adminHandler()), s.newHTTP(s.healthHandler())
	return s, nil
}

func (s *Server) newHTTP(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelDebug),
	}
}

// listenUnix makes the socket inside a directory that nobody else can enter and moves it to its place when it has its mode,
// so there is no moment at which others could connect.
func listenUnix(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("%s is longer than the %d octets that a socket's path can have: set ops.socket to a shorter one", path, maxSocketPath)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%s is in use: another postroad runs there; stop it, or set data_dir or ops.socket", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s exists and is no socket: remove it, or set ops.socket", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(filepath.Dir(path), "s")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(private) }()
	made := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// Addr is the TCP address, nil when there is none.
func (s *Server) Addr() net.Addr {
	if s.port == nil {
		return nil
	}
	return s.port.Addr()
}

// Start serves until Stop.
func (s *Server) Start() {
	s.wg.Go(func() { s.serve(s.admin, s.socket) })
	if s.port != nil {
		s.wg.Go(func() { s.serve(s.health, s.port) })
	}
}

func (s *Server) serve(h *http.Server, l net.Listener) {
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		s.o.Logger.Error("ops server ended", "err", err)
	}
}

// Drain makes /readyz say no, so that load balancers look elsewhere while the roles stop.
func (s *Server) Drain() { s.draining.Store(true) }

// Stop lets requests end until ctx ends, then cuts them off. The socket is removed.
func (s *Server) Stop(ctx context.Context) error {
	s.Drain()
	s.endLive()
	var errs []error
	for _, h := range []*http.Server{s.admin, s.health} {
		if err := h.Shutdown(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop ops server: %w", err))
			_ = h.Close()
		}
	}
	// Shutdown closes only what Serve knows.
	_ = s.socket.Close()
	if s.port != nil {
		_ = s.port.Close()
	}
	s.wg.Wait()
	if err := os.Remove(s.o.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove admin socket: %w", err))
	}
	return errors.Join(errs...)
}
