package delivery

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
)

// smartHost is a mail server on loopback that takes mail after STARTTLS and AUTH PLAIN only, and asks for a certificate if
// it is told to.
type smartHost struct {
	l   net.Listener
	tls *tls.Config
	wg  sync.WaitGroup

	mu          sync.Mutex
	implicit    bool // TLS before the greeting
	open        map[net.Conn]bool
	connections int
	logins      []string // user:password of each AUTH
	passwords   map[string]bool
	got         []string // who sent each message: user/name in the certificate
}

func startSmartHost(t *testing.T, ca *authority, wantsCertificate bool, passwords ...string) *smartHost {
	t.Helper()
	chain, key := ca.issue(t, "smart host")
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	h := &smartHost{tls: &tls.Config{Certificates: []tls.Certificate{pair}}, open: make(map[net.Conn]bool)}
	if wantsCertificate {
		h.tls.ClientAuth, h.tls.ClientCAs = tls.RequireAndVerifyClientCert, ca.pool
	}
	h.allow(passwords...)
	if h.l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	h.wg.Go(func() {
		for {
			c, err := h.l.Accept()
			if err != nil {
				return
			}
			h.mu.Lock()
			h.open[c] = true
			h.connections++
			h.mu.Unlock()
			h.wg.Go(func() { h.serve(c) })
		}
	})
	t.Cleanup(func() {
		h.l.Close()
		h.mu.Lock()
		for c := range h.open {
			c.Close()
		}
		h.mu.Unlock()
		h.wg.Wait()
	})
	return h
}

// allow says which user:password are good from now on.
func (h *smartHost) allow(passwords ...string) { h.allowWith(func() {}, passwords...) }

// allowWith does so at the moment of another change: no login is judged between the two.
func (h *smartHost) allowWith(change func(), passwords ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
	h.passwords = make(map[string]bool)
	for _, p := range passwords {
		h.passwords[p] = true
	}
}

func (h *smartHost) seen() (connections, logins int, got []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.connections, len(h.logins), append([]string(nil), h.got...)
}

func (h *smartHost) via() string {
	return fmt.Sprintf("smtp:[127.0.0.1]:%d", h.l.Addr().(*net.TCPAddr).Port)
}

func (h *smartHost) serve(raw net.Conn) {
	defer raw.Close()
	c, r := raw, bufio.NewReader(raw)
	say := func(s string) { fmt.Fprintf(c, "%s\r\n", s) }
	user, name, isTLS := "", "", false
	secure := func() bool {
		t := tls.Server(raw, h.tls)
		if t.Handshake() != nil {
			return false
		}
		if peers := t.ConnectionState().PeerCertificates; len(peers) > 0 {
			name = peers[0].Subject.CommonName
		}
		c, r, isTLS = t, bufio.NewReader(t), true
		return true
	}
	h.mu.Lock()
	implicit := h.implicit
	h.mu.Unlock()
	if implicit && !secure() {
		return
	}
	say("220 smart.test ESMTP")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		words := strings.Fields(line)
		if len(words) == 0 {
			return
		}
		switch strings.ToUpper(words[0]) {
		case "EHLO":
			if isTLS {
				say("250-smart.test\r\n250-PIPELINING\r\n250 AUTH PLAIN")
			} else {
				say("250-smart.test\r\n250-AUTH PLAIN\r\n250 STARTTLS")
			}
		case "STARTTLS":
			say("220 go")
			if !secure() {
				return
			}
		case "AUTH":
			octets, _ := base64.StdEncoding.DecodeString(words[2])
			fields := strings.Split(string(octets), "\x00")
			h.mu.Lock()
			h.logins = append(h.logins, fields[1]+":"+fields[2])
			isGood := h.passwords[fields[1]+":"+fields[2]]
			h.mu.Unlock()
			if !isGood {
				say("535 5.7.8 wrong user name or password")
				continue
			}
			user = fields[1]
			say("235 2.7.0 welcome")
		case "MAIL":
			if user == "" {
				say("530 5.7.0 log in first")
				continue
			}
			say("250 2.1.0 ok")
		case "RSET":
			say("250 2.0.0 ok")
		case "RCPT":
			if user == "" {
				say("503 5.5.1 no sender")
				continue
			}
			say("250 2.1.5 ok")
		case "DATA":
			if user == "" {
				say("503 5.5.1 no recipients")
				continue
			}
			say("354 go on")
			for line != ".\r\n" {
				if line, err = r.ReadString('\n'); err != nil {
					return
				}
			}
			h.mu.Lock()
			h.got = append(h.got, user+"/"+name)
			h.mu.Unlock()
			say("250 2.0.0 taken")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("500 what?")
		}
	}
}
