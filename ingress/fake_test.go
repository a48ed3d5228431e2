package ingress

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"postroad/queue"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kept is what the fake queue was given.
type kept struct {
	id      queue.MessageID
	env     queue.Envelope
	payload string
}

// fakeQueue is a queue in memory whose Accept can be told to fail.
type fakeQueue struct {
	accept func(ctx context.Context, payload io.Reader) error // runs before the payload is kept; may read some of it
	isFull bool

	mu     sync.Mutex
	next   int
	seen   map[[32]byte]queue.MessageID
	spent  map[string]int  // by key; the window never ends
	flow   strings.Builder // what was read of all payloads so far
	mails  []kept
	failed []error // errors of payloads
	events []queue.Event
}

func (q *fakeQueue) NewID() queue.MessageID {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.next++
	return queue.MessageID(fmt.Sprintf("id%d", q.next))
}

func (q *fakeQueue) Accept(ctx context.Context, id queue.MessageID, env queue.Envelope, payload io.Reader) error {
	if q.accept != nil {
		if err := q.accept(ctx, payload); err != nil {
			return fmt.Errorf("accept: %w", err)
		}
	}
	content, err := io.ReadAll(io.TeeReader(payload, flowing{q}))
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil {
		q.failed = append(q.failed, err)
		return fmt.Errorf("accept: read content: %w", err)
	}
	q.mails = append(q.mails, kept{id, env, string(content)})
	return nil
}

// flowing notes what a payload yields as it comes.
type flowing struct{ q *fakeQueue }

func (f flowing) Write(p []byte) (int, error) {
	f.q.mu.Lock()
	defer f.q.mu.Unlock()
	return f.q.flow.Write(p)
}

// hasRead reports that the text has come in.
func (q *fakeQueue) hasRead(text string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return strings.Contains(q.flow.String(), text)
}

func (q *fakeQueue) Full() bool { return q.isFull }

func (q *fakeQueue) Record(e queue.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.events = append(q.events, e)
}

func (q *fakeQueue) Spend(_ context.Context, key string, n int, l queue.Limit) (queue.Spent, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.spent[key]+n > l.Count {
		return queue.Spent{RetryAfter: l.Window}, nil
	}
	if q.spent == nil {
		q.spent = make(map[string]int)
	}
	q.spent[key] += n
	return queue.Spent{OK: true}, nil
}

func (q *fakeQueue) Seen(_ context.Context, key [32]byte) (queue.MessageID, bool, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	id, isKnown := q.seen[key]
	return id, isKnown, nil
}

func (q *fakeQueue) Remember(_ context.Context, key [32]byte, id queue.MessageID) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.seen == nil {
		q.seen = make(map[[32]byte]queue.MessageID)
	}
	q.seen[key] = id
	return nil
}

func (q *fakeQueue) all() []kept {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]kept(nil), q.mails...)
}

// only returns the one message that was accepted.
func (q *fakeQueue) only(t *testing.T) kept {
	t.Helper()
	all := q.all()
	if len(all) != 1 {
		t.Fatalf("got %d messages accepted, want 1", len(all))
	}
	return all[0]
}

var errInner = errors.New("nats: secret inner cause")

// testOptions are for a server on the loopback that trusts it.
func testOptions(q Queue) Options {
	return Options{
		Queue:    q,
		Hostname: "relay.test",
		Listeners: []Listener{{
			Address:         "127.0.0.1:0",
			TrustedNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		}},
		IdleTimeout:   time.Minute,
		LingerTimeout: 200 * time.Millisecond,
		Logger:        slog.New(slog.DiscardHandler),
	}
}

// startServer runs a server for the test.
func startServer(t testing.TB, o Options) *Server {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { stopServer(t, s) })
	return s
}

func stopServer(t testing.TB, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// testTLS has a certificate for relay.test, valid for the test.
var testTLS = sync.OnceValue(func() *tls.Config { return selfSigned("relay.test") })

// testClientCertificate is that of web02; its name is one that must not get out of its comment.
var testClientCertificate = sync.OnceValue(func() *tls.Config { return selfSigned("web02) by \\evil\r\nX: y") })

func selfSigned(name string) *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{"relay.test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MinVersion:   tls.VersionTLS12,
	}
}
