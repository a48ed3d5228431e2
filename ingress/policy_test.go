package ingress

import (
	"bytes"
	"testing"

	"postroad/queue"
	"postroad/queue/address"
)

// domainRules is a Rewriter that puts one domain into the place of another.
type domainRules struct{ from, to string }

func testRules() Rewriter { return domainRules{"old.test", "new.test"} }

func (d domainRules) Sender(p address.Path) address.Path {
	if p.Domain == d.from {
		p.Domain = d.to
	}
	return p
}

func (d domainRules) Expand(r queue.Recipient) ([]queue.Recipient, error) {
	r.Path = d.Sender(r.Path)
	return []queue.Recipient{r}, nil
}

func (d domainRules) Header(fields []byte) []byte {
	return bytes.ReplaceAll(fields, []byte("@"+d.from+">"), []byte("@"+d.to+">"))
}

func TestAllowedRecipients(t *testing.T) {
	p := Policy{Recipients: []string{"b@to.test", "@in.test", ".below.test"}}
	for path, want := range map[string]bool{
		"b@to.test":          true,
		"B@to.test":          false, // local parts are compared as they are (RFC 5321 §2.4)
		"c@to.test":          false,
		"x@in.test":          true,
		"x@sub.in.test":      false,
		"x@below.test":       false,
		"x@a.b.below.test":   true,
		"x@notbelow.test":    false,
		"\"b c\"@in.test":    true,
		"x@in.test.evil.tld": false,
	} {
		parsed, err := address.Parse(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Allows(parsed); got != want {
			t.Errorf("%s: got %v, want %v", path, got, want)
		}
	}
	if !(&Policy{}).Allows(address.Path{Local: "x", Domain: "any.test"}) {
		t.Error("no list: nobody is allowed")
	}
}
