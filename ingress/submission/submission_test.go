package submission

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postroad/queue/address"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// crlf makes a header of lines that end with LF.
func crlf(s string) []byte { return []byte(strings.ReplaceAll(s, "\n", "\r\n")) }

func lf(b []byte) string { return strings.ReplaceAll(string(b), "\r\n", "\n") }

const date = "Date: Tue, 25 Nov 2025 10:00:00 +0100\n"

var bob = address.Path{Local: "bob", Domain: "b.test"}

// TestRows: what rows E2 31 to 42 ask of a header that needs to be changed.
func TestRows(t *testing.T) {
	tests := []struct {
		name string
		o    Options
		in   string
		want string
	}{
		{"E2-31 signed mail is not touched", Options{Signed: true},
			"DKIM-Signature: v=1\nReturn-Path: <x@y.test>\nBcc: c@d.test\nFrom: a@b.test\n",
			"DKIM-Signature: v=1\nReturn-Path: <x@y.test>\nBcc: c@d.test\nFrom: a@b.test\n"},
		{"E2-32 Bcc with its folding", Options{},
			"Bcc: c@d.test,\n e@f.test\n\t(more)\nFrom: a@b.test\nbCC : g@h.test\nResent-Bcc: i@j.test\nTo: k@l.test\n",
			"From: a@b.test\nTo: k@l.test\n"},
		{"E2-32 Bcc in 8-bit", Options{}, "From: a@b.test\nBcc: ü@d.test\n", "From: a@b.test\n"},
		{"E2-33 unqualified addresses are for the rewriter", Options{}, "From: root (Cron Daemon)\nTo: root\n", "From: root (Cron Daemon)\nTo: root\n"},
		{"E2-34 two authors get a Sender", Options{ReversePath: bob},
			date + "From: a@b.test,\n c@d.test\nTo: e@f.test\n",
			date + "Sender: <bob@b.test>\nFrom: a@b.test,\n c@d.test\nTo: e@f.test\n"},
		{"E2-34 a group of authors gets a Sender", Options{ReversePath: bob},
			"From: us: a@b.test, c@d.test;\n", "Sender: <bob@b.test>\nFrom: us: a@b.test, c@d.test;\n"},
		{"E2-34 two authors with a Sender", Options{},
			"From: a@b.test, c@d.test\nSender: e@f.test\n", "From: a@b.test, c@d.test\nSender: e@f.test\n"},
		{"E2-34 a name without its quotes is one author", Options{}, "From: J@k [x]: l <a@b.test>\n", "From: J@k [x]: l <a@b.test>\n"},
		{"E2-36 Received stays", Options{}, "Received: from a\n by b; x\nFrom: a@b.test\n", "Received: from a\n by b; x\nFrom: a@b.test\n"},
		{"E2-36 Received without names", Options{HideReceived: true},
			"Received: from pc (pc [10.0.0.1])\n by b with ESMTP id 1;\n Tue, 25 Nov 2025 10:00:00 +0100 (CET)\nReceived: by ü\nFrom: a@b.test\n",
			"Received: from hidden.invalid by hidden.invalid;\n\tTue, 25 Nov 2025 10:00:00 +0100\nReceived: from hidden.invalid by hidden.invalid\nFrom: a@b.test\n"},
		{"E2-38 Return-Path", Options{}, "Return-Path: <a@b.test>\nFrom: a@b.test\nreturn-path: <>\n", "From: a@b.test\n"},
		{"E2-40 folding is kept", Options{},
			"From: a@b.test\nSubject: one\n  two\n\tthree \nX: \n \n y\nBcc: x@y.test\n", "From: a@b.test\nSubject: one\n  two\n\tthree \nX: \n \n y\n"},
		{"E2-40 odd fields stay", Options{}, "X-: \n:no name\n]: x\nFrom: a@b.test\nBcc: x@y.test\n", "X-: \n:no name\n]: x\nFrom: a@b.test\n"},
		{"E2-42 fields of lists and resenders stay", Options{},
			"Resent-From: a@b.test\nResent-From: a@b.test\nList-Unsubscribe: <https://a.test>\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\nAuto-Submitted: auto-generated\nFrom: a@b.test\nBcc: x@y.test\n",
			"Resent-From: a@b.test\nResent-From: a@b.test\nList-Unsubscribe: <https://a.test>\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\nAuto-Submitted: auto-generated\nFrom: a@b.test\n"},
		{"E1-19 UTF-8 with SMTPUTF8", Options{UTF8: true},
			"From: Jörg <ü@bücher.test>\nSubject: Grüße\n", "From: Jörg <ü@bücher.test>\nSubject: Grüße\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := crlf(tt.in)
			got, err := Fix(in, tt.o)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, lf(got)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if tt.in == tt.want && &got[0] != &in[0] {
				t.Error("got a copy, want the same slice")
			}
		})
	}
}

