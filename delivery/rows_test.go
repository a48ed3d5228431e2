package delivery

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postroad/delivery/route"
	"postroad/delivery/smtpc"
	"postroad/queue"
)

// A scriptedHost takes mail over TCP until it comes to a step: there it has a fault, on every connection.
type scriptedHost struct {
	l     net.Listener
	step  smtpc.Phase
	fault string
	wg    sync.WaitGroup

	mu       sync.Mutex
	sessions int
	kept     int // messages that it said 250 to
}

func startScripted(t *testing.T, step smtpc.Phase, fault string) *scriptedHost {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &scriptedHost{l: l, step: step, fault: fault}
	h.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			h.mu.Lock()
			h.sessions++
			h.mu.Unlock()
			h.wg.Go(func() { h.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		h.wg.Wait()
	})
	return h
}

func (h *scriptedHost) via() string {
	return fmt.Sprintf("smtp:[127.0.0.1]:%d", h.l.Addr().(*net.TCPAddr).Port)
}

func (h *scriptedHost) counts() (sessions, kept int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions, h.kept
}

func (h *scriptedHost) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	if !h.say(conn, r, smtpc.PhaseGreeting, "220 mx.test") {
		return
	}
	phases := map[string]smtpc.Phase{"EHLO": smtpc.PhaseEhlo, "MAIL": smtpc.PhaseMail, "RCPT": smtpc.PhaseRcpt, "DATA": smtpc.PhaseData, "STARTTLS": smtpc.PhaseStartTLS, "QUIT": smtpc.PhaseQuit}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		answer := "250 ok"
		switch {
		case verb == "DATA":
			answer = "354 go"
		case verb == "EHLO" && h.step == smtpc.PhaseStartTLS:
			answer = "250-mx.test\r\n250 STARTTLS"
		}
		if !h.say(conn, r, phases[verb], answer) || verb == "QUIT" {
			return
		}
		if verb != "DATA" {
			continue
		}
		for line, err = r.ReadString('\n'); err == nil && line != ".\r\n"; {
			line, err = r.ReadString('\n')
		}
		if err != nil || !h.say(conn, r, smtpc.PhaseDot, "250 kept") {
			return
		}
		h.mu.Lock()
		h.kept++
		h.mu.Unlock()
	}
}

// say answers, or has its fault and reports that this was all.
func (h *scriptedHost) say(conn net.Conn, r *bufio.Reader, phase smtpc.Phase, answer string) bool {
	if phase != h.step {
		fmt.Fprintf(conn, "%s\r\n", answer)
		return true
	}
	switch h.fault {
	case "late":
	case "closed":
		return false
	case "220 go, and closed":
		fmt.Fprint(conn, "220 go\r\n")
		return false
	case "220 go, and no TLS":
		fmt.Fprint(conn, "220 go\r\n")
		_, _ = r.ReadByte() // its hello has begun
		fmt.Fprint(conn, "what?\r\n")
		return false
	case "454 4.7.0 not now": // and the dialogue goes on
		fmt.Fprintf(conn, "%s\r\n", h.fault)
		return true
	case "half":
		fmt.Fprint(conn, answer[:2])
		return false
	case "half of the lines":
		fmt.Fprintf(conn, "%s-and more\r\n", answer[:3])
		return false
	case "wrong":
		fmt.Fprint(conn, "welcome\r\n")
	default: // a reply
		fmt.Fprintf(conn, "%s\r\n", h.fault)
	}
	for err := error(nil); err == nil; { // the client leaves
		_, err = r.ReadByte()
	}
	return false
}

