package address

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParse(t *testing.T) {
	long := strings.Repeat("a", 64)
	label := strings.Repeat("d", 63)
	tests := []struct {
		name, in string
		want     Path
		err      error
	}{
		{"null path", "", Path{}, nil},
		{"plain", "john@example.com", Path{"john", "example.com"}, nil},
		{"case", "John.Doe@EXAMPLE.Com", Path{"John.Doe", "example.com"}, nil},
		{"atext specials", "a!#$%&'*+-/=?^_`{|}~z@b", Path{"a!#$%&'*+-/=?^_`{|}~z", "b"}, nil},
		{"quoted without need", `"john"@example.com`, Path{"john", "example.com"}, nil},
		{"quoted space and bracket", `"x> y"@example.com`, Path{"x> y", "example.com"}, nil},
		{"quoted at", `"a@b"@c.example`, Path{"a@b", "c.example"}, nil},
		{"quoted pair", `"a\"b\\c\d"@e`, Path{`a"b\cd`, "e"}, nil},
		{"quoted empty", `""@example.com`, Path{"", "example.com"}, nil},
		{"postmaster", "postmaster", Path{"postmaster", ""}, nil},
		{"postmaster in another case", "PostMaster", Path{"PostMaster", ""}, nil},
		{"quoted postmaster without domain", `"postmaster"`, Path{}, ErrSyntax},
		{"IPv4 literal", "a@[192.0.2.1]", Path{"a", "[192.0.2.1]"}, nil},
		{"IPv6 literal", "a@[ipv6:2001:DB8:0::1]", Path{"a", "[IPv6:2001:db8::1]"}, nil},
		{"IPv6 literal without tag", "a@[2001:db8::1]", Path{}, ErrLiteral},
		{"IPv4 in IPv6 tag", "a@[IPv6:192.0.2.1]", Path{}, ErrLiteral},
		{"IPv6 zone", "a@[IPv6:fe80::1%eth0]", Path{}, ErrLiteral},
		{"open literal", "a@[192.0.2.1", Path{}, ErrLiteral},
		{"UTF-8 local part", "jürgen@example.com", Path{"jürgen", "example.com"}, nil},
		{"quoted UTF-8", `"jü rgen"@example.com`, Path{"jü rgen", "example.com"}, nil},
		{"U-label", "a@Bücher.example", Path{"a", "xn--bcher-kva.example"}, nil},
		{"A-label", "a@XN--bcher-kva.example", Path{"a", "xn--bcher-kva.example"}, nil},
		{"local 64", long + "@b", Path{long, "b"}, nil},
		{"local 65", long + "a@b", Path{}, ErrTooLong},
		{"domain 190", "a@" + strings.Repeat(label+".", 3) + "b", Path{"a", strings.Repeat(label+".", 3) + "b"}, nil},
		{"domain 256", "a@" + strings.Repeat(label+".", 4) + "b", Path{}, ErrTooLong},
		{"path above 256", long + "@" + strings.Repeat(label+".", 3) + "b", Path{}, ErrTooLong},
		{"no domain", "john", Path{}, ErrNoDomain},
		{"empty domain", "john@", Path{}, ErrNoDomain},
		{"empty local", "@example.com", Path{}, ErrLocal},
		{"two at", "a@b@c", Path{}, ErrDomain},
		{"dot first", ".a@b", Path{}, ErrLocal},
		{"dot last", "a.@b", Path{}, ErrLocal},
		{"two dots", "a..b@c", Path{}, ErrLocal},
		{"space", "a b@c", Path{}, ErrLocal},
		{"angle bracket", "a>b@c", Path{}, ErrLocal},
		{"CR", "a\r@b", Path{}, ErrLocal},
		{"quoted LF", "\"a\n\"@b", Path{}, ErrLocal},
		{"quoted NUL", "\"a\x00\"@b", Path{}, ErrLocal},
		{"quoted pair of CR", "\"a\\\r\"@b", Path{}, ErrLocal},
		{"DEL", "a\x7f@b", Path{}, ErrLocal},
		{"C1 control", "a\u0085@b", Path{}, ErrLocal},
		{"bad UTF-8", "a\xff@b", Path{}, ErrLocal},
		{"open quote", `"a@b`, Path{}, ErrSyntax},
		{"text behind the quote", `"a"b@c`, Path{}, ErrSyntax},
		{"empty label", "a@b..test", Path{}, ErrDomain},
		{"final dot", "a@b.test.", Path{}, ErrDomain},
		{"control in domain", "a@b\x01.test", Path{}, ErrDomain},
		{"CRLF in domain", "a@b.test\r\nRCPT TO:<c@d>", Path{}, ErrDomain},
		{"bracket in domain", "a@b> NOTIFY=NEVER", Path{}, ErrDomain},
		{"hyphen first", "a@-b.test", Path{}, ErrDomain},
		{"hyphen last", "a@b-.test", Path{}, ErrDomain},
		{"underscore", "a@_b_c.test", Path{"a", "_b_c.test"}, nil},
		{"naked IPv4", "a@127.0.0.1", Path{}, ErrDomain},
		{"label of 64", "a@" + label + "d.test", Path{}, ErrDomain},
		{"U-label that maps to nothing", "a@\u00ad.test", Path{}, ErrDomain},
		{"source route", "@a.test:b@c.test", Path{}, ErrLocal},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(tt.in)
			if !errors.Is(err, tt.err) || (err != nil) != (tt.err != nil) {
				t.Fatalf("got error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if err != nil {
				if _, isTyped := errors.AsType[*ParseError](err); !isTyped {
					t.Errorf("got %T, want a *ParseError", err)
				}
				return
			}
			requireSame(t, got)
		})
	}
}