// TestRefused: what no client may hand in.
func TestRefused(t *testing.T) {
	const from = "From: a@b.test\n"
	tests := []struct {
		name  string
		o     Options
		in    string
		want  error
		field string
	}{
		{"E2-34 no From", Options{}, date, ErrFrom, "From"},
		{"E2-34 no field at all", Options{}, "", ErrFrom, "From"},
		{"E2-34 two From", Options{}, from + "fROM : c@d.test\n", ErrFrom, "From"},
		{"E2-34 two From, signed", Options{Signed: true}, from + from, ErrFrom, "From"},
		{"E2-34 empty From", Options{}, "From: \n", ErrAddress, "From"},
		{"E2-34 From without an address", Options{}, "From: Cron Daemon\n", ErrAddress, "From"},
		{"E2-34 From of nobody", Options{}, "From: nobody:;\n", ErrAddress, "From"},
		{"E2-34 From in an open comment", Options{}, "From: (a@b.test\n", ErrAddress, "From"},
		{"E2-34 two authors of a notification", Options{}, "From: a@b.test, c@d.test\n", ErrSender, "From"},
		{"E2-34 two authors of signed mail", Options{Signed: true, ReversePath: bob}, "From: a@b.test, c@d.test\n", ErrSender, "From"},
		{"E2-34 two Sender", Options{}, from + "Sender: a@b.test\nSender: c@d.test\n", ErrRepeated, "Sender"},
		{"E2-34 two Reply-To", Options{}, from + "Reply-To: a@b.test\nreply-to: c@d.test\n", ErrRepeated, "Reply-To"},
		{"E2-34 two To", Options{}, from + "To: a@b.test\nTo: c@d.test\n", ErrRepeated, "To"},
		{"E2-34 two Cc", Options{}, from + "Cc: a@b.test\nCC: c@d.test\n", ErrRepeated, "Cc"},
		{"E2-34 two Date", Options{}, from + date + date, ErrRepeated, "Date"},
		{"E2-34 two Subject", Options{}, from + "Subject: a\nSubject: a\n", ErrRepeated, "Subject"},
		{"E2-34 two Message-ID", Options{}, from + "Message-ID: <a@b>\nMessage-Id: <c@d>\n", ErrRepeated, "Message-ID"},
		{"E2-34 two In-Reply-To", Options{}, from + "In-Reply-To: <a@b>\nIn-Reply-To: <a@b>\n", ErrRepeated, "In-Reply-To"},
		{"E2-34 two References", Options{}, from + "References: <a@b>\nReferences: <a@b>\n", ErrRepeated, "References"},
		{"E1-19 UTF-8 local part", Options{}, from + "To: ü@d.test\n", ErrNeedsUTF8, "To"},
		{"E1-19 UTF-8 local part in brackets", Options{}, from + "To: U <ü@d.test>\n", ErrNeedsUTF8, "To"},
		{"E1-19 UTF-8 name with a comma and no quotes", Options{ReversePath: bob}, "From: Müller, Jörg <j@d.test>\n", ErrNeedsUTF8, "From"},
		{"E1-19 UTF-8 domain that is none", Options{}, from + "To: u@ü..test\n", ErrNeedsUTF8, "To"},
		{"E1-19 UTF-8 in a route", Options{}, from + "To: <@ü.test:u@d.test>\n", Err8Bit, "To"},
		{"E1-19 UTF-8 in what is no address list", Options{}, "From: ü <a@b.test> <c@d.test>\n", Err8Bit, "From"},
		{"E1-19 UTF-8 in Message-ID", Options{}, from + "Message-ID: <ü@b>\n", Err8Bit, "Message-ID"},
		{"E1-19 UTF-8 in Received", Options{}, from + "Received: from x (ü)\n by y; z\n", Err8Bit, "Received"},
		{"E1-19 UTF-8 in a boundary", Options{}, from + "Content-Type: multipart/mixed; boundary=\"ü\"\n", Err8Bit, "Content-Type"},
		{"E1-19 UTF-8 in a media type", Options{}, from + "Content-Type: text/plän\n", Err8Bit, "Content-Type"},
		{"E1-19 UTF-8 in one of two file names", Options{}, from + "Content-Disposition: attachment; filename=\"ü\"; filename*=UTF-8''%C3%BC\n", Err8Bit, "Content-Disposition"},
		{"E1-19 UTF-8 in a part of a file name", Options{}, from + "Content-Disposition: attachment; filename*0=\"ü\"\n", Err8Bit, "Content-Disposition"},
		{"E1-19 UTF-8 in signed mail", Options{Signed: true}, from + "Subject: ü\n", Err8Bit, "Subject"},
		{"E1-19 UTF-8 in what is no field", Options{}, from + "ü\n", Err8Bit, ""},
		{"E1-19 Latin-1 with SMTPUTF8", Options{UTF8: true}, from + "X-Thing: \xfc\n", ErrNotUTF8, "X-Thing"},
		{"E1-19 Sender in UTF-8 is needed", Options{ReversePath: address.Path{Local: "ü", Domain: "b.test"}},
			"From: a@b.test, c@d.test\n", ErrNeedsUTF8, "Sender"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Fix(crlf(tt.in), tt.o)
			e, isError := errors.AsType[*Error](err)
			if !isError || !errors.Is(err, tt.want) || e.Field != tt.field || got != nil {
				t.Fatalf("got %q, %v, want %v of %q", got, err, tt.want, tt.field)
			}
			if !strings.Contains(err.Error(), tt.field) || !isASCII([]byte(err.Error())) {
				t.Errorf("got text %q", err)
			}
		})
	}
}

