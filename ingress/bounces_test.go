package ingress

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"postroad/queue"
	"postroad/queue/address"
	"postroad/queue/verp"
)

// bounceOptions are for a server whose client is a stranger, on a listener that takes bounces or does not.
func bounceOptions(q Queue, isTaken bool) Options {
	o := testOptions(q)
	o.Listeners[0].TrustedNetworks = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	o.Listeners[0].Bounces = isTaken
	ring := verp.New("bounces.test")
	ring.SetKeys([]queue.SharedKey{{Secret: make([]byte, 32), Made: time.Now()}})
	o.Bounces = &Bounces{Ring: ring, Mailboxes: map[string]address.Path{"postmaster": {Local: "ops", Domain: "corp.test"}}, Feedback: map[string]bool{"fbl": true}}
	o.Policy = Policy{Default: Class{Submits: true, MaxHold: time.Hour}}
	return o
}

func bounceAddress(t *testing.T, o Options) string {
	t.Helper()
	return bounceAddressOf(t, o, queue.NewID(), "bob")
}

// bounceAddressOf is the one of a message to somebody at to.test.
func bounceAddressOf(t *testing.T, o Options, id queue.MessageID, local string) string {
	t.Helper()
	p, ok := o.Bounces.Ring.Path(id, address.Path{Local: local, Domain: "to.test"}, time.Now())
	if !ok {
		t.Fatal("no address")
	}
	return p.String()
}

// TestE6_82_BouncesFromAnybody: a stranger may send to addresses with a valid token, and to mailboxes that the operator has named.
func TestE6_82_BouncesFromAnybody(t *testing.T) {
	for _, tt := range []struct {
		name, rcpt, want string
		to               string // empty: as given
	}{
		{name: "token", rcpt: "TOKEN", want: "250"},
		{name: "token in capitals", rcpt: "CAPITALS", want: "250"},
		{name: "mailbox", rcpt: "PostMaster@bounces.test", want: "250", to: "ops@corp.test"},
		{name: "feedback", rcpt: "fbl@bounces.test", want: "250"},
		{name: "no token", rcpt: "bounces+x@bounces.test", want: "550 5.1.1"},
		{name: "a changed token", rcpt: "CHANGED", want: "550 5.1.1"},
		{name: "somebody else there", rcpt: "abuse@bounces.test", want: "550 5.1.1"},
		{name: "another domain", rcpt: "bob@to.test", want: "550 5.7.1"},
		{name: "token elsewhere", rcpt: "ELSEWHERE", want: "550 5.7.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := &fakeQueue{}
			o := bounceOptions(q, true)
			good := bounceAddress(t, o)
			local, _, _ := strings.Cut(good, "@")
			rcpt := tt.rcpt
			switch rcpt {
			case "TOKEN":
				rcpt = good
			case "CAPITALS":
				rcpt = strings.ToUpper(local) + "@Bounces.Test"
			case "CHANGED":
				rcpt = local[:20] + strings.Map(func(r rune) rune { return '0' + (r+1)%2 }, local[20:21]) + local[21:] + "@bounces.test"
			case "ELSEWHERE":
				rcpt = local + "@to.test"
			}
			c := dial(t, startServer(t, o).Addrs()[0].String())
			c.hear("220")
			c.talk("EHLO mx.test", "250", "MAIL FROM:<mailer-daemon@to.test>", "250", "RCPT TO:<"+rcpt+"> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;x@y", tt.want)
			if tt.want != "250" {
				c.talk("DATA", "503")
				return
			}
			c.talk("DATA", "354", "Subject: x\r\nBcc: kept\r\n\r\nhi\r\n.", "250")
			got := q.only(t)
			want := tt.to
			if want == "" {
				want = strings.Replace(rcpt, "Bounces.Test", "bounces.test", 1)
			}
			r := got.env.Recipients[0]
			if !got.env.Incoming || !got.env.ReversePath.IsNull() || got.env.Class != BounceClass || got.env.Client != BounceClass {
				t.Errorf("got envelope %+v", got.env)
			}
			if r.Path.String() != want || len(r.Notify) != 1 || r.Notify[0] != "NEVER" || r.ORCPT != "" {
				t.Errorf("got recipient %+v, want %s whom nobody is told of", r, want)
			}
			if !strings.Contains(got.payload, "Bcc: kept") {
				t.Error("what came back was changed")
			}
		})
	}
}

