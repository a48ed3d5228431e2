package report

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postroad/queue/address"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func path(local, domain string) address.Path { return address.Path{Local: local, Domain: domain} }

// read is a file of testdata with the line ends of mail.
func read(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(data), "\n", "\r\n")
}

func TestE6_82_Reports(t *testing.T) {
	for _, tt := range []struct {
		file string
		want Report
	}{
		{"postfix.eml", Report{Kind: Status, Subject: "Undelivered Mail Returned to Sender", ReportingMTA: "mx.example.net", ENVID: "QQ314159+1",
			Recipients: []Recipient{{Final: path("bob", "example.net"), Original: "rfc822;Bob@example.net", Action: "failed", Status: "5.1.1",
				Diagnostic: "550 5.1.1 <bob@example.net>: Recipient address rejected: User unknown in virtual mailbox table"}},
			Header: []byte("Return-Path: <bounces+x@bounces.example.org>\r\nSubject: Hello\r\nMessage-ID: <1@example.org>\r\n"),
			Text:   "This is the mail system at host mx.example.net. <bob@example.net>: user unknown"}},
		{"microsoft.eml", Report{Kind: Status, Subject: "Undeliverable: Hello", ReportingMTA: "AM0PR01.eurprd01.prod.exchangelabs.com",
			Recipients: []Recipient{{Final: path("bob", "example.net"), Action: "failed", Status: "5.1.10", RemoteMTA: "AM0PR01.outlook.com",
				Diagnostic: "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient bob@example.net not found by SMTP address lookup"}},
			Header: []byte("Subject: Hello\r\n"), Text: "Your message couldn't be delivered."}},
		{"global.eml", Report{Kind: Status, Subject: "failed", ReportingMTA: "mx.example.net",
			Recipients: []Recipient{{Final: path("jürgen", "example.net"), Original: "utf-8; j\\x{FC}rgen@example.net", Action: "delayed", Status: "4.2.1"}}}},
		{"arf.eml", Report{Kind: Feedback, Subject: "FW: Earn money", ReportingMTA: "mail.example.com", ENVID: "",
			Complaint: Complaint{Type: "abuse", UserAgent: "SomeGenerator/1.0", MailFrom: path("bounces+tok", "bounces.example.org"),
				Recipients: []address.Path{path("bob", "example.net"), path("carol", "example.net")}, SourceIP: "192.0.2.1", Arrival: "Thu, 8 Mar 2005 14:00:00 EDT",
				Domain: "example.org", Incidents: "1"},
			Header: []byte("From: <somespammer@example.net>\r\nSubject: Earn money\r\n"), Text: "This is an email abuse report."}},
		{"exim.eml", Report{Kind: Text, Subject: "Mail delivery failed: returning message to sender",
			Recipients: []Recipient{{Final: path("bob", "example.net"), Action: "failed"}, {Final: path("carol", "example.net"), Action: "failed"}},
			Text:       "This message was created automatically by mail delivery software. bob@example.net: 550 5.1.1 unknown user"}},
		{"vacation.eml", Report{Kind: Text, Subject: "Out of office", IsReply: true, Text: "I am away."}},
	} {
		t.Run(tt.file, func(t *testing.T) {
			got, err := Parse(strings.NewReader(read(t, tt.file)))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestPaths(t *testing.T) {
	rcpt := Recipient{Original: "utf-8; j\\x{FC}rgen@example.net"}
	if got := rcpt.OriginalPath(); got != path("jürgen", "example.net") {
		t.Errorf("got %v", got)
	}
	if got := (Recipient{Original: "x400; /a=b/"}).OriginalPath(); !got.IsNull() {
		t.Errorf("got %v, want none", got)
	}
	global := "Content-Type: message/global-delivery-status\r\n\r\nReporting-MTA: dns; a\r\n\r\nOriginal-Recipient: utf-8; jürgen+x@example.net\r\n" +
		"Final-Recipient: utf-8; other@example.net\r\nAction: failed\r\n\r\n"
	if r, err := Parse(strings.NewReader(global)); err != nil || r.Recipients[0].OriginalPath() != path("jürgen+x", "example.net") {
		t.Errorf("got %+v, %v", r.Recipients, err)
	}
	r, err := Parse(strings.NewReader(read(t, "postfix.eml")))
	if err != nil || r.ReturnPath() != path("bounces+x", "bounces.example.org") {
		t.Errorf("got %v, %v", r.ReturnPath(), err)
	}
}

// An automatic answer says so and is no report; bounces may say so too (RFC 3834 §5.2).
func TestE6_76_Replies(t *testing.T) {
	for _, tt := range []struct {
		header string
		want   bool
	}{
		{"Auto-Submitted: auto-replied", true},
		{"Auto-Submitted: Auto-Replied (vacation)", true},
		{"Auto-Submitted: auto-replied; owner-email=\"bob@example.net\"", true},
		{"Auto-Submitted: auto-replied\r\nContent-Type: multipart/mixed; boundary=b", true},
		{"Auto-Submitted: auto-replied\r\nContent-Type: multipart/report; report-type=delivery-status; boundary=b", false},
		{"Auto-Submitted: auto-replied\r\nX-Failed-Recipients: bob@example.net", false},
		{"Auto-Submitted: auto-generated", false},
		{"Auto-Submitted: auto-replied-x", false},
		{"Auto-Submitted: no", false},
		{"Subject: failure notice", false},
	} {
		r, err := Parse(strings.NewReader(tt.header + "\r\n\r\n550 5.1.1 unknown\r\n"))
		if err != nil || r.IsReply != tt.want {
			t.Errorf("%s: got %v, %v", tt.header, r.IsReply, err)
		}
	}
}

// Whatever it holds, it is read within bounds.
func TestE6_79_Hostile(t *testing.T) {
	nested := "Content-Type: text/plain\r\n\r\ndeep\r\n"
	for i := range 50 {
		b := string(rune('a'+i%26)) + strings.Repeat("x", i)
		nested = "Content-Type: multipart/mixed; boundary=" + b + "\r\n\r\n--" + b + "\r\n" + nested + "\r\n--" + b + "--\r\n"
	}
	status := "Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; a\r\n\r\n"
	for _, tt := range []struct {
		name, mail string
		check      func(Report) bool
	}{
		{"empty", "", func(r Report) bool { return r.Kind == Text }},
		{"no header", "\r\n\r\n", func(r Report) bool { return r.Kind == Text }},
		{"deep", nested, func(r Report) bool { return r.Text == "" }},
		{"many parts", "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--b\r\n\r\n\r\n", 10_000) + "--b\r\n" + status + "Action: failed\r\n\r\n--b--",
			func(r Report) bool { return r.Kind == Text }},
		{"many recipients", status + strings.Repeat("Final-Recipient: rfc822; a@b.example\r\nAction: failed\r\n\r\n", 10_000), func(r Report) bool { return len(r.Recipients) == MaxRecipients }},
		{"no action", status + "Final-Recipient: rfc822; a@b.example\r\n\r\n", func(r Report) bool { return r.Kind == Text }},
		{"strange action", status + "Final-Recipient: rfc822; a@b.example\r\nAction: exploded\r\n\r\n", func(r Report) bool { return r.Kind == Text }},
		{"control characters", status + "Final-Recipient: rfc822; a@b.example\r\nAction: failed\r\nDiagnostic-Code: smtp; 550 \x1b[2J\x00\u202e" + strings.Repeat("x", 9999) + "\r\n\r\n",
			func(r Report) bool {
				d := r.Recipients[0].Diagnostic
				return len(d) <= maxValue && !strings.ContainsAny(d, "\x1b\x00\u202e")
			}},
		{"long field", "Subject: " + strings.Repeat("a\r\n ", 100_000) + "\r\n\r\n", func(r Report) bool { return len(r.Subject) <= maxValue }},
		{"address with a line end", status + "Final-Recipient: rfc822; a\r@b.example\r\nAction: failed\r\n\r\n", func(r Report) bool { return r.Recipients[0].Final.IsNull() }},
		{"more than it may be", strings.Repeat("x", 2*MaxBytes), func(r Report) bool { return len(r.Text) <= maxText }},
		{"long header that comes back", "Content-Type: message/rfc822\r\n\r\n" + strings.Repeat("A: b\r\n", 100_000), func(r Report) bool { return len(r.Header) <= maxHeader }},
		{"bad base64", "Content-Type: message/delivery-status\r\nContent-Transfer-Encoding: base64\r\n\r\n!!!!", func(r Report) bool { return r.Kind == Text }},
		{"boundary with control characters", "Content-Type: multipart/report; boundary=\"\x00\"\r\n\r\n--\x00\r\n\r\n", func(r Report) bool { return r.Kind == Text }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := Parse(strings.NewReader(tt.mail))
			if err != nil || !tt.check(r) {
				t.Errorf("got %+v, %v", r, err)
			}
		})
	}
}

func TestReadingFails(t *testing.T) {
	want := errors.New("queue away")
	if _, err := Parse(iotest.ErrReader(want)); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.eml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		f.Add(read(f, filepath.Base(name)))
	}
	f.Fuzz(func(t *testing.T, mail string) {
		r, err := Parse(strings.NewReader(mail))
		if err != nil {
			t.Fatal(err)
		}
		texts := []string{r.Subject, r.ReportingMTA, r.ENVID, r.Text, r.Complaint.Type, r.Complaint.UserAgent, r.Complaint.SourceIP, r.Complaint.Arrival}
		for _, rcpt := range r.Recipients {
			texts = append(texts, rcpt.Original, rcpt.Status, rcpt.RemoteMTA, rcpt.Diagnostic)
			rcpt.OriginalPath()
		}
		for _, text := range texts {
			if len(text) > maxText || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("got %q", text)
			}
		}
		if len(r.Recipients) > MaxRecipients || len(r.Header) > maxHeader {
			t.Errorf("got %d recipients and a header of %d octets", len(r.Recipients), len(r.Header))
		}
		r.ReturnPath()
	})
}
