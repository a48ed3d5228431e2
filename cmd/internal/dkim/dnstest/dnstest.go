// Package dnstest is a name server for tests: it answers for one zone, as its name server and as a resolver, with TXT records that lie in
// files, so that a hook can publish them.
//
//	s := dnstest.Start(t, "example.com")
//	s.Set("s1._domainkey.example.com", "v=DKIM1; p=…")
//	c.Signer.Rotation.Resolvers, c.Signer.Rotation.NameServerPort = []string{s.Addr()}, s.Port()
//	c.Signer.Rotation.Hook = s.Hook(t)
package dnstest

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// ttl is that of all there is, that there is nothing too.
const ttl = 1

// Server is a name server that runs until the test ends.
type Server struct {
	t    testing.TB
	zone string
	dir  string
	conn net.PacketConn

	mu    sync.Mutex
	hosts map[string]netip.Addr // name servers of the zone
}

// Start runs a server for a zone. Its name server is ns1.<zone>.
func Start(t testing.TB, zone string) *Server {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, zone: zone, dir: t.TempDir(), conn: conn, hosts: map[string]netip.Addr{"ns1." + zone: netip.MustParseAddr("127.0.0.1")}}
	var wg sync.WaitGroup
	wg.Go(s.serve)
	t.Cleanup(func() {
		_ = conn.Close()
		wg.Wait()
	})
	return s
}

// Addr is its address as that of a resolver.
func (s *Server) Addr() string { return s.conn.LocalAddr().String() }

// Port is where it answers for the zone.
func (s *Server) Port() int { return s.conn.LocalAddr().(*net.UDPAddr).Port }

// AddServer adds a name server to the zone, at another address of this machine, where perhaps nobody answers.
func (s *Server) AddServer(host, address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts[host] = netip.MustParseAddr(address)
}

// Set gives a name a TXT record; "" takes it away.
func (s *Server) Set(name, value string) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	err := os.Remove(path)
	if value != "" {
		err = os.WriteFile(path, []byte(value), 0o600)
	}
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
}

// Get returns the record of a name.
func (s *Server) Get(name string) string {
	text, _ := os.ReadFile(filepath.Join(s.dir, filepath.Base(name))) // none is none
	return string(text)
}

// Hook is a program for signer.rotation.hook that publishes here.
func (s *Server) Hook(t testing.TB) []string {
	t.Helper()
	script := filepath.Join(t.TempDir(), "hook")
	text := "#!/bin/sh\ncase $1 in\ndelete) rm -f '" + s.dir + "'/\"$2\" ;;\n*) printf %s \"$3\" >'" + s.dir + "'/\"$2\" ;;\nesac\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return []string{"/bin/sh", script}
}

func (s *Server) serve() {
	buf := make([]byte, 4096)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var q dnsmessage.Message
		if q.Unpack(buf[:n]) != nil || len(q.Questions) != 1 {
			continue
		}
		if reply, err := s.answer(&q); err == nil {
			_, _ = s.conn.WriteTo(reply, from)
		}
	}
}

func (s *Server) answer(q *dnsmessage.Message) ([]byte, error) {
	question := q.Questions[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name.String(), "."))
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: q.ID, Response: true, Authoritative: true, RecursionDesired: q.RecursionDesired, RecursionAvailable: true},
		Questions: q.Questions,
	}
	apex, err := dnsmessage.NewName(s.zone + ".")
	if err != nil {
		return nil, err
	}
	header := func(name dnsmessage.Name) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl}
	}
	soa := dnsmessage.Resource{Header: header(apex), Body: &dnsmessage.SOAResource{NS: apex, MBox: apex, Serial: 1, Refresh: 60, Retry: 60, Expire: 60, MinTTL: ttl}}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case question.Type == dnsmessage.TypeSOA && name == s.zone:
		m.Answers = append(m.Answers, soa)
	case question.Type == dnsmessage.TypeNS && name == s.zone:
		for host := range s.hosts {
			ns, err := dnsmessage.NewName(host + ".")
			if err != nil {
				return nil, err
			}
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header(apex), Body: &dnsmessage.NSResource{NS: ns}})
		}
	case question.Type == dnsmessage.TypeA && s.hosts[name].IsValid():
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: header(question.Name), Body: &dnsmessage.AResource{A: s.hosts[name].As4()}})
	case question.Type == dnsmessage.TypeTXT && s.Get(name) != "":
		var parts []string
		for text := s.Get(name); text != ""; {
			n := min(len(text), 255)
			parts, text = append(parts, text[:n]), text[n:]
		}
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: header(question.Name), Body: &dnsmessage.TXTResource{TXT: parts}})
	}
	if len(m.Answers) == 0 {
		m.Authorities = append(m.Authorities, soa)
	}
	return m.Pack()
}
