package smtpc

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
)

// BenchmarkSend measures transactions of 10 KB on one connection to a host that costs next to nothing.
func BenchmarkSend(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		serveFast(l)
	}()
	c, err := Dial(b.Context(), "mx.test", l.Addr().(*net.TCPAddr).AddrPort(), Options{Hostname: "relay.test"})
	if err != nil {
		b.Fatal(err)
	}
	m := message(b, "a@example.net")
	text := strings.Repeat("The quick brown fox jumps over the lazy dog, and so on to column 72.\r\n", 146)
	m.Size = int64(len(text))
	b.SetBytes(m.Size)
	b.ReportAllocs()
	for b.Loop() {
		m.Body = strings.NewReader(text)
		if res, err := c.Send(b.Context(), m); err != nil || !res.Recipients[0].OK() {
			b.Fatal(res, err)
		}
	}
	c.Close(b.Context())
	<-served
}

// serveFast takes everything on one connection.
func serveFast(l net.Listener) {
	conn, err := l.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 64<<10)
	io.WriteString(conn, "220 mx.test\r\n")
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		switch {
		case bytes.HasPrefix(line, []byte("EHLO")):
			io.WriteString(conn, "250-mx.test\r\n250-SIZE\r\n250 PIPELINING\r\n")
		case bytes.HasPrefix(line, []byte("DATA")):
			io.WriteString(conn, "250 ok\r\n250 ok\r\n354 go\r\n")
			for line, err = r.ReadSlice('\n'); err == nil && string(line) != ".\r\n"; {
				line, err = r.ReadSlice('\n')
			}
			io.WriteString(conn, "250 kept\r\n")
		case bytes.HasPrefix(line, []byte("QUIT")):
			io.WriteString(conn, "221 bye\r\n")
			return
		}
	}
}
