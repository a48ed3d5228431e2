package rewrite

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLint(t *testing.T) {
	tests := []struct {
		name, rules, aliases string
		want                 []string // line and a part of what is said
	}{
		{name: "good", rules: `
canonical:
  - {match: '^(.*)@(.*)\.intra\.example\.org$', to: '$2-admin@example.org'}
  - {match: '@[^.]*\.infra\.example\.org$', to: admin@example.org}
  - {match: '(?i)^root@HOST\.example\.org$', to: a@b.test}
  - {match: '(root|daemon)@host\.example\.org\z', to: a@b.test}
  - {match: '^a.b@[a.b]+$', to: a@b.test}
`, want: []string{"6: does not begin with ^"}},
		{name: "row 2.19 as the source has it", rules: `
canonical:
  - {match: '@(.*).intra.cacert.org$', to: '$1-admin@cacert.org'}
`, want: []string{`3: write @(.*)\.intra\.cacert\.org$ if dots`}},
		{name: "dots", rules: `
canonical:
  - {match: '^.*@.*.example.(org|net)$', to: a@b.test}
  - {match: '^.*\.example.org$', to: a@b.test}
`, want: []string{`3: write ^.*@.*\.example\.(org|net)$ if`, `4: write ^.*\.example\.org$ if`}},
		{name: "anchors", rules: `
canonical:
  - {match: 'root@a\.test', to: a@b.test}
  - {match: '^root@b\.test', to: a@b.test}
  - {match: '.*@c\.test$', to: a@b.test}
  - {match: '^(a@d\.test|b@d\.test$)', to: a@b.test}
`, want: []string{"3: does not end with $", "3: does not begin with ^", "4: does not end with $", "6: does not end with $"}},
		{name: "letters of the domain", rules: `
canonical:
  - {match: '^\S+@A\.test$', to: a@b.test}
  - {match: '^ü@bücher\.test$', to: a@b.test}
`, want: []string{"3: lower case", "4: A-labels"}},
		{name: "never reached", rules: `
canonical:
  - {address: '@a.test', to: '@x.test'}
  - {address: '@A.test', to: '@y.test'}
  - {address: root@a.test, to: y@y.test}
  - {match: '^(.*)@a\.test$', to: y@y.test}
  - {match: '^b(.*)@b\.test$', to: y@y.test}
  - {match: '^b(.*)@b\.test$', to: z@y.test}
  - {address: bob@b.test, to: z@y.test}
  - {address: c@c.test, to: y@y.test, who: senders}
  - {address: c@c.test, to: z@y.test, who: senders, where: header}
  - {address: c@c.test, to: z@y.test}
  - {address: c@c.test, to: z@y.test}
`, want: []string{"4: line 3 takes", "5: line 3 takes", "6: line 3 takes", "8: line 7 takes", "9: line 7 takes", "11: line 10 takes", "13: line 10 takes"}},
		{name: "chains", rules: `
canonical:
  - {address: a@a.test, to: b@a.test}
  - {address: b@a.test, to: c@a.test}
  - {address: d@a.test, to: '@e.test', who: senders}
  - {address: '@e.test', to: '@f.test', who: recipients}
  - {address: '@g.test', to: '@e.test'}
  - {address: x@h.test, to: x@h.test}
`, want: []string{"3: line 4 would change", "7: line 6 would change"}},
		{name: "postmaster", rules: "alias_domains:\n  - own.test\n  - a.test\n", aliases: "postmaster@a.test: a@b.test\n", want: []string{"2: nobody reads postmaster@own.test"}},
		{name: "postmaster of all", rules: "alias_domains:\n  - own.test\n  - a.test\n", aliases: "Postmaster: a@b.test\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for i, f := range mustParse(t, tt.rules, tt.aliases).Lint() {
				line, text, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(f.Error(), "rules.yaml:"), "aliases:"), ": ")
				part := ""
				if i < len(tt.want) {
					_, part, _ = strings.Cut(tt.want[i], ": ")
				}
				if part != "" && strings.Contains(text, part) {
					text = part
				}
				got = append(got, line+": "+text)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
