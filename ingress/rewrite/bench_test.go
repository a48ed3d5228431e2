package rewrite

import (
	"fmt"
	"strings"
	"testing"

	"postroad/queue"
	"postroad/queue/address"
)

// manyRules are 1000 literals and 20 expressions, as a grown site has them.
func manyRules(b *testing.B) *Rules {
	var text strings.Builder
	text.WriteString("canonical:\n")
	for i := range 1000 {
		fmt.Fprintf(&text, "- {address: user%d@own.test, to: u%d@public.test}\n", i, i)
	}
	for i := range 20 {
		fmt.Fprintf(&text, "- {match: '^(.*)@(.*)\\.zone%d\\.intra\\.test$', to: '$2-$1@public.test'}\n", i)
	}
	return mustParse(b, text.String(), "root: admin@public.test\n")
}

func BenchmarkSender(b *testing.B) {
	r := manyRules(b)
	for _, bb := range []struct {
		name  string
		rules *Rules
		path  address.Path
	}{
		{"no rules", nil, address.Path{Local: "a", Domain: "b.test"}},
		{"empty rules", mustParse(b, "", ""), address.Path{Local: "a", Domain: "b.test"}},
		{"literal", r, address.Path{Local: "user999", Domain: "own.test"}},
		{"expression", r, address.Path{Local: "root", Domain: "db.zone19.intra.test"}},
		{"none of them", r, address.Path{Local: "someone", Domain: "elsewhere.test"}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				bb.rules.Sender(bb.path, nil)
			}
		})
	}
}

func BenchmarkExpand(b *testing.B) {
	r := manyRules(b)
	for _, to := range []string{"someone@elsewhere.test", "root@own.test"} {
		b.Run(to, func(b *testing.B) {
			in := queue.Recipient{Path: mustPath(b, to)}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Expand(in, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkHeader(b *testing.B) {
	r := manyRules(b)
	rest := "Received: from a by b; now\nSubject: a subject\nDate: now\nMessage-ID: <x@y>\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n"
	for _, bb := range []struct {
		name  string
		rules *Rules
		from  string
	}{
		{"no rules", nil, "root@db.zone19.intra.test"},
		{"nothing changes", r, "a@elsewhere.test"},
		{"one changes", r, "root@db.zone19.intra.test"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			in := crlf("From: A B <" + bb.from + ">\nTo: c@elsewhere.test, d@elsewhere.test\n" + rest)
			b.ReportAllocs()
			for b.Loop() {
				bb.rules.Header(in, true, nil)
			}
		})
	}
}
