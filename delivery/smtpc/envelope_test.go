package smtpc

import (
	"crypto/tls"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"postroad/queue"
	"postroad/queue/address"
)

// ehlo is an opening whose host offers keywords.
func ehlo(keywords ...string) string {
	lines := append([]string{"mx.test"}, keywords...)
	script := "> 220 mx.test\n< EHLO relay.test\n"
	for i, line := range lines {
		if sep := "-"; i < len(lines)-1 {
			script += "> 250" + sep + line + "\n"
		} else {
			script += "> 250 " + line + "\n"
		}
	}
	return script
}

// Parameters are said to hosts that offer to take them, and to no other.
func TestParameters(t *testing.T) {
	full := func(m *Message) {
		m.ENVID, m.RET = "id+2B1", "HDRS"
		m.Flags.EightBit = true
		m.Recipients[0].ORCPT = "rfc822;old@example.net"
		m.Recipients[0].Notify = []string{"SUCCESS", "DELAY"}
	}
	tests := []struct {
		name       string
		offer      []string
		change     func(*Message)
		mail, rcpt string
		dsn        bool
	}{
		{"nothing offered", nil, full, "", "", false},
		{"everything offered", []string{"SIZE", "8bitmime", "Dsn"}, full,
			" SIZE=25 BODY=8BITMIME RET=HDRS ENVID=id+2B1", " NOTIFY=SUCCESS,DELAY ORCPT=rfc822;old@example.net", true},
		{"nothing to say", []string{"SIZE 0", "8BITMIME", "DSN", "SMTPUTF8", "REQUIRETLS"}, func(m *Message) { m.Size = 0 }, "", "", true},
		{"size at the limit", []string{"SIZE 25"}, func(*Message) {}, " SIZE=25", "", false},
		{"8-bit content without the flag", []string{"8BITMIME"}, func(m *Message) { m.Body, m.Size = strings.NewReader("\xe4\r\n"), 3 }, " BODY=8BITMIME", "", false},
		{"SMTPUTF8 as accepted", []string{"SMTPUTF8"}, func(m *Message) { m.Flags.SMTPUTF8 = true }, " SMTPUTF8", "", false},
		{"plain ASCII needs no SMTPUTF8", nil, func(m *Message) { m.Flags.SMTPUTF8 = true }, "", "", false},
		{"UTF-8 ORCPT without SMTPUTF8", []string{"DSN"}, func(m *Message) { m.Recipients[0].ORCPT = "utf-8;jürgen@example.net" },
			"", ` ORCPT=utf-8;j\x{FC}rgen@example.net`, true},
		{"UTF-8 ORCPT with SMTPUTF8", []string{"DSN", "SMTPUTF8"}, func(m *Message) {
			m.Flags.SMTPUTF8, m.Recipients[0].ORCPT = true, "utf-8;jürgen@example.net"
		}, " SMTPUTF8", ` ORCPT=utf-8;jürgen@example.net`, true},
		{"deadline, not offered", nil, func(m *Message) { m.Deadline = queue.Deadline{At: time.Now().Add(time.Hour)} }, "", "", false},
		{"deadline", []string{"DELIVERBY"}, func(m *Message) { m.Deadline = queue.Deadline{At: time.Now().Add(time.Hour)} }, " BY=3600;N", "", false},
		{"deadline that is past", []string{"DELIVERBY 240"}, func(m *Message) { m.Deadline = queue.Deadline{At: time.Now().Add(-time.Minute), Trace: true} },
			" BY=-60;NT", "", false},
		{"deadline with return", []string{"DELIVERBY 240"}, func(m *Message) {
			m.Deadline = queue.Deadline{At: time.Now().Add(240*time.Second + time.Millisecond), Return: true}
		}, " BY=240;R", "", false},
		{"a parameter that would not stay one", []string{"DSN"}, func(m *Message) {
			m.ENVID, m.Recipients[0].ORCPT = "a\r\nRSET", "rfc822;a b"
		}, "", "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, o := play(t, ehlo(tt.offer...)+"< MAIL FROM:<sender@example.org>"+tt.mail+"\n> 250 ok\n< RCPT TO:<a@example.net>"+tt.rcpt+
					"\n> 250 ok\n< DATA\n> 354 go\nbody\n> 250 kept"+quit)
				c := dial(t, o)
				m := message(t, "a@example.net")
				tt.change(&m)
				res, err := c.Send(t.Context(), m)
				if err != nil || !res.Recipients[0].OK() || res.DSN != tt.dsn {
					t.Errorf("got %v, %v, DSN %v", fates(res), err, res.DSN)
				}
				c.Close(t.Context())
				p.done.Wait()
			})
		})
	}
}

