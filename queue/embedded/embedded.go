// Package embedded runs nats-server inside the process and keeps its whole
// store in one data directory: the queue of a laptop, a small site and every
// test.
//
// Start takes the directory for itself, checks its format, starts the server
// with a sync after every write and makes sure that everything that lay on the
// disk came back. Connect gives connections that do not touch the network; a
// port is open only when Options.Listen asks for one. A store that shows any
// input or output error is never used again: OnFatal is called once, and the
// process should end and be started anew.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"postroad/queue/failpoint"
)

// ErrNoJetStream says that the server runs but could not open its store.
var ErrNoJetStream = errors.New("the store could not be opened")

// Options say where the store lies and who may reach it.
type Options struct {
	// Dir is the data directory; made when it is missing. Required.
	Dir string
	// Listen is the address of a port for other processes, such as
	// "127.0.0.1:4222". Empty: no port, this process only. Without Password only
	// loopback addresses are allowed, and every local user can then read and
	// remove mail.
	Listen string
	// Username and Password are asked of every connection when Password is set;
	// Connect knows them. The user name is "postroad" by default.
	Username, Password string
	// MaxBytes bounds all streams together. 0: three quarters of what the file
	// system has free, the store's own use counted as free.
	MaxBytes int64
	// Logger gets the server's own lines. nil: none.
	Logger *slog.Logger
	// OnFatal is called at most once, on a goroutine of its own, when the store
	// can no longer be trusted: a write or sync failed, the disk is full, the
	// file system became read-only, JetStream switched itself off. Nothing may be
	// concluded from the store's answers after that; end the process.
	OnFatal func(error)
	// ProbeInterval is how often a small file is written and synced to see that
	// the disk still takes writes, also when the server keeps silent about it.
	// 0: 5 s.
	ProbeInterval time.Duration
}

const (
	defaultUsername      = "postroad"
	defaultProbeInterval = 5 * time.Second
	readyTimeout         = 30 * time.Second
	storeDir             = "jetstream" // nats-server makes it below Options.Dir
)

// Server is a running nats-server with its data directory.
type Server struct {
	o       Options
	dir     *directory
	unclean bool
	ns      *server.Server
	log     *logAdapter

	fatal   atomic.Pointer[error] // the first reason not to trust the store
	endings atomic.Bool           // Stop has begun: errors are no news
	probe   context.CancelFunc
	wg      sync.WaitGroup
	stop    sync.Once
	stopped chan struct{}
	stopErr error
}

