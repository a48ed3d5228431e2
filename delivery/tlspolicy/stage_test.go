package tlspolicy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"postroad/delivery/mx"
	"postroad/delivery/smtpc"
	"postroad/delivery/tlsrpt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a certificate with its key.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate; parent nil: signed by itself.
func issue(t testing.TB, parent *pair, change func(*x509.Certificate), names ...string) *pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "test"}, DNSNames: names,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour), BasicConstraintsValid: true}
	if change != nil {
		change(c)
	}
	signer := &pair{c, key}
	if parent != nil {
		signer = parent
	}
	der, err := x509.CreateCertificate(rand.Reader, c, signer.cert, key.Public(), signer.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pair{cert, key}
}

func authority(t testing.TB) *pair {
	return issue(t, nil, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.Subject.CommonName = true, x509.KeyUsageCertSign, "test authority"
	})
}

func expired(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) }

// chain is what a server shows.
func chain(leaf *pair, rest ...*pair) tls.Certificate {
	out := tls.Certificate{Certificate: [][]byte{leaf.cert.Raw}, PrivateKey: leaf.key}
	for _, c := range rest {
		out.Certificate = append(out.Certificate, c.cert.Raw)
	}
	return out
}

// tlsa writes the data of a record for a certificate.
func tlsa(usage, selector, matching uint8, c *pair) string {
	data := c.cert.Raw
	if selector == selectorSPKI {
		data = c.cert.RawSubjectPublicKeyInfo
	}
	switch matching {
	case matchSHA256:
		sum := sha256.Sum256(data)
		data = sum[:]
	case matchSHA512:
		sum := sha512.Sum512(data)
		data = sum[:]
	}
	return fmt.Sprintf("%d %d %d %s", usage, selector, matching, hex.EncodeToString(data))
}

// mailHost is a mail server on loopback that gets as far as EHLO inside TLS.
type mailHost struct {
	cert       *tls.Certificate // nil: no STARTTLS
	requireTLS bool
	sni        chan string
}

func (h *mailHost) start(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.sni = make(chan string, 16)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { h.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

func (h *mailHost) serve(c net.Conn) {
	defer c.Close()
	if c.SetDeadline(time.Now().Add(time.Minute)) != nil {
		return
	}
	r := bufio.NewReader(c)
	say := func(s string) { fmt.Fprintf(c, "%s\r\n", s) }
	say("220 mx.test ESMTP")
	for inTLS := false; ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch strings.ToUpper(strings.Fields(line + " x")[0]) {
		case "EHLO":
			switch {
			case h.cert != nil && !inTLS:
				say("250-mx.test\r\n250 STARTTLS")
			case h.requireTLS && inTLS:
				say("250-mx.test\r\n250 REQUIRETLS")
			default:
				say("250 mx.test")
			}
		case "STARTTLS":
			say("220 go")
			conn := tls.Server(c, &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				h.sni <- hello.ServerName
				return h.cert, nil
			}})
			if conn.Handshake() != nil {
				return
			}
			c, r, inTLS = conn, bufio.NewReader(conn), true
		default:
			say("221 bye")
			return
		}
	}
}

// stage is everything that a case plays on.
type stage struct {
	zone     string          // records, with $ for the hash of nothing: see the cases
	insecure map[string]bool // names whose answers are not proven; all others are
	fail     map[string]bool // names whose look-up fails: SERVFAIL, as for a bogus answer
	host     mailHost
	policy   http.HandlerFunc // nil: there is no server
	webCert  *pair
	roots    *x509.CertPool
	options  Options

	mu    sync.Mutex
	asked map[string]int
}

