package submission

import (
	"bytes"
	"errors"
	"net/mail"
	"slices"
	"strings"
	"testing"

	"postroad/queue/address"
)

// isStrict reports what ingress lets through: lines ended by CRLF, each a field
// or the continuation of one.
func isStrict(fields []byte) bool {
	if len(fields) > 0 && !bytes.HasSuffix(fields, []byte("\r\n")) || bytes.IndexByte(fields, 0) >= 0 || isBlank(append(fields, 'x')[0]) {
		return false
	}
	for line := range bytes.SplitSeq(bytes.TrimSuffix(fields, []byte("\r\n")), []byte("\r\n")) {
		if bytes.ContainsAny(line, "\r\n") || len(line) == 0 && len(fields) > 0 {
			return false
		}
		if n, _ := fieldName(line); len(line) > 0 && n == 0 && !isBlank(line[0]) {
			return false
		}
	}
	return true
}

func FuzzFix(f *testing.F) {
	for _, seed := range []string{
		string(ordinary), "", "\r\n", ":", "From", "From:\r\n", "\xff", "From: a@b\r\n\r\n",
		"From: ü <a@ü.test> (ü), g: b@c;\r\nSubject: ü =?u?q?x?= ü\r\nBcc: x\r\n y\r\n",
		"From: a@b\r\nContent-Type: text/plain; name=\"ü\xff\"; x=ü y (ü);;\r\nKeywords: ü, \"ü\"ö\r\nDate: x (\\ü (ü)) \r\n \r\n",
		"From: a@b\r\nReceived: a (ü);\r\n Tue, 25 Nov 2025 10:00:00 +0100\r\nX: ü\\\r\n\t\r\n",
		"From: (\\\r\n ü) a@b\r\n", "From: \"\\\r\n ü\"x[ü] <a@b>\r\n", "From: <@ü:a@b>, =?u?q?x?=ü <c@d>\r\n",
	} {
		for flags := range byte(8) {
			f.Add([]byte(seed), flags)
		}
	}
	f.Fuzz(func(t *testing.T, fields []byte, flags byte) {
		o := Options{UTF8: flags&1 != 0, Signed: flags&2 != 0, HideReceived: flags&4 != 0, ReversePath: bob}
		before := bytes.Clone(fields)
		out, err := Fix(fields, o)
		if !bytes.Equal(before, fields) {
			t.Fatalf("the fields of the caller have changed: %q, were %q", fields, before)
		}
		if err != nil {
			if e, isError := errors.AsType[*Error](err); !isError || !isASCII([]byte(e.Error())) || strings.ContainsAny(e.Error(), "\r\n") {
				t.Fatalf("got error %q", err)
			}
			return
		}
		if o.Signed && !bytes.Equal(out, fields) {
			t.Fatalf("signed mail was changed: %q", out)
		}
		if !isStrict(fields) {
			return
		}
		requireHeader(t, fields, out, o)
		if authors, err := Authors(fields); err == nil {
			requireAuthors(t, authors, out)
		}
	})
}

// FuzzDowngrade puts any text into any kind of field.
func FuzzDowngrade(f *testing.F) {
	fields := []string{"Subject", "To", "From", "Content-Type", "Keywords", "Date", "Message-ID", "List-Id", "X-" + strings.Repeat("x", 60)}
	for i := range fields {
		for _, seed := range []string{
			" ü =?u?q?x?= ü\n y", "ü<a@ü>,\"ü\"ö(ü (ö)\\) x) <b@c>;", "x; name=\"ü\xff\"; y=ü z (ü);; w=\"\"", "(\\\nü) \n \n", "\"\\\n ü\"x[ü] <a@b>, =?x ü <@c:d@e>",
			strings.Repeat("a@b,", 200) + "ü<a@b>" + strings.Repeat(",a@b", 40), strings.Repeat("x", 900) + "(ü)" + strings.Repeat("y", 60) + "ü",
		} {
			f.Add(byte(i), seed)
		}
	}
	f.Fuzz(func(t *testing.T, i byte, value string) {
		value = strings.NewReplacer("\r", "", "\x00", "", "\n", "\r\n ").Replace(value)
		in := []byte("From: a@b.test\r\n" + fields[int(i)%len(fields)] + ":" + value + "\r\n")
		if fields[int(i)%len(fields)] == "From" {
			in = in[len("From: a@b.test\r\n"):]
		}
		o := Options{ReversePath: bob}
		out, err := Fix(in, o)
		if err != nil {
			return
		}
		requireHeader(t, in, out, o)
		if authors, err := Authors(in); err == nil {
			requireAuthors(t, authors, out)
		}
	})
}

// requireAuthors checks that whoever the authors were to us, they are to those
// behind us.
func requireAuthors(t fataler, want []address.Path, out []byte) {
	t.Helper()
	got, err := Authors(out)
	if err == nil && len(got) > len(want) && got[len(got)-1] == bob {
		got = got[:len(got)-1]
	}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("got authors %v, %v, want %v: %q", got, err, want, out)
	}
}

func FuzzAuthors(f *testing.F) {
	for _, seed := range []string{
		"a@b.test", "A <a@b.test>", `"x" <a@b.test>, c@d.test (C)`, "g: a@b.test, <c@d.test>;", "<@a,@b:c@d>", "a(b)@c",
		"=?utf-8?q?a=40b?= <c@d.test>", `"a b"@[192.0.2.1]`, "ü@ü.test", "a@b.test\r\n (x),\r\n\tc@d", `"\"" <a@b>`, "(a) <b@c>", "a@b;", "a@b <c@d>",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		fields := []byte("From:" + value + "\r\n")
		if strings.Contains(value, "\n") && !isStrict(fields) {
			return
		}
		got, err := Authors(fields)
		if err != nil {
			return
		}
		if len(got) == 0 {
			t.Fatal("nobody, and no error")
		}
		// Another program that can read it must find the same ones.
		list, err := mail.ParseAddressList(string(unfold([]byte(value))))
		if err != nil {
			return
		}
		var want []address.Path
		for _, a := range list {
			at := strings.LastIndexByte(a.Address, '@')
			p, err := address.New(a.Address[:at], a.Address[at+1:])
			if err != nil {
				t.Fatalf("%q: %v", a.Address, err)
			}
			want = append(want, p)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%q: got %v, want %v", value, got, want)
		}
	})
}