func TestEnhanced(t *testing.T) {
	for cause, want := range map[error][3]int{
		ErrFrom: {5, 6, 0}, ErrRepeated: {5, 6, 0}, ErrAddress: {5, 6, 0}, ErrSender: {5, 6, 0}, ErrNotUTF8: {5, 6, 0},
		ErrNeedsUTF8: {5, 6, 7}, Err8Bit: {5, 6, 9},
	} {
		if got := (&Error{Field: "To", Err: cause}).Enhanced(); got != want {
			t.Errorf("%v: got %v, want %v", cause, got, want)
		}
	}
}

// ordinary is a header as most are.
var ordinary = crlf(date + `From: "Doe, John" <john@a.test>
To: Jane Doe <jane@b.test>, "M. M." <m@c.test>,
 o@d.test (O)
Subject: =?UTF-8?Q?Gr=C3=BC=C3=9Fe?= and a longer line of text that goes
 on and on
Message-ID: <123.456@a.test>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="xyz"
X-Mailer: something 1.2.3
List-Unsubscribe: <https://a.test/u?x=1>
`)

func TestNothingToDoAllocatesNothing(t *testing.T) {
	for name, o := range map[string]Options{"7-bit": {}, "UTF-8": {UTF8: true}, "signed": {Signed: true}, "hide": {HideReceived: true}} {
		allocs := testing.AllocsPerRun(100, func() {
			if got, err := Fix(ordinary, o); err != nil || &got[0] != &ordinary[0] {
				t.Fatalf("%s: got %q, %v", name, got, err)
			}
		})
		if allocs != 0 {
			t.Errorf("%s: got %v allocations, want none", name, allocs)
		}
	}
}

// TestLongListsTakeLinearTime guards against headers made to cost time.
func TestLongListsTakeLinearTime(t *testing.T) {
	for _, piece := range []string{"(", `"`, "[", `\`, "<", "ü(", "ü ", "ü,", `"ü"`, ";ü=", "=?", "ü=?u?q?a?= ", "a@ü.test,", "<ü>", "((ü) "} {
		for _, name := range []string{"From", "To", "Subject", "Content-Type", "Keywords", "Date", "X-A"} {
			for _, end := range []string{"", ")"} {
				in := crlf("From: a@b.test\n" + name + ": " + strings.Repeat(piece, 100<<10/len(piece)) + end + "\n")
				if name == "From" {
					in = in[len("From: a@b.test\r\n"):]
				}
				_, _ = Fix(in, Options{ReversePath: bob})
				_, _ = Authors(in)
			}
		}
	}
}

func BenchmarkFix(b *testing.B) {
	hidden := append(append([]byte(nil), ordinary...), "Bcc: x@y.test\r\n"...)
	umlauts := append(append([]byte(nil), ordinary...), "Comments: Grüße aus Köln an alle Freunde der Straßenbahn\r\n"...)
	for _, bb := range []struct {
		name string
		in   []byte
	}{{"nothing to do", ordinary}, {"Bcc", hidden}, {"8-bit", umlauts}} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(bb.in)))
			for b.Loop() {
				if _, err := Fix(bb.in, Options{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAuthors(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Authors(ordinary); err != nil {
			b.Fatal(err)
		}
	}
}
