package rewrite

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"postroad/queue/address"
)

const headerRules = `
canonical:
  - match: '^(.*)@(.*)\.intra\.test$'
    to: '$2-$1@public.test'
    where: header
  - {address: me@own.test, to: '"m e"@public.test', who: senders}
  - {address: you@own.test, to: you@public.test, who: recipients}
  - {address: '@long.test', to: '@a-domain-that-is-rather-much-longer-than-the-other-one.test'}
`

// TestHeader holds messages' headers: what goes in, what comes out, and how many fields were not understood.
func TestHeader(t *testing.T) {
	tests := []struct {
		name, in, want string // want empty: the same octets
		skipped        float64
	}{
		{name: "names, comments, folding and case stay",
			in:   "FROM :  \"Al, <x@db.intra.test>\" (root@db.intra.test)\n\t<root@DB.Intra.test>  (x)\nSubject: root@db.intra.test\n",
			want: "FROM :  \"Al, <x@db.intra.test>\" (root@db.intra.test)\n\t<db-root@public.test>  (x)\nSubject: root@db.intra.test\n"},
		{name: "senders",
			in:   "From: me@own.test\nSender: you@own.test\nReply-To: <me@own.test>\nErrors-To: me@own.test\nTo: me@own.test\n",
			want: "From: \"m e\"@public.test\nSender: you@own.test\nReply-To: <\"m e\"@public.test>\nErrors-To: \"m e\"@public.test\nTo: me@own.test\n"},
		{name: "recipients",
			in:   "To: you@own.test, Al <other@x.test>,you@own.test\nCc: g: you@own.test;\nBcc: me@own.test\nResent-To: you@own.test\nReturn-Receipt-To: you@own.test\n",
			want: "To: you@public.test, Al <other@x.test>,you@public.test\nCc: g: you@public.test;\nBcc: me@own.test\nResent-To: you@public.test\nReturn-Receipt-To: you@own.test\n"},
		{name: "E2-43: what tells of the past stays",
			in: "Original-Recipient: rfc822;root@db.intra.test\nReturn-Path: <root@db.intra.test>\nReceived: by db.intra.test for <root@db.intra.test>; now\nDelivered-To: root@db.intra.test\nX-To: root@db.intra.test\n"},
		{name: "E2-33: completed",
			in:   "From: root (Cron Daemon)\nTo: root,\n Postmaster, <daemon>, \"odd one\"@x.test\n",
			want: "From: root@own.test (Cron Daemon)\nTo: root,\n Postmaster, <daemon@own.test>, \"odd one\"@x.test\n"},
		{name: "completed and rewritten", in: "From: me\nTo: you\n", want: "From: \"m e\"@public.test\nTo: you@public.test\n"},
		{name: "names without quotes are not completed", in: "To: Doe, John <john@x.test>\nCc: =?utf-8?Q?Doe,_John?=\nFrom: John Doe\n", skipped: 1},
		{name: "no address", in: "To: a..b@docomo.test, root@db.intra.test\n", want: "To: a..b@docomo.test, db-root@public.test\n", skipped: 1},
		{name: "broken field", in: "To: \"open <root@db.intra.test>\nCc: root@db.intra.test\n", want: "To: \"open <root@db.intra.test>\nCc: db-root@public.test\n", skipped: 1},
		{name: "null", in: "From: <>\nTo: \nCc:\n"},
		{name: "no fields", in: "no field at all\n\nTo: x\n", want: "no field at all\n\nTo: x@own.test\n"},
		{name: "no end", in: "Subject: x"},
		{name: "empty", in: ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := mustParse(t, headerRules, "")
			want := tt.want
			if want == "" {
				want = tt.in
			}
			got := r.Header(crlf(tt.in), true, nil)
			if diff := cmp.Diff(string(crlf(want)), string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if n := value(t, r.metrics.fieldsSkipped); n != tt.skipped {
				t.Errorf("skipped %v fields, want %v", n, tt.skipped)
			}
		})
	}
}

func TestHeaderIsNotCompletedUnasked(t *testing.T) {
	in := crlf("From: root\nTo: <daemon>\n")
	if got := mustParse(t, headerRules, "").Header(in, false, nil); &got[0] != &in[0] {
		t.Errorf("got another slice: %q", got)
	}
}

