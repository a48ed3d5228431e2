package daemon

import (
	"context"
	"net"
	"net/netip"
	"net/smtp"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"postroad/cmd/internal/config"
	"postroad/cmd/internal/ops"
	"postroad/cmd/internal/sink"
	"postroad/queue"
	"postroad/signer/keyring"
)

// TestE6_76_NotificationIsSigned: a notification goes out under the null reverse-path with a signature of the relay's own domain that verifies.
func TestE6_76_NotificationIsSigned(t *testing.T) {
	type got struct{ reversePath, recipient, data string }
	arrived := make(chan got, 10)
	s, err := sink.New(sink.Options{
		Recipient: func(_ *sink.Message, forward string) sink.Reply {
			if forward == "c@d.example" {
				return "550 5.1.1 no such user"
			}
			return ""
		},
		Message: func(m *sink.Message) sink.Reply {
			arrived <- got{m.ReversePath, m.Recipients[0], string(m.Data)}
			return ""
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { _ = s.Stop(context.WithoutCancel(t.Context())) })

	c := testConfig(shortDir(t), s.Addr().(*net.TCPAddr).Port)
	c.Domain = "relay.example"
	records := make(map[string]string)
	key, err := keyring.Generate(c.SecretsDir(), c.Domain, "s1", keyring.RSA)
	if err != nil {
		t.Fatal(err)
	}
	records["s1._domainkey.relay.example"] = keyring.Record(key)
	d := start(t, c)
	send(t, d.Addrs()[0], "fails")
	select {
	case m := <-arrived:
		if m.reversePath != "" || m.recipient != "a@b.example" || !strings.Contains(m.data, "Auto-Submitted: auto-replied") {
			t.Errorf("got from <%s> to <%s>:\n%s", m.reversePath, m.recipient, m.data)
		}
		verified, err := dkim.VerifyWithOptions(strings.NewReader(m.data), &dkim.VerifyOptions{
			LookupTXT: func(name string) ([]string, error) { return []string{records[name]}, nil }})
		if err != nil || len(verified) != 1 || verified[0].Err != nil || verified[0].Domain != c.Domain {
			t.Errorf("got signatures %+v, %v", verified, err)
		}
	case <-time.After(timeLimit):
		t.Fatal("no notification")
	}
}

// TestE6_82_TheWayBack: a mail leaves with a reverse-path of our own; a stranger reports to it, much later, that it could not be delivered; the
// trace knows, and the true sender is told.
func TestE6_82_TheWayBack(t *testing.T) {
	type got struct{ reversePath, recipient, data string }
	arrived := make(chan got, 10)
	s, err := sink.New(sink.Options{Message: func(m *sink.Message) sink.Reply {
		arrived <- got{m.ReversePath, m.Recipients[0], string(m.Data)}
		return ""
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { _ = s.Stop(context.WithoutCancel(t.Context())) })
	next := func() got {
		t.Helper()
		select {
		case m := <-arrived:
			return m
		case <-time.After(timeLimit):
			t.Fatal("nothing came")
		}
		panic("unreachable")
	}

	c := testConfig(shortDir(t), s.Addr().(*net.TCPAddr).Port)
	c.Domain = "relay.example"
	c.Delivery.BounceDomain = "bounces.relay.example"
	network := c.Ingress.Class(config.ClassNetwork)
	network.VERP = true
	c.Ingress.Classes = []config.ClientClass{network}
	strangers := c.Ingress.Listeners[0]
	strangers.TrustedNetworks, strangers.Bounces = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, config.BouncesAccept
	c.Ingress.Listeners = append(c.Ingress.Listeners, strangers)
	key, err := keyring.Generate(c.SecretsDir(), c.Domain, "s1", keyring.RSA)
	if err != nil {
		t.Fatal(err)
	}
	d := start(t, c)
	until(t, "keys for bounce addresses", func() bool { return d.ring.Ready() })

	send(t, d.Addrs()[0], "out")
	out := next()
	if !strings.HasPrefix(out.reversePath, "bounces+") || !strings.HasSuffix(out.reversePath, "@bounces.relay.example") || out.recipient != "c@d.example" {
		t.Fatalf("got from <%s> to <%s>", out.reversePath, out.recipient)
	}
	client := ops.NewClient(c.SocketPath())
	has := func(kind queue.EventType, class string) bool {
		for e, err := range client.Trace(t.Context(), ops.TraceFilter{Recipient: "c@d.example", Since: time.Now().Add(-time.Minute)}) {
			if err == nil && e.Type == kind && e.BounceClass == class && e.Sender == "a@b.example" {
				return true
			}
		}
		return false
	}
	until(t, "the reception", func() bool { return has(queue.Reception, "") })
	report := "From: mailer-daemon@d.example\r\nSubject: Undelivered\r\nContent-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n" +
		"--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.d.example\r\n\r\nFinal-Recipient: rfc822; c@d.example\r\n" +
		"Action: failed\r\nStatus: 5.1.1\r\nDiagnostic-Code: smtp; 550 5.1.1 no such user\r\n\r\n--b--\r\n"
	stranger := d.Addrs()[1].String()
	if err := smtp.SendMail(stranger, nil, "", []string{"other@bounces.relay.example"}, []byte(report)); err == nil {
		t.Error("a stranger reached another address")
	}
	if err := smtp.SendMail(stranger, nil, "mailer-daemon@d.example", []string{out.reversePath}, []byte(report)); err != nil {
		t.Fatal(err)
	}
	back := next()
	if back.reversePath != "" || back.recipient != "a@b.example" || !strings.Contains(back.data, "Final-Recipient: rfc822; c@d.example") || !strings.Contains(back.data, "Status: 5.1.1") {
		t.Errorf("got from <%s> to <%s>:\n%s", back.reversePath, back.recipient, back.data)
	}
	verified, err := dkim.VerifyWithOptions(strings.NewReader(back.data), &dkim.VerifyOptions{
		LookupTXT: func(string) ([]string, error) { return []string{keyring.Record(key)}, nil }})
	if err != nil || len(verified) != 1 || verified[0].Err != nil {
		t.Errorf("got signatures %+v, %v", verified, err)
	}
	until(t, "the event", func() bool { return has(queue.OutOfBandBounce, "invalid_recipient") })
}