// What a host cannot keep is refused for good before MAIL, and the connection stays good.
func TestNeeds(t *testing.T) {
	tests := []struct {
		name   string
		offer  []string
		change func(*Message)
		fate   string
		is     error
	}{
		{"too large", []string{"SIZE 24"}, func(*Message) {}, "local mail 552 5.3.4 " + ErrTooLarge.Error() + ": 25 octets of 24", ErrTooLarge},
		{"8-bit content", nil, func(m *Message) { m.Body, m.Size = strings.NewReader("\xe4\r\n"), 3 },
			"local mail 554 5.6.3 " + ErrNeed8BITMIME.Error(), ErrNeed8BITMIME},
		{"UTF-8 header", []string{"8BITMIME"}, func(m *Message) {
			m.Body, m.Size, m.Flags.SMTPUTF8 = strings.NewReader("Subject: \xc3\xa4\r\n\r\n"), 15, true
		}, "local mail 550 5.6.7 " + ErrNeedSMTPUTF8.Error(), ErrNeedSMTPUTF8},
		{"perhaps a UTF-8 header", []string{"8BITMIME"}, func(m *Message) {
			m.Body, m.Size, m.Flags.SMTPUTF8 = strings.NewReader(strings.Repeat("12345678\r\n", 10_000)), 0, true
		}, "local mail 550 5.6.7 " + ErrNeedSMTPUTF8.Error(), ErrNeedSMTPUTF8},
		{"UTF-8 reverse-path", []string{"8BITMIME"}, func(m *Message) { m.From.Local = "jürgen" },
			"local mail 550 5.6.7 " + ErrNeedSMTPUTF8.Error(), ErrNeedSMTPUTF8},
		{"REQUIRETLS without TLS", []string{"REQUIRETLS"}, func(m *Message) { m.Flags.RequireTLS = true },
			"local mail 550 5.7.30 " + ErrNeedRequireTLS.Error(), ErrNeedRequireTLS},
		{"return when late, not offered", []string{"DSN"}, func(m *Message) { m.Deadline = queue.Deadline{At: time.Now().Add(time.Hour), Return: true} },
			"local mail 550 5.4.7 " + ErrNeedDeliverBy.Error(), ErrNeedDeliverBy},
		{"return when late, too short for the host", []string{"DELIVERBY 240"}, func(m *Message) {
			m.Deadline = queue.Deadline{At: time.Now().Add(239 * time.Second), Return: true}
		}, "local mail 550 5.4.7 " + ErrTooLate.Error() + ": 239 s left, of which it wants 240", ErrTooLate},
		{"return when late, a moment too late", []string{"DELIVERBY"}, func(m *Message) {
			m.Deadline = queue.Deadline{At: time.Now().Add(999 * time.Millisecond), Return: true}
		}, "local mail 550 5.4.7 " + ErrTooLate.Error() + ": 0 s left, of which it wants 1", ErrTooLate},
		{"reverse-path that breaks its line", nil, func(m *Message) { m.From.Local = "a\r\nb" },
			`local mail 553 5.1.7 reverse-path "\"a??b\"@example.org" cannot be sent`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, o := play(t, ehlo(tt.offer...)+quit)
				c := dial(t, o)
				m := message(t, "a@example.net")
				tt.change(&m)
				res, err := c.Send(t.Context(), m)
				failure, ok := errors.AsType[*Error](err)
				if !ok || !failure.Permanent() || tt.is != nil && !errors.Is(err, tt.is) || !c.Reusable() {
					t.Errorf("got %v, reusable %v", err, c.Reusable())
				}
				if diff := cmp.Diff([]string{tt.fate}, fates(res)); diff != "" {
					t.Errorf("fates (-want +got):\n%s", diff)
				}
				c.Close(t.Context())
				p.done.Wait()
			})
		})
	}
}

