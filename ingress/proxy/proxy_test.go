package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	addresses4 = "\xc0\x00\x02\x07\xc0\x00\x02\x01\x9c\x40\x00\x19" // 192.0.2.7:40000 to 192.0.2.1:25
	zero10     = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	mapped6    = zero10 + "\xff\xff\xc0\x00\x02\x07" + zero10 + "\xff\xff\xc0\x00\x02\x01\x9c\x40\x00\x19"
	addresses6 = "\x20\x01\x0d\xb8\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07" +
		"\x20\x01\x0d\xb8\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x9c\x40\x00\x19"
)

// v2 makes a header of version 2.
func v2(command, transport byte, payload string) string {
	b := append([]byte(beginV2), command, transport)
	return string(binary.BigEndian.AppendUint16(b, uint16(len(payload)))) + payload
}

// value makes one of the values behind the addresses.
func value(kind byte, text string) string {
	return string(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(text)))) + text
}

// withChecksum puts a checksum behind a payload of version 2.
func withChecksum(payload string, wrong uint32) string {
	b := []byte(v2(0x21, 0x11, payload+value(typeCRC32C, "\x00\x00\x00\x00")))
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	binary.BigEndian.PutUint32(b[len(b)-4:], sum^wrong)
	return string(b)
}

var (
	client4 = Header{Source: netip.MustParseAddrPort("192.0.2.7:40000"), Destination: netip.MustParseAddrPort("192.0.2.1:25")}
	client6 = Header{Source: netip.MustParseAddrPort("[2001:db8::7]:40000"), Destination: netip.MustParseAddrPort("[2001:db8::1]:25")}
	local   = Header{Local: true}
)

var good = []struct {
	name, header string
	want         Header
}{
	{"v1", "PROXY TCP4 192.0.2.7 192.0.2.1 40000 25\r\n", client4},
	{"v1, IPv6", "PROXY TCP6 2001:db8::7 2001:db8::1 40000 25\r\n", client6},
	{"v1, IPv4 as IPv6", "PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.1 40000 25\r\n", client4},
	{"v1, unknown", "PROXY UNKNOWN\r\n", local},
	{"v1, unknown, longest", "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", local},
	{"v2", v2(0x21, 0x11, addresses4), client4},
	{"v2, IPv6", v2(0x21, 0x21, addresses6), client6},
	{"v2, IPv4 as IPv6", v2(0x21, 0x21, mapped6), client4},
	{"v2, with values", v2(0x21, 0x11, addresses4+value(0x04, "\x00\x00")+value(0xea, "x")+value(0x02, "")), client4},
	{"v2, as long as can be", v2(0x21, 0x11, addresses4+value(0xe0, strings.Repeat("x", 2048-12-3))), client4},
	{"v2, with a checksum", withChecksum(addresses4+value(0xea, "x"), 0), client4},
	{"v2, a check", v2(0x20, 0x00, ""), local},
	{"v2, a check, with addresses", v2(0x20, 0x11, addresses4), local},
	{"v2, a check, with nonsense", v2(0x20, 0x11, "abc"), local},
	{"v2, a unix socket", v2(0x21, 0x31, strings.Repeat("\x00", 216)), local},
}

