// Package sink is a small SMTP server that takes every message and hands it to a function. The demo, the bench and the
// crash harness deliver into it; it keeps nothing and is no relay.
//
//	s, err := sink.New(sink.Options{Message: func(m *sink.Message) sink.Reply {
//		log.Print(m.ReversePath, len(m.Data))
//		return ""
//	}})
//	s.Start()
//	defer s.Stop(ctx)
//
// A recipient or a whole message is answered as the functions say, so a destination that refuses, defers or is slow is one
// line. The 250 goes out after Message has returned: what the function has recorded is what the client may rely on.
package sink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Reply is one SMTP reply line without its line end, for example "450 4.2.0 come back later". "" means the positive reply.
type Reply string

// Message is one transaction. It belongs to the sink: a function that keeps Data after it has returned copies it.
type Message struct {
	Session     uint64   // counts connections from 1
	Remote      net.Addr // of the client
	Helo        string   // as given
	ReversePath string   // without angle brackets; "" for <>
	Parameters  string   // of MAIL, as given
	Recipients  []string // accepted ones, without angle brackets
	Data        []byte   // header and body, CRLF, dots removed
}

// Options configure a Sink. The zero value takes everything on a free loopback port.
type Options struct {
	Address        string                                 // to listen on; default 127.0.0.1:0
	Hostname       string                                 // in the banner; default sink.example
	MaxSize        int64                                  // octets of a message; default 128 MiB, advertised by SIZE
	MaxConnections int                                    // at a time; default 10,000; above it a connection gets 421
	Latency        time.Duration                          // waited before the reply to the final dot
	RoundTrip      time.Duration                          // waited before each reply, or pipelined group of replies: a network that is far away
	IdleTimeout    time.Duration                          // for one read or write; default 5 min
	Recipient      func(m *Message, forward string) Reply // asked for each RCPT; nil accepts
	Message        func(m *Message) Reply                 // asked at the final dot; nil accepts
	Opened         func(session uint64)                   // told of each connection that was accepted; may be nil
	Closed         func(session uint64, helo string)      // told when the client has said QUIT or is gone; may be nil
}

func (o Options) withDefaults() Options {
	if o.Address == "" {
		o.Address = "127.0.0.1:0"
	}
	if o.Hostname == "" {
		o.Hostname = "sink.example"
	}
	if o.MaxSize == 0 {
		o.MaxSize = 128 << 20
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = 10_000
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 5 * time.Minute
	}
	return o
}

// Sink is a running sink. Safe for concurrent use.
type Sink struct {
	o        Options
	listener net.Listener
	wg       sync.WaitGroup
	messages atomic.Int64
	sessions atomic.Uint64

	mu      sync.Mutex
	conns   map[net.Conn]struct{}
	stopped bool
}

// New binds the socket.
func New(o Options) (*Sink, error) {
	o = o.withDefaults()
	l, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("sink: %w", err)
	}
	return &Sink{o: o, listener: l, conns: make(map[net.Conn]struct{})}, nil
}

// Addr is where it listens.
func (s *Sink) Addr() net.Addr { return s.listener.Addr() }

// Messages counts those that got 250.
func (s *Sink) Messages() int64 { return s.messages.Load() }

// Start accepts connections until Stop.
func (s *Sink) Start() {
	s.wg.Go(func() {
		for {
			conn, err := s.listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // out of file descriptors: wait for some to come back
				time.Sleep(10 * time.Millisecond)
				continue
			}
			s.serve(conn)
		}
	})
}

func (s *Sink) serve(conn net.Conn) {
	s.mu.Lock()
	full := len(s.conns) >= s.o.MaxConnections
	if !full && !s.stopped {
		s.conns[conn] = struct{}{}
	}
	stopped := s.stopped
	s.mu.Unlock()
	if full || stopped {
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = fmt.Fprintf(conn, "421 4.3.2 %s has no room for this connection\r\n", s.o.Hostname)
		_ = conn.Close()
		return
	}
	c := newSession(s, conn)
	if s.o.Opened != nil {
		s.o.Opened(c.m.Session)
	}
	s.wg.Go(func() {
		defer func() {
			c.left()
			_ = conn.Close()
			s.mu.Lock()
			delete(s.conns, conn)
			s.mu.Unlock()
		}()
		c.run()
	})
}

// Stop closes the listener and every connection and waits for their goroutines, at most until ctx ends.
func (s *Sink) Stop(ctx context.Context) error {
	s.mu.Lock()
	s.stopped = true
	for conn := range s.conns {
		_ = conn.Close()
	}
	s.mu.Unlock()
	err := s.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("stop sink: %w", ctx.Err())
	}
}
