package signer_test

import (
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/google/go-cmp/cmp"

	"postroad/queue"
	"postroad/queue/address"
	"postroad/signer"
	"postroad/signer/keyring"
)

// TestRoadRules lets mail of several clients through a real queue: each comes out with the signatures that are its client's to have.
func TestRoadRules(t *testing.T) {
	r := build(t, signer.Options{OwnDomain: "relay.example.net", Domains: []signer.Domain{
		{Names: []string{"example.com"}, Clients: []string{"class:host", "10.0.0.0/8"}, Others: signer.Relay, RelaySignature: true},
		{Names: []string{".example.com"}, Clients: []string{"class:host"}, Others: signer.Hold},
	}})
	for _, domain := range []string{"example.com", "relay.example.net"} {
		r.key(t, domain, "r1", keyring.RSA)
		r.key(t, domain, "e1", keyring.Ed25519)
	}
	accept := func(t *testing.T, from, client, class string) queue.MessageID {
		t.Helper()
		id := r.q.NewID()
		env := queue.Envelope{ReversePath: address.Path{Local: "alice", Domain: from}, HeaderFrom: from, Client: client, Class: class, Accepted: time.Now(),
			Recipients: []queue.Recipient{{Path: address.Path{Local: "bob", Domain: "example.org"}}}}
		if err := r.q.Accept(t.Context(), id, env, strings.NewReader(letter(from, "Hello.\r\n"))); err != nil {
			t.Fatal(err)
		}
		return id
	}
	relay := []string{"relay.example.net", "relay.example.net"}
	for _, c := range []struct {
		client, class string
		want          []string // d=, from the top
	}{
		{"web1", "host", append([]string{"example.com", "example.com"}, relay...)},
		{"net:10.0.0.0/8", "network", append([]string{"example.com", "example.com"}, relay...)},
		{"jane", "user", relay},
	} {
		id := accept(t, "example.com", c.client, c.class)
		var d delivered
		select {
		case d = <-r.came:
		case <-time.After(time.Minute):
			t.Fatal("nothing came")
		}
		got, err := dkim.VerifyWithOptions(strings.NewReader(d.content), &dkim.VerifyOptions{
			LookupTXT: func(name string) ([]string, error) { return []string{r.records[name]}, nil }})
		var domains []string
		for _, v := range got {
			domains = append(domains, v.Domain)
			if v.Err != nil {
				t.Errorf("%s: signature of %s: %v", c.client, v.Domain, v.Err)
			}
		}
		if diff := cmp.Diff(c.want, domains); diff != "" || err != nil || d.job.ID != id {
			t.Errorf("%s: message %s, %v (-want +got):\n%s", c.client, d.job.ID, err, diff)
		}
	}
	id := accept(t, "news.example.com", "jane", "user")
	if e := r.waiting(t, id); e.Job.Reason != "jane may not have mail signed by news.example.com" || e.Job.Signatures != "" {
		t.Errorf("got %+v, want the reason", e.Job)
	}
}
