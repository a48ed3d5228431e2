package rewrite

import (
	"strings"
	"testing"

	"postroad/queue"
	"postroad/queue/address"
)

const listFile = `news: ann@far.test, staff, bob
owner-news: boss
boss: chief@far.test
staff: carol@far.test, inner
inner: dave@far.test
owner-inner: erin@far.test
bob: bob@far.test
plain: ann@far.test, bob@far.test
both: news, ann@far.test
also: inner, news
away@other.test: fay@far.test
owner-away@other.test: gus@far.test
`

// TestE6_81_ListsHaveOwners: an alias that has an owner is a list. What goes to it has the owner for a sender, and no wish of the first sender for
// notifications; aliases without one keep both.
func TestE6_81_ListsHaveOwners(t *testing.T) {
	r := mustParse(t, "alias_domains: [lists.test]\n", listFile)
	for in, want := range map[string]string{
		"news@own.test":   "ann@far.test/chief@far.test carol@far.test/chief@far.test dave@far.test/erin@far.test bob@far.test/chief@far.test",
		"News@lists.test": "ann@far.test/chief@far.test carol@far.test/chief@far.test dave@far.test/erin@far.test bob@far.test/chief@far.test",
		"staff@own.test":  "carol@far.test dave@far.test/erin@far.test",
		"plain@own.test":  "ann@far.test bob@far.test",
		// Who gets it from the sender himself as well is no matter of the list.
		"both@own.test":         "ann@far.test carol@far.test/chief@far.test dave@far.test/erin@far.test bob@far.test/chief@far.test",
		"also@own.test":         "dave@far.test/erin@far.test ann@far.test/chief@far.test carol@far.test/chief@far.test bob@far.test/chief@far.test",
		"away@other.test":       "fay@far.test/gus@far.test",
		"owner-news@own.test":   "chief@far.test",
		"owner-inner@own.test":  "erin@far.test",
		"nobody@elsewhere.test": "nobody@elsewhere.test",
	} {
		given, _ := address.Parse(in)
		got, err := r.Expand(queue.Recipient{Path: given, ORCPT: "rfc822;x@y", Notify: []string{"SUCCESS", "FAILURE"}}, nil)
		if err != nil {
			t.Fatalf("%s: %v", in, err)
		}
		var out []string
		success := 0
		for _, one := range got {
			text := one.Path.String()
			switch {
			case !one.Owner.IsNull():
				text += "/" + one.Owner.String()
				if one.ORCPT != "" || one.Notify != nil {
					t.Errorf("%s: a list hands on %q and %v", in, one.ORCPT, one.Notify)
				}
			case one.ORCPT != "rfc822;x@y":
				t.Errorf("%s: got ORCPT %q", in, one.ORCPT)
			case one.Notify[0] == "SUCCESS":
				success++
			}
			out = append(out, text)
		}
		if strings.Join(out, " ") != want {
			t.Errorf("%s: got %s, want %s", in, strings.Join(out, " "), want)
		}
		if success > 1 {
			t.Errorf("%s: success is reported %d times", in, success)
		}
	}
}

// TestE6_81_OwnerIsOne: a reverse-path is one address.
func TestE6_81_OwnerIsOne(t *testing.T) {
	for file, want := range map[string]string{
		"news: a@far.test, b@far.test\nowner-news: c@far.test, d@far.test\n":     ":2: owner-news leads to several addresses",
		"news: a@far.test\nowner-news: two\ntwo: c@far.test, d@far.test\n":       ":2: owner-news leads to several addresses",
		"news: a@far.test\nowner-news: c@far.test\nowner-owner-news: e@x.test\n": "",
		"owner-news: c@far.test, d@far.test\n":                                   "",
	} {
		_, err := parse("", file, own)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", file, err, want)
		}
	}
}

// TestMergeOfListAndSender: one recipient by a list and by RCPT.
func TestMergeOfListAndSender(t *testing.T) {
	ann, _ := address.Parse("ann@far.test")
	boss, _ := address.Parse("boss@far.test")
	listed, direct := queue.Recipient{Path: ann, Owner: boss}, queue.Recipient{Path: ann, ORCPT: "rfc822;ann@far.test", Notify: []string{"NEVER"}}
	for _, in := range [][]queue.Recipient{{listed, direct}, {direct, listed}} {
		got := Merge(in)
		if len(got) != 1 || !got[0].Owner.IsNull() || got[0].ORCPT != direct.ORCPT || len(got[0].Notify) != 1 {
			t.Errorf("got %+v, want the sender's own", got)
		}
	}
}
