package stage

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Silent is a host that answers no attempt to connect: each ends when the client's patience does.
type Silent struct {
	fd     int
	within []net.Conn // connections that the kernel took until its line was full
}

const (
	silentTries = 8
	silentWait  = 300 * time.Millisecond
)

// NewSilent makes one at an IPv4 address. It is a socket whose line of connections to be accepted is full: Linux drops what comes then.
func NewSilent(at netip.AddrPort) (*Silent, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("silent host: %w", err)
	}
	s := &Silent{fd: fd}
	_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
		s.Close()
		return nil, fmt.Errorf("silent host at %s: %w", at, err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		s.Close()
		return nil, fmt.Errorf("silent host at %s: %w", at, err)
	}
	for range silentTries {
		c, err := net.DialTimeout("tcp", at.String(), silentWait)
		if err != nil {
			return s, nil
		}
		s.within = append(s.within, c)
	}
	s.Close()
	return nil, fmt.Errorf("the host at %s still takes connections after %d", at, silentTries)
}

// Close frees the address.
func (s *Silent) Close() {
	for _, c := range s.within {
		_ = c.Close()
	}
	_ = syscall.Close(s.fd)
}
