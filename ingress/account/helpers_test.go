package account

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

func decode(t testing.TB, text string) []byte {
	t.Helper()
	octets, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return octets
}

// book is a Source in memory. Client shows what was there when lag was last set;
// Latest shows what is there.
type book struct {
	mu      sync.Mutex
	clients map[string]*Client
	shown   map[string]*Client // what Client shows; nil: the same as Latest
	err     error
	changes int
}

func (b *book) Client(_ context.Context, name string) (*Client, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shown != nil {
		return b.find(b.shown, name)
	}
	return b.find(b.clients, name)
}

func (b *book) Latest(_ context.Context, name string) (*Client, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.find(b.clients, name)
}

func (b *book) find(clients map[string]*Client, name string) (*Client, error) {
	if b.err != nil {
		return nil, b.err
	}
	if c := clients[name]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("%s: %w", name, ErrUnknown)
}

// change stores another version of a client.
func (b *book) change(name string, change func(*Client)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := &Client{Name: name}
	if old := b.clients[name]; old != nil {
		c = old.Clone()
	}
	change(c)
	b.changes++
	c.revision = fmt.Sprint(b.changes)
	b.clients[name] = c
}

// lag makes Client show what is there now from now on, and not what comes later.
func (b *book) lag() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shown = make(map[string]*Client)
	for name, c := range b.clients {
		b.shown[name] = c
	}
}

func (b *book) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

const (
	goodPassword  = "correct horse 1"
	wrongPassword = "wrong horse 1"
)

// newBook has web1 with goodPassword, disabled with the same, and inside, which
// may come from 10/8 only.
func newBook(t testing.TB) *book {
	t.Helper()
	b := &book{clients: make(map[string]*Client)}
	for _, name := range []string{"web1", "disabled", "inside"} {
		b.change(name, func(c *Client) { b.set(t, c, goodPassword, Generated, 0) })
	}
	b.change("disabled", func(c *Client) { c.Disabled = true })
	b.change("inside", func(c *Client) { c.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
	return b
}

func (b *book) set(t testing.TB, c *Client, password string, kind Kind, grace time.Duration) {
	t.Helper()
	if _, err := c.SetPassword(password, kind, time.Now(), grace); err != nil {
		t.Fatal(err)
	}
}

func newAuth(t testing.TB, b Source, change func(*Options)) *Authenticator {
	t.Helper()
	o := Options{Source: b, Registerer: prometheus.NewRegistry()}
	if change != nil {
		change(&o)
	}
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func from(addr string) Peer { return Peer{Addr: netip.MustParseAddr(addr)} }

// logIn does AUTH PLAIN.
func logIn(ctx context.Context, a *Authenticator, peer Peer, name, password string) (*Client, error) {
	x, err := a.Begin(Plain, peer)
	if err != nil {
		return nil, err
	}
	_, done, err := x.Next(ctx, []byte("\x00"+name+"\x00"+password))
	if err == nil && (!done || x.Client() == nil) {
		err = errors.New("neither done nor an error")
	}
	return x.Client(), err
}

// mustLogIn fails the test when the login is not good, or takes any time by the
// clock of the bubble.
func mustLogIn(t *testing.T, a *Authenticator, peer Peer, name, password string) {
	t.Helper()
	began := time.Now()
	if _, err := logIn(t.Context(), a, peer, name, password); err != nil {
		t.Errorf("%s from %s: got %v", name, peer.Addr, err)
	}
	if took := time.Since(began); took > 0 {
		t.Errorf("%s from %s: waited %v", name, peer.Addr, took)
	}
}

func mustRefuse(t *testing.T, a *Authenticator, peer Peer, name, password string, want error) time.Duration {
	t.Helper()
	began := time.Now()
	if _, err := logIn(t.Context(), a, peer, name, password); !errors.Is(err, want) {
		t.Errorf("%s from %s: got %v, want %v", name, peer.Addr, err, want)
	}
	return time.Since(began)
}

func count(t *testing.T, c prometheus.Metric) int {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return int(m.GetCounter().GetValue() + m.GetGauge().GetValue())
}

func mustHaveHashed(t *testing.T, a *Authenticator, want int) {
	t.Helper()
	if got := count(t, a.metrics.hashes); got != want {
		t.Errorf("got %d hashes, want %d", got, want)
	}
}

// lines is a log that counts.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
