package submission

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postroad/queue/address"
)

func paths(s ...string) []address.Path {
	list := make([]address.Path, 0, len(s))
	for _, text := range s {
		p, err := address.Parse(text)
		if err != nil {
			panic(err)
		}
		list = append(list, p)
	}
	return list
}

func TestAuthors(t *testing.T) {
	tests := []struct {
		name string
		in   string
		want []address.Path
	}{
		{"bare", "From: a@b.test\n", paths("a@b.test")},
		{"in brackets", "From: A B <a@b.test>\n", paths("a@b.test")},
		{"case", "fRoM:<A@B.TEST>\n", paths("A@b.test")},
		{"blanks in the brackets", "From: < a@b.test\n >\n", paths("a@b.test")},
		{"comment behind", "From: a@b.test (A @ B)\n", paths("a@b.test")},
		{"comment in front", "From: (x) <a@b.test>\n", paths("a@b.test")},
		{"initials", "From: J. R. Doe <a@b.test>\n", paths("a@b.test")},
		{"address in a quoted name", `From: "x <evil@c.test>, y" <a@b.test>` + "\n", paths("a@b.test")},
		{"quote in a quoted name", `From: "x\" <evil@c.test>, \"y" <a@b.test>` + "\n", paths("a@b.test")},
		{"encoded address as a name", "From: =?utf-8?q?evil=40c.test?= <a@b.test>\n", paths("a@b.test")},
		{"name in 8-bit", "From: J\xf6rg <a@b.test>\n", paths("a@b.test")},
		{"quoted local part", `From: "a b"@b.test` + "\n", paths(`"a b"@b.test`)},
		{"address as a quoted local part", `From: "evil@c.test"@b.test` + "\n", paths(`"evil@c.test"@b.test`)},
		{"U-label", "From: a@bücher.test\n", paths("a@bücher.test")},
		{"literal", "From: <a@[192.0.2.1]>\n", paths("a@[192.0.2.1]")},
		{"UTF-8", "From: ü@b.test\n", paths("ü@b.test")},
		{"several", "From: a@b.test, X <c@d.test>,\n e@f.test\n", paths("a@b.test", "c@d.test", "e@f.test")},
		{"empty elements", "From: ,, a@b.test,\n", paths("a@b.test")},
		{"group", "From: G H: a@b.test, X <c@d.test>; , e@f.test\n", paths("a@b.test", "c@d.test", "e@f.test")},
		{"postmaster", "From: postmaster\n", paths("postmaster")},
		{"with Sender", "Sender: S <s@t.test>\nFrom: a@b.test\nSubject: x\n", paths("a@b.test", "s@t.test")},
		{"other fields are not asked", "X-From: x\nResent-From: <<>>\nFrom: a@b.test\nFrom-: y\nReply-To: z@z.test\n", paths("a@b.test")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Authors(crlf(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestAuthorsRefused(t *testing.T) {
	tests := []struct {
		name string
		in   string
		want error
	}{
		{"none", "To: a@b.test\n", ErrFrom},
		{"two fields", "From: a@b.test\nFrom: evil@c.test\n", ErrFrom},
		{"two fields, one with blanks before the colon", "From: a@b.test\nFrom \t: evil@c.test\n", ErrFrom},
		{"blanks before the colon", "From : a@b.test\n", ErrAmbiguous},
		{"blanks before the colon of Sender", "From: a@b.test\nSender\t: evil@c.test\n", ErrAmbiguous},
		{"two Sender", "From: a@b.test\nSender: a@b.test\nSender: a@b.test\n", ErrRepeated},
		{"Sender with two addresses", "From: a@b.test\nSender: a@b.test, a@b.test\n", ErrAddress},
		{"empty Sender", "From: a@b.test\nSender:\n", ErrAddress},
		{"empty", "From:\n", ErrAddress},
		{"text", "From: me\n and you\n", ErrAddress},
		{"a first line that continues nothing", " From: a@b.test\nFrom: a@b.test\n", ErrAmbiguous},
		{"NUL in the name", "From\x00: evil@c.test\nFrom: a@b.test\n", ErrAmbiguous},
		{"letters in the name", "Fröm: evil@c.test\nFrom: a@b.test\n", ErrAmbiguous},
		{"no colon", "From evil@c.test\nFrom: a@b.test\n", ErrAmbiguous},
		{"unqualified", "From: root\n", address.ErrNoDomain},
		{"unqualified in brackets", "From: Root <root>\n", address.ErrNoDomain},
		{"unqualified beside a good one", "From: a@b.test, root\n", address.ErrNoDomain},
		{"null", "From: <>\n", ErrAddress},
		{"route", "From: <@a.test,@b.test:u@c.test>\n", ErrAmbiguous},
		{"route of one", "From: X <@evil.test:u@c.test>\n", ErrAmbiguous},
		{"two in brackets", "From: <a@b.test> <evil@c.test>\n", ErrAddress},
		{"brackets in brackets", "From: <a@b.test<evil@c.test>>\n", ErrAddress},
		{"address as a name", "From: evil@c.test <a@b.test>\n", ErrAddress},
		{"address behind", "From: <a@b.test> evil@c.test\n", ErrAddress},
		{"no closing bracket", "From: X <a@b.test\n", ErrAddress},
		{"no opening bracket", "From: a@b.test>\n", ErrAddress},
		{"open quote", "From: \"x <a@b.test>\n", ErrAddress},
		{"open comment", "From: a@b.test (x\n", ErrAddress},
		{"closing parenthesis alone", "From: x) <a@b.test>\n", ErrAddress},
		{"bracket in the name", "From: [x] <a@b.test>\n", ErrAmbiguous},
		{"backslash outside of quotes", `From: x\"y <a@b.test>` + "\n", ErrAddress},
		{"address in a comment", "From: (<evil@c.test>) a@b.test\n", ErrAmbiguous},
		{"comment in a comment", "From: a@b.test (x (y) <evil@c.test>)\n", ErrAmbiguous},
		{"quoted pair in a comment", `From: a@b.test (x \) , evil@c.test)` + "\n", ErrAmbiguous},
		{"comment in the address", "From: a(x)@b.test\n", ErrAmbiguous},
		{"comment before the domain", "From: a@(evil.test)b.test\n", ErrAmbiguous},
		{"comment in brackets", "From: <a@b.test(evil@c.test)>\n", ErrAmbiguous},
		{"blank before the at", "From: <a @b.test>\n", ErrAmbiguous},
		{"fold behind the at", "From: a@\n b.test\n", ErrAmbiguous},
		{"blank in the domain", "From: a@b.test .evil.test\n", ErrAddress},
		{"encoded word as the local part", "From: =?utf-8?q?evil?=@b.test\n", ErrAmbiguous},
		{"encoded word in quotes as the local part", `From: "=?utf-8?q?evil?="@b.test` + "\n", ErrAmbiguous},
		{"encoded word as the domain", "From: a@=?utf-8?q?c=2Etest?=\n", ErrAmbiguous},
		{"encoded word as all", "From: =?utf-8?q?evil=40c.test?=\n", ErrAmbiguous},
		{"two local parts", `From: "a"."b"@c.test` + "\n", ErrAddress},
		{"dots", "From: a..b@c.test\n", ErrAddress},
		{"two at", "From: a@b@c.test\n", ErrAddress},
		{"NUL in the address", "From: a\x00@b.test\n", ErrAddress},
		{"NUL in a quoted name", "From: \"x\x00\" <a@b.test>\n", ErrAmbiguous},
		{"escape in a quoted name", "From: \"x\x1b[1m\" <a@b.test>\n", ErrAmbiguous},
		{"escaped line end in a quoted name", "From: \"x\\\n \" <evil@c.test>, \"y\" <a@b.test>\n", ErrAmbiguous},
		{"fold in a quoted local part", "From: \"a\n b\"@c.test\n", ErrAddress},
		{"group without an end", "From: g: a@b.test\n", ErrAddress},
		{"group of nobody", "From: g:;\n", ErrAddress},
		{"group in a group", "From: g: h: a@b.test;;\n", ErrAddress},
		{"address as the name of a group", "From: evil@c.test: a@b.test;\n", ErrAddress},
		{"semicolon for a comma", "From: a@b.test; evil@c.test\n", ErrAddress},
		{"bad domain", "From: a@b_.-test\n", ErrAddress},
		{"Latin-1 in the address", "From: \xfc@b.test\n", ErrAddress},
		{"a blank of Latin-1", "From: a@b.test\xa0<evil@c.test>\n", ErrAddress},
		{"too long", "From: " + strings.Repeat("a", 65) + "@b.test\n", ErrAddress},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Authors(crlf(tt.in))
			if !errors.Is(err, tt.want) || got != nil {
				t.Fatalf("got %v, %v, want %v", got, err, tt.want)
			}
			if text := err.Error(); !isASCII([]byte(text)) || strings.ContainsAny(text, "\r\n\x00") {
				t.Errorf("got text %q", text)
			}
		})
	}
}
