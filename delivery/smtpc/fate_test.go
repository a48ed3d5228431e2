package smtpc

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A whim is a host that answers each command as the next octet says, and keeps account of what it took.
type whim struct {
	conn    net.Conn
	choices []byte
	out     chan string

	mail  bool
	rcpts map[string]bool // taken in this transaction

	mu   sync.Mutex
	kept map[string]int // messages that it said 2xx to, or was about to when the line went dead
}

// account is what it has kept so far.
func (w *whim) account() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.kept)
}

// whims are what a host may answer with; %d is the code that belongs there.
var whims = []string{
	"%d ok\r\n", "%d ok\r\n", "%d ok\r\n", "%d ok\r\n", "%d ok\r\n", "%d-more\r\n%d ok\r\n", "%d\n", // weighted: most hosts are well
	"450 4.2.0 later\r\n", "452 4.5.3 too many\r\n", "550 5.1.1 no\r\n", "552 full\r\n", "554 5.7.1 spam\r\n", "503 5.5.1 out of step\r\n", "500 what\r\n",
	"421 4.3.2 leaving\r\n", "250 ok\r\n", "354 go\r\n", "299 ok\r\n", "hello\r\n", "250-half", "close", "silent", "drip",
}

func (w *whim) next() string {
	if len(w.choices) == 0 {
		return whims[0]
	}
	c := w.choices[0]
	w.choices = w.choices[1:]
	return whims[int(c)%len(whims)]
}

// say answers, and reports whether the dialogue goes on, and with what code.
func (w *whim) say(code int) (int, bool) {
	text := w.next()
	switch text {
	case "close":
		return 0, false
	case "silent":
		time.Sleep(time.Hour)
		return 0, false
	case "drip":
		for range 2000 {
			w.out <- "2"
			time.Sleep(time.Second)
		}
		return 0, false
	}
	text = strings.ReplaceAll(text, "%d", strconv.Itoa(code))
	w.out <- text
	said, _ := strconv.Atoi(text[:3])
	return said, said != 421 && !strings.HasPrefix(text, "250-half")
}

func (w *whim) run() {
	defer func() { close(w.out) }()
	r := bufio.NewReader(w.conn)
	w.out <- "220 whim\r\n"
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		goesOn := true
		switch verb {
		case "EHLO":
			offers := []string{"250 PIPELINING", "250-PIPELINING\r\n250 CHUNKING", "250 8BITMIME"}
			w.out <- "250-whim\r\n250-SIZE\r\n" + offers[len(w.choices)%len(offers)] + "\r\n"
		case "RSET":
			w.mail, w.rcpts = false, map[string]bool{}
			_, goesOn = w.say(250)
		case "MAIL":
			var code int
			code, goesOn = w.say(250)
			w.mail, w.rcpts = code/100 == 2, map[string]bool{}
		case "RCPT":
			var code int
			code, goesOn = w.say(250)
			if w.mail && code/100 == 2 {
				w.rcpts[rest[len("TO:<"):strings.Index(rest, ">")]] = true
			}
		case "DATA":
			var code int
			if code, goesOn = w.say(354); goesOn && code/100 == 3 {
				goesOn = w.content(r)
			}
		case "BDAT":
			size, _, _ := strings.Cut(rest, " ")
			n, _ := strconv.ParseInt(size, 10, 64)
			if _, err := io.CopyN(io.Discard, r, n); err != nil {
				return
			}
			goesOn = w.verdict()
		case "QUIT":
			w.out <- "221 bye\r\n"
			return
		}
		if !goesOn {
			return
		}
	}
}

func (w *whim) content(r *bufio.Reader) bool {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			return w.verdict()
		}
	}
}

// verdict answers the content. What the host meant to say when the line goes dead, nobody knows: it may have kept the message.
func (w *whim) verdict() bool {
	code, goesOn := w.say(250)
	if code/100 == 2 || code == 0 {
		w.mu.Lock()
		for rcpt := range w.rcpts {
			w.kept[rcpt]++
		}
		w.mu.Unlock()
	}
	w.mail, w.rcpts = false, map[string]bool{}
	return goesOn
}

