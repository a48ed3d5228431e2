package txt

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

const keyName = "postroad-dkim"

// secretOf makes a secret of an octet.
func secretOf(b byte) string { return base64.StdEncoding.EncodeToString(slices.Repeat([]byte{b}, 32)) }

// writeKey makes a key file.
func writeKey(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// primary is a server that takes updates of example.test under the key.
type primary struct {
	addr    string
	change  func(reply, q *dns.Msg) // of replies to updates, before they are signed
	unsign  bool
	noQuery bool

	mu      sync.Mutex
	rrs     []*dns.TXT
	updates int
}

func newPrimary(t *testing.T, name, secret string) *primary {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &primary{addr: l.Addr().String()}
	serve(t, &dns.Server{
		Listener: l, Handler: p, TsigSecret: map[string]string{dns.Fqdn(name): secret},
		MsgAcceptFunc: func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept },
	})
	return p
}

func (p *primary) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	p.mu.Lock()
	defer p.mu.Unlock()
	reply := new(dns.Msg).SetReply(q)
	tsig := q.IsTsig()
	switch {
	case tsig == nil:
		reply.Rcode = dns.RcodeRefused
	case w.TsigStatus() != nil:
		reply.Rcode = dns.RcodeNotAuth
		reply.SetTsig(tsig.Hdr.Name, tsig.Algorithm, 300, time.Now().Unix())
		status := reply.IsTsig()
		status.Error = dns.RcodeBadSig
		if errors.Is(w.TsigStatus(), dns.ErrSecret) {
			status.Error = dns.RcodeBadKey
		}
	default:
		if q.Opcode == dns.OpcodeUpdate {
			p.update(q)
			if p.change != nil {
				p.change(reply, q)
			}
		} else if reply.Authoritative = !p.noQuery; p.noQuery {
			reply.Rcode = dns.RcodeRefused
		} else {
			for _, rr := range p.rrs {
				if rr.Hdr.Name == q.Question[0].Name {
					reply.Answer = append(reply.Answer, rr)
				}
			}
		}
		if !p.unsign && reply.IsTsig() == nil {
			reply.SetTsig(tsig.Hdr.Name, tsig.Algorithm, 300, time.Now().Unix())
		}
	}
	_ = w.WriteMsg(reply) // a lost answer is the client's business
}

// update does what RFC 2136 §3.4.2 says of TXT records.
func (p *primary) update(q *dns.Msg) {
	p.updates++
	for _, rr := range q.Ns {
		h := rr.Header()
		p.rrs = slices.DeleteFunc(p.rrs, func(old *dns.TXT) bool {
			same := func() bool { return slices.Equal(old.Txt, rr.(*dns.TXT).Txt) }
			return old.Hdr.Name == h.Name && (h.Class == dns.ClassANY || same())
		})
		if h.Class == dns.ClassINET {
			p.rrs = append(p.rrs, dns.Copy(rr).(*dns.TXT))
		}
	}
}

// holds shows the records as "name ttl value|strings".
func (p *primary) holds() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for _, rr := range p.rrs {
		all = append(all, fmt.Sprintf("%s %d %s|%d", rr.Hdr.Name, rr.Hdr.Ttl, valueOf(rr), len(rr.Txt)))
	}
	slices.Sort(all)
	return all
}