func TestE6_79_BouncesOnlyWhereTaken(t *testing.T) {
	o := bounceOptions(&fakeQueue{}, false)
	c := dial(t, startServer(t, o).Addrs()[0].String())
	c.hear("220")
	c.talk("EHLO mx.test", "250", "MAIL FROM:<>", "250", "RCPT TO:<"+bounceAddress(t, o)+">", "550 5.7.1")
}

// TestE6_82_BouncesAreBounded: what is said twice counts once, and there are few in one mail, all about one message.
func TestE6_82_BouncesAreBounded(t *testing.T) {
	q := &fakeQueue{}
	o := bounceOptions(q, true)
	id := queue.NewID()
	same := bounceAddressOf(t, o, id, "bob")
	c := dial(t, startServer(t, o).Addrs()[0].String())
	c.hear("220")
	c.talk("EHLO mx.test", "250", "MAIL FROM:<>", "250")
	for range 2 * maxBounceRecipients {
		c.talk("RCPT TO:<"+same+">", "250")
	}
	c.talk("RCPT TO:<"+bounceAddress(t, o)+">", "452 4.5.3 send to this address in a transaction of its own")
	for i := range maxBounceRecipients - 1 {
		c.talk("RCPT TO:<"+bounceAddressOf(t, o, id, "r"+strconv.Itoa(i))+">", "250")
	}
	c.talk("RCPT TO:<"+bounceAddressOf(t, o, id, "one-too-many")+">", "452", "DATA", "354", "Subject: x\r\n\r\nhi\r\n.", "250")
	if got := q.only(t); len(got.env.Recipients) != maxBounceRecipients {
		t.Errorf("got %d recipients", len(got.env.Recipients))
	}
}

// Bounces and other mail do not share a transaction: they share an envelope.
func TestE6_82_BouncesApart(t *testing.T) {
	q := &fakeQueue{}
	o := bounceOptions(q, true)
	o.Listeners[0].TrustedNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	bounce := bounceAddress(t, o)
	c := dial(t, startServer(t, o).Addrs()[0].String())
	c.hear("220")
	c.talk("EHLO mx.test", "250", "MAIL FROM:<a@from.test>", "250", "RCPT TO:<"+bounce+">", "250", "RCPT TO:<b@to.test>", "452 4.5.3",
		"RCPT TO:<postmaster@bounces.test>", "250", "RSET", "250",
		"MAIL FROM:<a@from.test>", "250", "RCPT TO:<b@to.test>", "250", "RCPT TO:<"+bounce+">", "452 4.5.3", "DATA", "354", "From: a@from.test\r\n\r\nhi\r\n.", "250")
	if got := q.only(t); got.env.Incoming || got.env.ReversePath.IsNull() || len(got.env.Recipients) != 1 {
		t.Errorf("got %+v", got.env)
	}
}

func TestBouncesWithoutKeysAreTemporary(t *testing.T) {
	o := bounceOptions(&fakeQueue{}, true)
	rcpt := bounceAddress(t, o)
	o.Bounces.Ring = verp.New("bounces.test")
	c := dial(t, startServer(t, o).Addrs()[0].String())
	c.hear("220")
	c.talk("EHLO mx.test", "250", "MAIL FROM:<>", "250", "RCPT TO:<"+rcpt+">", "451 4.3.0")
}

func TestBouncesNeedADomain(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"no domain": func(o *Options) { o.Bounces = nil },
		"login":     func(o *Options) { o.Listeners[0].Auth = AuthRequired },
	} {
		o := bounceOptions(&fakeQueue{}, true)
		change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), "bounces") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