// REQUIRETLS is kept by a host that offers it inside verified TLS, and by no other (RFC 8689 §4.2.1).
func TestRequireTLS(t *testing.T) {
	const inside = "> 220 go\nstarttls\n< EHLO relay.test\n> 250-mx.test\n"
	const sent = "< MAIL FROM:<sender@example.org> REQUIRETLS\n> 250 ok\n< RCPT TO:<a@example.net>\n> 250 ok\n< DATA\n> 354 go\nbody\n> 250 kept"
	tests := []struct {
		name, script string
		mode         TLSMode
		is           error
	}{
		{"kept", inside + "> 250 REQUIRETLS\n" + sent + quit, TLSVerify, nil},
		{"certificate not verified", inside + "> 250 REQUIRETLS" + quit, TLSMay, ErrNeedRequireTLS},
		{"not offered", inside + "> 250 SIZE" + quit, TLSVerify, ErrNeedRequireTLS},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, o := play(t, tlsOpening+tt.script)
				o.TLS, o.TLSConfig = tt.mode, &tls.Config{RootCAs: roots()}
				c := dial(t, o)
				m := message(t, "a@example.net")
				m.Flags.RequireTLS = true
				if res, err := c.Send(t.Context(), m); !errors.Is(err, tt.is) || res.Recipients[0].OK() != (tt.is == nil) {
					t.Errorf("got %v, %v", fates(res), err)
				}
				c.Close(t.Context())
				p.done.Wait()
			})
		})
	}
}

// A notification is not lost for want of REQUIRETLS (RFC 8689 §5); a dial that asks for it finds out before any mail.
func TestE5_71_RequireTLSNotOffered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const inside = "> 220 go\nstarttls\n< EHLO relay.test\n> 250 mx.test\n"
		const sent = "< MAIL FROM:<>\n> 250 ok\n< RCPT TO:<a@example.net>\n> 250 ok\n< DATA\n> 354 go\nbody\n> 250 kept"
		p, o := play(t, tlsOpening+inside+sent+quit)
		o.TLS = TLSMay
		c := dial(t, o)
		m := message(t, "a@example.net")
		m.From, m.Flags.RequireTLS = address.Path{}, true
		if res, err := c.Send(t.Context(), m); err != nil || !res.Recipients[0].OK() {
			t.Errorf("notification: got %v, %v", fates(res), err)
		}
		c.Close(t.Context())
		p.done.Wait()

		p, o = play(t, tlsOpening+inside+"< QUIT")
		o.TLS, o.TLSConfig, o.RequireTLS = TLSVerify, &tls.Config{RootCAs: roots()}, true
		if _, err := Dial(t.Context(), "mx.test", mxAddr, o); !errors.Is(err, ErrNeedRequireTLS) {
			t.Errorf("dial: got %v", err)
		}
		p.done.Wait()
	})
}

