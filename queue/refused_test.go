package queue

import (
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
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
	if !s.ReadyForConnections(10 * time.Second) {
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
