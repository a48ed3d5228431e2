package txt

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// UpdateOptions say where records are written, and with which key.
type UpdateOptions struct {
	// Server is the primary server of the zone: a host name or an address, with a
	// port if it is not 53. Required.
	Server string
	// Zone that the record is in. Required.
	Zone string
	// KeyFile holds the TSIG secret in base64, or the key clause that tsig-keygen
	// prints. Its mode must be 0600. Required.
	KeyFile string
	// KeyName is the key's name on the server. Default: that in a key clause.
	KeyName string
	// Algorithm is hmac-sha256 or hmac-sha512. Default: that in a key clause, else
	// hmac-sha256.
	Algorithm string
	// Timeout of each of the two exchanges with the server. Default: 10 s.
	Timeout time.Duration
}

// Op is what a Change does.
type Op string

// The operations. All of them may be done again without harm.
const (
	Add     Op = "add"     // the record, beside others that the name has; its TTL becomes that of them all
	Delete  Op = "delete"  // the record with this value; without a value all TXT records of the name
	Replace Op = "replace" // all TXT records of the name by this one, in one step
)

// Change is one change to the TXT records of a name.
type Change struct {
	Op    Op
	Name  string
	Value string        // at most 8192 octets
	TTL   time.Duration // in whole seconds, not for Delete. Default: 1 h
}

const defaultUpdateTimeout = 10 * time.Second

var (
	// ErrRefused says that the server does not let this key make this change.
	ErrRefused = errors.New("update refused")
	// ErrNotPrimary says that the server does not take updates of this zone.
	ErrNotPrimary = errors.New("not the primary server of the zone")
	// ErrKey says that the server and we do not have the same TSIG key.
	ErrKey = errors.New("TSIG key does not fit")
	// ErrClock says that the server's clock and ours differ by too much.
	ErrClock = errors.New("clocks differ")
)

// Update changes the TXT records of a name at the primary server, by TCP. The
// error is nil only when the server has said so under its signature. Secondary
// servers follow within seconds to hours: Look tells. An error may be
// ErrRefused, ErrNotPrimary, ErrKey, ErrClock, ErrNoAnswer (then it may be done
// or not: try again), ErrBadName, or anything else that the server complains of.
func Update(ctx context.Context, o UpdateOptions, c Change) error {
	u, err := newUpdate(o, c)
	if err != nil {
		return err
	}
	present, err := u.present(ctx)
	if err != nil {
		return fmt.Errorf("ask %s for %s: %w", u.server, c.Name, err)
	}
	reply, err := u.send(ctx, u.message(present))
	if err == nil || reply != nil {
		err = u.judge(reply, err)
	}
	if err != nil {
		return fmt.Errorf("%s TXT record of %s at %s: %w", c.Op, c.Name, u.server, err)
	}
	return nil
}

// update is one Change on its way.
type update struct {
	change  Change
	name    string // with the final dot, as zone
	zone    string
	server  string // with port
	key     tsigKey
	ttl     uint32
	timeout time.Duration
}

func newUpdate(o UpdateOptions, c Change) (update, error) {
	u := update{change: c, timeout: cmp.Or(o.Timeout, defaultUpdateTimeout)}
	if u.timeout < 0 {
		return u, errors.New("update of a TXT record: timeout must not be negative")
	}
	name, err := cleanName(c.Name)
	if err != nil {
		return u, fmt.Errorf("name of the TXT record: %w", err)
	}
	zone, err := cleanName(o.Zone)
	if err != nil {
		return u, fmt.Errorf("zone of the TXT record: %w", err)
	}
	u.name, u.zone = dns.Fqdn(name), dns.Fqdn(zone)
	if !dns.IsSubDomain(u.zone, u.name) {
		return u, fmt.Errorf("%s is not in zone %s: name the zone that it is in", name, zone)
	}
	switch c.Op {
	case Add, Replace:
		if err := checkValue(name, c.Value); err != nil {
			return u, err
		}
	case Delete:
		if len(c.Value) > maxValueOctets {
			return u, checkValue(name, c.Value)
		}
	default:
		return u, fmt.Errorf("operation %q is not known: want %s, %s or %s", c.Op, Add, Delete, Replace)
	}
	if u.ttl, err = seconds(c.TTL); err != nil {
		return u, fmt.Errorf("TXT record of %s: %w", name, err)
	}
	if u.server, err = withPort(o.Server); err != nil {
		return u, err
	}
	u.key, err = readKey(o)
	return u, err
}

// withPort completes the address of a server.
func withPort(server string) (string, error) {
	if addr, err := netip.ParseAddr(server); err == nil {
		return netip.AddrPortFrom(addr, dnsPort).String(), nil
	}
	host, port := server, "53"
	if h, p, err := net.SplitHostPort(server); err == nil {
		host, port = h, p
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return net.JoinHostPort(host, port), nil
	}
	clean, err := cleanName(host)
	if err != nil {
		return "", fmt.Errorf("server for updates: %w", err)
	}
	return net.JoinHostPort(clean, port), nil
}

// send signs a message and exchanges it. A reply may come together with an error.
func (u update) send(ctx context.Context, m *dns.Msg) (*dns.Msg, error) {
	m.SetTsig(u.key.name, u.key.algorithm, 300, time.Now().Unix()) // the fudge that RFC 8945 §10 advises
	return exchange(ctx, "tcp", u.server, m, u.timeout, map[string]string{u.key.name: u.key.secret})
}

