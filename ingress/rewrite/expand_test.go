package rewrite

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"postroad/queue"
	"postroad/queue/address"
)

const aliasFile = `# people
root:        admin@example.org
postmaster:  root
Bob:         robert@example.org
team:        bob, carol@example.org,
             root,
	# a comment within

   Carol@example.org, carol@example.org
foobar: gitlab+group-project-12-issue-@incoming.example.org
both: both, copy@example.org
bob+list: list@example.org
tagged: tag+own@example.org
many: bob, root
only@other.test: somebody@example.org
"odd name": "odd, target"@example.org
@all.test: catch@all.test, copy@example.org
named@all.test: special@example.org
ping: pong+x
pong: ping
`

const closed = "alias_domains: [lists.test, own.test]\n"

func paths(recipients []queue.Recipient) string {
	var out []string
	for _, r := range recipients {
		out = append(out, r.Path.String())
	}
	return strings.Join(out, " ")
}

// TestE6_81_Expand is rows 2.20, 3.3, 3.4, 3.16 and 4.27 of the sources.
func TestE6_81_Expand(t *testing.T) {
	file := strings.ReplaceAll(aliasFile, "ping: pong+x\npong: ping\n", "")
	r := mustParse(t, "alias_domains: [lists.test]\n", file)
	tests := []struct {
		in, want string
		err      error
	}{
		{"root@own.test", "admin@example.org", nil},
		{"ROOT@own.test", "admin@example.org", nil},
		{"postmaster@own.test", "admin@example.org", nil},
		{"postmaster", "admin@example.org", nil},
		{"root@lists.test", "admin@example.org", nil},
		{"root@elsewhere.test", "root@elsewhere.test", nil},
		{"unknown@own.test", "unknown@own.test", nil}, // own.test is no alias domain here
		{"unknown@lists.test", "", ErrUnknown},
		{"team@own.test", "robert@example.org carol@example.org admin@example.org Carol@example.org", nil},
		{"foobar@own.test", "gitlab+group-project-12-issue-@incoming.example.org", nil},
		{"both@own.test", "both@own.test copy@example.org", nil},
		{"both@lists.test", "both@own.test copy@example.org", nil},
		{"only@other.test", "somebody@example.org", nil},
		{"other@other.test", "other@other.test", nil},
		{`"odd name"@own.test`, `"odd, target"@example.org`, nil},
		{"x@all.test", "catch@all.test copy@example.org", nil},
		{"named@all.test", "special@example.org", nil},
		// Tags: the whole local part first, then without the tag, which a single target gets unless it has its own.
		{"bob+spam@own.test", "robert+spam@example.org", nil},
		{"bob+list@own.test", "list@example.org", nil},
		{"tagged+x@own.test", "tag+own@example.org", nil},
		{"many+x@own.test", "robert@example.org admin@example.org", nil},
		{"both+x@own.test", "both@own.test copy@example.org", nil},
		{"postmaster+x@own.test", "admin+x@example.org", nil},
		{"+x@own.test", "+x@own.test", nil},
		{"root+" + strings.Repeat("x", 59) + "@own.test", "admin@example.org", nil}, // no room for the tag
		{"+x@lists.test", "", ErrUnknown},
	}
	for _, tt := range tests {
		out, err := r.Expand(queue.Recipient{Path: mustPath(t, tt.in)}, nil)
		if got := paths(out); got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s: got %q, %v, want %q, %v", tt.in, got, err, tt.want, tt.err)
		}
	}
}

func TestUnknownInAliasDomain(t *testing.T) {
	file := strings.ReplaceAll(aliasFile, "ping: pong+x\npong: ping\n", "")
	r := mustParse(t, closed, file)
	_, err := r.Expand(queue.Recipient{Path: mustPath(t, "nobody@own.test")}, nil)
	refusal, ok := errors.AsType[*Error](err)
	if !ok || refusal.Code != 550 || refusal.Enhanced != [3]int{5, 1, 1} || !errors.Is(err, ErrUnknown) {
		t.Errorf("got %v, want 550 5.1.1", err)
	}
	if strings.Contains(refusal.Text, "nobody") {
		t.Errorf("the reply repeats what the client said: %s", refusal.Text)
	}
}

// TestE6_81_LoopByTag has a loop that only mail with a tag gets into, which the check of the file cannot know of.
func TestE6_81_LoopByTag(t *testing.T) {
	r := mustParse(t, "", "ping: pong\npong+x: ping+x\n")
	if out, err := r.Expand(queue.Recipient{Path: mustPath(t, "ping@own.test")}, nil); err != nil || paths(out) != "pong@own.test" {
		t.Errorf("got %v, %v", out, err)
	}
	_, err := r.Expand(queue.Recipient{Path: mustPath(t, "ping+x@own.test")}, nil)
	refusal, ok := errors.AsType[*Error](err)
	if !ok || refusal.Code != 554 || refusal.Enhanced != [3]int{5, 4, 6} || !errors.Is(err, ErrLoop) {
		t.Errorf("got %v, want 554 5.4.6", err)
	}
}

