package queue

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"postroad/queue/embedded"
)

// TestServersThatRefuseForAWhile: a mistake in the servers' accounts, put right a little later, ends no process for good.
func TestServersThatRefuseForAWhile(t *testing.T) {
	t.Parallel()
	o := &server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(),
		JetStreamMaxStore: 100 << 30, SyncAlways: true, Username: "postroad", Password: "right"}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("server does not start")
	}
	url := fmt.Sprintf("nats://postroad:right@127.0.0.1:%d", s.Addr().(*net.TCPAddr).Port)
	q, err := Open(t.Context(), Options{Node: "test", MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler),
		Connect: func(extra ...nats.Option) (*nats.Conn, error) { return nats.Connect(url, extra...) }})
	if err != nil {
		t.Fatal(err)
	}
	defer closeQueue(t, q)

	password := func(text string) {
		t.Helper()
		changed := o.Clone()
		changed.Port, changed.Password = s.Addr().(*net.TCPAddr).Port, text
		if err := s.ReloadOptions(changed); err != nil {
			t.Fatal(err)
		}
	}
	password("another")
	eventually(t, "the server does not refuse", func() bool { return q.Ready() != nil })
	time.Sleep(2 * time.Second) // some tries at the same server
	password("right")
	eventually(t, "the process does not come back", func() bool { return q.Ready() == nil })
	if err := q.Accept(t.Context(), q.NewID(), sampleEnvelopeTo("example.com"), strings.NewReader("content")); err != nil {
		t.Error(err)
	}
}

// TestFullWhileAnotherStreamIsSilent: one stream of which nothing is known hides no other one.
func TestFullWhileAnotherStreamIsSilent(t *testing.T) {
	t.Parallel()
	s, err := embedded.Start(embedded.Options{Dir: t.TempDir(), MaxBytes: StoreBytes(1 << 20), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	q, err := Open(t.Context(), Options{Connect: s.Connect, Node: "test", MaxBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler), leeway: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = q.Close(context.Background()); _ = s.Stop(context.Background()) }()
	if err := q.js.DeleteStream(t.Context(), streamLater); err != nil {
		t.Fatal(err)
	}
	if err := q.Accept(t.Context(), NewID(), sampleEnvelope(), strings.NewReader(strings.Repeat("x", 920<<10))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Full() does not show the watermark", q.Full)
}
