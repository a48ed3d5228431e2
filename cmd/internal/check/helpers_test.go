package check

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/argon2"

	"postroad/ingress"
	"postroad/ingress/account"
	"postroad/queue"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority signs certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, key: newKey(t), pool: x509.NewCertPool()}
	a.cert = a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "Test Authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotAfter: time.Now().Add(time.Hour)}, a.key)
	a.pool.AddCert(a.cert)
	return a
}

// sign makes a certificate; the first one of an authority signs itself.
func (a *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-time.Hour)
	}
	parent := a.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// pair is a certificate for a server.
func (a *authority) pair(name string, left time.Duration) tls.Certificate {
	a.t.Helper()
	key := newKey(a.t)
	cert := a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(left), NotBefore: time.Now().Add(-48 * time.Hour)}, key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

// store is a queue that takes everything.
type store struct {
	mu    sync.Mutex
	mails []string
}

func (s *store) NewID() queue.MessageID { return "id1" }

func (s *store) Accept(_ context.Context, _ queue.MessageID, env queue.Envelope, payload io.Reader) error {
	text, err := io.ReadAll(payload)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mails = append(s.mails, fmt.Sprintf("%s\n%s", env.ReversePath, text))
	return err
}

func (s *store) Full() bool         { return false }
func (s *store) Record(queue.Event) {}
func (s *store) Spend(context.Context, string, int, queue.Limit) (queue.Spent, error) {
	return queue.Spent{OK: true}, nil
}
func (s *store) Seen(context.Context, [32]byte) (queue.MessageID, bool, error) { return "", false, nil }
func (s *store) Remember(context.Context, [32]byte, queue.MessageID) error     { return nil }

// book are accounts in memory.
type book map[string]*account.Client

func (b book) Client(_ context.Context, name string) (*account.Client, error) {
	if c := b[name]; c != nil {
		return c, nil
	}
	return nil, account.ErrUnknown
}

func (b book) Latest(ctx context.Context, name string) (*account.Client, error) {
	return b.Client(ctx, name)
}

const goodPassword = "correct horse battery"

// newBook has web1 with a made password, which may send for from.test, and person, whose password is good for PLAIN only.
func newBook(t *testing.T) book {
	t.Helper()
	sender, err := account.ParseSender("@from.test")
	if err != nil {
		t.Fatal(err)
	}
	b := book{"web1": {Name: "web1", Senders: []account.Sender{sender}}, "person": {Name: "person"}, "locked": {Name: "locked", Disabled: true}}
	for _, c := range b {
		if _, err := c.SetPassword(goodPassword, account.Generated, time.Now(), 0); err != nil {
			t.Fatal(err)
		}
	}
	cheap := &account.Argon2id{Memory: 7 << 10, Time: 1, Lanes: 1, Salt: []byte("salt of a person")}
	cheap.Key = argon2.IDKey([]byte(goodPassword), cheap.Salt, cheap.Time, cheap.Memory, cheap.Lanes, 32)
	b["person"].Passwords = []account.Password{{ID: "one", Argon2id: cheap}}
	return b
}

// relay is a real ingress; it returns its addresses.
func relay(t *testing.T, s *store, listeners ...ingress.Listener) []string {
	t.Helper()
	accounts, err := account.New(account.Options{Source: newBook(t), Delay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for i := range listeners {
		listeners[i].Address = "127.0.0.1:0"
	}
	server, err := ingress.New(ingress.Options{Queue: s, Hostname: "relay.test", Listeners: listeners, Accounts: accounts})
	if err != nil {
		t.Fatal(err)
	}
	server.Start()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	var addrs []string
	for _, a := range server.Addrs() {
		addrs = append(addrs, a.String())
	}
	return addrs
}

// everybody are networks that may relay without a login.
func everybody() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }

// scripted is a server that does what a test says, once for each connection.
func scripted(t *testing.T, talk func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				talk(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

// has fails the test unless a verdict of that state and step has the text in it.
func has(t *testing.T, r *Report, state State, step, text string) {
	t.Helper()
	for _, v := range r.Verdicts {
		if v.State == state && v.Step == step && strings.Contains(v.Text, text) {
			return
		}
	}
	t.Errorf("no verdict %s %s with %q:\n%s", state, step, text, told(r))
}

// told is a report as text.
func told(r *Report) string {
	var b strings.Builder
	for _, v := range r.Verdicts {
		fmt.Fprintf(&b, "%s %s: %s (%s)\n", v.State, v.Step, v.Text, v.Hint)
	}
	for _, l := range r.Transcript {
		fmt.Fprintln(&b, l)
	}
	return b.String()
}

// is fails the test when the report is not as good as wanted.
func is(t *testing.T, r *Report, good bool) {
	t.Helper()
	if r.Good != good {
		t.Errorf("got %v, want %v:\n%s", r.Good, good, told(r))
	}
}
