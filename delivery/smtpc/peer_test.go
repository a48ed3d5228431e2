package smtpc

import (
	"bufio"
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

	"postroad/queue"
	"postroad/queue/address"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var mxAddr = netip.MustParseAddrPort("192.0.2.25:25")

// peer plays the host by a script, one step a line:
//
//	< LINE     the client must say this line
//	> LINE     say this line
//	>> TEXT    say this without a line end; \r\n in it is one
//	body       read content up to the dot, keep it
//	take N     read N octets
//	wait D     let time pass
//	starttls   be the server of a handshake
//	silent     read nothing until the client hangs up
//	gone       the client must hang up without another octet
//
// At the end of the script it hangs up.
type peer struct {
	t      testing.TB
	conn   net.Conn
	r      *bufio.Reader
	script []string
	bodies []string
	writes int // of the client, in clear text
	done   sync.WaitGroup
}

// play makes Options whose Dial meets a peer with that script.
func play(t testing.TB, script string) (*peer, Options) {
	t.Helper()
	client, server := net.Pipe()
	p := &peer{t: t, conn: server, r: bufio.NewReader(server)}
	for line := range strings.Lines(script) {
		if line = strings.TrimSpace(line); line != "" {
			p.script = append(p.script, line)
		}
	}
	p.done.Go(p.run)
	return p, Options{
		Hostname: "relay.test",
		Dial: func(context.Context, string, string) (net.Conn, error) {
			return &countingConn{Conn: client, writes: &p.writes}, nil
		},
	}
}

// countingConn counts the writes.
type countingConn struct {
	net.Conn
	writes *int
}

func (c *countingConn) Write(p []byte) (int, error) {
	*c.writes++
	return c.Conn.Write(p)
}

func (p *peer) run() {
	defer p.conn.Close()
	for i, line := range p.script {
		if err := p.step(line); err != nil {
			p.t.Errorf("step %d %q: %v", i+1, line, err)
			return
		}
	}
}

func (p *peer) step(line string) error {
	verb, arg, _ := strings.Cut(line, " ")
	switch verb {
	case "<":
		got, err := p.r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("got %q, %w", got, err)
		}
		if want := arg + "\r\n"; got != want {
			return fmt.Errorf("got %q", got)
		}
	case ">":
		return p.say(arg + "\r\n")
	case ">>":
		return p.say(strings.ReplaceAll(arg, `\r\n`, "\r\n"))
	case "body":
		return p.body()
	case "take":
		var n int64
		fmt.Sscan(arg, &n)
		_, err := io.CopyN(io.Discard, p.r, n)
		return err
	case "wait":
		d, err := time.ParseDuration(arg)
		time.Sleep(d)
		return err
	case "starttls":
		conn := tls.Server(p.conn, serverTLS())
		p.conn, p.r = conn, bufio.NewReader(conn)
		_ = conn.Handshake() // what the client makes of it is the test
	case "silent":
		time.Sleep(24 * time.Hour)
	case "gone":
		rest, err := io.ReadAll(p.r)
		if len(rest) > 0 {
			return fmt.Errorf("got %q", rest)
		}
		return err
	default:
		return fmt.Errorf("no such step")
	}
	return nil
}

func (p *peer) say(s string) error {
	_, err := io.WriteString(p.conn, s)
	if err == io.ErrClosedPipe { // the client has left: some scripts are about that
		return nil
	}
	return err
}

func (p *peer) body() error {
	var b strings.Builder
	for {
		line, err := p.r.ReadString('\n')
		if err != nil {
			return err
		}
		if line == ".\r\n" {
			p.bodies = append(p.bodies, b.String())
			return nil
		}
		b.WriteString(line)
	}
}

// opening is how most conversations start.
const opening = `
	> 220 mx.test ESMTP
	< EHLO relay.test
	> 250-mx.test
	> 250-PIPELINING
	> 250-SIZE 1000000
	> 250-8BITMIME
	> 250 ENHANCEDSTATUSCODES
`

// plainOpening is that of a host without extensions.
const plainOpening = `
	> 220 mx.test
	< EHLO relay.test
	> 250 mx.test
`

// message is a small one for rcpts.
func message(t testing.TB, rcpts ...string) Message {
	t.Helper()
	const text = "Subject: test\r\n\r\nHello.\r\n"
	m := Message{From: path(t, "sender@example.org"), Size: int64(len(text)), Body: strings.NewReader(text)}
	for _, rcpt := range rcpts {
		m.Recipients = append(m.Recipients, queue.Recipient{Path: path(t, rcpt)})
	}
	return m
}

func path(t testing.TB, s string) address.Path {
	t.Helper()
	p, err := address.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// dial opens a connection that must open.
func dial(t testing.TB, o Options) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), "mx.test", mxAddr, o)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	return c
}

// fates prints the recipients' replies.
func fates(res Result) []string {
	var out []string
	for _, r := range res.Recipients {
		s := string(r.Phase) + " " + r.String()
		if r.Local {
			s = "local " + s
		}
		out = append(out, s)
	}
	return out
}

var makeTLS = sync.OnceValues(func() (*tls.Config, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "mx.test"},
		DNSNames:     []string{"mx.test"},
		NotBefore:    time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC), // the clock of synctest starts in 2000
		NotAfter:     time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA:         true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, pool
})

func serverTLS() *tls.Config {
	conf, _ := makeTLS()
	return conf
}

func roots() *x509.CertPool {
	_, pool := makeTLS()
	return pool
}