func TestUpdate(t *testing.T) {
	for _, algorithm := range []string{"", "hmac-sha256", "HMAC-SHA512"} {
		t.Run("algorithm "+algorithm, func(t *testing.T) {
			p := newPrimary(t, keyName, secretOf('s'))
			o := UpdateOptions{Server: p.addr, Zone: "example.test", KeyFile: writeKey(t, secretOf('s')+"\n", 0o600), KeyName: keyName, Algorithm: algorithm}
			long, name := strings.Repeat(`k"\`, 100), "a._domainkey.example.test"
			steps := []struct {
				change Change
				want   []string
			}{
				{Change{Add, name, "one", time.Minute}, []string{name + ". 60 one|1"}},
				{Change{Add, name, "one", 2 * time.Minute}, []string{name + ". 120 one|1"}},
				{Change{Add, name, "two", 0}, []string{name + ". 120 one|1", name + ". 3600 two|1"}},
				{Change{Delete, name, "one", 0}, []string{name + ". 3600 two|1"}},
				{Change{Delete, name, "one", 0}, []string{name + ". 3600 two|1"}},
				{Change{Replace, name, long, time.Second}, []string{name + ". 1 " + long + "|2"}},
				{Change{Replace, name, long, time.Second}, []string{name + ". 1 " + long + "|2"}},
				{Change{Add, name, "two", 0}, []string{name + ". 1 " + long + "|2", name + ". 3600 two|1"}},
				{Change{Delete, strings.ToUpper(name) + ".", "", 0}, nil},
				{Change{Delete, name, "", 0}, nil},
			}
			for i, s := range steps {
				if err := Update(t.Context(), o, s.change); err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
				if diff := cmp.Diff(s.want, p.holds()); diff != "" {
					t.Fatalf("step %d: %s", i, diff)
				}
			}
			if p.updates != len(steps) {
				t.Errorf("got %d updates, want %d", p.updates, len(steps))
			}
		})
	}
}

// TestUpdateKnowsOtherSplits: a record that was published with its strings cut
// elsewhere is the same record.
func TestUpdateKnowsOtherSplits(t *testing.T) {
	p := newPrimary(t, keyName, secretOf('s'))
	o := UpdateOptions{Server: p.addr, Zone: "example.test", KeyFile: writeKey(t, secretOf('s'), 0o600), KeyName: keyName}
	rr := record("a.example.test.", "onetwo", 60)
	rr.Txt = []string{"one", "two"}
	p.rrs = []*dns.TXT{rr}
	if err := Update(t.Context(), o, Change{Add, "a.example.test", "onetwo", time.Minute}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a.example.test. 60 onetwo|2"}, p.holds()); diff != "" {
		t.Error(diff)
	}
	if err := Update(t.Context(), o, Change{Delete, "a.example.test", "onetwo", 0}); err != nil {
		t.Fatal(err)
	}
	if got := p.holds(); got != nil {
		t.Errorf("got %q", got)
	}
	p.noQuery = true // then it is done without looking
	if err := Update(t.Context(), o, Change{Add, "a.example.test", "onetwo", 0}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a.example.test. 3600 onetwo|1"}, p.holds()); diff != "" {
		t.Error(diff)
	}
}

func TestUpdateErrors(t *testing.T) {
	rcode := func(rcode int) func(reply, q *dns.Msg) {
		return func(reply, _ *dns.Msg) { reply.Rcode = rcode }
	}
	tests := []struct {
		name   string
		key    string // name on the server
		secret byte   // on the server
		change func(reply, q *dns.Msg)
		unsign bool
		is     error
		says   string
	}{
		{name: "refused", change: rcode(dns.RcodeRefused), is: ErrRefused, says: "key postroad-dkim may not change a.example.test there"},
		{name: "refused and not signed", change: rcode(dns.RcodeRefused), unsign: true, is: ErrRefused, says: "update policy"},
		{name: "secondary", change: rcode(dns.RcodeNotAuth), is: ErrNotPrimary, says: "SOA"},
		{name: "other zone", change: rcode(dns.RcodeNotZone), says: "is not in zone"},
		{name: "no updates", change: rcode(dns.RcodeNotImplemented), says: "does not take dynamic updates"},
		{name: "journal", change: rcode(dns.RcodeServerFailure), says: "journal"},
		{name: "another", change: rcode(dns.RcodeYXDomain), says: "YXDOMAIN"},
		{name: "key not known", key: "other", is: ErrKey, says: "BADKEY"},
		{name: "other secret", secret: 'x', is: ErrKey, says: "BADSIG"},
		{name: "not signed", unsign: true, is: ErrKey, says: "not signed"},
		{name: "signed for another time", change: func(reply, q *dns.Msg) {
			reply.SetTsig(q.IsTsig().Hdr.Name, q.IsTsig().Algorithm, 300, time.Now().Add(-time.Hour).Unix())
		}, is: ErrClock, says: "set the time"},
		{name: "clock", change: func(reply, q *dns.Msg) {
			tsig := q.IsTsig()
			reply.Rcode = dns.RcodeNotAuth
			reply.SetTsig(tsig.Hdr.Name, tsig.Algorithm, 300, int64(tsig.TimeSigned))
			reply.IsTsig().Error = dns.RcodeBadTime
			reply.IsTsig().OtherData = hex.EncodeToString([]byte{0, 0, 0x65, 0x53, 0xf1, 0})
			reply.IsTsig().OtherLen = 6
		}, is: ErrClock, says: "the server's clock says 2023-11-14T22:13:20Z"},
		{name: "truncation", change: func(reply, q *dns.Msg) {
			reply.Rcode = dns.RcodeNotAuth
			reply.SetTsig(q.IsTsig().Hdr.Name, q.IsTsig().Algorithm, 300, time.Now().Unix())
			reply.IsTsig().Error = dns.RcodeBadTrunc
		}, is: ErrKey, says: "BADTRUNC"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name, secret := keyName, byte('s')
			if tt.key != "" {
				name = tt.key
			}
			if tt.secret != 0 {
				secret = tt.secret
			}
			p := newPrimary(t, name, secretOf(secret))
			p.change, p.unsign = tt.change, tt.unsign
			o := UpdateOptions{Server: p.addr, Zone: "example.test", KeyFile: writeKey(t, secretOf('s'), 0o600), KeyName: keyName}
			for _, op := range []Op{Add, Replace} {
				err := Update(t.Context(), o, Change{op, "a.example.test", "v", 0})
				if err == nil || !strings.Contains(err.Error(), tt.says) || tt.is != nil && !errors.Is(err, tt.is) {
					t.Errorf("%s: got %v, want %q", op, err, tt.says)
				}
				if err != nil && strings.Contains(err.Error(), secretOf('s')[:20]) {
					t.Errorf("the secret is in the error %v", err)
				}
			}
		})
	}
}

func TestUpdateWithoutAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	silent := l.Addr().String() // the system connects, nobody reads
	defer l.Close()
	hangsUp := newHangUp(t)
	closed := newHangUp(t).Addr().String()
	o := UpdateOptions{Zone: "example.test", KeyFile: writeKey(t, secretOf('s'), 0o600), KeyName: keyName, Timeout: 300 * time.Millisecond}
	for name, server := range map[string]string{"silent": silent, "hangs up": hangsUp.Addr().String(), "closed": closed} {
		o.Server = server
		for _, op := range []Op{Add, Replace} {
			if err := Update(t.Context(), o, Change{op, "a.example.test", "v", 0}); !errors.Is(err, ErrNoAnswer) {
				t.Errorf("%s: got %v, want ErrNoAnswer", name, err)
			}
		}
	}
}

// newHangUp accepts connections and closes them.
func newHangUp(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l
}

func TestUpdateRefusesNonsense(t *testing.T) {
	key := writeKey(t, secretOf('s'), 0o600)
	good := UpdateOptions{Server: "127.0.0.1:1", Zone: "example.test", KeyFile: key, KeyName: keyName}
	change := Change{Add, "a.example.test", "v", time.Hour}
	clause := func(fields string) string { return "key \"k.example\" {\n" + fields + "\n};\n" }
	tests := []struct {
		name string
		make func(o *UpdateOptions, c *Change)
		says string
	}{
		{"no name", func(_ *UpdateOptions, c *Change) { c.Name = "" }, "name of the TXT record"},
		{"no zone", func(o *UpdateOptions, _ *Change) { o.Zone = "" }, "zone of the TXT record"},
		{"another zone", func(o *UpdateOptions, _ *Change) { o.Zone = "other.test" }, "is not in zone"},
		{"no value", func(_ *UpdateOptions, c *Change) { c.Value = "" }, "has no value"},
		{"long value", func(_ *UpdateOptions, c *Change) { c.Value = strings.Repeat("x", maxValueOctets+1) }, "at most 8192"},
		{"long value to delete", func(_ *UpdateOptions, c *Change) { c.Op, c.Value = Delete, strings.Repeat("x", maxValueOctets+1) }, "at most 8192"},
		{"operation", func(_ *UpdateOptions, c *Change) { c.Op = "swap" }, "want add, delete or replace"},
		{"TTL", func(_ *UpdateOptions, c *Change) { c.TTL = time.Millisecond }, "whole seconds"},
		{"server", func(o *UpdateOptions, _ *Change) { o.Server = "" }, "server for updates"},
		{"timeout", func(o *UpdateOptions, _ *Change) { o.Timeout = -1 }, "negative"},
		{"no key", func(o *UpdateOptions, _ *Change) { o.KeyFile = "" }, "no file given"},
		{"missing key", func(o *UpdateOptions, _ *Change) { o.KeyFile += "x" }, "no such file"},
		{"key name", func(o *UpdateOptions, _ *Change) { o.KeyName = "" }, "give the key's name"},
		{"bad key name", func(o *UpdateOptions, _ *Change) { o.KeyName = "a b" }, "name the key badly"},
		{"algorithm", func(o *UpdateOptions, _ *Change) { o.Algorithm = "hmac-md5" }, "want hmac-sha256 or hmac-sha512"},
		{"a directory", func(o *UpdateOptions, _ *Change) { o.KeyFile = filepath.Dir(key) }, "not a regular file"},
		{"mode", func(o *UpdateOptions, _ *Change) { o.KeyFile = writeKey(t, secretOf('s'), 0o640) }, "has mode 0640"},
		{"large", func(o *UpdateOptions, _ *Change) {
			o.KeyFile = writeKey(t, strings.Repeat("x", maxKeyFileBytes+1), 0o600)
		}, "is larger than"},
		{"no base64", func(o *UpdateOptions, _ *Change) { o.KeyFile = writeKey(t, "hm?", 0o600) }, "holds no secret"},
		{"short secret", func(o *UpdateOptions, _ *Change) { o.KeyFile = writeKey(t, "c2hvcnQ=", 0o600) }, "can be guessed"},
		{"clause of another name", func(o *UpdateOptions, _ *Change) { o.KeyFile = writeKey(t, clause(""), 0o600) }, `names the key "k.example"`},
		{"clause of another algorithm", func(o *UpdateOptions, _ *Change) {
			o.KeyName, o.Algorithm = "", "hmac-sha512"
			o.KeyFile = writeKey(t, clause("algorithm hmac-sha256; secret \""+secretOf('s')+"\";"), 0o600)
		}, "is for hmac-sha256"},
		{"clause without secret", func(o *UpdateOptions, _ *Change) {
			o.KeyName, o.KeyFile = "", writeKey(t, clause("algorithm hmac-sha256;"), 0o600)
		}, "can be guessed"},
	}
	for _, tt := range tests {
		o, c := good, change
		tt.make(&o, &c)
		if err := Update(t.Context(), o, c); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.says)
		}
	}
}

func TestKeyClause(t *testing.T) {
	path := writeKey(t, "key \"K.example\" {\n\talgorithm hmac-sha512;\n\tsecret \""+secretOf('s')+"\";\n};\n", 0o600)
	want := tsigKey{"k.example.", "hmac-sha512.", secretOf('s')}
	for _, o := range []UpdateOptions{{KeyFile: path}, {KeyFile: path, KeyName: "k.EXAMPLE.", Algorithm: "hmac-sha512"}} {
		got, err := readKey(o)
		if err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestWithPort(t *testing.T) {
	for server, want := range map[string]string{
		"ns1.Example.test": "ns1.example.test:53", "ns1.example.test:5353": "ns1.example.test:5353", "192.0.2.1": "192.0.2.1:53",
		"192.0.2.1:54": "192.0.2.1:54", "2001:db8::1": "[2001:db8::1]:53", "[2001:db8::1]:54": "[2001:db8::1]:54",
	} {
		if got, err := withPort(server); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", server, got, err, want)
		}
	}
}
