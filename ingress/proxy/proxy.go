// Package proxy reads the header by which a load balancer says who the client
// of a connection is: the PROXY protocol, versions 1 and 2.
//
//	h, rest, err := proxy.Read(conn, time.Now().Add(10*time.Second), buf)
//
// A header is worth what its sender is: read one only from a balancer of your
// own, and no connection of such a balancer without one.
//
// The length of the header is found out here, within bounds, and its end too,
// so that nothing of what the client says is lost; go-proxyproto then gets
// exactly the header. What it lets pass is refused behind it: see meaning.
package proxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"
)

var (
	// ErrNoHeader says that a connection does not begin with a PROXY header, or
	// that nothing came at all; then it also is io.EOF or a time-out.
	ErrNoHeader = errors.New("no PROXY header")
	// ErrMalformed says that a PROXY header is broken, too long, or did not come
	// to its end; then it also is io.ErrUnexpectedEOF or a time-out.
	ErrMalformed = errors.New("malformed PROXY header")
)

// Header is what the balancer said.
type Header struct {
	Source      netip.AddrPort // the client, IPv4 as such
	Destination netip.AddrPort // where the client had connected to, IPv4 as such
	// Local says that the balancer speaks for itself, as in a check, or for a
	// client that has no address on the network. There are no addresses then:
	// the connection's own one counts.
	Local bool
}

const (
	maxV1 = 107       // octets, with the CRLF
	fixV2 = 16        // octets before what has the given length
	maxV2 = 16 + 2048 // octets; what balancers say fits easily

	// MinBuffer is room for any header that is taken.
	MinBuffer = maxV2
)

// The first octets of both versions.
const (
	beginV1 = "PROXY "
	beginV2 = "\r\n\r\n\x00\r\nQUIT\n"
)

// Read reads a header from the begin of conn. What was read beyond it is the
// rest, which lies in buf; that must hold MinBuffer octets. The deadline is for
// the whole header, however it comes, and stays set on conn.
func Read(conn net.Conn, deadline time.Time, buf []byte) (h Header, rest []byte, err error) {
	if len(buf) < MinBuffer {
		return h, nil, fmt.Errorf("read PROXY header: buffer of %d octets, want %d or more", len(buf), MinBuffer)
	}
	if err := conn.SetReadDeadline(deadline); err != nil {
		return h, nil, fmt.Errorf("read PROXY header: %w", err)
	}
	n := 0
	for {
		k, readErr := conn.Read(buf[n:])
		n += k
		length, err := headerLength(buf[:n])
		switch {
		case err != nil:
			return h, nil, err
		case length > 0 && n >= length:
			h, err = parse(buf[:length])
			return h, buf[length:n], err
		case readErr != nil && n == 0:
			return h, nil, fmt.Errorf("%w: %w", ErrNoHeader, readErr)
		case readErr == io.EOF:
			return h, nil, fmt.Errorf("%w: %w", ErrMalformed, io.ErrUnexpectedEOF)
		case readErr != nil:
			return h, nil, fmt.Errorf("%w: after %d octets: %w", ErrMalformed, n, readErr)
		}
	}
}

// headerLength is the length of the header that b begins with, or 0 while that
// cannot be known. It is known before b is as long as MinBuffer.
func headerLength(b []byte) (int, error) {
	switch {
	case agree(b, beginV1):
		if end := bytes.IndexByte(b[:min(len(b), maxV1)], '\n'); end >= 0 {
			return end + 1, nil
		}
		if len(b) >= maxV1 {
			return 0, fmt.Errorf("%w: more than %d octets", ErrMalformed, maxV1)
		}
		return 0, nil
	case agree(b, beginV2):
		if len(b) < fixV2 {
			return 0, nil
		}
		length := fixV2 + int(binary.BigEndian.Uint16(b[fixV2-2:]))
		if length > maxV2 {
			return 0, fmt.Errorf("%w: %d octets, at most %d", ErrMalformed, length, maxV2)
		}
		return length, nil
	}
	return 0, ErrNoHeader
}

// agree reports that b begins as begin does, as far as it goes.
func agree(b []byte, begin string) bool {
	n := min(len(b), len(begin))
	return string(b[:n]) == begin[:n]
}

// parse reads a header of which all is there, and nothing else.
func parse(b []byte) (Header, error) {
	in := bytes.NewReader(b)
	buffered := bufio.NewReaderSize(in, maxV1) // room for a whole line, or the library takes none
	p, err := proxyproto.Read(buffered)
	if err != nil {
		return Header{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if left := buffered.Buffered() + in.Len(); left > 0 {
		return Header{}, fmt.Errorf("%w: %d octets too many", ErrMalformed, left)
	}
	h, err := meaning(p)
	if err == nil && p.Version == 2 && !h.Local {
		err = checkValues(b, valuesAt(p.TransportProtocol))
	}
	if err != nil {
		return Header{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return h, nil
}

// meaning takes what can be the client of a TCP connection.
func meaning(p *proxyproto.Header) (Header, error) {
	switch {
	case p.Command.IsLocal(), p.TransportProtocol == proxyproto.UnixStream:
		return Header{Local: true}, nil
	case p.TransportProtocol != proxyproto.TCPv4 && p.TransportProtocol != proxyproto.TCPv6:
		return Header{}, fmt.Errorf("transport %#02x is none of a TCP connection", byte(p.TransportProtocol))
	}
	source, err := addrPort(p.SourceAddr)
	if err != nil {
		return Header{}, fmt.Errorf("source: %w", err)
	}
	destination, err := addrPort(p.DestinationAddr)
	if err != nil {
		return Header{}, fmt.Errorf("destination: %w", err)
	}
	return Header{Source: source, Destination: destination}, nil
}

// addrPort is an address that a host can have.
func addrPort(a net.Addr) (netip.AddrPort, error) {
	tcp, isTCP := a.(*net.TCPAddr)
	if !isTCP {
		return netip.AddrPort{}, fmt.Errorf("%v is no TCP address", a)
	}
	ap := tcp.AddrPort()
	addr := ap.Addr().Unmap()
	if !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() {
		return netip.AddrPort{}, fmt.Errorf("%s is no address of a host", addr)
	}
	return netip.AddrPortFrom(addr, ap.Port()), nil
}

// valuesAt is where the addresses of a header of version 2 end.
func valuesAt(t proxyproto.AddressFamilyAndProtocol) int {
	if t.IsIPv6() {
		return fixV2 + 2*(16+2)
	}
	return fixV2 + 2*(4+2)
}

// typeCRC32C is the type of the value that is a checksum of the header.
const typeCRC32C = 0x03

// checkValues makes sure that the values behind the addresses are whole, and
// compares the checksum, if there is one among them. Their meaning is of no use
// here.
func checkValues(b []byte, at int) error {
	for at < len(b) {
		if len(b)-at < 3 {
			return errors.New("the last value has no length")
		}
		kind, size := b[at], int(binary.BigEndian.Uint16(b[at+1:]))
		at += 3
		if size > len(b)-at {
			return errors.New("the last value is longer than the header")
		}
		if kind == typeCRC32C {
			if size != 4 {
				return errors.New("the checksum does not have four octets")
			}
			without := bytes.Clone(b)
			clear(without[at : at+size])
			if crc32.Checksum(without, crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(b[at:]) {
				return errors.New("the checksum is not right")
			}
		}
		at += size
	}
	return nil
}
