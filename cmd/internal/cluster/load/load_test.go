package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/textproto"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postroad/cmd/internal/cluster/ledger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ingress is a server that takes mail, refuses every tenth message and hangs
// up in the middle of every fifteenth.
type ingress struct {
	ln net.Listener
	wg sync.WaitGroup

	mu      sync.Mutex
	n       int
	took    map[string]bool // damage of what was taken, by token
	refused int
	dropped int
}

func startIngress(t *testing.T) *ingress {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in := &ingress{ln: ln, took: make(map[string]bool)}
	in.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			in.wg.Go(func() { defer c.Close(); in.serve(textproto.NewConn(c)) })
		}
	})
	t.Cleanup(func() { ln.Close(); in.wg.Wait() })
	return in
}

func (in *ingress) serve(c *textproto.Conn) {
	_ = c.PrintfLine("220 test")
	token := ""
	for {
		line, err := c.ReadLine()
		if err != nil {
			return
		}
		switch verb, rest, _ := strings.Cut(line, " "); verb {
		case "QUIT":
			_ = c.PrintfLine("221 bye")
			return
		case "MAIL":
			token, _ = ledger.ParseSender(strings.Trim(strings.TrimPrefix(rest, "FROM:"), "<>"))
			_ = c.PrintfLine("250 yes")
		case "DATA":
			_ = c.PrintfLine("354 go on")
			if !in.data(c, token) {
				return
			}
		default:
			_ = c.PrintfLine("250 yes")
		}
	}
}

func (in *ingress) data(c *textproto.Conn, token string) bool {
	var check ledger.Checker
	check.Line([]byte("DKIM-Signature: x\r\n"))
	lines, err := c.ReadDotLines()
	if err != nil {
		return false
	}
	for _, l := range lines {
		check.Line([]byte(l + "\r\n"))
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.n++
	switch {
	case in.n%15 == 0:
		in.dropped++
		return false
	case in.n%10 == 0:
		in.refused++
		return c.PrintfLine("451 4.3.0 later") == nil
	}
	in.took[token] = check.Damage(token) == ""
	return c.PrintfLine("250 2.0.0 kept as %026d0", in.n) == nil
}

func newBook(t *testing.T) *ledger.Book {
	t.Helper()
	book, err := ledger.NewBook(filepath.Join(t.TempDir(), "book"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { book.Close() })
	return book
}

func TestClientRecordsWhatWasAccepted(t *testing.T) {
	in, book := startIngress(t), newBook(t)
	c := New(Options{Targets: []string{in.ln.Addr().String()}, Book: book, Messages: 200, Sessions: 4, Waiting: 5, Seed: 7})
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	got := book.Records().Messages
	if len(got) < 200 || len(got) != c.Accepted() || len(got) > len(in.took) {
		t.Errorf("accepted: got %d in the book and %d, server took %d, want the same and at least 200", len(got), c.Accepted(), len(in.took))
	}
	for _, m := range got {
		if whole, there := in.took[m.Token]; !there || !whole {
			t.Errorf("%s: taken %v, whole %v", m.Token, there, whole)
		}
		if len(m.ID) != 27 || len(m.Recipients) == 0 {
			t.Errorf("%s: got %+v, want an id and recipients", m.Token, m)
		}
	}
	if s := c.Stats(); s.Refused[451] == 0 || s.Broken == 0 {
		t.Errorf("stats: got %+v, want refusals and broken connections", s)
	}
}

func TestClientKeepsItsPace(t *testing.T) {
	in, book := startIngress(t), newBook(t)
	c := New(Options{Targets: []string{in.ln.Addr().String()}, Book: book, Messages: 20, Rate: 100, Sessions: 4})
	begin := time.Now()
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 150*time.Millisecond {
		t.Errorf("20 messages at 100/s took %v", took)
	}
}

func TestClientGoesOnUntilItIsEnough(t *testing.T) {
	in, book := startIngress(t), newBook(t)
	c := New(Options{Targets: []string{in.ln.Addr().String()}, Book: book, Messages: 5, Sessions: 2, Enough: func() bool { return book.Accepted() >= 30 }})
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := c.Accepted(); got < 30 {
		t.Errorf("accepted: got %d, want at least 30", got)
	}
}

func TestClientEndsWithItsContext(t *testing.T) {
	ln, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.N(254), rand.N(256), 1+rand.N(254)))
	if err != nil {
		t.Fatal(err)
	}
	ln.Close() // nobody is there, nor comes
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	c := New(Options{Targets: []string{ln.Addr().String()}, Book: newBook(t), Messages: 1})
	if err := c.Run(ctx); err == nil {
		t.Error("got nil, want an error: nothing was accepted")
	}
}

func TestPlanIsRepeatable(t *testing.T) {
	c := New(Options{Waiting: 30})
	draw := func() (all []string) {
		rng := rand.New(rand.NewPCG(3, 4))
		for n := 1; n < 2000; n++ {
			to, size := c.plan(rng, fmt.Sprintf("m%d", n), n)
			all = append(all, fmt.Sprint(size, to))
		}
		return all
	}
	first := draw()
	if diff := cmp.Diff(first, draw()); diff != "" {
		t.Errorf("(-first +second)\n%s", diff)
	}
	seen := make(map[ledger.Want]int)
	for _, line := range first {
		for f := range strings.FieldsSeq(strings.Trim(line[strings.Index(line, "["):], "[]")) {
			a, ok := ledger.ParseAddress(f)
			if !ok {
				t.Fatalf("not an address: %q", f)
			}
			seen[a.Want]++
		}
	}
	for _, w := range []ledger.Want{ledger.WantOK, ledger.WantGrey, ledger.WantMoody, ledger.WantBounce, ledger.WantWait, ledger.WantReturn, ledger.WantCancel, ledger.WantBack} {
		if seen[w] == 0 {
			t.Errorf("no recipient of kind %s in 2000 messages", w)
		}
	}
}
