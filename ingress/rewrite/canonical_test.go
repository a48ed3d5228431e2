package rewrite

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"postroad/queue"
	"postroad/queue/address"
)

const canonical = `
canonical:
  - address: keep@intra.example.org
    to: keep@intra.example.org
  - match: '^(.*)@(.*)\.intra\.example\.org$'
    to: '$2-admin@example.org'
    where: envelope
    who: senders
  - address: '@intra.example.org'
    to: '@example.org'
  - address: '@bücher.example'
    to: books@example.org
  - address: bob@own.test
    to: '@other.test'
  - match: '(?i)^(?P<user>root|daemon)@.*\.internal$'
    to: ${user}$$@example.org
    who: [recipients]
  - address: first@own.test
    to: second@own.test
  - address: second@own.test
    to: third@own.test
  - match: '^bad(.*)@own\.test$'
    to: '$1..$1@own.test'
  - match: '^postmaster@gone\.test$'
    to: '$$@$$'
`

// TestCanonical is row 2.19 of the sources, and E1-13: domains in lower case as A-labels, local parts as they are.
func TestCanonical(t *testing.T) {
	r := mustParse(t, canonical, "")
	type results struct{ EnvelopeSender, EnvelopeRecipient, HeaderSender, HeaderRecipient string }
	same := func(s string) results { return results{s, s, s, s} }
	tests := []struct {
		in   string
		want results
	}{
		{"root@db1.intra.example.org", results{"db1-admin@example.org", "root@db1.intra.example.org", "root@db1.intra.example.org", "root@db1.intra.example.org"}},
		{"keep@intra.example.org", same("keep@intra.example.org")},
		{"Keep@INTRA.example.org", same("Keep@example.org")},
		{`"a b"@intra.example.org`, same(`"a b"@example.org`)},
		{"x@Bücher.example", same("books@example.org")},
		{"bob@own.test", same("bob@other.test")},
		{"Bob@own.test", same("Bob@own.test")},
		{"bob+tag@own.test", same("bob+tag@own.test")},
		{"ROOT@db1.internal", results{"ROOT@db1.internal", "ROOT$@example.org", "ROOT@db1.internal", "ROOT$@example.org"}},
		{"first@own.test", same("second@own.test")},
		{"second@own.test", same("third@own.test")},
		{"bad@own.test", same("bad@own.test")},
		{"postmaster@gone.test", same("postmaster@gone.test")},
		{"nobody@elsewhere.test", same("nobody@elsewhere.test")},
		{"", same("")},
	}
	for _, tt := range tests {
		p := mustPath(t, tt.in)
		got := results{r.Sender(p, nil).String(), "", r.HeaderSender(p, nil).String(), r.HeaderRecipient(p, nil).String()}
		out, err := r.Expand(queue.Recipient{Path: p}, nil)
		if err != nil || len(out) != 1 {
			t.Fatalf("%s: got %v, %v", tt.in, out, err)
		}
		got.EnvelopeRecipient = out[0].Path.String()
		want := tt.want
		if p.IsNull() {
			want = results{}
		} else if want == same(tt.in) {
			want = same(p.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.in, diff)
		}
	}
}

func TestResultThatIsNoAddress(t *testing.T) {
	r := mustParse(t, "canonical:\n  - match: '^(.*)@own\\.test$'\n    to: '$1$1@own.test'\n", "")
	long := address.Path{Local: strings.Repeat("a", 40), Domain: "own.test"}
	var trace Trace
	if got := r.Sender(long, &trace); got != long {
		t.Errorf("got %v, want it unchanged", got)
	}
	if n := value(t, r.metrics.ruleErrors); n != 1 {
		t.Errorf("counted %v, want 1", n)
	}
	if len(trace.Steps) != 1 || !strings.Contains(trace.Steps[0].Error, "longer than SMTP allows") {
		t.Errorf("got steps %+v", trace.Steps)
	}
}

func TestNilRules(t *testing.T) {
	var r *Rules
	p := address.Path{Local: "a", Domain: "b.test"}
	fields := []byte("From: a\r\n")
	out, err := r.Expand(queue.Recipient{Path: p}, nil)
	if r.Sender(p, nil) != p || r.HeaderSender(p, nil) != p || r.HeaderRecipient(p, nil) != p || len(out) != 1 || err != nil ||
		string(r.Header(fields, true, nil)) != string(fields) || r.Lint() != nil {
		t.Error("nil rules change something")
	}
}

