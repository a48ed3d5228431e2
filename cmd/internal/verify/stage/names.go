package stage

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// nameTTL is that of all records, in seconds: longer than any check.
const nameTTL = 86400

// Names is a name server with MX and address records, over UDP. A name that it does not know does not exist.
type Names struct {
	conn net.PacketConn
	wg   sync.WaitGroup

	mu    sync.Mutex
	mx    map[string][]string
	hosts map[string]netip.Addr
}

// NewNames starts one on a free port of 127.0.0.1.
func NewNames() (*Names, error) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("name server: %w", err)
	}
	n := &Names{conn: conn, mx: make(map[string][]string), hosts: make(map[string]netip.Addr)}
	n.wg.Go(n.serve)
	return n, nil
}

// Addr is where it listens.
func (n *Names) Addr() string { return n.conn.LocalAddr().String() }

// Close ends it.
func (n *Names) Close() {
	_ = n.conn.Close() // wakes its reader
	n.wg.Wait()
}

// MX gives a domain its hosts, the first one with the best preference.
func (n *Names) MX(domain string, hosts ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mx[domain] = hosts
}

// Host gives a host its IPv4 address.
func (n *Names) Host(name string, addr netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[name] = addr
}

func (n *Names) serve() {
	buf := make([]byte, 4096)
	for {
		size, from, err := n.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var q dnsmessage.Message
		if q.Unpack(buf[:size]) != nil || len(q.Questions) != 1 {
			continue
		}
		if reply, err := n.answer(&q); err == nil {
			_, _ = n.conn.WriteTo(reply, from) // who asked asks again
		}
	}
}

func (n *Names) answer(q *dnsmessage.Message) ([]byte, error) {
	question := q.Questions[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name.String(), "."))
	m := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: q.ID, Response: true, Authoritative: true, RecursionDesired: q.RecursionDesired, RecursionAvailable: true,
		},
		Questions: q.Questions,
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	header := dnsmessage.ResourceHeader{Name: question.Name, Class: dnsmessage.ClassINET, TTL: nameTTL}
	hosts, addr := n.mx[name], n.hosts[name]
	switch {
	case question.Type == dnsmessage.TypeMX:
		for i, host := range hosts {
			target, err := dnsmessage.NewName(host + ".")
			if err != nil {
				return nil, err
			}
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.MXResource{Pref: uint16(10 * (i + 1)), MX: target}})
		}
	case question.Type == dnsmessage.TypeA && addr.Is4():
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: addr.As4()}})
	}
	if len(m.Answers) == 0 { // RFC 2308 §2: what there is not is told with the zone's SOA
		if len(hosts) == 0 && !addr.IsValid() {
			m.RCode = dnsmessage.RCodeNameError
		}
		apex := dnsmessage.MustNewName("example.")
		header.Name = apex
		m.Authorities = append(m.Authorities, dnsmessage.Resource{Header: header, Body: &dnsmessage.SOAResource{
			NS: apex, MBox: apex, Serial: 1, Refresh: nameTTL, Retry: nameTTL, Expire: nameTTL, MinTTL: nameTTL,
		}})
	}
	return m.Pack()
}
