package route

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"postroad/queue/address"
)

// Where SMTP servers listen.
const (
	DefaultPort  = 25  // for other servers
	DefaultPortS = 465 // for clients, under TLS from the first octet (RFC 8314 §3.3)
)

// Bounds of one next hop.
const (
	maxEndpoints = 16
	maxWeight    = 1000
	maxText      = 400 // octets of the text of error:
)

// Causes of a refused next hop; match them with errors.Is.
var (
	ErrNextHop = errors.New("not a next hop: want mx, mx:domain, smtp:[host]:port, smtps:[host]:port, error:CODE text, or discard")
	ErrPort    = errors.New("not a port: want 1 to 65535")
	ErrWeight  = errors.New("not a weight: want 1 to 1000")
	ErrTooMany = errors.New("too many hosts in one next hop: want at most 16")
	ErrReply   = errors.New("not a reply: want error:CODE [X.Y.Z] text, with a code from 400 to 599 and an enhanced code of its class")
)

// Endpoint is one fixed host to relay to.
type Endpoint struct {
	Host   string     // name as an A-label in lower case; empty when Addr is given
	Addr   netip.Addr // given as a number
	Port   uint16
	IsTLS  bool // TLS from the first octet, before the greeting (RFC 8314 §3.3)
	Weight int  // its share beside others of its group; 0 is 1
	Group  int  // from 0; a group is tried when no host of those before it answers
}

// Name is the host as it was given: a name or an address.
func (e Endpoint) Name() string {
	if e.Addr.IsValid() {
		return e.Addr.String()
	}
	return e.Host
}

// String prints the endpoint as ParseNextHop reads it, without its weight.
func (e Endpoint) String() string {
	kind := "smtp"
	if e.IsTLS {
		kind = "smtps"
	}
	return kind + ":[" + e.Name() + "]:" + strconv.Itoa(int(e.Port))
}

func (e Endpoint) weight() int { return max(1, e.Weight) }

// Reply is what a route says of its recipients itself.
type Reply struct {
	Code     int    // 400 to 499: they wait; 500 to 599: they bounce
	Enhanced string // RFC 3463 §2; may be empty
	Text     string
}

// NextHop says how the servers for a domain are found: by MX records, or as fixed hosts. Or that there are none: the
// recipients get a reply of ours, or are thrown away. The zero NextHop is mx.
type NextHop struct {
	MX        string     // domain whose MX records are looked up; empty: the recipient's
	Endpoints []Endpoint // fixed hosts, by group
	Reply     *Reply     // error: nobody is asked
	Discard   bool       // discard: nobody is asked, nobody is told
}

// IsMX reports that the servers are found by MX records.
func (n NextHop) IsMX() bool { return len(n.Endpoints) == 0 && n.Reply == nil && !n.Discard }

// IsTLS reports that every host speaks TLS from the first octet.
func (n NextHop) IsTLS() bool {
	return len(n.Endpoints) > 0 && !slices.ContainsFunc(n.Endpoints, func(e Endpoint) bool { return !e.IsTLS })
}

// String prints the next hop; ParseNextHop(n.String()) is n.
func (n NextHop) String() string {
	switch {
	case n.Discard:
		return "discard"
	case n.Reply != nil:
		text := "error:" + strconv.Itoa(n.Reply.Code) + " "
		if n.Reply.Enhanced != "" {
			text += n.Reply.Enhanced + " "
		}
		return text + n.Reply.Text
	case n.IsMX() && n.MX != "":
		return "mx:" + n.MX
	case n.IsMX():
		return "mx"
	}
	var b strings.Builder
	for i, e := range n.Endpoints {
		if i > 0 && e.Group != n.Endpoints[i-1].Group {
			b.WriteByte(',')
		} else if i > 0 {
			b.WriteByte('|')
		}
		b.WriteString(e.String())
		if e.weight() > 1 {
			b.WriteString("*" + strconv.Itoa(e.Weight))
		}
	}
	return b.String()
}

// maxSiteBytes bounds the site of a list of fixed hosts: it is a label and a key.
const maxSiteBytes = 120

// Site is the site that fixed hosts make: what the route says, or its beginning and a hash.
func (n NextHop) Site() string {
	site := n.String()
	if len(site) <= maxSiteBytes {
		return site
	}
	sum := sha256.Sum256([]byte(site))
	tail := "#" + hex.EncodeToString(sum[:6])
	return site[:maxSiteBytes-len(tail)] + tail
}

// Order is the order in which one attempt tries the endpoints: group after group, and within each drawn by weight,
// so that a host comes first as often as its weight says.
func (n NextHop) Order(r *rand.Rand) []Endpoint {
	draw := rand.IntN
	if r != nil {
		draw = r.IntN
	}
	out := make([]Endpoint, 0, len(n.Endpoints))
	for rest := n.Endpoints; len(rest) > 0; {
		end := 1
		for end < len(rest) && rest[end].Group == rest[0].Group {
			end++
		}
		group := append([]Endpoint(nil), rest[:end]...)
		rest = rest[end:]
		for len(group) > 0 {
			i := pick(group, draw)
			out = append(out, group[i])
			group = append(group[:i], group[i+1:]...)
		}
	}
	return out
}

// pick draws one of a group by weight.
func pick(group []Endpoint, draw func(int) int) int {
	total := 0
	for _, e := range group {
		total += e.weight()
	}
	at := draw(total)
	for i, e := range group {
		if at -= e.weight(); at < 0 {
			return i
		}
	}
	return 0
}

