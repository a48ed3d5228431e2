package rewrite

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"postroad/queue"
	"postroad/queue/address"
)

func rcpt(p address.Path, orcpt string, notify ...string) queue.Recipient {
	return queue.Recipient{Path: p, ORCPT: orcpt, Notify: notify}
}

// TestRedistribute is E2-43 and RFC 3461 §5.2.7.2 and §5.2.7.3.
func TestRedistribute(t *testing.T) {
	r := mustParse(t, "canonical:\n- {address: old@own.test, to: one@own.test}\n", "one: a@x.test\nseveral: a@x.test, b@x.test, c@x.test\nkept: kept, b@x.test\n")
	at := func(local string) address.Path { return address.Path{Local: local, Domain: "x.test"} }
	tests := []struct {
		name, to, orcpt string
		notify          []string
		want            []queue.Recipient
	}{
		{"nothing given", "plain@own.test", "", nil, []queue.Recipient{{Path: address.Path{Local: "plain", Domain: "own.test"}}}},
		{"one", "one@own.test", "", []string{"SUCCESS", "DELAY"}, []queue.Recipient{rcpt(at("a"), "rfc822;one@own.test", "SUCCESS", "DELAY")}},
		{"ORCPT given", "one@own.test", "rfc822;First@far.test", nil, []queue.Recipient{rcpt(at("a"), "rfc822;First@far.test")}},
		{"canonical, then alias", "old@own.test", "", nil, []queue.Recipient{rcpt(at("a"), "rfc822;old@own.test")}},
		{"several", "several@own.test", "", nil, []queue.Recipient{
			rcpt(at("a"), "rfc822;several@own.test"), rcpt(at("b"), "rfc822;several@own.test"), rcpt(at("c"), "rfc822;several@own.test")}},
		{"several, all", "several@own.test", "", []string{"SUCCESS", "FAILURE"}, []queue.Recipient{
			rcpt(at("a"), "rfc822;several@own.test", "SUCCESS", "FAILURE"),
			rcpt(at("b"), "rfc822;several@own.test", "FAILURE"),
			rcpt(at("c"), "rfc822;several@own.test", "FAILURE")}},
		{"several, success alone", "several@own.test", "", []string{"SUCCESS"}, []queue.Recipient{
			rcpt(at("a"), "rfc822;several@own.test", "SUCCESS"),
			rcpt(at("b"), "rfc822;several@own.test", "NEVER"),
			rcpt(at("c"), "rfc822;several@own.test", "NEVER")}},
		{"several, never", "several@own.test", "", []string{"NEVER"}, []queue.Recipient{
			rcpt(at("a"), "rfc822;several@own.test", "NEVER"),
			rcpt(at("b"), "rfc822;several@own.test", "NEVER"),
			rcpt(at("c"), "rfc822;several@own.test", "NEVER")}},
		{"kept copy", "kept@own.test", "", nil, []queue.Recipient{
			{Path: address.Path{Local: "kept", Domain: "own.test"}}, rcpt(at("b"), "rfc822;kept@own.test")}},
	}
	for _, tt := range tests {
		got, err := r.Expand(queue.Recipient{Path: mustPath(t, tt.to), ORCPT: tt.orcpt, Notify: tt.notify}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestOriginalRecipient(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"a@b.test", "rfc822;a@b.test"},
		{"a+b=c@b.test", "rfc822;a+2Bb+3Dc@b.test"},
		{`"a b"@b.test`, `rfc822;"a+20b"@b.test`},
		{"jürgen+x@b.test", `utf-8;j\x{FC}rgen\x{2B}x@b.test`},
		{`"日 \\"@b.test`, `utf-8;"\x{65E5}\x{20}\x{5C}\x{5C}"@b.test`},
	} {
		if got := originalRecipient(mustPath(t, tt.in)); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.in, got, tt.want)
		}
	}
}

func TestMerge(t *testing.T) {
	a := address.Path{Local: "a", Domain: "x.test"}
	upper := address.Path{Local: "A", Domain: "x.test"}
	tests := []struct {
		name string
		in   []queue.Recipient
		want []queue.Recipient
	}{
		{"none", nil, nil},
		{"case of the local part", []queue.Recipient{{Path: a}, {Path: upper}}, []queue.Recipient{{Path: a}, {Path: upper}}},
		{"the first ORCPT", []queue.Recipient{rcpt(a, "rfc822;one@x.test"), {Path: upper}, rcpt(a, "rfc822;two@x.test")},
			[]queue.Recipient{rcpt(a, "rfc822;one@x.test"), {Path: upper}}},
		{"never and never", []queue.Recipient{rcpt(a, "", "NEVER"), rcpt(a, "", "NEVER")}, []queue.Recipient{rcpt(a, "", "NEVER")}},
		{"never and default", []queue.Recipient{rcpt(a, "", "NEVER"), rcpt(a, "")}, []queue.Recipient{rcpt(a, "")}},
		{"default and never", []queue.Recipient{rcpt(a, ""), rcpt(a, "", "NEVER")}, []queue.Recipient{rcpt(a, "")}},
		{"never and success", []queue.Recipient{rcpt(a, "", "NEVER"), rcpt(a, "", "SUCCESS")}, []queue.Recipient{rcpt(a, "", "SUCCESS")}},
		{"success and default", []queue.Recipient{rcpt(a, "", "SUCCESS"), rcpt(a, "")}, []queue.Recipient{rcpt(a, "", "SUCCESS", "FAILURE", "DELAY")}},
		{"delay and success", []queue.Recipient{rcpt(a, "", "DELAY"), rcpt(a, "", "SUCCESS")}, []queue.Recipient{rcpt(a, "", "SUCCESS", "DELAY")}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, Merge(tt.in)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
