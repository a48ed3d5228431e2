package daemon

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"postroad/cmd/internal/ops"
	"postroad/queue"
)

// smartHost is a server that takes mail from who logs in and shows a certificate.
type smartHost struct {
	mu       sync.Mutex
	password string
	sessions int
	got      chan string // user, name in the certificate, subject
}

func (h *smartHost) NewSession(c *smtp.Conn) (smtp.Session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sessions++
	return &smartSession{host: h, conn: c}, nil
}

func (h *smartHost) set(password string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.password = password
}

type smartSession struct {
	host *smartHost
	conn *smtp.Conn
	user string
}

func (s *smartSession) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *smartSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		s.host.mu.Lock()
		defer s.host.mu.Unlock()
		if password != s.host.password {
			return smtp.ErrAuthFailed
		}
		s.user = user
		return nil
	}), nil
}

func (s *smartSession) Mail(string, *smtp.MailOptions) error {
	if s.user == "" {
		return smtp.ErrAuthRequired
	}
	return nil
}

func (s *smartSession) Rcpt(string, *smtp.RcptOptions) error { return nil }

func (s *smartSession) Data(r io.Reader) error {
	text, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	name := ""
	if state, is := s.conn.TLSConnectionState(); is && len(state.PeerCertificates) > 0 {
		name = state.PeerCertificates[0].Subject.CommonName
	}
	_, subject, _ := strings.Cut(string(text), "Subject: ")
	subject, _, _ = strings.Cut(subject, "\r\n")
	s.host.got <- s.user + " " + name + " " + subject
	return nil
}

func (s *smartSession) Reset()        {}
func (s *smartSession) Logout() error { return nil }

// signedByItself makes a certificate in PEM.
func signedByItself(t *testing.T, name string) (chain, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func startSmartHost(t *testing.T) (*smartHost, int) {
	t.Helper()
	chain, key := signedByItself(t, "smart host")
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	h := &smartHost{got: make(chan string, 10)}
	s := smtp.NewServer(h)
	s.Domain = "smart.test.example"
	s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert}
	s.ReadTimeout, s.WriteTimeout = timeLimit, timeLimit
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) }) // ends with an error when it is closed
	t.Cleanup(func() {
		_ = s.Close()
		wg.Wait()
	})
	return h, l.Addr().(*net.TCPAddr).Port
}

func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestS4_25_SmartHost: a route of a file sends mail to a smart host that wants a login and a certificate. Mail waits for the secrets, new
// ones are in force without a restart, and so are other routes.
func TestS4_25_SmartHost(t *testing.T) {
	h, port := startSmartHost(t)
	h.set("one")
	c := testConfig(shortDir(t), port)
	c.Delivery.Routes = nil
	c.Delivery.RoutesFile = filepath.Join(c.DataDir, "routes.yaml")
	c.Secrets.Dir = filepath.Join(c.DataDir, "secrets")
	route := fmt.Sprintf(`routes: [{name: smart, domains: ["*"], via: "smtp:[127.0.0.1]:%d", tls: encrypt, auth: provider, auth_insecure: true, client_cert: client-relay}]`, port)
	put(t, c.Delivery.RoutesFile, route)
	put(t, filepath.Join(c.Secrets.Dir, "dkim", "README"), "none")
	d := start(t, c)
	client := ops.NewClient(c.SocketPath())
	condition := func(text string) func() bool {
		return func() bool {
			for _, c := range d.self().Conditions {
				if strings.Contains(c.Text, text) {
					return true
				}
			}
			return false
		}
	}
	fact := d.self().Facts["routes"]

	send(t, d.Addrs()[0], "one")
	until(t, "the mail waits for its login", func() bool {
		for e, err := range client.List(t.Context(), ops.Selection{All: true}, 10) {
			if err != nil {
				t.Fatal(err)
			}
			return strings.Contains(e.Job.Reason, "no login at the next hop: smarthosts/provider: there is no such secret")
		}
		return false
	})
	until(t, "the status says so", condition("the secret smarthosts/provider: mail that needs it waits"))
	h.mu.Lock()
	if h.sessions > 0 {
		t.Errorf("got %d sessions without a login", h.sessions)
	}
	h.mu.Unlock()

	chain, key := signedByItself(t, "relay")
	put(t, filepath.Join(c.Secrets.Dir, "tls", "client-relay", "cert.pem"), string(chain))
	put(t, filepath.Join(c.Secrets.Dir, "tls", "client-relay", "key.pem"), string(key))
	put(t, filepath.Join(c.Secrets.Dir, "smarthosts", "provider.json"), `{"username": "postroad", "password": "one"}`)
	retry := func() {
		_, err := client.Do(t.Context(), ops.ActionRetry, ops.Order{Selection: ops.Selection{All: true}})
		if err != nil {
			t.Fatal(err)
		}
	}
	arrives := func(want string) {
		t.Helper()
		for end := time.After(timeLimit); ; {
			select {
			case got := <-h.got:
				if got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				return
			case <-time.After(time.Second):
				retry()
			case <-end:
				t.Fatalf("%s did not arrive", want)
			}
		}
	}
	arrives("postroad relay one")

	h.set("two")
	put(t, filepath.Join(c.Secrets.Dir, "smarthosts", "provider.json"), `{"username": "postroad2", "password": "two"}`)
	if err := client.Notify(t.Context(), topicCertificates, "provider"); err != nil { // otherwise it takes up to 25 seconds
		t.Fatal(err)
	}
	// Until it has heard of that, delivery goes on with the connection that it has.
	for got, end := "", time.Now().Add(timeLimit); got != "postroad2 relay two"; {
		send(t, d.Addrs()[0], "two")
		select {
		case got = <-h.got:
		case <-time.After(timeLimit):
		}
		if time.Now().After(end) {
			t.Fatalf("got %q, want the new user name", got)
		}
	}

	put(t, c.Delivery.RoutesFile, `routes: [{name: void, domains: [d.example], via: discard}]`)
	until(t, "the new routes are in force", func() bool { return d.self().Facts["routes"] != fact })
	put(t, c.Delivery.RoutesFile, `routes: [{domains: [d.example], via: nowhere}]`)
	until(t, "bad routes are told of", condition("changed routes are not taken, the old ones stay in force: "+c.Delivery.RoutesFile+":1: routes[0].via"))
	send(t, d.Addrs()[0], "three")
	until(t, "the mail is discarded", func() bool {
		for e, err := range client.Trace(t.Context(), ops.TraceFilter{Sender: "a@b.example"}) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == queue.Discarded && e.Text == "discarded by the route void" {
				return true
			}
		}
		return false
	})
}
