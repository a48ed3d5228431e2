package proxy

import (
	"bufio"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pires/go-proxyproto"
)

// The tests here pin what go-proxyproto does that would hurt us, beside our own
// answer. One that fails after an upgrade says which fence can go.

func library(text string) (*proxyproto.Header, *bufio.Reader, error) {
	r := bufio.NewReader(strings.NewReader(text))
	h, err := proxyproto.Read(r)
	return h, r, err
}

func ours(text string) (Header, error) {
	h, _, err := Read(chunks{in: strings.NewReader(text), size: 1 << 20}, time.Time{}, make([]byte, 4096))
	return h, err
}

// A line that comes in two packets is refused, which its own specification
// advises against; a network may split any line.
func TestLibraryWantsALineAtOnce(t *testing.T) {
	line := good[0].header
	conn := chunks{in: strings.NewReader(line), size: 20}
	if _, err := proxyproto.Read(bufio.NewReader(conn)); !errors.Is(err, proxyproto.ErrCantReadVersion1Header) {
		t.Errorf("library: got %v, want %v", err, proxyproto.ErrCantReadVersion1Header)
	}
	if h, _, err := Read(chunks{in: strings.NewReader(line), size: 20}, time.Time{}, make([]byte, 4096)); err != nil || h != client4 {
		t.Errorf("got %+v, %v", h, err)
	}
}

// A time-out looks like a client that has no header; and the deadline that was
// set before is gone.
func TestLibraryHidesTimeOuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		_, err := proxyproto.ReadHeaderTimeout(server, bufio.NewReader(server), time.Second)
		var timeout net.Error
		if err != proxyproto.ErrNoProxyProtocol || errors.As(err, &timeout) {
			t.Errorf("library: got %v, want %v", err, proxyproto.ErrNoProxyProtocol)
		}
		_, _, err = Read(server, time.Now().Add(time.Second), make([]byte, 4096))
		if !errors.Is(err, ErrNoHeader) || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("got %v, want %v and a time-out", err, ErrNoHeader)
		}
	})
}

// Its bound for version 2 is a variable of the package, and larger than ours.
func TestLibraryBound(t *testing.T) {
	if proxyproto.MaxV2HeaderSize != 4096 || proxyproto.V1AcceptIPv4InTCP6 {
		t.Errorf("library: got a bound of %d, IPv4 in TCP6 %v", proxyproto.MaxV2HeaderSize, proxyproto.V1AcceptIPv4InTCP6)
	}
	long := v2(0x21, 0x11, addresses4+value(0xe0, strings.Repeat("x", 3000)))
	if _, _, err := library(long); err != nil {
		t.Errorf("library: got %v for 3 KB of values, want none", err)
	}
	if _, err := ours(long); !errors.Is(err, ErrMalformed) {
		t.Errorf("got %v, want %v", err, ErrMalformed)
	}
	if _, _, err := library(v2(0x21, 0x11, strings.Repeat("x", 65535))); !errors.Is(err, proxyproto.ErrInvalidLength) {
		t.Errorf("library: got %v for 64 KB, want %v", err, proxyproto.ErrInvalidLength)
	}
}

// What it takes and we do not.
func TestLibraryTakes(t *testing.T) {
	for name, text := range map[string]string{
		"UDP on a TCP connection":  v2(0x21, 0x12, addresses4),
		"a wrong checksum":         withChecksum(addresses4, 1),
		"values cut off":           v2(0x21, 0x11, addresses4+"\xe0\xff\xffx"),
		"a client without address": v2(0x21, 0x11, "\x00\x00\x00\x00"+addresses4[4:]),
		"multicast":                "PROXY TCP4 224.0.0.1 192.0.2.1 40000 25\r\n",
	} {
		if _, _, err := library(text); err != nil {
			t.Errorf("%s: library: got %v, want none", name, err)
		}
		if _, err := ours(text); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v, want %v", name, err, ErrMalformed)
		}
	}
}

// What it refuses, and so do we. PROXY with an unspecified family could mean the
// balancer's own address; balancers say LOCAL.
func TestLibraryRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"a family that is not specified": v2(0x21, 0x00, ""),
		"an undefined transport":         v2(0x21, 0x13, addresses4),
		"a zone":                         "PROXY TCP6 fe80::1%eth0 2001:db8::1 40000 25\r\n",
		"a port with a zero before it":   "PROXY TCP4 192.0.2.7 192.0.2.1 040000 25\r\n",
	} {
		if _, _, err := library(text); err == nil {
			t.Errorf("%s: library: got no error", name)
		}
		if _, err := ours(text); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v, want %v", name, err, ErrMalformed)
		}
	}
}

// Addresses of clients that came by IPv4 are as the balancer wrote them, and a
// check has the addresses of its own connection in it.
func TestLibraryAddresses(t *testing.T) {
	h, _, err := library(v2(0x21, 0x21, mapped6))
	if err != nil {
		t.Fatal(err)
	}
	if a := h.SourceAddr.(*net.TCPAddr).AddrPort().Addr(); !a.Is4In6() {
		t.Errorf("library: got %s, want an address mapped into IPv6", a)
	}
	if h, _, err = library(v2(0x20, 0x11, addresses4)); err != nil || h.SourceAddr == nil {
		t.Errorf("library: got source %v, %v for a check", h.SourceAddr, err)
	}
	if h, err := ours(v2(0x20, 0x11, addresses4)); err != nil || h != local {
		t.Errorf("got %+v, %v", h, err)
	}
}

// It reads no further than the header, but the reader under it does: whoever
// goes on with the connection loses what the client said.
func TestLibraryReadsAhead(t *testing.T) {
	_, r, err := library(good[0].header + "EHLO c\r\n")
	if err != nil || r.Buffered() != len("EHLO c\r\n") {
		t.Errorf("library: got %d octets in the buffer, %v", r.Buffered(), err)
	}
}