// Every fault of a host at every step, as the sender and the operator see it: before the mail is offered the next host has it at once;
// after that it waits and begins with another host, so that one that hangs in every dialogue keeps nothing back; only what
// was lost behind the dot is in doubt. Nothing is returned, and nobody is asked twice in one try.
func TestE4_53_56_59_60_FaultsAsTheOperatorSeesThem(t *testing.T) {
	rows := map[string]string{"late": "E4-53", "closed": "E4-60", "half": "E4-60", "half of the lines": "E4-60", "wrong": "E4-56", "421 4.3.2 leaving": "E4-59"}
	for fault, row := range rows {
		for _, step := range []smtpc.Phase{smtpc.PhaseGreeting, smtpc.PhaseEhlo, smtpc.PhaseMail, smtpc.PhaseRcpt, smtpc.PhaseData, smtpc.PhaseDot} {
			t.Run(fmt.Sprintf("%s %s at %s", row, fault, step), func(t *testing.T) {
				t.Parallel()
				bad, good := startScripted(t, step, fault), startScripted(t, "", "")
				w := workerWith(t, nil, func(o *Options) {
					o.Routes = tableOf(t, routed(t, route.Route{Match: "*", AllowPrivate: true}, bad.via()+","+good.via()))
					if fault == "late" { // both have as much time for this step: more than a busy machine needs
						const long = 8 * time.Second
						o.Timeouts = map[smtpc.Phase]smtpc.Timeouts{smtpc.PhaseGreeting: {Greeting: long}, smtpc.PhaseEhlo: {Ehlo: long},
							smtpc.PhaseMail: {Mail: long}, smtpc.PhaseRcpt: {Rcpt: long}, smtpc.PhaseData: {Data: long}, smtpc.PhaseDot: {Dot: long}}[step]
					}
				})
				isOffered := slices.Contains([]smtpc.Phase{smtpc.PhaseMail, smtpc.PhaseRcpt, smtpc.PhaseData, smtpc.PhaseDot}, step)
				inDoubt := step == smtpc.PhaseDot && row != "E4-59"
				if isOffered {
					s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
					e := s.Facts[0]
					if e.Type != queue.TransientFailure || len(s.Remaining) != 1 || len(s.Notify) > 0 || e.InDoubt != inDoubt || !s.Tried || s.Delay < minDelay {
						t.Errorf("first try: got %+v", s)
					}
					if sessions, _ := good.counts(); sessions > 0 {
						t.Error("the other host was asked in the same try")
					}
				}
				s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
				if s.Facts[0].Type != queue.Delivered || len(s.Remaining) > 0 {
					t.Errorf("got %+v, want it delivered by the other host", s)
				}
				w.pool.close()
				if sessions, kept := bad.counts(); sessions != 1 || kept != 0 {
					t.Errorf("the host with the fault has seen %d sessions and kept %d messages", sessions, kept)
				}
				if sessions, kept := good.counts(); sessions != 1 || kept != 1 {
					t.Errorf("the other has seen %d sessions and kept %d messages", sessions, kept)
				}
			})
		}
	}
}

// Row E5-67 over TCP: a host that offers STARTTLS and fails the handshake, in whatever way, gets the mail in clear text on a second
// connection, unless TLS is a must; one that refuses the command gets it on the same.
func TestE5_67_ClearTextAfterAFailedHandshake(t *testing.T) {
	for _, tt := range []struct {
		fault     string
		tls       smtpc.TLSMode
		delivered bool
		sessions  int
	}{
		{"220 go, and no TLS", smtpc.TLSMay, true, 2},
		{"220 go, and closed", smtpc.TLSMay, true, 2},
		{"454 4.7.0 not now", smtpc.TLSMay, true, 1},
		{"220 go, and no TLS", smtpc.TLSEncrypt, false, 1},
		{"454 4.7.0 not now", smtpc.TLSEncrypt, false, 1},
		{"421 4.3.2 leaving", smtpc.TLSMay, false, 1}, // says nothing of TLS
	} {
		t.Run(fmt.Sprintf("E5-67 %q, mode %d", tt.fault, tt.tls), func(t *testing.T) {
			t.Parallel()
			h := startScripted(t, smtpc.PhaseStartTLS, tt.fault)
			w := workerWith(t, nil, func(o *Options) {
				o.Routes = tableOf(t, routed(t, route.Route{Match: "*", AllowPrivate: true, TLS: &tt.tls}, h.via()))
			})
			s := handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
			w.pool.close()
			sessions, kept := h.counts()
			if got := s.Facts[0].Type == queue.Delivered; got != tt.delivered || sessions != tt.sessions || kept > 0 != tt.delivered || len(s.Notify) > 0 {
				t.Errorf("got %+v after %d sessions, %d messages", s.Facts[0], sessions, kept)
			}
		})
	}
}

// Row E4-53: the connect is cut short where another host can stand in, and only there.
func TestE4_53_ConnectIsShortWithSeveralHosts(t *testing.T) {
	var times []time.Duration
	n := newFakeNet()
	for _, host := range []string{"192.0.2.1", "192.0.2.2"} {
		n.set(host, func(_ context.Context, o smtpc.Options) (*fakeConn, error) {
			times = append(times, o.Timeouts.Connect)
			return nil, &smtpc.Error{Phase: smtpc.PhaseConnect, Err: context.DeadlineExceeded}
		})
	}
	w := workerWith(t, n, func(o *Options) {
		o.Routes = tableOf(t, routed(t, route.Route{Match: "*"}, "smtp:[192.0.2.1],smtp:[192.0.2.2]"))
	})
	handleOne(t, w, testJob("bob@example.net"), &fakeMail{})
	if want := []time.Duration{connectTimeout, 0}; !slices.Equal(times, want) { // 0: the default of smtpc, 30 s
		t.Errorf("got %v, want %v", times, want)
	}
}

// Row S1-19: without a word in the configuration, TLS is used where it is offered.
func TestS1_19_TLSByDefault(t *testing.T) {
	var modes []smtpc.TLSMode
	n := newFakeNet()
	n.set("mx.example.net", func(_ context.Context, o smtpc.Options) (*fakeConn, error) {
		modes = append(modes, o.TLS)
		return &fakeConn{answer: ok}, nil
	})
	handleOne(t, testWorker(t, n, "example.net"), testJob("bob@example.net"), &fakeMail{})
	if !slices.Equal(modes, []smtpc.TLSMode{smtpc.TLSMay}) {
		t.Errorf("got modes %v", modes)
	}
}
