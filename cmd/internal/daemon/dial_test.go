package daemon

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"postroad/cmd/internal/config"
)

// outside runs a NATS server as an operator would and gives its client and monitoring addresses.
func outside(t *testing.T, change func(o *server.Options)) (url, monitor string) {
	t.Helper()
	o := &server.Options{
		ServerName: "n1", Host: "127.0.0.1", Port: server.RANDOM_PORT, HTTPHost: "127.0.0.1", HTTPPort: server.RANDOM_PORT,
		JetStream: true, StoreDir: t.TempDir(), SyncAlways: true, NoSigs: true, NoLog: true,
	}
	change(o)
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(timeLimit) {
		t.Fatal("the server is not ready")
	}
	return s.ClientURL(), "http://" + s.MonitorAddr().String()
}

func outsideConfig(t *testing.T, url string, monitor ...string) *config.Config {
	c := testConfig(shortDir(t), 1)
	c.Queue.URLs, c.Queue.Monitor = []string{url}, monitor
	return c
}

func TestServersMustSync(t *testing.T) {
	url, monitor := outside(t, func(o *server.Options) { o.SyncAlways = false })
	_, err := New(t.Context(), Options{Config: outsideConfig(t, url, monitor)})
	if err == nil || !strings.Contains(err.Error(), "queue server n1") || !strings.Contains(err.Error(), "sync_interval: always") {
		t.Errorf("got %v, want what is wrong with the server", err)
	}
	url, monitor = outside(t, func(*server.Options) {})
	start(t, outsideConfig(t, url, monitor, "http://127.0.0.1:1")) // one that is away is no reason to stay away
}

func TestMonitorThatTalksNonsense(t *testing.T) {
	for body, want := range map[string]string{"{}": "has no JetStream", "nonsense": ""} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }))
		d := &Daemon{c: outsideConfig(t, "nats://127.0.0.1:1", s.URL), log: slog.New(slog.DiscardHandler)}
		err := d.checkMonitors(t.Context())
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", body, err, want)
		}
		s.Close()
	}
}

func TestServerWithoutJetStream(t *testing.T) {
	url, _ := outside(t, func(o *server.Options) { o.JetStream = false })
	_, err := New(t.Context(), Options{Config: outsideConfig(t, url)})
	if err == nil || !strings.Contains(err.Error(), "has no JetStream") {
		t.Errorf("got %v, want what is wrong with the server", err)
	}
}

func TestLoginByNkey(t *testing.T) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := pair.PublicKey()
	seed, _ := pair.Seed()
	url, monitor := outside(t, func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} })
	c := outsideConfig(t, url, monitor)
	c.Queue.Inbox = "_INBOX_all"
	if _, err := New(t.Context(), Options{Config: c}); err == nil || !strings.Contains(err.Error(), "uthoriz") {
		t.Errorf("got %v without a login, want a refusal", err)
	}
	c.Queue.Credentials = filepath.Join(c.DataDir, "seed")
	if err := os.WriteFile(c.Queue.Credentials, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, c)
	if err := os.WriteFile(c.Queue.Credentials, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), Options{Config: c}); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("got %v, want what is wrong with the file", err)
	}
}
