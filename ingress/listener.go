package ingress

import (
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// listener is a socket with its rules. It lets in what the limits allow and
// turns the rest away at once, so that go-smtp never sees it.
type listener struct {
	Listener
	socket    net.Listener
	srv       *Server
	trusted   []network
	balancers []netip.Prefix
	open      int // connections, under Server.mu

	isAwaiting bool // its TLS, under Server.mu; there may be no socket then
}

// network is a trusted network with the name that its clients get.
type network struct {
	prefix netip.Prefix
	name   string
}

var _ net.Listener = (*listener)(nil)

// trust prepares trusted networks.
func trust(prefixes []netip.Prefix) []network {
	networks := make([]network, len(prefixes))
	for i, p := range prefixes {
		p = plain(p)
		networks[i] = network{p, "net:" + p.String()}
	}
	return networks
}

// plain is a network as addresses are compared with it: one of IPv4 addresses
// mapped into IPv6 becomes plain IPv4.
func plain(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// clientName is the name of the trusted network that holds addr, or "".
func (l *listener) clientName(addr netip.Addr) string {
	for _, n := range l.trusted {
		if n.prefix.Contains(addr) {
			return n.name
		}
	}
	return ""
}

// Accept waits for a connection that may stay.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.socket.Accept()
		if err != nil {
			return nil, err
		}
		c, refused := l.srv.admit(raw, l)
		if refused == nil {
			return c, nil
		}
		l.turnAway(raw, refused)
	}
}

// turnAway says why, in clear, where the client speaks first in clear.
func (l *listener) turnAway(raw net.Conn, r *refusal) {
	if !l.Implicit && raw.SetWriteDeadline(time.Now().Add(time.Second)) == nil {
		// A new socket has room for one line: this does not wait.
		_, _ = raw.Write(appendReply(nil, r))
	}
	_ = raw.Close()
	l.srv.refused(remoteOf(raw), r)
}

// refused notes a connection that may not stay.
func (s *Server) refused(remote netip.AddrPort, r *refusal) {
	s.metrics.connectionsTotal.WithLabelValues("refused").Inc()
	s.options.Logger.Warn("connection refused", "remote", remote.String(), "reason", r.text)
}

// Close closes the socket.
func (l *listener) Close() error { return l.socket.Close() }

// Addr is the socket's address.
func (l *listener) Addr() net.Addr { return l.socket.Addr() }

// inputs are input buffers between two connections.
var inputs = sync.Pool{New: func() any { return new([inputBytes]byte) }}

// admit counts a connection in, or says why not. Behind a load balancer its
// client is not known before the PROXY header: begin counts it then.
func (s *Server) admit(raw net.Conn, l *listener) (*conn, *refusal) {
	c := &conn{
		srv:      s,
		listener: l,
		raw:      raw,
		stream:   raw,
		remote:   remoteOf(raw),
		feedLine: make([]byte, 0, 64),
	}
	if len(l.balancers) > 0 {
		if !contains(l.balancers, c.remote.Addr()) {
			return nil, errDirect
		}
		c.raw = &prefixed{Conn: raw}
		c.stream = c.raw
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.isStopping:
		return nil, errShutdown
	case len(s.conns) >= s.options.MaxConnections, l.MaxConnections > 0 && l.open >= l.MaxConnections:
		return nil, errTooMany
	}
	if len(l.balancers) == 0 {
		if r := s.countAddress(c); r != nil {
			return nil, r
		}
	}
	c.input = inputs.Get().(*[inputBytes]byte)
	c.in = c.input[:]
	s.conns[c] = struct{}{}
	l.open++
	s.metrics.connections.Inc()
	s.metrics.connectionsTotal.WithLabelValues("admitted").Inc()
	return c, nil
}

// countAddress counts the client's address in, or says why it may not stay.
// Callers hold s.mu.
func (s *Server) countAddress(c *conn) *refusal {
	key := limitKey(c.remote.Addr())
	name := c.listener.clientName(c.remote.Addr())
	isTrusted := name != ""
	most := s.options.MaxConnectionsPerAddress
	if n := c.listener.MaxConnectionsPerAddress; n > 0 {
		most = min(most, n)
	}
	switch {
	case s.addresses[key] >= most:
		return errTooManyAddress
	case isTrusted:
	case s.visitors.isBanned(key):
		return errBanned
	case !s.visitors.mayCome(key):
		return errTooManyRate
	}
	s.addresses[key]++
	c.isCounted = true
	if isTrusted && c.listener.Auth != AuthRequired {
		c.client, c.class = name, NetworkClass
	}
	return nil
}

// leave counts a connection out.
func (s *Server) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	c.listener.open--
	if c.isCounted {
		key := limitKey(c.remote.Addr())
		if s.addresses[key]--; s.addresses[key] <= 0 {
			delete(s.addresses, key)
		}
		s.visitors.gone(key, c.wasUseful.Load(), c.wasThrownOut())
	}
	s.metrics.connections.Dec()
	if s.isStopping && len(s.conns) == 0 {
		close(s.gone)
	}
}

func contains(networks []netip.Prefix, addr netip.Addr) bool {
	for _, n := range networks {
		if n.Contains(addr) {
			return true
		}
	}
	return false
}

// limitKey is what counts as one address: an IPv4 address, an IPv6 /64.
func limitKey(addr netip.Addr) netip.Prefix {
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	key, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // no IP address: all of those share one count
	}
	return key
}

// remoteOf is the client's address, IPv4 as such.
func remoteOf(raw net.Conn) netip.AddrPort {
	tcp, isTCP := raw.RemoteAddr().(*net.TCPAddr)
	if !isTCP {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// literal prints an address as SMTP does (RFC 5321 §4.1.3).
func literal(remote netip.AddrPort) string {
	switch addr := remote.Addr(); {
	case !addr.IsValid():
		return "unknown"
	case addr.Is4():
		return "[" + addr.String() + "]"
	default:
		return "[IPv6:" + addr.String() + "]"
	}
}

// peerName is a client for events: its name, address and port.
func peerName(helo string, remote netip.AddrPort) string {
	return helo + "[" + remote.Addr().String() + "]:" + strconv.Itoa(int(remote.Port()))
}