func TestE6_81_TooManyRecipients(t *testing.T) {
	var file strings.Builder
	file.WriteString("all: half, rest\nhalf: a")
	for i := range 500 {
		fmt.Fprintf(&file, ", a%d@x.test", i)
	}
	file.WriteString("\nrest: a")
	for i := range 500 {
		fmt.Fprintf(&file, ", b%d@x.test", i)
	}
	r := mustParse(t, "", file.String())
	out, err := r.Expand(queue.Recipient{Path: mustPath(t, "half@own.test")}, nil)
	if len(out) != 501 || err != nil {
		t.Errorf("got %d recipients, %v, want 501", len(out), err)
	}
	_, err = r.Expand(queue.Recipient{Path: mustPath(t, "all@own.test")}, nil)
	refusal, ok := errors.AsType[*Error](err)
	if !ok || refusal.Code != 452 || refusal.Enhanced != [3]int{4, 5, 3} || !errors.Is(err, ErrTooMany) {
		t.Errorf("got %v, want 452 4.5.3", err)
	}
	if doubts := r.Lint(); len(doubts) != 1 || !strings.Contains(doubts[0].Text, "1002 recipients") {
		t.Errorf("got %v, want a doubt about the size", doubts)
	}
}

// TestE6_81_ExpansionIsBounded: every alias is followed once, so that doubling does not multiply.
func TestE6_81_ExpansionIsBounded(t *testing.T) {
	var file strings.Builder
	for i := range maxDepth - 1 {
		fmt.Fprintf(&file, "a%d: a%d, b%d\nb%d: a%d, end@x.test\n", i, i+1, i, i, i+1)
	}
	fmt.Fprintf(&file, "a%d: end@x.test\n", maxDepth-1)
	_, err := parse("", file.String(), own)
	if err == nil || !strings.Contains(err.Error(), "leads through more than") {
		t.Fatalf("got %v, want too deep", err)
	}
	r := mustParse(t, "", file.String()[strings.Index(file.String(), "a10: "):])
	out, err := r.Expand(queue.Recipient{Path: mustPath(t, "a10@own.test")}, nil)
	if err != nil || paths(out) != "end@x.test" {
		t.Errorf("got %v, %v", out, err)
	}
}

func TestExpandTrace(t *testing.T) {
	r := mustParse(t, "canonical:\n- {address: x@y.test, to: boss@own.test}\n", "boss: bob, carol@z.test\nbob: robert@z.test\n")
	var trace Trace
	if _, err := r.Expand(queue.Recipient{Path: mustPath(t, "x@y.test")}, &trace); err != nil {
		t.Fatal(err)
	}
	want := []Step{
		{Stage: StageCanonical, File: "rules.yaml", Line: 2, Rule: "x@y.test → boss@own.test", Before: "x@y.test", After: []string{"boss@own.test"}},
		{Stage: StageAlias, File: "aliases", Line: 1, Rule: "boss", Before: "boss@own.test", After: []string{"bob@own.test", "carol@z.test"}},
		{Stage: StageAlias, File: "aliases", Line: 2, Rule: "bob", Before: "bob@own.test", After: []string{"robert@z.test"}},
	}
	if diff := cmp.Diff(want, trace.Steps); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestExpandEnds: whatever aliases say, an expansion ends, has no repeats, and holds to its bound.
func TestExpandEnds(t *testing.T) {
	names := []string{"a", "b", "c", "d+x", "d", "e@own.test", "f@far.test", "@own.test"}
	rapid.Check(t, func(t *rapid.T) {
		var file strings.Builder
		for _, name := range names {
			if rapid.Bool().Draw(t, "defined") {
				list := rapid.SliceOfN(rapid.SampledFrom(names[:7]), 1, 3).Draw(t, "targets")
				file.WriteString(name + ": " + strings.Join(list, ", ") + "\n")
			}
		}
		entries := (&reader{file: "aliases"}).entries([]byte(file.String()), "own.test")
		// Without the check of the file, so that loops are met at run time.
		a := newAliases(Files{OwnDomain: "own.test", Delimiter: "+", MaxRecipients: 3}, entries, nil)
		got, err := a.expand(address.Path{Local: rapid.SampledFrom([]string{"a", "d+x", "d+y", "z"}).Draw(t, "asked"), Domain: "own.test"}, nil)
		if err != nil && !errors.Is(err, ErrLoop) && !errors.Is(err, ErrTooMany) {
			t.Fatal(err)
		}
		seen := make(map[address.Path]bool)
		for _, l := range got {
			if seen[l.path] || len(got) > 3 {
				t.Fatalf("got %v with\n%s", got, file.String())
			}
			seen[l.path] = true
		}
		if err == nil && len(got) == 0 {
			t.Fatalf("nobody is left with\n%s", file.String())
		}
	})
}
