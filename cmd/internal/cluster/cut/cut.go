// Package cut forwards TCP connections and can cut them off, as a broken
// network does.
//
// A Link listens on a loopback port and forwards to one target. Freeze keeps
// every connection up but lets no octet through until Thaw, which then
// delivers what was under way: a partition as TCP sees it. Sever closes all
// connections and refuses new ones until Thaw: a machine that is gone.
package cut

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	dialTimeout = 2 * time.Second
	chunkBytes  = 32 << 10
	maxConns    = 1024 // of one link; more are refused
)

// Link is one forwarded port.
type Link struct {
	ln     net.Listener
	target string
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	open    chan struct{} // closed while octets may pass
	severed bool
	conns   map[net.Conn]struct{}
}

// Listen starts a link to target on a port that the kernel chooses.
func Listen(target string) (*Link, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for a link to %s: %w", target, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &Link{
		ln: ln, target: target, ctx: ctx, cancel: cancel,
		open: make(chan struct{}), conns: make(map[net.Conn]struct{}),
	}
	close(l.open)
	l.wg.Go(l.accept)
	return l, nil
}

// Addr is where the link listens.
func (l *Link) Addr() string { return l.ln.Addr().String() }

// Freeze lets no octet through and accepts nothing new, but keeps what is
// connected.
func (l *Link) Freeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.open:
		l.open = make(chan struct{})
	default:
	}
}

// Sever closes every connection and refuses new ones.
func (l *Link) Sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.severed = true
	l.closeAll()
}

// Thaw ends Freeze and Sever.
func (l *Link) Thaw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.severed = false
	select {
	case <-l.open:
	default:
		close(l.open)
	}
}

// Close ends the link and waits for its goroutines.
func (l *Link) Close() error {
	l.cancel()
	err := l.ln.Close()
	l.mu.Lock()
	l.closeAll()
	l.mu.Unlock()
	l.wg.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close link to %s: %w", l.target, err)
	}
	return nil
}

func (l *Link) closeAll() {
	for c := range l.conns {
		_ = c.Close() // only to wake its readers
	}
}

func (l *Link) accept() {
	for {
		c, err := l.ln.Accept()
		if err != nil {
			if l.ctx.Err() != nil {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors: let some go
			continue
		}
		if !l.add(c) {
			_ = c.Close() // refused
			continue
		}
		l.wg.Go(func() {
			defer l.drop(c)
			l.serve(c)
		})
	}
}

// add registers c, unless the link is severed, full or closed.
func (l *Link) add(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.severed || l.ctx.Err() != nil || len(l.conns) >= maxConns {
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

func (l *Link) drop(c net.Conn) {
	_ = c.Close() // closed already in most cases
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}

func (l *Link) serve(near net.Conn) {
	if !l.pass() {
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	far, err := d.DialContext(l.ctx, "tcp", l.target)
	if err != nil {
		return // the near side sees its connection closed
	}
	if !l.add(far) {
		_ = far.Close() // severed while we dialled
		return
	}
	defer l.drop(far)
	var wg sync.WaitGroup
	wg.Go(func() { l.copy(far, near) })
	wg.Go(func() { l.copy(near, far) })
	wg.Wait()
}

// copy moves octets until either side ends; it then ends both, which is all
// that the protocols here need.
func (l *Link) copy(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, chunkBytes)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if !l.pass() {
				return
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				return
			}
			l.pass() // the end of the stream, too, waits for Thaw
			return
		}
	}
}

// pass waits until octets may go through; false: the link is closed.
func (l *Link) pass() bool {
	l.mu.Lock()
	open := l.open
	l.mu.Unlock()
	select {
	case <-open:
		return true
	case <-l.ctx.Done():
		return false
	}
}