// present asks the server for the records that there are: the server compares
// the strings of records, and ours may be split otherwise than those there. A
// server that does not answer questions is believed to have none.
func (u update) present(ctx context.Context) ([]*dns.TXT, error) {
	if u.change.Op == Replace || u.change.Value == "" {
		return nil, nil
	}
	q := new(dns.Msg).SetQuestion(u.name, dns.TypeTXT)
	q.RecursionDesired = false
	reply, err := u.send(ctx, q)
	if reply == nil {
		return nil, err
	}
	if err != nil || !reply.Authoritative {
		return nil, nil // the reply to the update will say more
	}
	var present []*dns.TXT
	for _, rr := range reply.Answer {
		if rr, ok := rr.(*dns.TXT); ok && strings.EqualFold(rr.Hdr.Name, u.name) {
			present = append(present, rr)
		}
	}
	return present, nil
}

// message makes the update (RFC 2136 §2.5).
func (u update) message(present []*dns.TXT) *dns.Msg {
	m := new(dns.Msg).SetUpdate(u.zone)
	ours := record(u.name, u.change.Value, u.ttl)
	same := []dns.RR{ours}
	for _, rr := range present {
		if valueOf(rr) == u.change.Value {
			same = append(same, record(u.name, "", u.ttl))
			same[len(same)-1].(*dns.TXT).Txt = rr.Txt
		}
	}
	switch {
	case u.change.Op == Replace:
		m.RemoveRRset([]dns.RR{ours})
		m.Insert([]dns.RR{ours})
	case u.change.Op == Add:
		m.Insert(same[len(same)-1:]) // in the form that is there, if it is
	case u.change.Value == "":
		m.RemoveRRset([]dns.RR{ours})
	default:
		m.Remove(same)
	}
	return m
}

func record(fqdn, value string, ttl uint32) *dns.TXT {
	rr := &dns.TXT{Hdr: dns.RR_Header{Name: fqdn, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: ttl}}
	for _, s := range split(value) {
		rr.Txt = append(rr.Txt, escape(s))
	}
	return rr
}

// judge tells what the reply to the update means; verifyErr is what is wrong
// with its signature.
func (u update) judge(reply *dns.Msg, verifyErr error) error {
	tsig := reply.IsTsig()
	if tsig != nil && tsig.Error != dns.RcodeSuccess {
		return u.keyError(tsig)
	}
	key := bare(u.key.name)
	switch reply.Rcode {
	case dns.RcodeSuccess:
	case dns.RcodeRefused:
		return fmt.Errorf("%w: key %s may not change %s there: look at the server's update policy (allow-update, update-policy, acl)", ErrRefused, key, bare(u.name))
	case dns.RcodeNotAuth:
		return fmt.Errorf("%w %s: name the server in the SOA record, and check that the zone exists there; some servers say so to keys that they do not know", ErrNotPrimary, bare(u.zone))
	case dns.RcodeNotZone:
		return fmt.Errorf("the server says that %s is not in zone %s: name the zone that it is in", bare(u.name), bare(u.zone))
	case dns.RcodeFormatError, dns.RcodeNotImplemented:
		return fmt.Errorf("the server says %s: it does not take dynamic updates", rcodeName(reply.Rcode))
	case dns.RcodeServerFailure:
		return errors.New("the server says SERVFAIL: it could not carry out the update; its log says why (often it may not write the zone's journal)")
	default:
		return complaint(reply)
	}
	switch {
	case errors.Is(verifyErr, dns.ErrTime):
		return fmt.Errorf("%w: the reply is signed for another time than ours: set the time on both machines", ErrClock)
	case verifyErr != nil:
		return fmt.Errorf("%w: the signature of the reply is wrong (%w): somebody else may have answered", ErrKey, verifyErr)
	case tsig == nil || !strings.EqualFold(tsig.Hdr.Name, u.key.name):
		return fmt.Errorf("%w: the reply says that it is done but is not signed with key %s: is the key known to the server?", ErrKey, key)
	}
	return nil
}

// keyError tells what the server did not like in our signature (RFC 8945 §5.3.2).
func (u update) keyError(tsig *dns.TSIG) error {
	key, algorithm := bare(u.key.name), bare(u.key.algorithm)
	switch tsig.Error {
	case dns.RcodeBadKey:
		return fmt.Errorf("%w (BADKEY): the server has no key %s for %s: compare the key's name and algorithm on both sides", ErrKey, key, algorithm)
	case dns.RcodeBadSig:
		return fmt.Errorf("%w (BADSIG): the server's secret of key %s differs from ours: copy it again, and compare the algorithm (ours is %s)", ErrKey, key, algorithm)
	case dns.RcodeBadTime:
		return fmt.Errorf("%w (BADTIME)%s: set the time on both machines", ErrClock, clockDifference(tsig))
	}
	return fmt.Errorf("%w: the server says %s about key %s", ErrKey, rcodeName(int(tsig.Error)), key)
}

// clockDifference reads the server's time out of a BADTIME reply.
func clockDifference(tsig *dns.TSIG) string {
	data, err := hex.DecodeString(tsig.OtherData)
	if err != nil || len(data) != 6 {
		return ""
	}
	var theirs int64
	for _, b := range data {
		theirs = theirs<<8 | int64(b)
	}
	return fmt.Sprintf(": the server's clock says %s, ours %s", time.Unix(theirs, 0).UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339))
}
