package ingress

import (
	"io"
	"net"
	"time"
)

// scriptConn is the server's side of a connection whose client says what r
// holds and whose replies go nowhere.
type scriptConn struct {
	r io.Reader
	w io.Writer
}

var _ net.Conn = scriptConn{}

func (c scriptConn) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c scriptConn) Write(p []byte) (int, error) {
	if c.w == nil {
		return len(p), nil
	}
	return c.w.Write(p)
}

func (c scriptConn) Close() error                     { return nil }
func (c scriptConn) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }
func (c scriptConn) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (c scriptConn) SetDeadline(time.Time) error      { return nil }
func (c scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c scriptConn) SetWriteDeadline(time.Time) error { return nil }
