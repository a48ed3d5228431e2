package ingress

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"postroad/queue"
	"postroad/queue/address"
)

func TestEnvelope(t *testing.T) {
	q := &fakeQueue{}
	c := ours(t, q, nil)
	c.hear("220")
	c.talk("EHLO Client.test", "250",
		"MAIL FROM:<Jürgen@Bücher.test> BODY=8BITMIME SMTPUTF8 SIZE=10 RET=hdrs ENVID=QQ+2B1", "250",
		"RCPT TO:<b@to.test> NOTIFY=success,DELAY ORCPT=rfc822;B+40To.test", "250",
		"RCPT TO:<@hop.test:\"c d\"@[192.0.2.7]> NOTIFY=NEVER", "250",
		"DATA", "354",
		"From: \"Doe, J.\" <j@Author.test>\r\nMessage-ID:\r\n <1@author.test>\r\n\r\nhi\r\n.", "250 2.0.0 queued as id1")
	got := q.only(t)
	want := queue.Envelope{
		ReversePath: address.Path{Local: "Jürgen", Domain: "xn--bcher-kva.test"},
		Recipients: []queue.Recipient{
			{Path: address.Path{Local: "b", Domain: "to.test"}, ORCPT: "rfc822;B+40To.test", Notify: []string{"SUCCESS", "DELAY"}},
			{Path: address.Path{Local: "c d", Domain: "[192.0.2.7]"}, Notify: []string{"NEVER"}},
		},
		ENVID:      "QQ+2B1",
		RET:        "HDRS",
		Flags:      queue.Flags{EightBit: true, SMTPUTF8: true},
		Client:     "net:127.0.0.0/8",
		Class:      NetworkClass,
		RemoteAddr: c.conn.LocalAddr().String(),
		Helo:       "Client.test",
		HeaderFrom: "author.test",
	}
	if diff := cmp.Diff(want, got.env, cmpopts.IgnoreFields(queue.Envelope{}, "Accepted")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if age := time.Since(got.env.Accepted); age < 0 || age > time.Minute {
		t.Errorf("got accepted %v", got.env.Accepted)
	}
	wantEvent := queue.Event{
		Type: queue.Reception, ID: "id1", Sender: "Jürgen@xn--bcher-kva.test", MessageID: "<1@author.test>",
		Client: "net:127.0.0.0/8", Class: NetworkClass, Peer: "Client.test[127.0.0.1]:" + strings.Split(want.RemoteAddr, ":")[1], Size: int64(len(got.payload)),
	}
	wantEvents := []queue.Event{wantEvent, wantEvent}
	wantEvents[0].Recipient, wantEvents[1].Recipient = "b@to.test", `"c d"@[192.0.2.7]`
	wantEvents[0].Notify, wantEvents[1].Notify = "SUCCESS,DELAY", "NEVER"
	q.mu.Lock()
	defer q.mu.Unlock()
	if diff := cmp.Diff(wantEvents, q.events, cmpopts.IgnoreFields(queue.Event{}, "Duration")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// The next transaction must not see the parameters of the last one.
func TestTransactionsAreApart(t *testing.T) {
	q := &fakeQueue{}
	c := ours(t, q, nil)
	c.begin()
	c.say("A: b\r\n\r\n.\r\n")
	c.hear("250")
	c.talk("MAIL FROM:<x@y> RET=FULL", "250", "RCPT TO:<z@y>", "250", "RSET", "250",
		"MAIL FROM:<>", "250", "RCPT TO:<last@to.test>", "250", "DATA", "354", ".", "250")
	all := q.all()
	got := all[len(all)-1].env
	if got.RET != "" || !got.ReversePath.IsNull() || len(got.Recipients) != 1 || got.Recipients[0].Path.Local != "last" {
		t.Errorf("got %+v", got)
	}
}

func TestAcceptMustReadToTheEnd(t *testing.T) {
	q := &lazyQueue{}
	o := testOptions(q)
	c := dial(t, startServer(t, o).Addrs()[0].String())
	c.begin()
	c.say(strings.Repeat("A: b\r\n", 10_000/6) + "\r\nbody\r\n.\r\n")
	c.hear("552") // the header is too long
	c.talk("MAIL FROM:<a@b>", "250", "RCPT TO:<c@d>", "250", "DATA", "354")
	c.say("A: b\r\n\r\n" + strings.Repeat("body\r\n", 10_000) + ".\r\n")
	c.hear("451 4.3.0")
	c.talk("NOOP", "250")
}

// lazyQueue says yes to what it has not read: a mistake that must not become a 250.
type lazyQueue struct{ fakeQueue }

func (q *lazyQueue) Accept(_ context.Context, _ queue.MessageID, _ queue.Envelope, payload io.Reader) error {
	_, err := io.CopyN(io.Discard, payload, 10)
	return err
}

func TestPayloadErrorsReachTheQueue(t *testing.T) {
	tests := []struct {
		name, content string
		want          error
	}{
		{"bare LF", "a\nb\r\n.\r\n", errBareLF},
		{"bare CR", "a\rb\r\n.\r\n", errBareCR},
		{"NUL", "a\x00\r\n.\r\n", errNUL},
		{"long line", strings.Repeat("x", 999) + "\r\n.\r\n", errLongLine},
		{"too large", strings.Repeat("0123456789\r\n", 5000) + ".\r\n", errSize},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q := &fakeQueue{}
			c := ours(t, q, func(o *Options) { o.MaxMessageBytes = 50_000 })
			c.begin()
			// The fault comes long after the header, while Accept reads.
			c.say("A: b\r\n\r\n" + strings.Repeat("body\r\n", 5000) + tt.content)
			c.hear("55")
			q.mu.Lock()
			defer q.mu.Unlock()
			if len(q.mails) != 0 || len(q.failed) != 1 || !errors.Is(q.failed[0], tt.want) {
				t.Errorf("got %d kept, errors %v, want %v", len(q.mails), q.failed, tt.want)
			}
		})
	}
}

func TestEarlyAcceptErrorIsDrained(t *testing.T) {
	q := &fakeQueue{accept: func(context.Context, io.Reader) error { return queue.ErrUnavailable }}
	c := ours(t, q, nil)
	c.begin()
	c.say("A: b\r\n\r\n" + strings.Repeat("QUIT\r\n", 100_000) + ".\r\n")
	c.hear("451 4.3.0")
	c.talk("NOOP", "250")
}

func TestEndlessMessage(t *testing.T) {
	c := ours(t, &fakeQueue{}, func(o *Options) { o.MaxMessageBytes = 1000 })
	c.begin()
	c.say(strings.Repeat("0123456789\r\n", 2000))
	c.hear("552 5.3.4")
	c.closed()
}

func TestPanicDropsThePeerOnly(t *testing.T) {
	q := &fakeQueue{accept: func(context.Context, io.Reader) error { panic("boom") }}
	s := startServer(t, testOptions(q))
	c := dial(t, s.Addrs()[0].String())
	c.begin()
	c.say("A: b\r\n\r\n.\r\n")
	c.hear("421 4.3.0")
	c.closed()
	other := dial(t, s.Addrs()[0].String())
	other.hear("220")
	other.talk("EHLO c", "250", "MAIL FROM:<a@b>", "250", "RCPT TO:<c@d>", "250", "BDAT 6 LAST\r\nA: b", "421")
}

func TestTrustedNetworks(t *testing.T) {
	prefixes := func(texts ...string) (all []netip.Prefix) {
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	tests := []struct {
		name    string
		trusted []netip.Prefix
		remote  string
		want    string
	}{
		{"IPv4", prefixes("10.0.0.0/8"), "10.1.2.3", "net:10.0.0.0/8"},
		{"other IPv4", prefixes("10.0.0.0/8"), "11.1.2.3", ""},
		{"second network", prefixes("10.0.0.0/8", "192.0.2.0/24"), "192.0.2.9", "net:192.0.2.0/24"},
		{"mapped client", prefixes("10.0.0.0/8"), "::ffff:10.1.2.3", "net:10.0.0.0/8"},
		{"mapped network", prefixes("::ffff:10.0.0.0/104"), "10.1.2.3", "net:10.0.0.0/8"},
		{"mapped network, other", prefixes("::ffff:10.0.0.0/104"), "11.1.2.3", ""},
		{"IPv6", prefixes("2001:db8::/32"), "2001:db8::1", "net:2001:db8::/32"},
		{"all of IPv6 is not IPv4", prefixes("::/0"), "10.1.2.3", ""},
		{"host bits", prefixes("10.1.2.3/8"), "10.9.9.9", "net:10.0.0.0/8"},
		{"nobody", nil, "127.0.0.1", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := &listener{trusted: trust(tt.trusted)}
			if got := l.clientName(netip.MustParseAddr(tt.remote).Unmap()); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestLimitKey(t *testing.T) {
	tests := []struct{ addr, want string }{
		{"192.0.2.1", "192.0.2.1/32"},
		{"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"},
	}
	for _, tt := range tests {
		if got := limitKey(netip.MustParseAddr(tt.addr)).String(); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.addr, got, tt.want)
		}
	}
	if got := limitKey(netip.Addr{}); got.IsValid() {
		t.Errorf("got %v for no address", got)
	}
}

func TestOptions(t *testing.T) {
	good := func() Options { return testOptions(&fakeQueue{}) }
	tests := []struct {
		name   string
		change func(*Options)
		want   string
	}{
		{"queue", func(o *Options) { o.Queue = nil }, "a queue is missing"},
		{"listeners", func(o *Options) { o.Listeners = nil }, "a listener is missing"},
		{"hostname", func(o *Options) { o.Hostname = "a b" }, "hostname"},
		{"no hostname", func(o *Options) { o.Hostname = "" }, "hostname"},
		{"implicit without TLS", func(o *Options) { o.Listeners[0].Implicit = true }, "needs a certificate"},
		{"bad network", func(o *Options) { o.Listeners[0].TrustedNetworks = []netip.Prefix{{}} }, "not valid"},
		{"command length", func(o *Options) { o.MaxCommandLength = 100 }, "longest command"},
		{"address", func(o *Options) { o.Listeners[0].Address = "256.0.0.1:25" }, "listen on 256.0.0.1:25"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := good()
			tt.change(&o)
			s, err := New(o)
			if err == nil {
				stopServer(t, s)
				t.Fatal("got no error")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	t.Run("port in use", func(t *testing.T) {
		s := startServer(t, good())
		o := good()
		o.Listeners = append(o.Listeners, o.Listeners[0])
		o.Listeners[1].Address = s.Addrs()[0].String()
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("metrics twice", func(t *testing.T) {
		o := good()
		o.Registerer = prometheus.NewRegistry()
		s, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		stopServer(t, s)
		if _, err := New(o); err == nil {
			t.Error("got no error")
		}
	})
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	c := ours(t, &fakeQueue{}, func(o *Options) { o.Registerer = registry })
	c.begin()
	c.say("A: b\r\n\r\n.\r\n")
	c.hear("250")
	c.talk("MAIL FROM:<a@b..c>", "501", "QUIT", "221")
	c.closed()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			if m.GetCounter() != nil {
				got[name] = m.GetCounter().GetValue()
			}
		}
	}
	bytes := got["relay_ingress_message_bytes_total"]
	delete(got, "relay_ingress_message_bytes_total")
	want := map[string]float64{
		"relay_ingress_connections_total admitted": 1,
		"relay_ingress_messages_total accepted":    1,
		"relay_ingress_recipients_total":           1,
		"relay_ingress_rejections_total 501":       1,
	}
	if diff := cmp.Diff(want, got); diff != "" || bytes < 100 {
		t.Errorf("%v octets, -want +got:\n%s", bytes, diff)
	}
}

func TestBadRecipientsOfALongList(t *testing.T) {
	q := &fakeQueue{}
	c := ours(t, q, func(o *Options) { o.MaxErrors = 3 })
	c.hear("220")
	c.talk("EHLO c", "250", "MAIL FROM:<a@b>", "250")
	for range 10 {
		c.talk("RCPT TO:<a@b..c>", "501")
	}
	c.talk("RCPT TO:<a@b>", "250", "DATA", "354", ".", "250")
	if got := len(q.only(t).env.Recipients); got != 1 {
		t.Errorf("got %d recipients, want 1", got)
	}
}

func TestKeywords(t *testing.T) {
	plain := []string{"8BITMIME", "CHUNKING", "DELIVERBY 60", "DSN", "ENHANCEDSTATUSCODES", "LIMITS RCPTMAX=1000", "PIPELINING", "SIZE 1000", "SMTPUTF8"}
	offered := append(slices.Clone(plain), "STARTTLS")
	slices.Sort(offered)
	secret := append(slices.Clone(plain), "REQUIRETLS")
	slices.Sort(secret)
	keywords := func(c *client) []string {
		c.say("EHLO c\r\n")
		var got []string
		for {
			line, err := c.r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, strings.TrimSpace(line[4:]))
			if line[3] == ' ' {
				slices.Sort(got)
				return slices.DeleteFunc(got, func(k string) bool { return k == "relay.test" })
			}
		}
	}
	small := func(o *Options) { o.MaxMessageBytes = 1000 }
	c := ours(t, &fakeQueue{}, small)
	c.hear("220")
	if diff := cmp.Diff(plain, keywords(c)); diff != "" {
		t.Errorf("in clear: -want +got:\n%s", diff)
	}
	c = ours(t, &fakeQueue{}, func(o *Options) { small(o); o.Listeners[0].TLS = testTLS() })
	c.hear("220")
	if diff := cmp.Diff(offered, keywords(c)); diff != "" {
		t.Errorf("with a certificate: -want +got:\n%s", diff)
	}
	c.talk("STARTTLS", "220")
	secure := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true})
	c.conn, c.r = secure, newReader(secure)
	if diff := cmp.Diff(secret, keywords(c)); diff != "" {
		t.Errorf("under TLS: -want +got:\n%s", diff)
	}
}

// A fault in a chunk that was answered already is told at the next one.
func TestFaultOfAnEarlierChunk(t *testing.T) {
	q := &fakeQueue{}
	c := ours(t, q, nil)
	c.hear("220")
	c.talk("EHLO c", "250", "MAIL FROM:<a@b>", "250", "RCPT TO:<c@d>", "250")
	c.say("BDAT 8\r\nA: b\r\na\n")
	if got, err := c.reply(30 * time.Second); err != nil || !strings.HasPrefix(got, "250 2.0.0 chunk") {
		if !strings.HasPrefix(got, "550 5.6.0") {
			t.Fatalf("got %q, %v", got, err)
		}
		c.closed()
		return
	}
	waitFor(t, "the fault", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.next == 1
	})
	time.Sleep(20 * time.Millisecond)
	c.say("BDAT 8 LAST\r\nA: b\r\n\r\n")
	c.hear("550 5.6.0 bare LF")
	c.closed()
}

func TestLogSaysWhatHappened(t *testing.T) {
	var log lockedBuffer
	c := ours(t, &fakeQueue{accept: func(context.Context, io.Reader) error { return errInner }}, func(o *Options) {
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	c.begin()
	c.say("A: b\r\n\r\n.\r\n")
	c.hear("451 4.3.0")
	c.talk("MAIL FROM:<a@b..c>", "501")
	for _, want := range []string{
		`msg="message refused" msg_id=id1 client=net:127.0.0.0/8`, "secret inner cause",
		`msg="command refused" command=MAIL`, "code=501 enhanced=5.1.7",
	} {
		if got := log.String(); !strings.Contains(got, want) {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
