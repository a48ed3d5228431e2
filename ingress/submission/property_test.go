package submission

import (
	"bytes"
	"fmt"
	"mime"
	"net/mail"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// fataler is what rapid and the fuzzer share.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// requireHeader checks that out is a header, and what Fix promises of it.
func requireHeader(t fataler, in, out []byte, o Options) {
	t.Helper()
	longest := 0
	for line := range bytes.SplitSeq(in, []byte("\r\n")) {
		longest = max(longest, len(line))
	}
	if len(out) > 0 && !bytes.HasSuffix(out, []byte("\r\n")) || bytes.Contains(out, []byte("\r\n\r\n")) || bytes.HasPrefix(out, []byte("\r\n")) {
		t.Fatalf("no header: %q of %q", out, in)
	}
	for line := range bytes.SplitSeq(out, []byte("\r\n")) {
		if bytes.ContainsAny(line, "\r\n") {
			t.Fatalf("bare line end in %q of %q", line, in)
		}
		if len(line) > 998 && longest <= 998 {
			t.Fatalf("line of %d octets: %q of %q", len(line), line, in)
		}
	}
	if !o.UTF8 && !isASCII(out) {
		t.Fatalf("octets outside of ASCII: %q", out)
	}
	again, err := Fix(out, o)
	if err != nil || !bytes.Equal(again, out) {
		t.Fatalf("got %q, %v, want the same as before: %q", again, err, out)
	}
	if want, got := names(in, o), names(out, o); !slices.Equal(got, want) {
		t.Fatalf("got fields %q, want %q", got, want)
	}
}

// names lists the fields that stay, but not Sender.
func names(fields []byte, o Options) []string {
	var list []string
	for len(fields) > 0 {
		var f field
		f, fields = next(fields)
		if n := natureOf(f.raw[:f.name]); (!n.isHidden || o.Signed) && n.once != onceSender {
			list = append(list, strings.ToLower(string(f.raw[:f.name])))
		}
	}
	return list
}

// valueOf finds the value of a field, unfolded.
func valueOf(t fataler, fields []byte, name string) string {
	t.Helper()
	for len(fields) > 0 {
		var f field
		if f, fields = next(fields); string(f.raw[:f.name]) == name {
			return strings.TrimSpace(string(unfold(f.value())))
		}
	}
	t.Fatalf("no field %s", name)
	return ""
}

func decode(t fataler, text string) string {
	t.Helper()
	decoded, err := new(mime.WordDecoder).DecodeHeader(text)
	if err != nil {
		t.Fatalf("decode %q: %v", text, err)
	}
	return decoded
}

func requireWords(t fataler, out []byte) {
	t.Helper()
	for w := range bytes.FieldsFuncSeq(out, func(r rune) bool { return strings.ContainsRune(" \t\r\n(),", r) }) {
		if bytes.HasPrefix(w, []byte("=?UTF-8?")) && (len(w) > wordLength || !isEncodedWord(w)) {
			t.Fatalf("no encoded word: %q", w)
		}
	}
}

var (
	aRune  = rapid.RuneFrom([]rune("abc  ,.;:<>@()[]\"\\?=_-äöüßéжитя漢字😀\u00a0\u2028"))
	aWord  = rapid.StringMatching(`[a-z0-9!?=.,;:_-]{1,12}`)
	umlaut = rapid.StringMatching(`[a-z]{0,8}[äöüßжя漢😀]{1,12}[a-z,.!]{0,3}`)
	longer = rapid.StringMatching(`[a-z]{0,200}[äж漢😀a]{1,120}`)
	space  = rapid.SampledFrom([]string{" ", " ", " ", "  ", "\t", "\r\n ", " \r\n\t"})
	ready  = rapid.SampledFrom([]string{"=?utf-8?q?=C3=BCber?=", "=?UTF-8?B?w7w=?=", "=?iso-8859-1?Q?=FC_x?="})
)

// TestUnstructuredSaysTheSame: text is read as before by who decodes it.
func TestUnstructuredSaysTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b strings.Builder
		for range rapid.IntRange(1, 12).Draw(t, "words") {
			b.WriteString(space.Draw(t, "space"))
			b.WriteString(rapid.OneOf(aWord, umlaut, umlaut, longer, ready).Draw(t, "word"))
		}
		name := rapid.SampledFrom([]string{"Subject", "X-" + strings.Repeat("Long", 15)}).Draw(t, "name")
		in := []byte("From: a@b.test\r\n" + name + ":" + b.String() + "\r\n")
		out, err := Fix(in, Options{})
		if err != nil {
			t.Fatalf("%v", err)
		}
		requireHeader(t, in, out, Options{})
		requireWords(t, out)
		// What only looks like an encoded word is no matter of ours.
		if strings.Contains(strings.NewReplacer("=?utf-8?", "", "=?UTF-8?", "", "=?iso-8859-1?", "").Replace(b.String()), "=?") {
			return
		}
		if want, got := decode(t, valueOf(t, in, name)), decode(t, valueOf(t, out, name)); got != want {
			t.Fatalf("got %q, want %q, in %q", got, want, out)
		}
	})
}

