package receiver

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/textproto"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postroad/cmd/internal/cluster/ledger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type peer struct {
	*textproto.Conn
	t *testing.T
}

func start(t *testing.T, o Options) (*Receiver, *ledger.Book, func() *peer) {
	t.Helper()
	book, err := ledger.NewBook(filepath.Join(t.TempDir(), "book"))
	if err != nil {
		t.Fatal(err)
	}
	o.Book = book
	r := New(o)
	addr, err := r.Listen("d1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := book.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, book, func() *peer {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		p := &peer{textproto.NewConn(c), t}
		p.want(220)
		p.say(250, "EHLO test")
		return p
	}
}

func (p *peer) want(code int) {
	p.t.Helper()
	if _, text, err := p.ReadResponse(code); err != nil {
		p.t.Fatalf("want %d, got %q, %v", code, text, err)
	}
}

func (p *peer) say(code int, format string, args ...any) {
	p.t.Helper()
	if err := p.PrintfLine(format, args...); err != nil {
		p.t.Fatal(err)
	}
	p.want(code)
}

// send returns the code that a whole transaction came to; 0: hung up.
func (p *peer) send(to string, message []byte) int {
	p.t.Helper()
	p.say(250, "MAIL FROM:<x@y.test>")
	if err := p.PrintfLine("RCPT TO:<%s>", to); err != nil {
		p.t.Fatal(err)
	}
	if code, _, err := p.ReadResponse(250); err != nil {
		p.say(250, "RSET")
		return code
	}
	p.say(354, "DATA")
	w := p.DotWriter()
	if _, err := w.Write(message); err == nil {
		_ = w.Close()
	}
	code, _, err := p.ReadResponse(250)
	if _, isReply := err.(*textproto.Error); err != nil && !isReply {
		return 0
	}
	return code
}

func message(token string) []byte {
	return append([]byte("DKIM-Signature: x\r\n"), ledger.Compose(rand.New(rand.NewPCG(1, 1)), token, "r", 3000)...)
}

func TestReceiverRecordsWhatItTakes(t *testing.T) {
	_, book, dial := start(t, Options{})
	to := ledger.Address{Token: "t1", Want: ledger.WantOK, Domain: "a.test"}.String()
	p := dial()
	if got := p.send(to, message("t1")); got != 250 {
		t.Fatalf("got %d, want 250", got)
	}
	if got := p.send(to, message("t2")); got != 250 {
		t.Fatalf("second message: got %d, want 250", got)
	}
	dsn := "From: m\r\n\r\nFinal-Recipient: rfc822;b@x.test\r\nAction: failed\r\n"
	if got := p.send(ledger.Sender("t3"), []byte(dsn)); got != 250 {
		t.Fatalf("notification: got %d, want 250", got)
	}
	p.say(221, "QUIT")
	got := book.Records().Arrivals
	for i := range got {
		if got[i].At.Before(got[i].Begin) || got[i].Begin.IsZero() {
			t.Errorf("arrival %d: from %v to %v", i, got[i].Begin, got[i].At)
		}
		got[i].Begin, got[i].At = time.Time{}, time.Time{}
	}
	want := []ledger.Arrival{
		{Token: "t1", Recipient: to, Worker: "d1"},
		{Token: "t1", Recipient: to, Worker: "d1", Damage: `token "t2", want "t1"`},
		{Token: "t3", Recipient: "b@x.test", Report: true, Worker: "d1"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestReceiverFates(t *testing.T) {
	r, book, dial := start(t, Options{Grey: 50 * time.Millisecond})
	try := func(w ledger.Want, token string) int {
		to := ledger.Address{Token: token, Want: w, Domain: "a.test"}.String()
		return dial().send(to, message(token))
	}
	for _, tc := range []struct {
		name string
		got  int
		want int
	}{
		{"bounce", try(ledger.WantBounce, "t"), 550},
		{"bounce again", try(ledger.WantBounce, "t"), 550},
		{"wait", try(ledger.WantWait, "t"), 450},
		{"grey", try(ledger.WantGrey, "t"), 450},
		{"nobody of ours", dial().send("x@y.test", nil), 550},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: got %d, want %d", tc.name, tc.got, tc.want)
		}
	}
	time.Sleep(60 * time.Millisecond)
	r.Release()
	if got := try(ledger.WantGrey, "t"); got != 250 {
		t.Errorf("grey later: got %d, want 250", got)
	}
	if got := try(ledger.WantWait, "t"); got != 250 {
		t.Errorf("released: got %d, want 250", got)
	}
	if got := len(book.Records().Arrivals); got != 2 {
		t.Errorf("arrivals: got %d, want 2", got)
	}
	for end := time.Now().Add(time.Minute); r.Open("") != 0; time.Sleep(time.Millisecond) { // it counts when it has replied
		if time.Now().After(end) {
			t.Fatalf("open dialogues: got %d, want 0", r.Open(""))
		}
	}
}

func TestReceiverMoods(t *testing.T) {
	_, book, dial := start(t, Options{})
	seen := make(map[int]bool)
	for i := range 40 {
		token := fmt.Sprintf("t%d", i)
		to := ledger.Address{Token: token, Want: ledger.WantMoody, Domain: "a.test"}.String()
		code := dial().send(to, message(token))
		if code == 250 {
			t.Errorf("%s: taken at the first try", to)
		}
		seen[code] = true
		if got := dial().send(to, message(token)); got != 250 {
			t.Errorf("%s: second try: got %d, want 250", to, got)
		}
	}
	if !seen[0] || !seen[450] || !seen[451] {
		t.Errorf("moods: got %v, want 450, 451 and hang-ups", seen)
	}
	if got := len(book.Records().Arrivals); got != 40 {
		t.Errorf("arrivals: got %d, want 40", got)
	}
}

func TestReceiverCountsOpenDialogues(t *testing.T) {
	r, _, dial := start(t, Options{})
	p := dial()
	p.say(503, "RCPT TO:<x@y.test>")
	p.say(503, "DATA")
	p.say(250, "MAIL FROM:<>")
	p.say(503, "MAIL FROM:<>")
	p.say(501, "RCPT TO:x@y.test")
	p.say(500, "TURN")
	if got, other := r.Open("d1"), r.Open("d2"); got != 1 || other != 0 {
		t.Errorf("open: got %d and %d, want 1 and 0", got, other)
	}
	p.Close()
	for end := time.Now().Add(time.Minute); r.Open("") != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a vanished worker's dialogue stays open")
		}
	}
}

func TestReceiverAnswersPipelinedCommandsTogether(t *testing.T) {
	_, book, dial := start(t, Options{})
	p := dial()
	to := ledger.Address{Token: "t1", Want: ledger.WantOK, Domain: "a.test"}.String()
	stuffed := bytes.ReplaceAll(message("t1"), []byte("\r\n."), []byte("\r\n.."))
	all := "MAIL FROM:<>\r\nRCPT TO:<" + to + ">\r\nDATA\r\n" + string(stuffed) + ".\r\n"
	if _, err := p.W.WriteString(all); err != nil {
		t.Fatal(err)
	}
	if err := p.W.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, code := range []int{250, 250, 354, 250} {
		p.want(code)
	}
	got := book.Records().Arrivals
	if len(got) != 1 || strings.TrimSpace(got[0].Damage) != "" {
		t.Errorf("got %+v, want one whole message", got)
	}
}