// resolver is an in-process name server with the AD bit, and what asks it.
func (s *stage) resolver(t testing.TB) *mx.DNS {
	t.Helper()
	var rrs []dns.RR
	p := dns.NewZoneParser(strings.NewReader(s.zone), ".", "")
	p.SetDefaultTTL(60)
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		rrs = append(rrs, rr)
	}
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.asked = make(map[string]int)
	server := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(s.answer(q, rrs)) // a lost answer is the client's business
	})}
	served := make(chan error, 1)
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	go func() { served <- server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			t.Error(err)
		}
		<-served
	})
	d, err := mx.NewDNS(mx.DNSOptions{Servers: []string{pc.LocalAddr().String()}, Timeout: time.Minute, Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (s *stage) answer(q *dns.Msg, rrs []dns.RR) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	name := strings.ToLower(q.Question[0].Name)
	s.mu.Lock()
	s.asked[strings.TrimSuffix(name, ".")]++
	s.mu.Unlock()
	m.AuthenticatedData = q.AuthenticatedData
	if s.fail[strings.TrimSuffix(name, ".")] {
		m.Rcode = dns.RcodeServerFailure
		return m
	}
	exists := false
	for again := true; again; {
		again = false
		if s.insecure[strings.TrimSuffix(name, ".")] {
			m.AuthenticatedData = false
		}
		for _, rr := range rrs {
			if rr.Header().Name != name {
				continue
			}
			exists = true
			if rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			} else if alias, is := rr.(*dns.CNAME); is {
				m.Answer = append(m.Answer, rr)
				name, again = alias.Target, true
				break
			}
		}
	}
	if !exists {
		m.Rcode = dns.RcodeNameError
	}
	return m
}

// web starts the server of policies.
func (s *stage) web(t testing.TB) func(ctx context.Context, network, addr string) (net.Conn, error) {
	t.Helper()
	if s.policy == nil {
		return func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("connection refused") }
	}
	server := httptest.NewUnstartedServer(s.policy)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{chain(s.webCert)}}
	server.Config.ErrorLog = discard()
	server.StartTLS()
	t.Cleanup(server.Close)
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, server.Listener.Addr().String())
	}
}

const theDomain = "example.test"

// play takes a message as far as the opening of the dialogue and says what became of it and what is reported.
func (s *stage) play(t testing.TB, m Mail) (outcome, reported string) {
	t.Helper()
	names := s.resolver(t)
	o := s.options
	o.Names, o.Roots, o.AllowPrivate, o.Dial = names, s.roots, true, s.web(t)
	o.Lookup = func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	p := New(o)
	t.Cleanup(p.Close)
	addr := s.host.start(t)
	m.Domain, m.IsMX = theDomain, true
	hosts, err := mx.Candidates(t.Context(), names, theDomain, mx.Options{AllowPrivate: true})
	if err != nil {
		t.Fatal(err)
	}
	d := p.Domain(t.Context(), m)
	var reports []string
	for _, h := range hosts {
		plan, err := p.Host(t.Context(), d, Host{Name: h.Name, Canonical: h.Canonical, Port: 25, SecureMX: h.SecureMX, Secure: h.Secure})
		var state *tls.ConnectionState
		if err == nil {
			state, err = dialPlan(t, plan, h, addr)
			err = plan.Refuse(err)
		}
		for _, r := range plan.Results(state, err) {
			reports = append(reports, reportText(r))
		}
		outcome = "deferred: " + fmt.Sprint(err)
		if f, is := errors.AsType[*Failure](err); is {
			outcome = fmt.Sprintf("%d %s", f.Code(), f.Enhanced)
		}
		if err == nil {
			outcome = "delivered " + plan.String()
			if state == nil {
				outcome += " in clear"
			}
			break
		}
	}
	return outcome, strings.Join(reports, ", ")
}

func dialPlan(t testing.TB, plan Plan, h mx.Host, addr string) (*tls.ConnectionState, error) {
	o := smtpc.Options{Hostname: "relay.test", Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}}
	plan.Apply(&o)
	c, err := smtpc.Dial(t.Context(), h.Name, netip.AddrPortFrom(h.Addr, 25), o)
	if err != nil {
		return nil, err
	}
	defer c.Close(t.Context())
	return c.TLSState(), nil
}

func reportText(r tlsrpt.Result) string {
	text := string(r.Policy.Type)
	if r.Failure.Result == tlsrpt.OK {
		return text + " ok"
	}
	return text + " " + string(r.Failure.Result)
}