// TestLinesStayShort: words of an ordinary length leave lines of at most 78.
func TestLinesStayShort(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.SliceOfN(rapid.OneOf(umlaut, rapid.StringMatching(`[a-z]{1,20}`)), 1, 60).Draw(t, "words")
		in := []byte("From: a@b.test\r\nSubject: ü " + strings.Join(words, " ") + "\r\n")
		out, err := Fix(in, Options{})
		if err != nil {
			t.Fatalf("%v", err)
		}
		for line := range bytes.SplitSeq(out, []byte("\r\n")) {
			if len(line) > lineLength {
				t.Fatalf("got %d octets in %q", len(line), line)
			}
		}
	})
}

// TestAddressesSayTheSame: names and addresses are read as before.
func TestAddressesSayTheSame(t *testing.T) {
	addr := rapid.SampledFrom([]string{"a@b.test", `"a b"@b.test`, "x.y+z@[192.0.2.1]", "long.long.long.long.long.long@long.long.long.test"})
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	rapid.Check(t, func(t *rapid.T) {
		var list []string
		var isComment []bool
		for range rapid.IntRange(1, 8).Draw(t, "mailboxes") {
			name := strings.TrimSpace(rapid.OneOf(rapid.StringOfN(aRune, 1, 40, -1), umlaut).Draw(t, "name"))
			if strings.Contains(name, "=?") {
				name = "x"
			}
			a := addr.Draw(t, "address")
			form := rapid.IntRange(0, 4).Draw(t, "form")
			isComment = append(isComment, form == 4)
			switch form {
			case 0:
				list = append(list, a)
			case 1:
				list = append(list, `"`+quote.Replace(name)+`" <`+a+">")
			case 2:
				list = append(list, `"`+quote.Replace(name)+`"<`+a+">")
			case 3:
				list = append(list, umlaut.Filter(func(s string) bool { return !strings.ContainsAny(s, ",.") }).Draw(t, "word")+" doe <"+a+">")
			case 4:
				list = append(list, a+" ("+strings.NewReplacer("(", "", ")", "", `\`, "", `"`, "").Replace(name)+"ü)")
			}
		}
		separator := rapid.SampledFrom([]string{", ", ",\r\n ", ",", " ,"}).Draw(t, "separator")
		in := []byte("From: a@b.test\r\nTo: " + strings.Join(list, separator) + "\r\n")
		out, err := Fix(in, Options{})
		if err != nil {
			t.Fatalf("%v: %q", err, in)
		}
		requireHeader(t, in, out, Options{})
		requireWords(t, out)
		want, err := mail.ParseAddressList(valueOf(t, in, "To"))
		if err != nil {
			t.Fatalf("%q: %v", in, err)
		}
		got, err := mail.ParseAddressList(valueOf(t, out, "To"))
		if err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		if len(want) != len(list) || len(got) != len(list) {
			t.Fatalf("got %v and %v, want %d", want, got, len(list))
		}
		// That parser makes one blank of several, but not in encoded words, and
		// in comments it puts blanks between encoded words.
		for i, a := range slices.Concat(want, got) {
			between := " "
			if isComment[i%len(want)] {
				between = ""
			}
			a.Name = strings.Join(strings.Fields(a.Name), between)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("-want +got:\n%s\n%q\n%q", diff, in, out)
		}
	})
}

// TestLinesStayLegal: a line of 998 octets never makes a longer one.
func TestLinesStayLegal(t *testing.T) {
	piece := rapid.SampledFrom([]string{"ü", "ü", "a", " ", ",", "<", ">", "@", "a@b", "a@ü", "<a@ü>", "ü<a@b>", `"ü"`, `"a b"`, "(ü)", "(", ")", ";",
		":", "x=ü", `;x="ü"`, "[ü]", "=?", "=?u?q?x?= ", strings.Repeat("y", 200), "\\", "\xff", " ü ", "\r\n "})
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.SampledFrom([]string{"Subject", "To", "Content-Type", "Keywords", "Date"}).Draw(t, "name")
		value := " "
		for _, p := range rapid.SliceOfN(piece, 1, 300).Draw(t, "pieces") {
			if lf := strings.LastIndexByte(value, '\n'); len(name)+1+len(value)-lf-1+len(p) <= 998 {
				value += p
			}
		}
		in := []byte("From: a@b.test\r\n" + name + ":" + value + "\r\n")
		if out, err := Fix(in, Options{}); err == nil {
			requireHeader(t, in, out, Options{})
		}
	})
}

