package smtpc

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestReadReply(t *testing.T) {
	tests := []struct {
		name, in string
		want     Reply
	}{
		{"one line", "250 ok\r\n", Reply{Code: 250, Lines: []string{"ok"}}},
		{"no text", "250\r\n", Reply{Code: 250, Lines: []string{""}}},
		{"blank text", "250 \r\n", Reply{Code: 250, Lines: []string{""}}},
		{"LF", "250 ok\n", Reply{Code: 250, Lines: []string{"ok"}}},
		{"several lines", "250-a\r\n250-b\r\n250 c\r\n", Reply{Code: 250, Lines: []string{"a", "b", "c"}}},
		{"the last line decides", "250-a\r\n550 b\r\n", Reply{Code: 550, Lines: []string{"a", "b"}}},
		{"continuation without code", "550-a\r\nand more\r\n550 b\r\n", Reply{Code: 550, Lines: []string{"a", "and more", "b"}}},
		{"no space", "250ok\r\n", Reply{Code: 250, Lines: []string{"ok"}}},
		{"enhanced", "550 5.1.1 unknown\r\n", Reply{Code: 550, Enhanced: "5.1.1", Lines: []string{"unknown"}}},
		{"enhanced alone", "250 2.0.0\r\n", Reply{Code: 250, Enhanced: "2.0.0", Lines: []string{""}}},
		{"enhanced on each line", "550-5.7.26 a\r\n550-5.7.26\r\n550 5.7.26 b\r\n", Reply{Code: 550, Enhanced: "5.7.26", Lines: []string{"a", "", "b"}}},
		{"enhanced of another class", "450 5.1.1 hm\r\n", Reply{Code: 450, Lines: []string{"5.1.1 hm"}}},
		{"not enhanced", "550 5.1 no\r\n", Reply{Code: 550, Lines: []string{"5.1 no"}}},
		{"not enhanced either", "550 5.+1.1234 no\r\n", Reply{Code: 550, Lines: []string{"5.+1.1234 no"}}},
		{"long line", "250 " + strings.Repeat("x", 5000) + "\r\n", Reply{Code: 250, Lines: []string{strings.Repeat("x", 5000)}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readReply(bufio.NewReader(strings.NewReader(tt.in)), 6000)
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("error %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestReadReplyErrors(t *testing.T) {
	tests := []struct {
		name, in string
		want     error
	}{
		{"nothing", "", io.EOF},
		{"half a line", "250 o", io.ErrUnexpectedEOF},
		{"half a reply", "250-o\r\n", io.EOF},
		{"no code", "ok\r\n", ErrProtocol},
		{"blank line", "\r\n", ErrProtocol},
		{"class 1", "150 hm\r\n", ErrProtocol},
		{"class 6", "650 hm\r\n", ErrProtocol},
		{"four digits", "2500 hm\r\n", ErrProtocol},
		{"too long a line", "250 " + strings.Repeat("x", 10_000), ErrProtocol},
		{"too many lines", strings.Repeat("250-x\r\n", 1000), ErrProtocol},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := readReply(bufio.NewReader(strings.NewReader(tt.in)), 6000); !errors.Is(err, tt.want) {
				t.Errorf("got %v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

func TestReplyText(t *testing.T) {
	tests := []struct {
		name  string
		lines []string
		want  string
	}{
		{"lines are joined", []string{"a", "b"}, "a b"},
		{"controls", []string{"a\x1b[31m\tb\x00\r"}, "a?[31m?b??"},
		{"UTF-8 stays, other octets do not", []string{"Bücher \xff\xfe \u202e"}, "Bücher ?? ?"},
		{"long", []string{strings.Repeat("ü", 1000)}, strings.Repeat("ü", 254) + "..."},
		{"many", slicesOf("abc", 1000), strings.Repeat("abc ", 127) + "a..."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Reply{Lines: tt.lines}.Text()
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func slicesOf(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

func TestReplyClass(t *testing.T) {
	tests := []struct {
		code          int
		phase         Phase
		ok, permanent bool
	}{
		{250, PhaseDot, true, false},
		{354, PhaseRcpt, false, false},
		{450, PhaseRcpt, false, false},
		{550, PhaseRcpt, false, true},
		{554, PhaseGreeting, false, false},
		{521, PhaseGreeting, false, true},
		{556, PhaseGreeting, false, true},
		{554, PhaseStartTLS, false, false},
		{0, PhaseDot, false, false},
	}
	for _, tt := range tests {
		r := Reply{Code: tt.code, Phase: tt.phase}
		if r.OK() != tt.ok || r.Permanent() != tt.permanent || r.Temporary() == (tt.ok || tt.permanent) {
			t.Errorf("%d at %s: got OK %v, permanent %v, temporary %v", tt.code, tt.phase, r.OK(), r.Permanent(), r.Temporary())
		}
	}
}

func TestParseEhlo(t *testing.T) {
	e := parseEhlo(Reply{Lines: []string{"mx.test size 5", "size 1000", "StartTLS", "AUTH=LOGIN PLAIN", "LIMITS RCPTMAX=10", "", "SIZE 5", "X\tY"}})
	want := map[string]string{"SIZE": "1000", "STARTTLS": "", "AUTH": "LOGIN PLAIN", "LIMITS": "RCPTMAX=10", "X": "Y"}
	if diff := cmp.Diff(want, e.params); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if e.MaxSize() != 1000 || !e.Has("starttls") || e.Has("mx.test") {
		t.Errorf("got size %d", e.MaxSize())
	}
	for _, param := range []string{"", "x", "-1", "0", "99999999999999999999"} {
		if got := parseEhlo(Reply{Lines: []string{"mx", "SIZE " + param}}).MaxSize(); got != 0 {
			t.Errorf("SIZE %s: got %d", param, got)
		}
	}
	many := Reply{Lines: []string{"mx"}}
	for _, c := range strings.Repeat("abcdefghij", 20) {
		many.Lines = append(many.Lines, strings.Repeat(string(c), len(many.Lines)))
	}
	if got := len(parseEhlo(many).params); got != maxKeywords {
		t.Errorf("kept %d keywords", got)
	}
}

func FuzzReply(f *testing.F) {
	for _, seed := range []string{"250 ok\r\n", "250-a\r\n250 b\r\n", "550 5.1.1 no\r\n", "250", "ok\r\n", "220-\r\n\r\n220 \x00\xff\r\n", "421 4.4.2\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		const max = 200
		r := bufio.NewReaderSize(strings.NewReader(string(in)), 16)
		got, err := readReply(r, max)
		if err != nil {
			return
		}
		if got.Code < 200 || got.Code > 599 || len(got.Lines) == 0 {
			t.Fatalf("got %+v", got)
		}
		if got.Enhanced != "" && int(got.Enhanced[0]-'0') != got.Code/100 {
			t.Fatalf("got enhanced %q of %d", got.Enhanced, got.Code)
		}
		text := got.Text()
		if !utf8.ValidString(text) || len(text) > maxTextBytes || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Fatalf("got text %q", text)
		}
	})
}

func FuzzEhlo(f *testing.F) {
	for _, seed := range []string{"250-mx\r\n250 SIZE 1\r\n", "250 mx\r\n", "250-mx\r\n250-=\r\n250 AUTH=\r\n", "250-\r\n250- \t\r\n250 size\r\n", "250-mx\r\n250 LIMITS RCPTMAX=1 MAILMAX=x\r\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := readReply(bufio.NewReader(strings.NewReader(string(in))), 4000)
		if err != nil {
			return
		}
		e := parseEhlo(r)
		if l := e.Limits(); l.Recipients < 0 || l.Messages < 0 || l.Domains < 0 {
			t.Fatalf("got limits %+v", l)
		}
		if len(e.params) > maxKeywords || e.MaxSize() < 0 || e.Has("") {
			t.Fatalf("got %v", e.params)
		}
		for keyword := range e.params {
			if !e.Has(strings.ToLower(keyword)) && strings.ToUpper(strings.ToLower(keyword)) == keyword || strings.ContainsAny(keyword, " \t=") {
				t.Fatalf("got keyword %q", keyword)
			}
		}
	})
}

func TestE4_65_Limits(t *testing.T) {
	for _, tt := range []struct {
		line string
		want Limits
	}{
		{"LIMITS RCPTMAX=20 MAILMAX=5 RCPTDOMAINMAX=1", Limits{20, 5, 1}},
		{"limits mailmax=7 OTHER=1 WORD", Limits{Messages: 7}},
		{"LIMITS RCPTMAX=0 MAILMAX=-1 RCPTDOMAINMAX=x", Limits{}},
		{"LIMITS RCPTMAX=99999999999999999999", Limits{}},
		{"SIZE 5", Limits{}},
	} {
		if got := parseEhlo(Reply{Lines: []string{"mx", tt.line}}).Limits(); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.line, got, tt.want)
		}
	}
	rcpts := message(t, "a@x.example", "b@x.example", "c@y.example", "d@x.example").Recipients
	for _, tt := range []struct {
		limits Limits
		want   int
	}{{Limits{}, 4}, {Limits{Recipients: 3}, 3}, {Limits{Recipients: 9}, 4}, {Limits{Domains: 1}, 2}, {Limits{Domains: 2}, 4}, {Limits{Recipients: 1, Domains: 1}, 1}} {
		if got := tt.limits.Fit(rcpts); got != tt.want {
			t.Errorf("%+v: got %d, want %d", tt.limits, got, tt.want)
		}
	}
	if got := (Limits{Recipients: 1}).Fit(nil); got != 0 {
		t.Errorf("nobody: got %d", got)
	}
}