// meet lets a client send some messages to a host of that whim and checks every fate against what the host knows.
func meet(t *testing.T, choices []byte, rcpts, sends int, chunking bool) {
	client, server := net.Pipe()
	w := &whim{conn: server, choices: choices, out: make(chan string, 10_000), kept: map[string]int{}}
	written := make(chan struct{})
	go func() {
		defer close(written)
		defer server.Close()
		for text := range w.out {
			if _, err := io.WriteString(server, text); err != nil {
				for range w.out { // nobody listens any more
				}
				return
			}
		}
	}()
	ended := make(chan struct{})
	go func() { defer close(ended); w.run() }()
	var names []string
	for i := range rcpts {
		names = append(names, fmt.Sprintf("r%d@example.net", i))
	}
	c, err := Dial(t.Context(), "mx.test", mxAddr, Options{Hostname: "relay.test", Chunking: chunking, Dial: func(context.Context, string, string) (net.Conn, error) { return client, nil }})
	if err == nil {
		for range sends {
			before := w.account()
			res, err := c.Send(t.Context(), message(t, names...))
			synctest.Wait()
			check(t, res, err, names, before, w.account())
			if !c.Reusable() {
				break
			}
		}
		c.Close(t.Context())
	}
	client.Close()
	<-ended
	<-written
}

// check holds that each recipient has one fate and that it is true: who is delivered was kept once, who was kept is delivered
// or in doubt, and nothing is final that the host did not say.
func check(t *testing.T, res Result, err error, names []string, before, after map[string]int) {
	if len(res.Recipients) != len(names) {
		t.Fatalf("got %d fates for %d recipients", len(res.Recipients), len(names))
	}
	inDoubt := false
	for i, r := range res.Recipients {
		kept := after[names[i]] - before[names[i]]
		isDelivered := r.Phase == PhaseDot && r.OK()
		inDoubt = inDoubt || r.InDoubt
		switch {
		case r.Code < 200 || r.Code > 599:
			t.Errorf("recipient %d has no fate: %+v", i, r)
		case r.OK() && r.Phase != PhaseDot:
			t.Errorf("recipient %d was taken in the middle: %+v", i, r)
		case isDelivered && kept != 1:
			t.Errorf("recipient %d is delivered, the host kept %d: %+v", i, kept, r)
		case kept > 0 && !isDelivered && !r.InDoubt:
			t.Errorf("recipient %d was kept and is neither delivered nor in doubt: %+v, error %v", i, r, err)
		case r.InDoubt && (!r.Local || r.Permanent()):
			t.Errorf("recipient %d is in doubt and has an answer: %+v", i, r)
		case r.Local && r.Permanent():
			t.Errorf("recipient %d failed for good and the host did not say so: %+v", i, r)
		}
	}
	if inDoubt != res.InDoubt {
		t.Errorf("got in doubt %v, of recipients %v", res.InDoubt, inDoubt)
	}
}

// Whatever a host does, each recipient has exactly one fate, and it is true.
func TestE4_57_60_OneFateWhateverTheHostDoes(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 57))
	for i := range 1000 {
		choices := make([]byte, rng.IntN(40))
		for k := range choices {
			choices[k] = byte(rng.IntN(256))
			if rng.IntN(3) > 0 {
				choices[k] %= 5 // well
			}
		}
		synctest.Test(t, func(t *testing.T) { meet(t, choices, rng.IntN(5), 1+rng.IntN(3), i%2 == 0) })
		if t.Failed() {
			t.Fatalf("round %d, choices %v", i, choices)
		}
	}
}

func FuzzFate(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0}, byte(2), true)
	f.Add([]byte{0, 9, 0, 16, 20}, byte(3), false)
	f.Add([]byte{0, 0, 0, 20}, byte(1), true)
	f.Fuzz(func(t *testing.T, choices []byte, n byte, chunking bool) {
		if len(choices) > 200 {
			return
		}
		synctest.Test(t, func(t *testing.T) { meet(t, choices, int(n%6), 2, chunking) })
	})
}