var bad = []struct {
	name, text string
	want       error
}{
	{"SMTP", "EHLO client.test\r\n", ErrNoHeader},
	{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ErrNoHeader},
	{"empty lines", "\r\n\r\n\r\n", ErrNoHeader},
	{"a word that begins alike", "PROXYING TCP4 192.0.2.7 192.0.2.1 40000 25\r\n", ErrNoHeader},
	{"small letters", "proxy TCP4 192.0.2.7 192.0.2.1 40000 25\r\n", ErrNoHeader},
	{"v1, a blank before", " PROXY TCP4 192.0.2.7 192.0.2.1 40000 25\r\n", ErrNoHeader},
	{"v1, 108 octets", "PROXY UNKNOWN " + strings.Repeat("f", 92) + "\r\n", ErrMalformed},
	{"v1, no end", "PROXY UNKNOWN " + strings.Repeat("f", 5000), ErrMalformed},
	{"v1, LF", "PROXY TCP4 192.0.2.7 192.0.2.1 40000 25\n", ErrMalformed},
	{"v1, CR", "PROXY TCP4 192.0.2.7 192.0.2.1 40000 25\r" + strings.Repeat("x", 100), ErrMalformed},
	{"v1, a name", "PROXY TCP4 client.test 192.0.2.1 40000 25\r\n", ErrMalformed},
	{"v1, another family", "PROXY TCP4 2001:db8::7 2001:db8::1 40000 25\r\n", ErrMalformed},
	{"v1, a zone", "PROXY TCP6 fe80::1%eth0 2001:db8::1 40000 25\r\n", ErrMalformed},
	{"v1, a port too large", "PROXY TCP4 192.0.2.7 192.0.2.1 70000 25\r\n", ErrMalformed},
	{"v1, no ports", "PROXY TCP4 192.0.2.7 192.0.2.1\r\n", ErrMalformed},
	{"v1, two blanks", "PROXY TCP4  192.0.2.7 192.0.2.1 40000 25\r\n", ErrMalformed},
	{"v1, UDP", "PROXY UDP4 192.0.2.7 192.0.2.1 40000 25\r\n", ErrMalformed},
	{"v1, from nowhere", "PROXY TCP4 0.0.0.0 192.0.2.1 40000 25\r\n", ErrMalformed},
	{"v2, another version", v2(0x31, 0x11, addresses4), ErrMalformed},
	{"v2, another command", v2(0x22, 0x11, addresses4), ErrMalformed},
	{"v2, no family", v2(0x21, 0x00, ""), ErrMalformed},
	{"v2, an undefined transport", v2(0x21, 0x13, addresses4), ErrMalformed},
	{"v2, UDP", v2(0x21, 0x12, addresses4), ErrMalformed},
	{"v2, unix datagrams", v2(0x21, 0x32, strings.Repeat("\x00", 216)), ErrMalformed},
	{"v2, shorter than the addresses", v2(0x21, 0x11, addresses4[:11]), ErrMalformed},
	{"v2, longer than is taken", v2(0x21, 0x11, addresses4+value(0xe0, strings.Repeat("x", 2049-12-3))), ErrMalformed},
	{"v2, longest", v2(0x21, 0x11, strings.Repeat("x", 65535)), ErrMalformed},
	{"v2, a check of all octets", v2(0x20, 0x00, strings.Repeat("x", 65535)), ErrMalformed},
	{"v2, from nowhere", v2(0x21, 0x11, "\x00\x00\x00\x00"+addresses4[4:]), ErrMalformed},
	{"v2, from many", v2(0x21, 0x11, "\xe0\x00\x00\x01"+addresses4[4:]), ErrMalformed},
	{"v2, a value cut off", v2(0x21, 0x11, addresses4+"\xe0\xff\xffx"), ErrMalformed},
	{"v2, half a value", v2(0x21, 0x11, addresses4+"\xe0\x00"), ErrMalformed},
	{"v2, a wrong checksum", withChecksum(addresses4, 1), ErrMalformed},
	{"v2, a short checksum", v2(0x21, 0x11, addresses4+value(typeCRC32C, "abc")), ErrMalformed},
}

// over gives a client that says text in pieces, over TCP or in memory.
func over(t *testing.T, network, text string, piece int, use func(server net.Conn)) {
	t.Helper()
	var client, server net.Conn
	if network == "tcp" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if server, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
	} else {
		client, server = net.Pipe()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for rest := []byte(text); len(rest) > 0; {
			n, err := client.Write(rest[:min(piece, len(rest))])
			if err != nil {
				return
			}
			rest = rest[n:]
		}
	}()
	use(server)
	_ = server.Close()
	_ = client.Close()
	<-done
}

