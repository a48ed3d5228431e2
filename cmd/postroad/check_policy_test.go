package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"postroad/cmd/internal/config"
	"postroad/delivery/mx"
	"postroad/delivery/mx/mxtest"
	"postroad/delivery/route"
)

// policyNames is a name service with DNSSEC.
type policyNames struct {
	mxtest.Records
	tlsa map[string]error // an error, or nil for a usable record
}

func (policyNames) IsTrusted() bool { return true }

func (n policyNames) LookupTLSA(_ context.Context, name string) (mx.TLSAAnswer, error) {
	err, has := n.tlsa[name]
	if err != nil || !has {
		return mx.TLSAAnswer{IsSecure: true}, err
	}
	return mx.TLSAAnswer{IsSecure: true, Records: []mx.TLSA{{Usage: 3, Selector: 1, Matching: 1, Data: make([]byte, 32)}}}, nil
}

func (policyNames) LookupTXT(context.Context, string) ([]string, error) { return nil, mx.ErrNoName }
func (policyNames) LookupAlias(context.Context, string) (bool, error)   { return false, nil }

func TestLookHosts(t *testing.T) {
	n := policyNames{
		Records: mxtest.Records{
			MX:     map[string][]mx.MX{"example.net": {{Host: "mx1.example.net", Preference: 10}, {Host: "mx2.example.net", Preference: 20}, {Host: "mx3.example.net", Preference: 30}}},
			Hosts:  map[string][]string{"mx1.example.net": {"198.51.100.1"}, "mx2.example.net": {"198.51.100.2"}, "mx3.example.net": {"198.51.100.3"}},
			Secure: map[string]bool{"example.net": true, "mx1.example.net": true, "mx2.example.net": true},
		},
		tlsa: map[string]error{"_25._tcp.mx1.example.net": nil, "_25._tcp.mx2.example.net": errors.New("SERVFAIL")},
	}
	c := config.Default()
	x := lookHosts(t.Context(), &c, n, "example.net", route.Route{})
	var out strings.Builder
	x.show(func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) })
	want := `site (mx1|mx2|mx3).example.net
host 10 mx1.example.net[198.51.100.1] (DNSSEC) tls: dane 3 1 1
host 20 mx2.example.net[198.51.100.2] (DNSSEC) no mail: 451 4.4.3 the TLSA records of mx2.example.net cannot be looked up: SERVFAIL
host 30 mx3.example.net[198.51.100.3] tls: may
`
	if out.String() != want || !x.isGood() {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	if x := lookHosts(t.Context(), &c, n, "none.test", route.Route{}); x.isGood() || !strings.Contains(x.Fault, "no such domain") {
		t.Errorf("got %+v", x)
	}
	for name, own := range map[string]func(*config.Delivery){
		"own host":    func(d *config.Delivery) { d.OwnHosts = []string{"mx1.example.net"} },
		"own address": func(d *config.Delivery) { d.OwnHosts = []string{"198.51.100.1"} },
		"name of a source": func(d *config.Delivery) {
			d.Sources = []config.Source{{Name: "a", IPv4: "192.0.2.1", EHLO: "mx1.example.net"}}
		},
		"address of a source": func(d *config.Delivery) {
			d.Sources = []config.Source{{Name: "a", IPv4: "198.51.100.1", EHLO: "a.example.org"}}
		},
	} {
		c := config.Default()
		own(&c.Delivery)
		if x := lookHosts(t.Context(), &c, n, "example.net", route.Route{}); x.isGood() || !strings.Contains(x.Fault, "loops back") {
			t.Errorf("%s: mail would go to ourselves: got %+v", name, x)
		}
	}
	for _, s := range []string{"[192.0.2.1]", "a b", ""} {
		if domain, err := mailDomain(s); err == nil {
			t.Errorf("%q: got %q", s, domain)
		}
	}
	if domain, err := mailDomain("bob@Example.NET"); err != nil || domain != "example.net" {
		t.Errorf("got %q, %v", domain, err)
	}
}
