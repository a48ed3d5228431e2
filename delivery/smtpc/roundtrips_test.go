package smtpc

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkRoundTrips says how many messages of 10 KB one connection carries in a second to a host that is far away: as the
// dialogue is without PIPELINING, with it, on a connection used again, and with the content in the flight of the envelope.
//
//	go test ./delivery/smtpc -run - -bench RoundTrips -benchtime 20x
func BenchmarkRoundTrips(b *testing.B) {
	for _, rtt := range []time.Duration{50 * time.Millisecond, 200 * time.Millisecond} {
		for _, way := range []struct {
			name      string
			keywords  string
			reuses    bool
			dialsWith bool // Options.Chunking
		}{
			{"plain", "250 SIZE", false, false},
			{"pipelined", "250-PIPELINING\r\n250 SIZE", false, false},
			{"plain-reused", "250 SIZE", true, false},
			{"pipelined-reused", "250-PIPELINING\r\n250 SIZE", true, false},
			{"bdat", "250-PIPELINING\r\n250-CHUNKING\r\n250 SIZE", false, true},
			{"bdat-reused", "250-PIPELINING\r\n250-CHUNKING\r\n250 SIZE", true, true},
		} {
			b.Run(fmt.Sprintf("%v/%s", rtt, way.name), func(b *testing.B) {
				far := newFarHost(b, rtt, way.keywords)
				defer far.close()
				m := message(b, "a@example.net")
				text := strings.Repeat("The quick brown fox jumps over the lazy dog, and so on to column 72.\r\n", 146)
				m.Size = int64(len(text))
				o := Options{Hostname: "relay.test", Chunking: way.dialsWith, Dial: far.dial}
				var c *Conn
				n := 0
				b.ResetTimer()
				start := time.Now()
				for b.Loop() {
					if c == nil {
						c = dial(b, o)
					}
					m.Body = strings.NewReader(text)
					if res, err := c.Send(b.Context(), m); err != nil || !res.Recipients[0].OK() {
						b.Fatal(res, err)
					}
					n++
					if !way.reuses {
						go c.Close(b.Context()) // as the pool does
						c = nil
					}
				}
				b.ReportMetric(float64(n)/time.Since(start).Seconds(), "messages/s")
				if c != nil {
					c.Close(b.Context())
				}
			})
		}
	}
}

// farHost takes everything, behind a line that delays each octet by half a round trip.
type farHost struct {
	l        net.Listener
	delay    time.Duration
	keywords string
	wg       sync.WaitGroup
}

func newFarHost(tb testing.TB, rtt time.Duration, keywords string) *farHost {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	f := &farHost{l: l, delay: rtt / 2, keywords: keywords}
	f.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.wg.Go(func() { f.serve(conn) })
		}
	})
	return f
}

func (f *farHost) close() {
	f.l.Close()
	f.wg.Wait()
}

// dial connects, which takes a round trip too.
func (f *farHost) dial(context.Context, string, string) (net.Conn, error) {
	time.Sleep(2 * f.delay)
	far, err := net.Dial("tcp", f.l.Addr().String())
	if err != nil {
		return nil, err
	}
	near, line := net.Pipe() // what is written waits for nobody but the line
	f.wg.Go(func() { f.carry(line, far) })
	f.wg.Go(func() { f.carry(far, line) })
	return near, nil
}

// carry copies one direction; each piece arrives so much later.
func (f *farHost) carry(from, to net.Conn) {
	type piece struct {
		due  time.Time
		text []byte
	}
	pieces := make(chan piece, 10_000)
	f.wg.Go(func() {
		defer to.Close()
		for p := range pieces {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.text); err != nil {
				from.Close()
			}
		}
	})
	defer close(pieces)
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			pieces <- piece{time.Now().Add(f.delay), bytes.Clone(buf[:n])}
		}
		if err != nil {
			return
		}
	}
}

func (f *farHost) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 64<<10)
	io.WriteString(conn, "220 mx.test\r\n")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		answer := "250 ok\r\n"
		switch verb, rest, _ := strings.Cut(strings.TrimSpace(line), " "); verb {
		case "EHLO":
			answer = "250-mx.test\r\n" + f.keywords + "\r\n"
		case "DATA":
			io.WriteString(conn, "354 go\r\n")
			for line, err = r.ReadString('\n'); err == nil && line != ".\r\n"; {
				line, err = r.ReadString('\n')
			}
		case "BDAT":
			size, _, _ := strings.Cut(rest, " ")
			n, _ := strconv.ParseInt(size, 10, 64)
			_, err = io.CopyN(io.Discard, r, n)
		case "QUIT":
			io.WriteString(conn, "221 bye\r\n")
			return
		}
		if err != nil {
			return
		}
		io.WriteString(conn, answer)
	}
}

// One flight of the envelope with its content takes one round trip on a connection that is used again, where DATA takes two
// and the dialogue without PIPELINING four: counted in writes of the client, not measured by a clock.
func TestRoundTripsOfAMessage(t *testing.T) {
	for _, tt := range []struct {
		keywords string
		flights  int
	}{{"250 SIZE", 4}, {"250-PIPELINING\r\n250 SIZE", 2}, {"250-PIPELINING\r\n250-CHUNKING\r\n250 SIZE", 1}} {
		f := newFarHost(t, 0, tt.keywords)
		writes := 0
		c := dial(t, Options{Hostname: "relay.test", Chunking: true, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := f.dial(ctx, network, addr)
			return &countingConn{Conn: conn, writes: &writes}, err
		}})
		for i := range 3 {
			before := writes
			if _, err := c.Send(t.Context(), message(t, "a@example.net")); err != nil {
				t.Fatal(err)
			}
			if got := writes - before; got != tt.flights {
				t.Errorf("%q, message %d: got %d flights, want %d", tt.keywords, i+1, got, tt.flights)
			}
		}
		c.Close(t.Context())
		f.close()
	}
}
