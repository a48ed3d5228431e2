package txt

import (
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// FuzzReply reads any message that the library can unpack.
func FuzzReply(f *testing.F) {
	z := parse(f, customer)
	for _, name := range []string{"rsa", "near", "far", "loop", "two", "none"} {
		reply := z.answer(new(dns.Msg).SetQuestion(name+"._domainkey.customer.test.", dns.TypeTXT), false)
		data, err := reply.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		reply := new(dns.Msg)
		if err := reply.Unpack(data); err != nil || len(reply.Question) == 0 {
			return
		}
		name := dns.CanonicalName(reply.Question[0].Name)
		for _, zone := range []string{".", "customer.test."} {
			var a Answer
			next := a.read(reply, name, zone)
			if next != "" && len(a.Records) > 0 || len(a.CNAME) > maxAliases+1 {
				t.Errorf("got %+v, next %q", a, next)
			}
		}
		soaFor(reply, name)
	})
}

// FuzzKeyClause reads any key file.
func FuzzKeyClause(f *testing.F) {
	f.Add("key \"k.example\" { algorithm hmac-sha256; secret \"c2VjcmV0\"; };")
	f.Add("key k{secret x;algorithm y;}")
	f.Fuzz(func(t *testing.T, text string) {
		k := keyClause(text)
		if k != nil && (k.name == "" || strings.ContainsAny(k.name+k.algorithm+k.secret, " \t\n;")) {
			t.Errorf("got %+v", k)
		}
	})
}