func TestHeaderTrace(t *testing.T) {
	var trace Trace
	mustParse(t, headerRules, "").Header(crlf("Subject: x\nTo: you\n"), true, &trace)
	want := []Step{
		{Stage: StageComplete, Field: "To", Before: "you", After: []string{"you@own.test"}},
		{Stage: StageCanonical, Field: "To", File: "rules.yaml", Line: 7, Rule: "you@own.test → you@public.test", Before: "you@own.test", After: []string{"you@public.test"}},
	}
	if diff := cmp.Diff(want, trace.Steps); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestLinesStayShort: RFC 5322 §2.1.1.
func TestLinesStayShort(t *testing.T) {
	r := mustParse(t, headerRules, "")
	list := func(n int, between string) string {
		parts := make([]string, n)
		for i := range parts {
			parts[i] = fmt.Sprintf("user%03d@long.test", i)
		}
		return strings.Join(parts, between)
	}
	unfold := func(b []byte) string { return strings.NewReplacer("\r\n", "", " ", "").Replace(string(b)) }
	for _, tt := range []struct {
		name, in string
		stays    bool
	}{
		{"many", "To: " + list(50, ", ") + "\r\n", false},
		{"many without blanks", "To:" + list(50, ",") + "\r\n", false},
		{"many lines", "To: " + list(50, ", ") + ",\r\n " + list(50, ", ") + "\r\n", false},
		{"many with names", "To: " + strings.ReplaceAll(list(40, ">, <"), "user", "user") + "\r\n", true},
		{"long name", "To: " + strings.Repeat("n", 960) + " <user@long.test>, <user@long.test>\r\n", false},
		{"a word that is too long", "To: <user@long.test>" + " (" + strings.Repeat("c", 970) + ")\r\n", true},
	} {
		got := r.Header([]byte(tt.in), true, nil)
		want := strings.ReplaceAll(tt.in, "@long.test", "@a-domain-that-is-rather-much-longer-than-the-other-one.test")
		if tt.stays {
			want = tt.in
		}
		if n := longest(got, 0); n > maxLine {
			t.Errorf("%s: got a line of %d octets", tt.name, n)
		}
		if unfold(got) != unfold([]byte(want)) {
			t.Errorf("%s: got %q", tt.name, got)
		}
		for line := range bytes.Lines(got) {
			if len(bytes.TrimSpace(line)) == 0 {
				t.Errorf("%s: got a line of blanks in %q", tt.name, got)
			}
		}
	}
}

// someHeader draws fields that are often good and often not.
func someHeader() *rapid.Generator[string] {
	piece := rapid.SampledFrom([]string{
		"a@x.test", "root@db.intra.test", "me@own.test", "<me@own.test>", `"me"@own.test`, "root", "Al Bo", `"q, \" q"`, "(c (d) \\) )",
		",", ", ", ";", ":", " ", "\r\n ", "\r\n\t", "<", ">", "<>", "@", "[x]", "[192.0.2.1]", "=?utf-8?q?x?=", "ü", "\xff", "\\", "\"", "(", ")",
	})
	return rapid.Custom(func(t *rapid.T) string {
		var b strings.Builder
		for range rapid.IntRange(0, 4).Draw(t, "fields") {
			b.WriteString(rapid.SampledFrom([]string{"From:", "to :", "Cc:", "Subject:", "Reply-To:", "Original-Recipient:"}).Draw(t, "name"))
			b.WriteString(strings.Join(rapid.SliceOfN(piece, 0, 8).Draw(t, "value"), ""))
			b.WriteString("\r\n")
		}
		return b.String()
	})
}

func TestHeaderWithoutMatchIsTheSame(t *testing.T) {
	r := mustParse(t, "canonical:\n- {match: '^nobody@nowhere\\.test$', to: x@y.test}\n- {address: no@where.test, to: x@y.test}\n", "")
	rapid.Check(t, func(t *rapid.T) {
		in := []byte(someHeader().Draw(t, "header"))
		before := bytes.Clone(in)
		got := r.Header(in, false, nil)
		if !bytes.Equal(got, before) || !bytes.Equal(in, before) {
			t.Fatalf("got %q", got)
		}
	})
}

// TestOnlyAddressesChange rewrites to addresses that are recognised again, and takes the change back.
func TestOnlyAddressesChange(t *testing.T) {
	r := mustParse(t, `
canonical:
  - {address: root@db.intra.test, to: one-mark@mark.test}
  - {address: me@own.test, to: two-mark@mark.test}
`, "")
	back := strings.NewReplacer("one-mark@mark.test", "root@db.intra.test", "two-mark@mark.test", "me@own.test")
	rapid.Check(t, func(t *rapid.T) {
		in := strings.ReplaceAll(someHeader().Draw(t, "header"), `"me"@own.test`, "me@own.test")
		got := string(r.Header([]byte(in), false, nil))
		if back.Replace(got) != in {
			t.Fatalf("got %q", got)
		}
		if again := string(r.Header([]byte(got), false, nil)); again != got {
			t.Fatalf("a second time it becomes %q", again)
		}
	})
}

// TestGoodMailboxesAreFound: in well-formed lists every address is rewritten.
func TestGoodMailboxesAreFound(t *testing.T) {
	r := mustParse(t, "canonical:\n- {address: '@old.test', to: '@new.test'}\n", "")
	rapid.Check(t, func(t *rapid.T) {
		mailbox := rapid.Custom(func(t *rapid.T) string {
			local := rapid.SampledFrom([]string{"a", "a.b", `"a b"`, `"a,\"b"`, "ä", "a+b"}).Draw(t, "local")
			name := rapid.SampledFrom([]string{"", "Al", `"A, l"`, "=?utf-8?q?=41?=", "A. (x, y)", "[A] l"}).Draw(t, "name")
			after := rapid.SampledFrom([]string{"", " (c, <x@old.testing>)", "\r\n "}).Draw(t, "after")
			if name == "" && rapid.Bool().Draw(t, "bare") {
				return local + "@old.test" + after
			}
			return name + rapid.SampledFrom([]string{" ", "\r\n ", ""}).Draw(t, "space") + "<" + local + "@old.test>" + after
		})
		list := strings.Join(rapid.SliceOfN(mailbox, 1, 6).Draw(t, "list"), rapid.SampledFrom([]string{",", ", ", ",\r\n "}).Draw(t, "comma"))
		if rapid.Bool().Draw(t, "group") {
			list = "Group: " + list + ";"
		}
		in := "To: " + list + "\r\n"
		want := strings.ReplaceAll(strings.ReplaceAll(in, "@old.test", "@new.test"), "@new.testing", "@old.testing")
		if got := string(r.Header([]byte(in), false, nil)); got != want {
			t.Fatalf("got  %q\nwant %q", got, want)
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte("From: \"A, B\" <me@own.test>\r\nTo: g: you@own.test, <root>;\r\n x@db.intra.test\r\n"))
	f.Add([]byte("To: a@long.test,b@long.test\r\n\t,c@long.test\r\nOriginal-Recipient: rfc822;me@own.test\r\n"))
	f.Add([]byte("to:<>,\r\n (\r\n )"))
	f.Fuzz(func(t *testing.T, in []byte) {
		before := bytes.Clone(in)
		r := mustParse(t, headerRules, "")
		out := r.Header(in, true, nil)
		if !bytes.Equal(in, before) {
			t.Fatal("the input was changed")
		}
		if longest(out, 0) > max(maxLine, longest(in, 0)) {
			t.Fatalf("a line became too long: %q", out)
		}
		if bytes.Count(out, []byte("\n")) < bytes.Count(in, []byte("\n")) || len(out) < len(in)-256*len(in) {
			t.Fatalf("lines are lost: %q", out)
		}
		// What is in front of addresses and behind them is still there, in order: all octets but those of addresses.
		if !isRewriting(in, out) {
			t.Fatalf("got %q from %q", out, in)
		}
	})
}

// isRewriting walks both field by field: names are the same, and fields without addresses are.
func isRewriting(in, out []byte) bool {
	for a, b := 0, 0; ; {
		if a >= len(in) || b >= len(out) {
			return a >= len(in) && b >= len(out)
		}
		endA, endB := fieldEnd(in, a), fieldEnd(out, b)
		nameA, valueA := splitField(in[a:endA])
		nameB, valueB := splitField(out[b:endB])
		_, isAddresses := scopeOf(nameA)
		if !bytes.Equal(nameA, nameB) || !isAddresses && !bytes.Equal(in[a:endA], out[b:endB]) {
			return false
		}
		if isAddresses && !bytes.Equal(bare(valueA), bare(valueB)) {
			return false
		}
		a, b = endA, endB
	}
}

// bare is a value without its addresses and blanks.
func bare(v []byte) []byte {
	boxes, _, ok := mailboxes(v, nil)
	if !ok {
		boxes = nil
	}
	var out []byte
	at := 0
	for _, b := range boxes {
		if p, err := address.Parse(string(v[b.start:b.end])); err != nil && !strings.Contains(err.Error(), "a domain is missing") || p == (address.Path{}) && err == nil {
			continue
		}
		out = append(out, v[at:b.start]...)
		at = b.end
	}
	out = append(out, v[at:]...)
	return bytes.Map(func(r rune) rune {
		if strings.ContainsRune(" \t\r\n", r) {
			return -1
		}
		return r
	}, out)
}
