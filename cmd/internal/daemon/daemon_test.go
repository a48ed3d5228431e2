package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/smtp"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/ops"
	"postroad/cmd/internal/sink"
	"postroad/queue"
	"postroad/queue/embedded"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shortDir is a temporary directory whose path is short enough for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "daemon")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// destination is a sink that hands over what it gets.
func destination(t *testing.T, answer func() sink.Reply) (port int, got chan string) {
	t.Helper()
	got = make(chan string, 100)
	s, err := sink.New(sink.Options{Message: func(m *sink.Message) sink.Reply {
		r := answer()
		if r == "" {
			got <- string(m.Data)
		}
		return r
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { _ = s.Stop(context.WithoutCancel(t.Context())) })
	return s.Addr().(*net.TCPAddr).Port, got
}

// timeLimit bounds what should be over in a moment.
const timeLimit = 2 * time.Minute

func accepts() sink.Reply { return "" }

func testConfig(dir string, port int) *config.Config {
	c := config.Default()
	c.Hostname = "relay.test.example"
	c.DataDir = dir
	c.Queue.MaxBytes = 128 << 20
	c.Ingress.Listeners[0].Address = "127.0.0.1:0"
	c.Signer.MissingKey = config.MissingPass
	c.Delivery.Routes = []config.Route{{
		Domains: []string{"*"}, Via: fmt.Sprintf("smtp:[127.0.0.1]:%d", port), TLS: config.RouteTLSNone, AllowPrivate: true,
	}}
	return &c
}

func start(t *testing.T, c *config.Config) *Daemon {
	t.Helper()
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	d, err := New(t.Context(), Options{Config: c, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Version: "test", patience: timeLimit})
	if err != nil {
		t.Fatal(err)
	}
	d.Start()
	t.Cleanup(func() {
		if err := d.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return d
}

func send(t *testing.T, addr net.Addr, subject string) {
	t.Helper()
	message := "From: a@b.example\r\nSubject: " + subject + "\r\n\r\nhello\r\n"
	if err := smtp.SendMail(addr.String(), nil, "a@b.example", []string{"c@d.example"}, []byte(message)); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, got chan string, subject string) {
	t.Helper()
	select {
	case m := <-got:
		if !strings.Contains(m, "Subject: "+subject+"\r\n") {
			t.Errorf("got %q, want subject %s", m, subject)
		}
	case <-time.After(timeLimit):
		t.Fatalf("%s did not arrive", subject)
	}
}

func TestAllRolesInOneProcess(t *testing.T) {
	port, got := destination(t, accepts)
	c := testConfig(shortDir(t), port)
	c.Ops.Address = "127.0.0.1:0"
	d := start(t, c)
	send(t, d.Addrs()[0], "one")
	expect(t, got, "one")
	if d.OpsAddr() == nil || d.QueueURL() != "" {
		t.Errorf("got ops %v and queue %q, want a port and none", d.OpsAddr(), d.QueueURL())
	}
	client := ops.NewClient(c.SocketPath())
	for deadline := time.Now().Add(timeLimit); ; time.Sleep(50 * time.Millisecond) {
		var last queue.EventType
		for e, err := range client.Trace(t.Context(), ops.TraceFilter{Sender: "a@b.example"}) {
			if err != nil {
				t.Fatal(err)
			}
			last = e.Type
		}
		if last == queue.Delivered || last == queue.Finished {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("got a trace that ends with %q, want the delivery", last)
		}
	}
}

// TestRolesAsProcesses runs each role as it would run alone, over the port of the queue's process.
func TestRolesAsProcesses(t *testing.T) {
	port, got := destination(t, accepts)
	dir := shortDir(t)
	store := testConfig(filepath.Join(dir, "q"), port)
	store.Roles, store.Queue.Listen = []config.Role{config.RoleQueue}, "127.0.0.1:0"
	url := start(t, store).QueueURL()
	part := func(role config.Role) *Daemon {
		c := testConfig(filepath.Join(dir, string(role)), port)
		c.Roles, c.Queue.URLs, c.Queue.Node = []config.Role{role}, []string{url}, string(role)
		return start(t, c)
	}
	part(config.RoleOps)
	part(config.RoleSigner)
	part(config.RoleDelivery)
	in := part(config.RoleIngress)
	send(t, in.Addrs()[0], "apart")
	expect(t, got, "apart")
	if n, err := ops.NewClient(filepath.Join(dir, "ops", "ops.sock")).Counts(t.Context()); err != nil || n.MaxBytes == 0 {
		t.Errorf("got %+v, %v, want counts", n, err)
	}
}

// TestQueueThatComesLater starts a role before its queue is there.
func TestQueueThatComesLater(t *testing.T) {
	queueAddress := freeAddress(t)
	dir := shortDir(t)
	role, store := testConfig(filepath.Join(dir, "in"), 1), testConfig(filepath.Join(dir, "q"), 1)
	role.Roles, role.Queue.URLs = []config.Role{config.RoleIngress}, []string{"nats://" + queueAddress}
	store.Roles, store.Queue.Listen = []config.Role{config.RoleQueue}, queueAddress
	opened := make(chan error, 1)
	go func() {
		d, err := New(t.Context(), Options{Config: role, patience: timeLimit})
		if err == nil {
			err = d.Stop(context.WithoutCancel(t.Context()))
		}
		opened <- err
	}()
	time.Sleep(100 * time.Millisecond)
	start(t, store)
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestWhatWaitsSurvivesARestart(t *testing.T) {
	port, _ := destination(t, func() sink.Reply { return "450 4.2.0 later" })
	dir := shortDir(t)
	c := testConfig(dir, port)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	d, err := New(t.Context(), Options{Config: c, patience: timeLimit})
	if err != nil {
		t.Fatal(err)
	}
	d.Start()
	go func() { ended <- errors.Join(d.Wait(ctx), d.Stop(context.WithoutCancel(ctx))) }()
	send(t, d.Addrs()[0], "waiting")
	client := ops.NewClient(c.SocketPath())
	waitFor(t, func() bool { return places(t, client)[queue.PlaceLater] == 1 })
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	port, got := destination(t, accepts)
	c = testConfig(dir, port)
	start(t, c)
	client = ops.NewClient(c.SocketPath())
	if outcome, err := client.Do(t.Context(), ops.ActionRetry, ops.Order{Selection: ops.Selection{Domain: "d.example"}}); err != nil || outcome.Count != 1 {
		t.Fatalf("got %+v, %v, want 1", outcome, err)
	}
	expect(t, got, "waiting")
}

func places(t *testing.T, c *ops.Client) map[queue.Place]int {
	t.Helper()
	n := make(map[queue.Place]int)
	for e, err := range c.List(t.Context(), ops.Selection{}, 0) {
		if err != nil {
			t.Fatal(err)
		}
		n[e.Place]++
	}
	return n
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(timeLimit); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited too long")
		}
	}
}

func TestRefusedStarts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	dir := shortDir(t)
	newer := filepath.Join(dir, "newer")
	if err := os.MkdirAll(newer, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(newer, "VERSION"), []byte("99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change func(c *config.Config)
		cause  error
		text   string
	}{
		"port in use":          {func(c *config.Config) { c.Ingress.Listeners[0].Address = taken.Addr().String() }, syscall.EADDRINUSE, "change ingress.listeners"},
		"health port in use":   {func(c *config.Config) { c.Ops.Address = taken.Addr().String() }, syscall.EADDRINUSE, "change ops.address"},
		"address not ours":     {func(c *config.Config) { c.Ingress.Listeners[0].Address = "192.0.2.1:25" }, syscall.EADDRNOTAVAIL, "does not have that address"},
		"newer data directory": {func(c *config.Config) { c.DataDir = newer }, embedded.ErrNewerFormat, "newer"},
		"no certificate": {func(c *config.Config) {
			c.Ingress.Listeners[0].TLS, c.Ingress.Listeners[0].Cert, c.Ingress.Listeners[0].Key = config.TLSStart, "/none", "/none"
		}, os.ErrNotExist, "ingress.listeners[0]"},
		"wrong name":     {func(c *config.Config) { c.Hostname = "a b" }, nil, "set hostname"},
		"open queue":     {func(c *config.Config) { c.Queue.Listen = "0.0.0.0:0" }, nil, "password"},
		"data is a file": {func(c *config.Config) { c.DataDir = filepath.Join(newer, "VERSION") }, nil, "data directory"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := testConfig(filepath.Join(dir, strings.ReplaceAll(name, " ", "")), 1)
			tt.change(c)
			d, err := New(t.Context(), Options{Config: c})
			if err == nil {
				_ = d.Stop(context.WithoutCancel(t.Context()))
				t.Fatal("got a running daemon, want an error")
			}
			if tt.cause != nil && !errors.Is(err, tt.cause) || !strings.Contains(err.Error(), tt.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q (%v)", err, tt.text, tt.cause)
			}
		})
	}
}

func TestDataDirectoryHasOneUser(t *testing.T) {
	c := testConfig(shortDir(t), 1)
	start(t, c)
	if _, err := New(t.Context(), Options{Config: c}); !errors.Is(err, embedded.ErrInUse) {
		t.Errorf("got %v, want %v", err, embedded.ErrInUse)
	}
}

func TestFatalErrorEndsTheProcess(t *testing.T) {
	c := testConfig(shortDir(t), 1)
	d, err := New(t.Context(), Options{Config: c})
	if err != nil {
		t.Fatal(err)
	}
	d.Start()
	d.fail(io.ErrShortWrite)
	d.fail(errors.New("and what follows from it"))
	if err := d.Wait(t.Context()); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("got %v, want the first reason", err)
	}
	began := time.Now()
	_ = d.Stop(context.WithoutCancel(t.Context()))
	if took := time.Since(began); took > time.Minute {
		t.Errorf("stopping took %v with a broken store", took)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := testConfig(shortDir(t), 1)
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, Options{Config: c, patience: timeLimit}) }()
	client := ops.NewClient(c.SocketPath())
	waitFor(t, func() bool { _, err := client.Version(t.Context()); return err == nil })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(c.SocketPath()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}
