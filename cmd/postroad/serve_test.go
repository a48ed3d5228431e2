package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"postroad/cmd/internal/sink"
	"postroad/queue"
)

// lockedBuffer is written by a server and read by a test.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// serve runs a server whose mail goes to a sink that defers until open is true, with more lines for its role delivery; it returns the
// configuration and the address.
func serve(t *testing.T, open *atomic.Bool, delivery ...string) (file, address string) {
	t.Helper()
	s, err := sink.New(sink.Options{Recipient: func(*sink.Message, string) sink.Reply {
		if open.Load() {
			return ""
		}
		return "450 4.2.0 mailbox is having lunch"
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	dir := shortDir(t)
	file = writeFile(t, filepath.Join(dir, "postroad.yaml"), fmt.Sprintf(`
hostname: relay.test.example
data_dir: %s/data
queue: {max_bytes: 128MiB}
ingress: {listeners: [{address: "127.0.0.1:0"}]}
signer: {missing_key: pass}
delivery:
  routes: [{domains: ["*"], via: "smtp:[127.0.0.1]:%d", tls: none, allow_private: true}]
%s
log: {format: json}
`, dir, s.Addr().(*net.TCPAddr).Port, strings.Join(delivery, "\n")))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	logs := &lockedBuffer{}
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{"serve", "-c", file}, logs, logs) }()
	t.Cleanup(func() {
		cancel()
		if status := <-ended; status != 0 {
			t.Errorf("serve ended with %d:\n%s", status, logs.String())
		}
		if !strings.Contains(logs.String(), `"msg":"stopped"`) {
			t.Errorf("serve did not stop in order:\n%s", logs.String())
		}
		_ = s.Stop(context.Background())
	})
	waitFor(t, func() bool { return strings.Contains(logs.String(), `"msg":"ready"`) })
	for line := range strings.SplitSeq(logs.String(), "\n") {
		var l struct{ Msg, Address string }
		if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "accepting mail" {
			return file, l.Address
		}
	}
	t.Fatalf("the log does not tell the address:\n%s", logs.String())
	return "", ""
}

func TestOperatorsDay(t *testing.T) {
	var open atomic.Bool
	file, address := serve(t, &open)
	reply, err := sendMail(t.Context(), address, "a@b.example", "c@d.example", "From: a@b.example\r\nSubject: x\r\n\r\nhello\r\n")
	if err != nil {
		t.Fatal(err)
	}
	id := idOf(reply)
	if _, err := queue.ParseID(id); err != nil {
		t.Fatalf("got %q: %v", reply, err)
	}
	ask := func(want int, args ...string) string {
		t.Helper()
		status, out, errs := command(t, append([]string{"-c", file}, args...)...)
		if status != want {
			t.Fatalf("%v: got status %d, want %d: %s%s", args, status, want, out, errs)
		}
		return out + errs
	}
	has := func(text string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%q is missing in\n%s", w, text)
			}
		}
	}
	waitFor(t, func() bool { return strings.Contains(ask(0, "queue", "list"), "later") })

	has(ask(0, "queue", "list", "--domain", "d.example"), "NEXT", id, "d.example", "in ", "mailbox is having lunch")
	has(ask(0, "queue", "list", "--domain", "e.example"), "nothing")
	has(ask(0, "queue", "list", "--json"), `"place":"later"`, `"id":"`+id+`"`, `"due":"`)
	has(ask(0, "queue", "show", id), "recipient  <c@d.example>", "sender     <a@b.example>", "tries      1", "waits; next try")
	waitFor(t, func() bool { // that it waits is known a moment before it has left where it was
		counts := ask(0, "queue", "counts")
		return strings.Contains(counts, "later 1m   1") && strings.Contains(counts, "ready      0")
	})
	waitFor(t, func() bool { return strings.Contains(ask(0, "trace", id), "deferred") })
	has(ask(0, "trace", id), "accepted", "signed", "450 4.2.0", "now: c@d.example waits; next try")
	has(ask(0, "trace", "--recipient", "c@d.example"), id+"  ", "deferred")
	has(ask(0, "trace", "--sender", "a@b.example", "--json"), `"type":"TransientFailure"`)

	has(ask(0, "queue", "hold", "--domain", "d.example", "--why", "lunch", "--dry-run"), "would move 1")
	has(ask(0, "queue", "hold", "--domain", "d.example", "--why", "lunch"), "moved 1")
	has(ask(0, "queue", "list"), "held: lunch", "when released")
	has(ask(0, "queue", "list", "--held-for", "1h"), "nothing")
	has(ask(0, "queue", "return", "--held-for", "1ns", "--dry-run"), "would move 1")
	has(ask(2, "queue", "cancel"), "nothing is selected")
	has(ask(2, "queue", "cancel", "x"), "not a message id")

	open.Store(true)
	has(ask(0, "queue", "release", id, "--json"), `"count":1`)
	waitFor(t, func() bool { return strings.Contains(ask(0, "trace", id), "finished") })
	has(ask(0, "trace", id), "delivered", "try 2")
	has(ask(1, "queue", "show", id), "is finished, or never was")
	has(ask(1, "queue", "retry", id), "no such message")
	has(ask(0, "queue", "list"), "nothing in the queue matches")
	has(ask(0, "bench", address, "--messages", "3", "--sessions", "1", "--size", "2KiB", "--json"), `"accepted":3`)
	has(ask(1, "bench", "127.0.0.1:1", "--messages", "1"), "bench: ")
	has(ask(2, "bench", address, "--size", "large"), "--size")
	has(ask(1, "trace", "--recipient", "nobody@d.example"), "nothing matches")
}

func TestServeRefusesAPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	dir := shortDir(t)
	for format, want := range map[string]string{"text": "postroad: ", "json": `"level":"ERROR","msg":"cannot go on","err":"`} {
		file := writeFile(t, filepath.Join(dir, format+".yaml"),
			fmt.Sprintf("data_dir: %s/data\nhostname: a.example\ningress: {listeners: [{address: %q}]}\nlog: {format: %s}\n", dir, l.Addr(), format))
		status, _, errs := command(t, "serve", "-c", file)
		last := errs[strings.LastIndexByte(strings.TrimSpace(errs), '\n')+1:]
		if status != 1 || !strings.Contains(last, want) || !strings.Contains(last, "address already in use: another program has this port") {
			t.Errorf("got status %d, %q, want 1 and one line with %q", status, errs, want)
		}
	}
}
