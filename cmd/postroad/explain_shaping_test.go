package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"postroad/delivery/mx/mxtest"
)

// A9 "explain effective limits": each limit that would apply is shown with the line that gives it, for each source of the pool.
func TestExplainShaping(t *testing.T) {
	dir := shortDir(t)
	file := writeFile(t, filepath.Join(dir, "c.yaml"), `hostname: relay.example.com
data_dir: `+dir+`/data
delivery:
  resolvers: ["`+mxtest.Serve(t, `
example.org. 60 IN MX 10 mx.example.net.
mx.example.net. 60 IN A 198.51.100.1
`)+`"]
  sources: [{name: one, ipv4: 192.0.2.1}, {name: two, ipv4: 192.0.2.2}, {name: slow, ipv4: 192.0.2.3}]
  pools: [{name: bulk, members: [{source: one}, {source: two}, {source: slow}]}]
  pool: bulk
  routes: [{domains: [fixed.example], via: "smtp:[smart.example.net]", source: system}, {domains: [void.example], via: discard}]
  shaping:
    - {connections: 7}
    - {mx: [example.net], rate: 6000/h, burst: 10}
    - {domains: [example.org], messages_per_connection: 5}
    - {sources: [slow], connection_rate: 3/m, rate: 1/h}
`)
	for _, tt := range []struct{ name, args, want string }{
		{"by the hosts", "--hosts a@example.com b@example.org", `               limits from one, two of the site mx.example.net, counted by mx.example.net#example.org@one, mx.example.net#example.org@two
                 7 connections: delivery.shaping[0]
                 6000/h messages in bursts of 10: delivery.shaping[1] (mx=example.net)
                 no rate of new connections: built-in default
                 5 messages a connection: delivery.shaping[2] (domain=example.org)
               limits from slow of the site mx.example.net, counted by mx.example.net#example.org@slow
                 7 connections: delivery.shaping[0]
                 6000/h messages in bursts of 10: delivery.shaping[1] (mx=example.net)
                 3/m new connections: delivery.shaping[3] (source=slow)
                 5 messages a connection: delivery.shaping[2] (domain=example.org)
`},
		{"without the name service", "a@example.com b@example.org", `               limits from slow, without those of its site and hosts: --hosts finds them
                 1 connections (the rate has no use for more), 1/h messages, 3/m new connections: delivery.shaping[3] (source=slow)
                 5 messages a connection: delivery.shaping[2] (domain=example.org)
not known  limits that operators set, and suspensions: there is no admin socket`},
		{"a fixed host by its name", "a@example.com b@fixed.example", `               limits of the site smtp:[smart.example.net]:25
                 7 connections: delivery.shaping[0]
                 6000/h messages in bursts of 10: delivery.shaping[1] (mx=example.net)
                 no rate of new connections, 100 messages a connection: built-in default
`},
		{"nobody is asked", "a@example.com b@void.example", "thrown away, nobody is told (route for void.example)\nheader "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, out, errs := command(t, append([]string{"explain", "-c", file}, strings.Fields(tt.args)...)...)
			if status != 0 || !strings.Contains(out, tt.want) {
				t.Errorf("got status %d: %s\n%swant\n%s", status, errs, out, tt.want)
			}
		})
	}
}

// A9: what operators set and suspend is asked of the running server.
func TestExplainLimitsInForce(t *testing.T) {
	file, _ := serve(t, new(atomic.Bool))
	say := func(args ...string) string {
		t.Helper()
		status, out, errs := command(t, append(args, "-c", file)...)
		if status != 0 {
			t.Fatalf("%v: got %d: %s%s", args, status, out, errs)
		}
		return out
	}
	if out := say("explain", "a@example.com", "b@example.org"); strings.Contains(out, "not known") || strings.Contains(out, "now ") || !strings.Contains(out, "100 messages a connection: built-in default") {
		t.Errorf("nothing is set: got\n%s", out)
	}
	say("limit", "set", "example.org", "--rate", "30/m", "--owner", "alice", "--reason", "they asked", "--for", "2h")
	say("limit", "set", "--messages", "3", "--owner", "carol")
	say("site", "suspend", "example.org", "--owner", "bob", "--reason", "blocked", "--for", "1h")
	out := say("explain", "a@example.com", "b@example.org")
	for _, want := range []string{
		" (the rate has no use for more), 30/m messages: limit set domain=example.org by alice, until 20", ": they asked\n",
		" 3 messages a connection: limit set * by carol\n",
		" now example.org: suspended by bob, ends in ", ": blocked\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("want %q in\n%s", want, out)
		}
	}
	if out := say("explain", "a@example.com", "b@example.net"); strings.Contains(out, "alice") || strings.Contains(out, "suspended") || !strings.Contains(out, "carol") {
		t.Errorf("another domain: got\n%s", out)
	}
	var x explanation
	if err := json.Unmarshal([]byte(say("explain", "--json", "a@example.com", "b@example.org")), &x); err != nil {
		t.Fatal(err)
	}
	s := x.Recipients[0].Shaping
	if len(s.Limits) != 1 || len(s.Limits[0].Each) != 4 || s.Limits[0].Each[1].Value != "30/m" || len(s.States) != 1 || s.States[0].Suspension.Owner != "bob" {
		t.Errorf("got %+v", s)
	}
}