// TestFileNamesSayTheSame: so are parameters.
func TestFileNamesSayTheSame(t *testing.T) {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(rapid.StringOfN(aRune, 1, 60, -1), umlaut, longer).Draw(t, "name")
		in := []byte("From: a@b.test\r\nContent-Disposition: attachment; size=1; filename=\"" + quote.Replace(name) + "\"; x=\"y;z\"\r\n")
		out, err := Fix(in, Options{})
		if err != nil {
			t.Fatalf("%v", err)
		}
		requireHeader(t, in, out, Options{})
		kind, got, err := mime.ParseMediaType(valueOf(t, out, "Content-Disposition"))
		if err != nil || kind != "attachment" {
			t.Fatalf("%q: %v", out, err)
		}
		want := map[string]string{"size": "1", "x": "y;z", "filename": name}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("-want +got:\n%s\n%q", diff, out)
		}
	})
}

// TestWhatNeedsNothingStays: the same slice comes back.
func TestWhatNeedsNothingStays(t *testing.T) {
	text := rapid.StringMatching(`([ -~]{0,20}(\r\n[ \t])?){0,5}`)
	name := rapid.StringMatching(`X-[!-9;-~]{0,10} ?`)
	rapid.Check(t, func(t *rapid.T) {
		var b strings.Builder
		for i, n := range rapid.SliceOfN(name, 0, 10).Draw(t, "names") {
			fmt.Fprintf(&b, "%s:%s\r\n", n, text.Draw(t, "text"))
			if i == 3 {
				b.WriteString("From: x\r\n <a@b.test>\r\n")
			}
		}
		in := b.String()
		if !strings.Contains(in, "\r\nFrom: x") {
			in = "From:a@b.test\r\n" + in
		}
		fields := []byte(in)
		out, err := Fix(fields, Options{})
		if err != nil {
			t.Fatalf("%v", err)
		}
		if &out[0] != &fields[0] || string(out) != in {
			t.Fatalf("got %q, want %q", out, in)
		}
	})
}