func TestRead(t *testing.T) {
	const behind = "\x16\x03\x01 what the client says"
	sameAddr := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	for _, tt := range good {
		t.Run(tt.name, func(t *testing.T) {
			for _, network := range []string{"pipe", "tcp"} {
				for _, piece := range []int{1, 7, 11, 10_000} {
					if network == "tcp" && piece == 1 && len(tt.header) > 300 {
						continue // two thousand system calls show nothing new
					}
					over(t, network, tt.header+behind, piece, func(server net.Conn) {
						h, rest, err := Read(server, time.Now().Add(20*time.Second), make([]byte, 4096))
						if err != nil {
							t.Fatalf("%s in pieces of %d: %v", network, piece, err)
						}
						if diff := cmp.Diff(tt.want, h, sameAddr); diff != "" {
							t.Errorf("%s in pieces of %d: -want +got:\n%s", network, piece, diff)
						}
						more := make([]byte, len(behind)-len(rest))
						if _, err := io.ReadFull(server, more); err != nil {
							t.Fatal(err)
						}
						if got := string(rest) + string(more); got != behind {
							t.Errorf("%s in pieces of %d: got %q behind the header, want %q", network, piece, got, behind)
						}
					})
				}
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	for _, tt := range bad {
		for _, network := range []string{"pipe", "tcp"} {
			for _, piece := range []int{3, 100_000} {
				over(t, network, tt.text, piece, func(server net.Conn) {
					h, _, err := Read(server, time.Now().Add(20*time.Second), make([]byte, 4096))
					if !errors.Is(err, tt.want) || errors.Is(err, os.ErrDeadlineExceeded) || h != (Header{}) {
						t.Errorf("%s over %s in pieces of %d: got %+v, %v, want %v at once", tt.name, network, piece, h, err, tt.want)
					}
				})
			}
		}
	}
}

func TestReadCutOff(t *testing.T) {
	for _, tt := range good {
		for _, n := range []int{0, 1, 5, 6, 12, 15, len(tt.header) - 1} {
			n = min(n, len(tt.header)-1)
			client, server := net.Pipe()
			go func() {
				_, _ = client.Write([]byte(tt.header[:n]))
				_ = client.Close()
			}()
			_, _, err := Read(server, time.Now().Add(20*time.Second), make([]byte, 4096))
			want, cause := ErrMalformed, io.ErrUnexpectedEOF
			if n == 0 {
				want, cause = ErrNoHeader, io.EOF
			}
			if !errors.Is(err, want) || !errors.Is(err, cause) {
				t.Errorf("%s after %d octets: got %v, want %v and %v", tt.name, n, err, want, cause)
			}
			_ = server.Close()
		}
	}
}

// TestDeadlineIsForAllOfIt: an octet now and then does not put it off.
func TestDeadlineIsForAllOfIt(t *testing.T) {
	for name, text := range map[string]string{"nothing": "", "v1": good[0].header, "v2": good[5].header} {
		synctest.Test(t, func(t *testing.T) {
			client, server := net.Pipe()
			begun := time.Now()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for i := range text {
					time.Sleep(time.Second)
					if _, err := client.Write([]byte(text[i : i+1])); err != nil {
						return
					}
				}
			}()
			_, _, err := Read(server, begun.Add(10500*time.Millisecond), make([]byte, 4096))
			want := ErrMalformed
			if text == "" {
				want = ErrNoHeader
			}
			if !errors.Is(err, want) || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: got %v, want %v and a deadline that was exceeded", name, err, want)
			}
			if took := time.Since(begun); took != 10500*time.Millisecond {
				t.Errorf("%s: took %s, want 10.5s", name, took)
			}
			_ = server.Close()
			<-done
		})
	}
}

func TestReadNeedsRoom(t *testing.T) {
	_, server := net.Pipe()
	if _, _, err := Read(server, time.Now().Add(time.Second), make([]byte, MinBuffer-1)); err == nil || errors.Is(err, ErrNoHeader) {
		t.Errorf("got %v, want an error about the buffer", err)
	}
}

// chunks is a connection that hands out what is there in pieces of a size.
type chunks struct {
	net.Conn
	in   io.Reader
	size int
}

func (c chunks) Read(p []byte) (int, error)    { return c.in.Read(p[:min(len(p), c.size)]) }
func (chunks) SetReadDeadline(time.Time) error { return nil }

// FuzzRead: whatever comes, and however it comes, the answer is the same;
// nothing is lost, and an address is one that a client can have.
func FuzzRead(f *testing.F) {
	for _, tt := range good {
		f.Add([]byte(tt.header+"EHLO c\r\n"), 3)
	}
	for _, tt := range bad {
		f.Add([]byte(tt.text[:min(len(tt.text), 3000)]), 1)
	}
	f.Fuzz(func(t *testing.T, input []byte, size int) {
		h, rest, err := Read(chunks{in: bytes.NewReader(input), size: 1 << 20}, time.Time{}, make([]byte, 4096))
		slow := bytes.NewReader(input)
		h2, rest2, err2 := Read(chunks{in: slow, size: min(max(size, 1), 64)}, time.Time{}, make([]byte, 4096))
		if (err == nil) != (err2 == nil) || h != h2 {
			t.Fatalf("got %+v, %v at once, %+v, %v in pieces", h, err, h2, err2)
		}
		if err != nil {
			if !errors.Is(err, ErrNoHeader) && !errors.Is(err, ErrMalformed) {
				t.Errorf("got an error of no kind: %v", err)
			}
			return
		}
		if !bytes.HasSuffix(input[:min(len(input), 4096)], rest) {
			t.Errorf("got rest %q, which is not the end of the input", rest)
		}
		left, _ := io.ReadAll(slow)
		if len(input) <= 4096 && len(rest) != len(rest2)+len(left) {
			t.Errorf("a header of %d octets at once, of %d in pieces", len(input)-len(rest), len(input)-len(rest2)-len(left))
		}
		if h.Local != !h.Source.IsValid() || h.Local != !h.Destination.IsValid() {
			t.Errorf("got %+v", h)
		}
		if a := h.Source.Addr(); a.Is4In6() || a.Zone() != "" || a.IsUnspecified() {
			t.Errorf("got source %s", a)
		}
	})
}