// ParseNextHop reads
//
//	mx                                              the MX hosts of the recipient's domain
//	mx:example.net                                  those of another domain
//	smtp:[a.example]:25*3|smtp:[b.example]:25,smtp:[c.example]:25
//	smtps:[d.example]:465                           a host that speaks TLS before it greets
//	error:550 5.1.1 local delivery is disabled      nobody is asked: 4xx waits, 5xx bounces
//	discard                                         thrown away, and nobody is told
//
// Hosts with a bar between them are equals, of which each attempt draws one by weight (*3; 1 when there is none) and
// then another; hosts behind a comma stand in when none of those before answers. The brackets say that the host is
// taken as it is, without a look at MX records; without them the text would promise something else, so they are
// required. The port may be left out: 25, of smtps 465. An IPv6 address may have the tag of an address literal (RFC 5321 §4.1.3).
func ParseNextHop(s string) (NextHop, error) {
	s = strings.TrimSpace(s)
	kind, rest, hasColon := strings.Cut(s, ":")
	switch {
	case s == "mx":
		return NextHop{}, nil
	case s == "discard":
		return NextHop{Discard: true}, nil
	case kind == "mx" && hasColon:
		name, err := address.Normalize(strings.TrimSpace(rest))
		if err != nil {
			return NextHop{}, fmt.Errorf("read next hop %.300q: %w", s, err)
		}
		if address.IsLiteral(name) {
			return NextHop{}, fmt.Errorf("read next hop %.300q: %w", s, ErrNextHop)
		}
		return NextHop{MX: name}, nil
	case kind == "error" && hasColon:
		reply, err := parseReply(rest)
		if err != nil {
			return NextHop{}, fmt.Errorf("read next hop %.300q: %w", s, err)
		}
		return NextHop{Reply: reply}, nil
	}
	return parseEndpoints(s)
}

func parseEndpoints(s string) (NextHop, error) {
	var n NextHop
	group := 0
	for equals := range strings.SplitSeq(s, ",") {
		for text := range strings.SplitSeq(equals, "|") {
			if len(n.Endpoints) == maxEndpoints {
				return NextHop{}, fmt.Errorf("read next hop: %w", ErrTooMany)
			}
			e, err := parseEndpoint(strings.TrimSpace(text))
			if err != nil {
				return NextHop{}, fmt.Errorf("read next hop %.300q: %w", text, err)
			}
			e.Group = group
			n.Endpoints = append(n.Endpoints, e)
		}
		group++
	}
	return n, nil
}

// parseReply reads CODE [X.Y.Z] text.
func parseReply(s string) (*Reply, error) {
	code, text, _ := strings.Cut(strings.TrimSpace(s), " ")
	n, err := strconv.Atoi(code)
	if err != nil || len(code) != 3 || n < 400 || n > 599 {
		return nil, ErrReply
	}
	r := &Reply{Code: n, Text: strings.TrimSpace(text)}
	if enhanced, rest, _ := strings.Cut(r.Text, " "); isEnhanced(enhanced) {
		if enhanced[0] != code[0] {
			return nil, ErrReply
		}
		r.Enhanced, r.Text = enhanced, strings.TrimSpace(rest)
	}
	isControl := func(c rune) bool { return c < ' ' || c > '~' }
	if r.Text == "" || len(r.Text) > maxText || strings.ContainsFunc(r.Text, isControl) {
		return nil, ErrReply
	}
	if first, _, _ := strings.Cut(r.Text, " "); isEnhanced(first) { // a second one
		return nil, ErrReply
	}
	return r, nil
}

// isEnhanced reports an enhanced status code (RFC 3463 §2).
func isEnhanced(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || len(parts[0]) != 1 || !strings.Contains("245", parts[0]) {
		return false
	}
	for _, p := range parts {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n > 999 || len(p) > 1 && p[0] == '0' {
			return false
		}
	}
	return true
}

func parseEndpoint(s string) (Endpoint, error) {
	kind, rest, isBracket := strings.Cut(s, ":[")
	host, port, isClosed := strings.Cut(rest, "]")
	if !isBracket || !isClosed || host == "" {
		return Endpoint{}, ErrNextHop
	}
	e := Endpoint{Port: DefaultPort, Weight: 1}
	switch kind {
	case "smtp":
	case "smtps":
		e.Port, e.IsTLS = DefaultPortS, true
	default:
		return Endpoint{}, ErrNextHop
	}
	port, weight, hasWeight := strings.Cut(port, "*")
	if hasWeight {
		n, err := strconv.ParseUint(strings.TrimSpace(weight), 10, 16)
		if err != nil || n == 0 || n > maxWeight {
			return Endpoint{}, ErrWeight
		}
		e.Weight = int(n)
	}
	if port = strings.TrimSpace(port); port != "" {
		digits, hasColon := strings.CutPrefix(port, ":")
		if !hasColon {
			return Endpoint{}, ErrNextHop
		}
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || n == 0 {
			return Endpoint{}, ErrPort
		}
		e.Port = uint16(n)
	}
	number := host
	if len(host) > 5 && strings.EqualFold(host[:5], "IPv6:") {
		number = host[5:]
	}
	if addr, err := netip.ParseAddr(number); err == nil {
		if addr.Zone() != "" {
			return Endpoint{}, fmt.Errorf("address with a zone: %w", ErrNextHop)
		}
		e.Addr = addr.Unmap()
		return e, nil
	}
	name, err := address.Normalize(host)
	if err != nil {
		return Endpoint{}, err
	}
	if address.IsLiteral(name) {
		return Endpoint{}, ErrNextHop
	}
	e.Host = name
	return e, nil
}