// Start opens the data directory and runs the server on it. When it returns,
// the store is recovered and connections are answered.
func Start(o Options) (*Server, error) {
	if o.Dir == "" {
		return nil, errors.New("embedded queue: no data directory given")
	}
	if o.Username == "" {
		o.Username = defaultUsername
	}
	if o.ProbeInterval == 0 {
		o.ProbeInterval = defaultProbeInterval
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	so, err := serverOptions(o)
	if err != nil {
		return nil, err
	}
	d, err := openDirectory(o.Dir)
	if err != nil {
		return nil, err
	}
	s := &Server{o: o, dir: d, stopped: make(chan struct{})}
	if err := s.start(so); err != nil {
		if s.ns != nil {
			s.endings.Store(true)
			s.ns.Shutdown()
			s.ns.WaitForShutdown()
		}
		return nil, errors.Join(err, d.close())
	}
	return s, nil
}

// serverOptions are the settings that the queue's promises rest on.
func serverOptions(o Options) (*server.Options, error) {
	so := &server.Options{
		ServerName:             "postroad",
		JetStream:              true,
		StoreDir:               o.Dir,
		SyncAlways:             !failpoint.Planted("lazy-sync"),
		JetStreamMaxStore:      o.MaxBytes,
		NoSigs:                 true,
		DontListen:             o.Listen == "",
		DisableJetStreamBanner: true,
	}
	if o.Password != "" {
		so.Username, so.Password = o.Username, o.Password
	}
	if o.Listen == "" {
		return so, nil
	}
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen address of the embedded queue: %w", err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("listen address of the embedded queue: port %q is not a number", port)
	}
	if !loopback(host) && o.Password == "" {
		return nil, fmt.Errorf("embedded queue would listen on %s, which other machines can reach, without a password: "+
			"set one, or listen on 127.0.0.1", o.Listen)
	}
	so.Host, so.Port = host, int(n)
	if n == 0 {
		so.Port = server.RANDOM_PORT
	}
	return so, nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func (s *Server) start(so *server.Options) error {
	before, err := listStore(filepath.Join(s.o.Dir, storeDir))
	if err != nil {
		return err
	}
	if s.unclean, err = s.dir.begin(); err != nil {
		return err
	}
	ns, err := server.NewServer(so)
	if err != nil {
		return fmt.Errorf("start embedded nats-server: %w", err)
	}
	s.ns = ns
	s.log = &logAdapter{log: s.o.Logger, fatal: s.fail}
	s.log.startup(true)
	ns.SetLoggerV2(s.log, s.log.debug(), false, false)
	ns.Start()
	ready := s.awaitReady()
	said := s.log.startup(false)
	switch {
	case said.fatal != "":
		return fmt.Errorf("start embedded nats-server: %s", said.fatal)
	case !ns.JetStreamEnabled():
		return fmt.Errorf("start embedded nats-server on %s: %w: %s", s.o.Dir, ErrNoJetStream, said.problems())
	case !ready:
		return fmt.Errorf("start embedded nats-server: not ready after %v", readyTimeout)
	}
	if err := checkRecovered(ns, before); err != nil {
		return fmt.Errorf("open the store in %s: %w; the server said: %s", s.o.Dir, err, said.problems())
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.probe = cancel
	s.wg.Go(func() { s.watch(ctx) })
	return nil
}

// awaitReady waits for the listener, or for the server to give up on it.
func (s *Server) awaitReady() bool {
	const step = 50 * time.Millisecond
	for waited := time.Duration(0); waited < readyTimeout; waited += step {
		if s.ns.ReadyForConnections(step) {
			return true
		}
		if s.log.gaveUp() {
			return false
		}
	}
	return false
}

// Connect opens a connection inside the process.
func (s *Server) Connect(extra ...nats.Option) (*nats.Conn, error) {
	options := []nats.Option{nats.InProcessServer(s.ns)}
	if s.o.Password != "" {
		options = append(options, nats.UserInfo(s.o.Username, s.o.Password))
	}
	nc, err := nats.Connect("", append(options, extra...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to the embedded nats-server: %w", err)
	}
	return nc, nil
}

// ClientURL is where other processes reach the server; empty without Listen.
func (s *Server) ClientURL() string {
	if s.o.Listen == "" {
		return ""
	}
	return s.ns.ClientURL()
}

// Unclean reports that the last run on this directory did not end by Stop:
// messages that were removed may be back.
func (s *Server) Unclean() bool { return s.unclean }

// Err is the reason why the store can no longer be trusted, or nil.
func (s *Server) Err() error {
	if p := s.fatal.Load(); p != nil {
		return *p
	}
	return nil
}

// fail notes why the store cannot be trusted any more; the first reason counts.
// It is called with locks of the server held, so it must not call the server.
func (s *Server) fail(err error) {
	if s.endings.Load() || !s.fatal.CompareAndSwap(nil, &err) {
		return
	}
	s.o.Logger.Error("embedded queue store failed", "err", err)
	if s.o.OnFatal != nil {
		go s.o.OnFatal(err)
	}
}

// Stop ends the server and gives the directory free. Close connections before.
// When ctx ends first, the directory stays locked until the server is down; the
// next start then counts as unclean.
func (s *Server) Stop(ctx context.Context) error {
	s.stop.Do(func() {
		s.endings.Store(true)
		s.probe()
		go func() {
			defer close(s.stopped)
			s.wg.Wait()
			s.ns.Shutdown()
			s.ns.WaitForShutdown()
			s.stopErr = s.dir.end(s.Err() == nil)
		}()
	})
	select {
	case <-s.stopped:
		return s.stopErr
	case <-ctx.Done():
		return fmt.Errorf("stop embedded nats-server: %w", ctx.Err())
	}
}
