package bounce

import (
	"strings"
	"testing"
	"time"
)

// Each field of RFC 3464 §2 with what it says, and those that are not there when there is nothing to say.
func TestE6_76_Fields(t *testing.T) {
	full := Recipient{Path: bob, ORCPT: "rfc822;Bob+2Bx@old.example", Action: Delayed, Status: "4.2.1", RemoteMTA: "mx.example.net",
		Diagnostic: "450 4.2.1 later", LastAttempt: now, WillRetryUntil: now.Add(time.Hour)}
	for _, tt := range []struct {
		name   string
		change func(*Report, *Recipient)
		want   []string
		not    []string
	}{
		{"all", func(r *Report, _ *Recipient) { r.ENVID, r.DeliverBy = "QQ+2B1", now },
			[]string{"Original-Envelope-Id: QQ+1\r\n", "Reporting-MTA: dns; mx1.example.org\r\n", "Arrival-Date: Tue, 24 Nov 2026 09:30:00 +0000\r\n",
				"Deliver-By-Date: Tue, 24 Nov 2026 14:30:00 +0000\r\n", "Original-Recipient: rfc822; Bob+x@old.example\r\n", "Final-Recipient: rfc822; bob@example.net\r\n",
				"Action: delayed\r\n", "Status: 4.2.1\r\n", "Remote-MTA: dns; mx.example.net\r\n", "Diagnostic-Code: smtp; 450 4.2.1 later\r\n",
				"Last-Attempt-Date: Tue, 24 Nov 2026 14:30:00 +0000\r\n", "Will-Retry-Until: Tue, 24 Nov 2026 15:30:00 +0000\r\n"}, nil},
		{"no ENVID", func(*Report, *Recipient) {}, nil, []string{"Original-Envelope-Id", "Deliver-By-Date"}},
		{"no ORCPT", func(_ *Report, rcpt *Recipient) { rcpt.ORCPT = "" }, nil, []string{"Original-Recipient"}},
		{"no host", func(_ *Report, rcpt *Recipient) { rcpt.RemoteMTA, rcpt.Diagnostic = "", "cannot connect" },
			[]string{"Diagnostic-Code: x-postroad; cannot connect\r\n"}, []string{"Remote-MTA"}},
		{"not tried", func(_ *Report, rcpt *Recipient) { rcpt.LastAttempt = time.Time{} }, nil, []string{"Last-Attempt-Date"}},
		{"failed", func(_ *Report, rcpt *Recipient) { rcpt.Action, rcpt.Status = Failed, "5.1.1" }, []string{"Action: failed\r\nStatus: 5.1.1\r\n"}, []string{"Will-Retry-Until"}},
		{"relayed", func(_ *Report, rcpt *Recipient) { rcpt.Action, rcpt.Status = Relayed, "" }, []string{"Action: relayed\r\nStatus: 2.0.0\r\n"}, []string{"Will-Retry-Until"}},
		{"utf-8 recipient", func(r *Report, rcpt *Recipient) { rcpt.Path, rcpt.ORCPT = umlaut, `utf-8;j\x{FC}rgen@example.net` },
			[]string{`Original-Recipient: utf-8; j\x{FC}rgen@example.net`, `Final-Recipient: utf-8; j\x{FC}rgen@example.net`, "Content-Type: message/delivery-status\r\n"}, nil},
		{"utf-8 recipient with a plus", func(r *Report, rcpt *Recipient) {
			rcpt.Path.Local, rcpt.ORCPT = "jürgen+a=b", "utf-8;jürgen+a@example.net"
		}, []string{`Original-Recipient: utf-8; j\x{FC}rgen\x{2B}a@example.net`, `Final-Recipient: utf-8; j\x{FC}rgen\x{2B}a\x{3D}b@example.net`}, nil},
		{"utf-8 ORCPT in a message with SMTPUTF8", func(r *Report, rcpt *Recipient) {
			rcpt.Path, rcpt.ORCPT, r.SMTPUTF8 = umlaut, `utf-8;j\x{FC}rgen\x{2B}x@example.net`, true
		}, []string{"Original-Recipient: utf-8; j=C3=BCrgen+x@example.net"}, nil},
		{"utf-8 ORCPT that is none", func(r *Report, rcpt *Recipient) {
			rcpt.Path, rcpt.ORCPT, r.SMTPUTF8 = umlaut, `utf-8;j\x{D800}\x{0A}@example.net`, true
		}, []string{`Original-Recipient: utf-8; j\x{D800}\x{0A}@example.net`}, nil},
		{"utf-8 recipient in a message with SMTPUTF8", func(r *Report, rcpt *Recipient) { rcpt.Path, r.SMTPUTF8 = umlaut, true },
			[]string{"Final-Recipient: utf-8; j=C3=BCrgen@example.net", "Content-Type: message/global-delivery-status\r\n", "report-type=global-delivery-status;"}, nil},
	} {
		t.Run("E6-76 "+tt.name, func(t *testing.T) {
			rcpt := full
			r := report()
			tt.change(&r, &rcpt)
			r.Recipients = []Recipient{rcpt}
			got := write(t, r)
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("%q is not in\n%s", want, got)
				}
			}
			for _, not := range tt.not {
				if strings.Contains(got, not) {
					t.Errorf("%q is in\n%s", not, got)
				}
			}
		})
	}
}

