package rewrite

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMailboxes(t *testing.T) {
	tests := []struct {
		name, value string
		want        string // the addresses, bare ones with a star
		odd, broken bool
	}{
		{name: "nothing", value: " ", want: ""},
		{name: "bare", value: " a@b.test", want: "a@b.test*"},
		{name: "bare with comments", value: " (x, y) a@b.test (Al, <c@d.test> \\) (deep))", want: "a@b.test*"},
		{name: "named", value: " Al <a@b.test>", want: "a@b.test"},
		{name: "list", value: "a@b.test,c@d.test, E <e@f.test>", want: "a@b.test* c@d.test* e@f.test"},
		{name: "folded", value: " a@b.test,\r\n\tC D\r\n <c@d.test>", want: "a@b.test* c@d.test"},
		{name: "quoted name", value: ` "x, <y@z.test> \" :;" <a@b.test>`, want: "a@b.test"},
		{name: "quoted local part", value: ` "a, b"@c.test, <"d>e"@f.test>`, want: `"a, b"@c.test* "d>e"@f.test`},
		{name: "dots and @ in a name", value: " J. R. x@y <a@b.test>", want: "a@b.test"},
		{name: "brackets in a name", value: " [Team] Al [2] <a@b.test>", want: "a@b.test"},
		{name: "encoded word", value: " =?utf-8?Q?J=C3=BCrgen?= <a@b.test>", want: "a@b.test"},
		{name: "UTF-8", value: " Jürgen <jürgen@bücher.test>", want: "jürgen@bücher.test"},
		{name: "Latin-1", value: " J\xfcrgen <a@b.test>", want: "a@b.test"},
		{name: "group", value: " Friends: a@b.test, C <c@d.test>; , e@f.test", want: "a@b.test* c@d.test e@f.test*"},
		{name: "empty group", value: " undisclosed-recipients:;", want: ""},
		{name: "empty places", value: " ,, a@b.test ,", want: "a@b.test*"},
		{name: "empty brackets", value: " MAILER-DAEMON <>", want: ""},
		{name: "blanks in brackets", value: " < a@b.test\r\n >", want: "a@b.test"},
		{name: "domain literal", value: " a@[IPv6:2001:db8::1], <b@[192.0.2.1]>", want: "a@[IPv6:2001:db8::1]* b@[192.0.2.1]"},
		{name: "local part alone", value: " root (Cron Daemon)", want: "root*"},
		{name: "name alone", value: " John Doe", odd: true},
		{name: "blanks within", value: " a @ b.test, c@d.test", want: "c@d.test*", odd: true},
		{name: "route", value: " <@a.test,@b.test:c@d.test>", want: "@a.test,@b.test:c@d.test"},
		{name: "open quote", value: ` "a@b.test`, broken: true},
		{name: "open comment", value: ` (a@b.test \)`, broken: true},
		{name: "open bracket", value: " <a@b.test", broken: true},
		{name: "closed twice", value: " <a@b.test>>", broken: true},
		{name: "two addresses", value: " <a@b.test> <c@d.test>", broken: true},
		{name: "nested", value: " <a@b.test <c@d.test>", broken: true},
		{name: "words behind", value: " <a@b.test> x", broken: true},
		{name: "colon", value: " mailto:a@b.test", broken: true},
		{name: "semicolons", value: " a@b.test; c@d.test", broken: true},
		{name: "open group", value: " g: a@b.test", broken: true},
		{name: "group in group", value: " g: h: a@b.test;;", broken: true},
		{name: "word behind a group", value: " g: a@b.test; c@d.test", broken: true},
		{name: "backslash", value: ` a\@b.test`, broken: true},
		{name: "control", value: " a\x00@b.test", broken: true},
		{name: "bare CR", value: " a@b.test,\r c@d.test", broken: true},
		{name: "open literal", value: " a@[192.0.2.1", broken: true},
		{name: "closing parenthesis", value: " a@b.test)", broken: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := []byte(tt.value + "\r\n")
			boxes, odd, ok := mailboxes(v, nil)
			var got []string
			for _, b := range boxes {
				text := string(v[b.start:b.end])
				if !b.isNamed {
					text += "*"
				}
				got = append(got, text)
			}
			if ok == tt.broken || odd != tt.odd {
				t.Errorf("got odd %v, ok %v", odd, ok)
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
