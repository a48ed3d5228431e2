package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postroad/cmd/internal/sink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// relay is a server that passes every message on, changed by forward, to where the bench receives.
type relay struct {
	addr net.Addr
	to   atomic.Value // string
}

func startRelay(t *testing.T, forward func(n int64, data []byte) [][]byte) *relay {
	t.Helper()
	r := &relay{}
	var n atomic.Int64
	s, err := sink.New(sink.Options{Message: func(m *sink.Message) sink.Reply {
		for _, data := range forward(n.Add(1), m.Data) {
			if err := r.pass(data); err != nil {
				t.Errorf("relay: %v", err)
			}
		}
		return ""
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	r.addr = s.Addr()
	return r
}

func (r *relay) pass(data []byte) error {
	c, err := dial(context.Background(), Options{Address: r.to.Load().(string), Hello: "relay.example", Timeout: time.Minute})
	if err != nil {
		return err
	}
	defer c.quit()
	fmt.Fprintf(&c.out, "MAIL FROM:<>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n")
	if err := c.flush(); err != nil {
		return err
	}
	for _, code := range []int{250, 250, 354} {
		if _, _, err := c.r.ReadResponse(code); err != nil {
			return err
		}
	}
	c.out.Write(data)
	c.out.WriteString(".\r\n")
	if err := c.flush(); err != nil {
		return err
	}
	_, _, err = c.r.ReadResponse(250)
	return err
}

func TestRunCountsWhatArrives(t *testing.T) {
	signature := []byte("DKIM-Signature: v=1; d=bench.example\r\n")
	tests := []struct {
		name    string
		forward func(n int64, data []byte) [][]byte
		want    Report
	}{
		{"all, signed", func(_ int64, d []byte) [][]byte { return [][]byte{append(bytes.Clone(signature), d...)} },
			Report{Accepted: 30, Delivered: 30, Signed: 30}},
		{"one lost", func(n int64, d []byte) [][]byte {
			if n == 7 {
				return nil
			}
			return [][]byte{d}
		}, Report{Accepted: 30, Delivered: 29, Missing: 1}},
		{"one twice", func(n int64, d []byte) [][]byte {
			if n == 7 {
				return [][]byte{d, d}
			}
			return [][]byte{d}
		}, Report{Accepted: 30, Delivered: 30, Duplicates: 1}},
		{"one of another run", func(n int64, d []byte) [][]byte {
			if n == 7 {
				return [][]byte{d, []byte(tokenField + "OTHER-3\r\n\r\n")}
			}
			return [][]byte{d}
		}, Report{Accepted: 30, Delivered: 30, Strange: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := startRelay(t, tt.forward)
			got, err := Run(t.Context(), Options{
				Address: r.addr.String(), Sessions: 4, Size: 2000, Messages: 30, PerSession: 5, Sink: "127.0.0.1:0",
				Drain: 100 * time.Millisecond, Processes: []int{os.Getpid()},
				sinkOpen: func(a net.Addr) { r.to.Store(a.String()) },
			})
			if err != nil {
				t.Fatal(err)
			}
			counts := Report{Accepted: got.Accepted, Delivered: got.Delivered, Signed: got.Signed, Missing: got.Missing, Duplicates: got.Duplicates, Strange: got.Strange}
			if diff := cmp.Diff(tt.want, counts); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
			if got.Sent != 30 || len(got.Errors) > 0 {
				t.Errorf("sent %d, errors %v", got.Sent, got.Errors)
			}
			if got.AcceptedPerSecond <= 0 || got.DeliveredPerSecond <= 0 || got.EndToEnd.P50 <= 0 || got.Accept.P99 < got.Accept.P50 {
				t.Errorf("no figures: %+v", got)
			}
			if got.CPUPerMessage < 0 || got.OwnCPUSeconds <= 0 {
				t.Errorf("no CPU time: %+v", got)
			}
		})
	}
}

func TestRunReportsRefusals(t *testing.T) {
	var n atomic.Int64
	s, err := sink.New(sink.Options{Recipient: func(*sink.Message, string) sink.Reply {
		if n.Add(1)%2 == 0 {
			return "450 4.2.0 come back later"
		}
		return ""
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer func() { _ = s.Stop(context.Background()) }()
	got, err := Run(t.Context(), Options{Address: s.Addr().String(), Sessions: 1, Messages: 10})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int{"450 4.2.0 come back later": 5}, got.Errors); got.Accepted != 5 || got.Missing != 0 || diff != "" {
		t.Errorf("accepted %d, errors (-want +got):\n%s", got.Accepted, diff)
	}
}

func TestRunKeepsTheRate(t *testing.T) {
	s, err := sink.New(sink.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer func() { _ = s.Stop(context.Background()) }()
	got, err := Run(t.Context(), Options{Address: s.Addr().String(), Sessions: 3, Rate: 100, Duration: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if got.Accepted > 55 {
		t.Errorf("accepted %d in half a second at 100/s", got.Accepted)
	}
	began := time.Now()
	got, err = Run(t.Context(), Options{Address: s.Addr().String(), Sessions: 3, Rate: 100, Messages: 20})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); got.Accepted != 20 || took < 150*time.Millisecond {
		t.Errorf("accepted %d of 20 at 100/s in %v", got.Accepted, took)
	}
}

func TestRunWithoutServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.N(254), rand.N(256), 1+rand.N(254))) // where nobody comes up
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := Run(t.Context(), Options{Address: address, Sessions: 2, Duration: 6 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if got.Accepted != 0 || len(got.Errors) == 0 {
		t.Errorf("got %+v, want errors", got)
	}
}

func TestOptionsRefused(t *testing.T) {
	for _, o := range []Options{{}, {Address: "a:1", Size: 100}, {Address: "a:1", Sessions: -1}, {Address: "a:1", Messages: 1, Processes: []int{1 << 30}}} {
		if _, err := Run(t.Context(), o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
	}
}

func TestMessageSize(t *testing.T) {
	for _, size := range []int{minSize, 513, 600, 10240, 100_001} {
		var b bytes.Buffer
		writeMessage(&b, Options{Size: size, Sender: defaultsOf(t).Sender}, "rcpt@dest.example", "TOKEN-17")
		if b.Len() != size {
			t.Errorf("got %d octets, want %d", b.Len(), size)
		}
		if token, signed := tokenOf(b.Bytes()); token != "TOKEN-17" || signed {
			t.Errorf("got token %q, signed %v", token, signed)
		}
		for line := range bytes.Lines(b.Bytes()) {
			if len(line) > 200 || !bytes.HasSuffix(line, []byte("\r\n")) || line[0] == '.' {
				t.Errorf("bad line %q", line)
			}
		}
	}
}

func defaultsOf(t *testing.T) Options {
	t.Helper()
	o := Options{Address: "127.0.0.1:25"}
	if err := o.setDefaults(); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestPercentiles(t *testing.T) {
	var d []time.Duration
	for i := 200; i >= 1; i-- {
		d = append(d, time.Duration(i)*time.Millisecond)
	}
	if diff := cmp.Diff(Latency{P50: 100, P99: 198, Max: 200}, percentiles(d)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := percentiles(nil); got != (Latency{}) {
		t.Errorf("of nothing: got %v", got)
	}
}

func TestParseStat(t *testing.T) {
	line := "4711 (a b) c) S 12 4711 4711 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 99 1 2"
	got, err := parseStat([]byte(line))
	if err != nil || got != (process{parent: 12, ticks: 127}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := parseStat([]byte("4711 nothing")); err == nil {
		t.Error("nonsense is accepted")
	}
}

func TestReportForms(t *testing.T) {
	r := Report{Server: "mx:25", Sessions: 2, Size: 1000, Sent: 3, Accepted: 2, Sink: true, Delivered: 2, CPUSeconds: 1, Processes: 4, Errors: map[string]int{"450 no": 1}}
	var text, object bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"accepted    2 of 3", "delivered   2,", "1 × 450 no", "4,"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	if err := r.WriteJSON(&object); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(object.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, back); diff != "" {
		t.Errorf("JSON round trip (-want +got):\n%s", diff)
	}
}