func TestParseForward(t *testing.T) {
	tests := []struct {
		name, in string
		want     Path
		err      error
	}{
		{"without route", "u@c.test", Path{"u", "c.test"}, nil},
		{"one hop", "@a.test:u@c.test", Path{"u", "c.test"}, nil},
		{"two hops", "@a.test,@b.test:u@c.test", Path{"u", "c.test"}, nil},
		{"a literal in the route", "@[IPv6:2001:db8::1],@b.test:u@c.test", Path{"u", "c.test"}, nil},
		{"quoted behind the route", `@a.test:"u:v"@c.test`, Path{"u:v", "c.test"}, nil},
		{"null path", "", Path{}, nil},
		{"route to nothing", "@a.test:", Path{}, ErrSyntax},
		{"hop without at", "@a.test,b.test:u@c.test", Path{}, ErrSyntax},
		{"bad hop", "@a..test:u@c.test", Path{}, ErrDomain},
		{"no mailbox", "@a.test", Path{}, ErrSyntax},
		{"open literal in the route", "@[IPv6:1:u@c.test", Path{}, ErrSyntax},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseForward(tt.in)
			if !errors.Is(err, tt.err) || (err != nil) != (tt.err != nil) {
				t.Fatalf("got error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestString(t *testing.T) {
	tests := []struct {
		name string
		in   Path
		want string
	}{
		{"null", Path{}, ""},
		{"dot string", Path{"a.b", "c.test"}, "a.b@c.test"},
		{"bracket", Path{"x> y", "b"}, `"x> y"@b`},
		{"quote and backslash", Path{`a"\b`, "c"}, `"a\"\\b"@c`},
		{"two dots", Path{"a..b", "c"}, `"a..b"@c`},
		{"hand-made injection in the local part", Path{"a\r\nDATA", "c"}, `"a??DATA"@c`},
		{"hand-made injection in the domain", Path{"a", "c> X=1\r\nDATA"}, "a@c??X=1??DATA"},
		{"hand-made local alone", Path{"a> b", ""}, `"a> b"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.in.String(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestNew(t *testing.T) {
	got, err := New("x> y", "Example.COM")
	if want := (Path{"x> y", "example.com"}); err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, bad := range [][2]string{{"a\n", "b"}, {"a", "b\r\n"}, {"", ""}, {"a", ""}, {strings.Repeat(`"`, 32), "b"}} {
		if got, err := New(bad[0], bad[1]); err == nil {
			t.Errorf("%q: got %v, want an error", bad, got)
		}
	}
}

func TestNeedsSMTPUTF8(t *testing.T) {
	for in, want := range map[string]bool{"a@b": false, "ü@b": true, "a@bücher.test": false, "": false} {
		p, err := Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.NeedsSMTPUTF8(); got != want {
			t.Errorf("%s: got %v, want %v", in, got, want)
		}
	}
}

func TestJSON(t *testing.T) {
	type box struct{ P Path }
	for _, p := range []Path{{}, {"a", "b.test"}, {`x> "y"`, "b.test"}, {"ü", "[192.0.2.1]"}, {"Postmaster", ""}} {
		text, err := json.Marshal(box{p})
		if err != nil {
			t.Fatal(err)
		}
		var got box
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		if got.P != p {
			t.Errorf("%s: got %v, want %v", text, got.P, p)
		}
	}
	for _, p := range []Path{{"a", ""}, {"a\n", "b"}, {"a", "B"}, {"a", "b "}, {strings.Repeat("a", 65), "b"}, {"\xff", "b"}} {
		if text, err := json.Marshal(box{p}); err == nil {
			t.Errorf("%v: got %s, want an error", p, text)
		}
	}
	if err := json.Unmarshal([]byte(`{"P":"a b@c"}`), new(box)); !errors.Is(err, ErrLocal) {
		t.Errorf("got %v, want %v", err, ErrLocal)
	}
}

func TestLiteral(t *testing.T) {
	addr, err := Literal("[IPv6:2001:db8::1]")
	if err != nil || addr.String() != "2001:db8::1" {
		t.Errorf("got %v, %v", addr, err)
	}
	if _, err := Literal("example.com"); !errors.Is(err, ErrLiteral) {
		t.Errorf("got %v, want %v", err, ErrLiteral)
	}
	if IsLiteral("example.com") || !IsLiteral("[192.0.2.1]") {
		t.Error("a literal begins with a bracket")
	}
}

func TestParseErrorIsOneSafeLine(t *testing.T) {
	_, err := Parse("a\r\n\x1b" + strings.Repeat("x", 1000) + "@b")
	if text := err.Error(); strings.ContainsAny(text, "\r\n\x1b") || len(text) > 500 {
		t.Errorf("got %q", text)
	}
}

// TestPrintThenParse is the property that everything else leans on.
func TestPrintThenParse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		local := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z.@"\\> <,;:]{0,20}`)).Draw(t, "local")
		domain := rapid.OneOf(
			rapid.StringMatching(`[a-zA-Z0-9-]{1,8}(\.[a-zA-Z0-9-]{1,8}){0,3}`),
			rapid.StringMatching(`\[[0-9.]{7,15}\]|\[IPv6:[0-9a-f:]{2,20}\]`),
			rapid.SampledFrom([]string{"bücher.example", "例え.jp", "b.test"}),
			rapid.String(),
		).Draw(t, "domain")
		p, err := New(local, domain)
		if err != nil {
			return
		}
		requireSame(t, p)
	})
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"", "a@b", `"x> y"@b`, `"a\"b\\"@[IPv6:::1]`, "@a,@b:c@d", "postmaster", "ü@bücher.example",
		"a@b..c", "a@[1.2.3.4]", "\"\r\n\"@b", "a@b> X=Y", "a\x00@b", "\xff@b", `""@b`, "a@xn--a",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) (Path, error){Parse, ParseForward} {
			if p, err := parse(s); err == nil {
				requireSame(t, p)
			}
		}
	})
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// requireSame checks that a path survives printing, that its print cannot end
// a command early, and that its limits hold.
func requireSame(t fataler, p Path) {
	t.Helper()
	s := p.String()
	again, err := Parse(s)
	if err != nil || again != p {
		t.Fatalf("%q came back as %v, %v, want %v", s, again, err, p)
	}
	if strings.ContainsAny(s, "\r\n\x00") || !utf8.ValidString(s) || len(s)+2 > MaxPath {
		t.Fatalf("%q must not be printed", s)
	}
	if _, err := p.MarshalText(); err != nil {
		t.Fatalf("%q cannot be stored: %v", s, err)
	}
	inQuotes := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case inQuotes && c == '\\':
			i++
		case c == '"':
			inQuotes = !inQuotes
		case !inQuotes && (c == '>' || c == '<' || c == ' '):
			t.Fatalf("%q ends early", s)
		}
	}
}