// VerifyConnection replaces the check of names and authorities in every mode.
func TestE5_69_VerifyConnectionJudgesAlone(t *testing.T) {
	bad := errors.New("not that one")
	for _, tt := range []struct {
		name   string
		mode   TLSMode
		answer error
	}{{"verify, untrusted, content", TLSVerify, nil}, {"verify, not content", TLSVerify, bad}, {"may, not content", TLSMay, bad}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				script := tlsOpening + "> 220 go\nstarttls\n"
				if tt.answer == nil {
					script += "< EHLO relay.test\n> 250 mx.test" + quit
				}
				p, o := play(t, script)
				o.TLS, o.TLSConfig = tt.mode, &tls.Config{VerifyConnection: func(tls.ConnectionState) error { return tt.answer }}
				c, err := Dial(t.Context(), "mx.test", mxAddr, o)
				if !errors.Is(err, tt.answer) || tt.answer != nil && !errors.Is(err, ErrTLSHandshake) {
					t.Errorf("got %v, want %v", err, tt.answer)
				}
				if c != nil {
					c.Close(t.Context())
				}
				p.done.Wait()
			})
		})
	}
}

// Recipients that the hop cannot take are refused one by one; the others get their mail.
func TestNeedsOfRecipients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := play(t, ehlo("8BITMIME")+"< MAIL FROM:<sender@example.org>\n> 250 ok\n< RCPT TO:<a@example.net>\n> 250 ok\n< DATA\n> 354 go\nbody\n> 250 kept"+quit)
		c := dial(t, o)
		m := message(t, "jürgen@example.net", "a@example.net", "b@example.net", "c@example.net")
		m.Flags.SMTPUTF8 = true
		m.Recipients[2].Path.Local = "b\r\nDATA"
		m.Recipients[3].Path = address.Path{}
		res, err := c.Send(t.Context(), m)
		want := []string{
			"local rcpt 550 5.6.7 " + ErrNeedSMTPUTF8.Error(), "dot 250 kept",
			"local rcpt 553 5.1.3 address cannot be sent", "local rcpt 553 5.1.3 address cannot be sent",
		}
		if diff := cmp.Diff(want, fates(res)); diff != "" || err != nil {
			t.Errorf("error %v, fates (-want +got):\n%s", err, diff)
		}
		m = message(t, "jürgen@example.net")
		if res, err := c.Send(t.Context(), m); err != nil || !res.Recipients[0].Permanent() {
			t.Errorf("nobody left: got %v, %v", fates(res), err)
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}

// A UTF-8 recipient alone brings SMTPUTF8 in where it is offered.
func TestUTF8Recipient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, o := play(t, ehlo("8BITMIME", "SMTPUTF8")+"< MAIL FROM:<sender@example.org> SMTPUTF8\n> 250 ok\n< RCPT TO:<jürgen@xn--bcher-kva.example>\n> 250 ok\n< DATA\n> 354 go\nbody\n> 250 kept"+quit)
		c := dial(t, o)
		res, err := c.Send(t.Context(), message(t, "jürgen@bücher.example"))
		if err != nil || !res.Recipients[0].OK() {
			t.Errorf("got %v, %v", fates(res), err)
		}
		c.Close(t.Context())
		p.done.Wait()
	})
}

// 8-bit octets that only show up in a later piece end the connection before the dot.
func TestEightBitFoundLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		body := strings.Repeat("12345678\r\n", 4000) + "\xe4\r\n"
		p, o := play(t, ehlo()+"< MAIL FROM:<sender@example.org>\n> 250 ok\n< RCPT TO:<a@example.net>\n> 250 ok\n< DATA\n> 354 go\ntake 32768\ngone")
		c := dial(t, o)
		m := message(t, "a@example.net")
		m.Body, m.Size, m.Flags.EightBit = strings.NewReader(body), int64(len(body)), true
		res, err := c.Send(t.Context(), m)
		if !errors.Is(err, ErrNeed8BITMIME) || !res.Recipients[0].Permanent() || res.Recipients[0].Enhanced != "5.6.3" || res.InDoubt || c.Reusable() {
			t.Errorf("got %v, %v", fates(res), err)
		}
		p.done.Wait()
	})
}