func TestTraceOfSteps(t *testing.T) {
	r := mustParse(t, canonical, "")
	var trace Trace
	r.Sender(mustPath(t, "root@db1.intra.example.org"), &trace)
	want := []Step{{Stage: StageCanonical, File: "rules.yaml", Line: 5, Rule: `^(.*)@(.*)\.intra\.example\.org$ → $2-admin@example.org`,
		Before: "root@db1.intra.example.org", After: []string{"db1-admin@example.org"}}}
	if diff := cmp.Diff(want, trace.Steps); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestComplete is E2-33 and row 2.15 of the sources.
func TestComplete(t *testing.T) {
	r := mustParse(t, "", "")
	tests := []struct{ in, want string }{
		{"root", "root@own.test"},
		{`"a b"`, ""}, // a quoted string alone is rather a name
		{"@relay.test:root", "root@own.test"},
		{"root@other.test", "root@other.test"},
		{"postmaster", "postmaster"}, // RFC 5321 §4.5.1; Expand completes it
		{"root@", ""},
		{"a b", ""},
	}
	for _, tt := range tests {
		p, err := r.Complete(tt.in, nil)
		if p.String() != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%q: got %v, %v, want %q", tt.in, p, err, tt.want)
		}
	}
	out, err := r.Expand(queue.Recipient{Path: address.Path{Local: "PostMaster"}}, nil)
	if err != nil || out[0].Path != (address.Path{Local: "PostMaster", Domain: "own.test"}) || out[0].ORCPT != "" {
		t.Errorf("got %+v, %v", out, err)
	}
	without, err := parse("", "", Files{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := without.Complete("root", nil); err == nil {
		t.Error("completed without an own domain")
	}
}

// TestNeededText shows that the text in front of an expression hides no match.
func TestNeededText(t *testing.T) {
	for _, tt := range []struct{ expression, want string }{
		{`^(.*)@(.*)\.intra\.example\.org$`, ".intra.example.org"},
		{`(?i)@Example\.org`, ""},
		{`^(a|b)@x`, "@x"},
		{`(?:abcdef)?@x`, "@x"},
		{`(abc)+@`, "abc"},
		{`(?:abc){2}`, "abc"},
		{`(?:abc){0,2}@`, "@"},
		{`abc|def`, ""},
	} {
		if got := neededText(tt.expression); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.expression, got, tt.want)
		}
	}
}

func TestFirstMatchWins(t *testing.T) {
	// Rules of all kinds over few addresses, so that many of them match; the table must find what a walk in order finds.
	locals, domains := []string{"a", "b", "c"}, []string{"x.test", "y.test"}
	rapid.Check(t, func(t *rapid.T) {
		path := rapid.Custom(func(t *rapid.T) address.Path {
			return address.Path{Local: rapid.SampledFrom(locals).Draw(t, "local"), Domain: rapid.SampledFrom(domains).Draw(t, "domain")}
		})
		var text strings.Builder
		text.WriteString("canonical:\n")
		var rules []func(address.Path) bool
		for i := range rapid.IntRange(1, 6).Draw(t, "n") {
			p := path.Draw(t, "path")
			switch rapid.IntRange(0, 2).Draw(t, "kind") {
			case 0:
				text.WriteString("- address: " + p.String() + "\n")
				rules = append(rules, func(q address.Path) bool { return p == q })
			case 1:
				text.WriteString("- address: '@" + p.Domain + "'\n")
				rules = append(rules, func(q address.Path) bool { return p.Domain == q.Domain })
			case 2:
				text.WriteString("- match: '^" + p.Local + "@'\n")
				rules = append(rules, func(q address.Path) bool { return p.Local == q.Local })
			}
			text.WriteString("  to: r" + string(rune('0'+i)) + "@result.test\n")
		}
		r, err := parse(text.String(), "", own)
		if err != nil {
			t.Fatal(err)
		}
		q := path.Draw(t, "asked")
		want := q
		for i, matches := range rules {
			if matches(q) {
				want = address.Path{Local: "r" + string(rune('0'+i)), Domain: "result.test"}
				break
			}
		}
		if got := r.Sender(q, nil); got != want {
			t.Fatalf("%s: got %s, want %s with\n%s", q, got, want, text.String())
		}
	})
}