// The third part by RET, size, and what became of the message (RFC 3461 §4.3, RFC 6533 §4.4).
func TestE6_76_ThirdPart(t *testing.T) {
	eightBit := strings.Replace(message, "Good day.", "Schönen Tag.", 1)
	utf8Header := strings.Replace(message, "Hello", "Grüße", 1)
	for _, tt := range []struct {
		name     string
		action   Action
		full     bool
		utf8     bool
		original string
		size     int64
		want     string
		content  string // is it there
	}{
		{"failed, whole", Failed, true, false, message, 0, "message/rfc822", "Good day."},
		{"failed, header", Failed, false, false, message, 0, "text/rfc822-headers", ""},
		{"failed, too large", Failed, true, false, message, MaxReturn + 1, "text/rfc822-headers", ""},
		{"delayed", Delayed, true, false, message, 0, "text/rfc822-headers", ""},
		{"relayed", Relayed, true, false, message, 0, "text/rfc822-headers", ""},
		{"8 bits", Failed, true, false, eightBit, 0, "text/rfc822-headers", ""},
		{"8 bits with SMTPUTF8", Failed, true, true, eightBit, 0, "message/global\r\n", "Sch=C3=B6nen"},
		{"header in UTF-8", Failed, false, true, utf8Header, 0, "message/global-headers", ""},
	} {
		t.Run("E6-76 "+tt.name, func(t *testing.T) {
			r := report(Recipient{Path: bob, Action: tt.action})
			r.ReturnFull, r.SMTPUTF8, r.Original, r.Size = tt.full, tt.utf8, strings.NewReader(tt.original), max(tt.size, int64(len(tt.original)))
			got := write(t, r)
			if !strings.Contains(got, "Content-Type: "+tt.want) {
				t.Errorf("%q is not in\n%s", tt.want, got)
			}
			if has := strings.Contains(got, "Good day.") || strings.Contains(got, "nen Tag."); has != (tt.content != "") || !strings.Contains(got, tt.content) {
				t.Errorf("content %v in\n%s", has, got)
			}
			if strings.Count(got, "Subject: ") != 2 {
				t.Errorf("the header of the message is not in\n%s", got)
			}
		})
	}
}

// Nothing that a host says makes a field, a line or a part of its own (RFC 3464 §2.3.6).
func TestE6_80_HostileTexts(t *testing.T) {
	for _, text := range []string{
		"550 a\r\nFinal-Recipient: rfc822; eve@example.com", "550 a\r\n\r\nb", "550 \x00\x1b[2J\x7f", "550 \u2028\u202eabc", "550 \xff\xfe\xfd", "550 ü€😀",
		strings.Repeat("x", 100_000), strings.Repeat("\r\n", 5000), "--=_01jd0000000000000000000000.0.c0ffee_0--",
	} {
		r := report(Recipient{Path: bob, Action: Failed, Status: text, RemoteMTA: text, Diagnostic: text, ORCPT: "rfc822;" + text})
		r.ENVID = text
		got, err := r.Write()
		if err != nil {
			t.Fatal(err)
		}
		checkMessage(t, r, got)
		if len(got) > 8000 {
			t.Errorf("%.20q: got %d octets", text, len(got))
		}
	}
}

func write(t *testing.T, r Report) string {
	t.Helper()
	got, err := r.Write()
	if err != nil {
		t.Fatal(err)
	}
	checkMessage(t, r, got)
	return string(got)
}
