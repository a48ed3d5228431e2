package embedded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(childEnv); role != "" {
		os.Exit(child(role))
	}
	goleak.VerifyTestMain(m)
}

// start runs a server until the end of the test.
func start(t *testing.T, o Options) *Server {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// connect gives JetStream on a connection that is closed before the server stops. A disk may stand still for a while.
func connect(t *testing.T, s *Server) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := s.Connect(nats.ReconnectBufSize(-1), nats.Timeout(time.Minute), nats.PingInterval(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

func TestMessagesSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	ctx := t.Context()
	s := start(t, Options{Dir: dir})
	if s.Unclean() {
		t.Error("a new directory counts as unclean")
	}
	nc, js := connect(t, s)
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "MAIL", Subjects: []string{"mail.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "mail.a.m", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	nc.Close()
	stop(t, s)

	again := start(t, Options{Dir: dir})
	if again.Unclean() {
		t.Error("a stopped server left its directory unclean")
	}
	_, js = connect(t, again)
	stream, err := js.Stream(ctx, "MAIL")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetLastMsgForSubject(ctx, "mail.a.m")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("kept", string(msg.Data)); diff != "" {
		t.Errorf("message after a restart (-want +got):\n%s", diff)
	}
}

func TestSyncsEveryWrite(t *testing.T) {
	s := start(t, Options{})
	if c := s.ns.JetStreamConfig(); !c.SyncAlways {
		t.Error("the server does not sync every write")
	}
}

func TestKilledServerLeavesUnclean(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, "hold", dir)
	c.kill(t)
	if s := start(t, Options{Dir: dir}); !s.Unclean() {
		t.Error("a killed server left its directory clean")
	}
}

func TestDirectoryRefused(t *testing.T) {
	write := func(name, content string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := []struct {
		name    string
		prepare func(*testing.T, string)
		is      error
		says    string
	}{
		{"newer format", write("VERSION", "2\n"), ErrNewerFormat, "has format 2 and this Postroad knows up to 1"},
		{"strange format", write("VERSION", "PG 17"), nil, "is this a data directory of Postroad?"},
		{"a file in its place", func(t *testing.T, dir string) {
			if err := os.Remove(dir); err != nil {
				t.Fatal(err)
			}
			write(".", "")(t, dir)
		}, syscall.ENOTDIR, "make data directory"},
		{"held by another process", func(t *testing.T, dir string) { startChild(t, "hold", dir) }, ErrInUse, "is held by process "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			tt.prepare(t, dir)
			s, err := Start(Options{Dir: dir})
			if err == nil {
				stop(t, s)
				t.Fatal("started")
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v is not %v", err, tt.is)
			}
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %q does not say %q", err, tt.says)
			}
		})
	}
}

func TestHolderIsNamed(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, "hold", dir)
	_, err := Start(Options{Dir: dir})
	want := fmt.Sprintf("held by process %d;", c.cmd.Process.Pid)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want one with %q", err, want)
	}
}

func TestLostMetadataIsRefused(t *testing.T) {
	tests := []struct{ name, file, missing string }{
		{"stream", "streams/JOBS/meta.inf", "$G/JOBS"},
		{"consumer", "streams/JOBS/obs/work/meta.inf", "$G/JOBS/work"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			s := start(t, Options{Dir: dir})
			nc, js := connect(t, s)
			makeWorkQueue(t, js)
			takeOne(t, js)
			nc.Close()
			stop(t, s)
			if err := os.Truncate(filepath.Join(dir, storeDir, "$G", tt.file), 0); err != nil {
				t.Fatal(err)
			}
			s, err := Start(Options{Dir: dir})
			if err == nil {
				stop(t, s)
				t.Fatal("started without it")
			}
			if !errors.Is(err, ErrNotRecovered) || !strings.Contains(err.Error(), tt.missing) {
				t.Errorf("got error %q, want ErrNotRecovered with %s", err, tt.missing)
			}
		})
	}
}

// makeWorkQueue makes a stream JOBS with one job and a consumer "work".
func makeWorkQueue(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	ctx := t.Context()
	_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "JOBS", Subjects: []string{"ready.>"}, Retention: jetstream.WorkQueuePolicy})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateConsumer(ctx, "JOBS", jetstream.ConsumerConfig{Durable: "work", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "ready.1", nil); err != nil {
		t.Fatal(err)
	}
}

func takeOne(t *testing.T, js jetstream.JetStream) jetstream.Msg {
	t.Helper()
	c, err := js.Consumer(t.Context(), "JOBS", "work")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := c.Next(jetstream.FetchMaxWait(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func TestListen(t *testing.T) {
	t.Run("no port unless asked for", func(t *testing.T) {
		if url := start(t, Options{}).ClientURL(); url != "" {
			t.Errorf("got client URL %q, want none", url)
		}
	})
	t.Run("loopback", func(t *testing.T) {
		s := start(t, Options{Listen: "127.0.0.1:0"})
		nc, err := nats.Connect(s.ClientURL(), nats.Timeout(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
	})
	t.Run("password", func(t *testing.T) {
		s := start(t, Options{Listen: "127.0.0.1:0", Password: "seven"})
		if nc, err := nats.Connect(s.ClientURL(), nats.Timeout(time.Minute)); !errors.Is(err, nats.ErrAuthorization) {
			if err == nil {
				nc.Close()
			}
			t.Errorf("without the password: got error %v, want %v", err, nats.ErrAuthorization)
		}
		nc, err := nats.Connect(s.ClientURL(), nats.UserInfo(defaultUsername, "seven"), nats.Timeout(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
		connect(t, s)
	})
	for _, listen := range []string{"0.0.0.0:4222", ":4222", "192.0.2.1:4222", "[::]:4222", "mail.example:4222"} {
		t.Run("open to others "+listen, func(t *testing.T) {
			s, err := Start(Options{Dir: t.TempDir(), Listen: listen})
			if err == nil {
				stop(t, s)
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), "without a password") {
				t.Errorf("got error %q", err)
			}
		})
	}
	t.Run("port in use", func(t *testing.T) {
		first := start(t, Options{Listen: "127.0.0.1:0"})
		s, err := Start(Options{Dir: t.TempDir(), Listen: strings.TrimPrefix(first.ClientURL(), "nats://")})
		if err == nil {
			stop(t, s)
			t.Fatal("started")
		}
		if !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("got error %q", err)
		}
	})
}

func TestStopIsIdempotentAndBounded(t *testing.T) {
	s, err := Start(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Stop(ended); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("stop with an ended context: got %v", err)
	}
	stop(t, s)
	stop(t, s)
}
