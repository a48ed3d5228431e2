package delivery

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"postroad/delivery/route"
	"postroad/delivery/smtpc"
)

// strictHost takes mail over TCP, and no more of it than it says: two recipients of a message, two messages of a connection.
type strictHost struct {
	l  net.Listener
	wg sync.WaitGroup

	mu       sync.Mutex
	sessions []string // the verbs of each
}

func newStrictHost(t *testing.T) *strictHost {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &strictHost{l: l}
	h.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			h.wg.Go(func() { h.serve(conn) })
		}
	})
	return h
}

func (h *strictHost) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	io.WriteString(conn, "220 mx.test\r\n")
	var verbs []string
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.sessions = append(h.sessions, strings.Join(verbs, " "))
	}()
	mails, rcpts := 0, 0
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		verbs = append(verbs, verb)
		answer := "250 ok\r\n"
		switch verb {
		case "EHLO":
			answer = "250-mx.test\r\n250-PIPELINING\r\n250 LIMITS RCPTMAX=2 MAILMAX=2\r\n"
		case "MAIL":
			if mails, rcpts = mails+1, 0; mails > 2 {
				answer = "421 4.7.0 too many messages\r\n"
			}
		case "RCPT":
			if rcpts++; rcpts > 2 {
				answer = "421 4.7.0 too many recipients\r\n"
			}
		case "DATA":
			io.WriteString(conn, "354 go\r\n")
			for line, err = r.ReadString('\n'); err == nil && line != ".\r\n"; {
				line, err = r.ReadString('\n')
			}
		case "QUIT":
			answer = "221 bye\r\n"
		}
		if _, err := io.WriteString(conn, answer); err != nil || answer[0] != '2' || verb == "QUIT" {
			return
		}
	}
}

// The limits of a host are kept over TCP too, and its connections are used up to them and ended by QUIT.
func TestE4_61_65_LimitsOverTCP(t *testing.T) {
	h := newStrictHost(t)
	hop, err := route.ParseNextHop(fmt.Sprintf("smtp:[127.0.0.1]:%d", h.l.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	none := smtpc.TLSNone
	table, err := route.NewTable([]route.Route{{Match: "*", NextHop: hop, TLS: &none, AllowPrivate: true}})
	if err != nil {
		t.Fatal(err)
	}
	w := workerWith(t, nil, func(o *Options) { o.Routes = table })
	for _, n := range []int{3, 1, 1} { // three recipients are two messages
		if s := handleOne(t, w, testJob(crowd(n)...), &fakeMail{}); len(s.Remaining) != 0 {
			t.Errorf("%d recipients: got %+v", n, s.Facts)
		}
	}
	w.pool.close()
	h.l.Close()
	h.wg.Wait()
	want := []string{"EHLO MAIL RCPT RCPT DATA MAIL RCPT DATA QUIT", "EHLO MAIL RCPT DATA MAIL RCPT DATA QUIT"}
	slices.SortFunc(h.sessions, func(a, b string) int { return len(b) - len(a) })
	if !slices.Equal(h.sessions, want) {
		t.Errorf("got sessions\n%s\nwant\n%s", strings.Join(h.sessions, "\n"), strings.Join(want, "\n"))
	}
}
