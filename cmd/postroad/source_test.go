package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postroad/delivery/mx/mxtest"
)

const sourceZone = `
2.0.0.127.in-addr.arpa. 60 IN PTR out2.example.com.
out2.example.com. 60 IN A 127.0.0.2
relay.example.com. 60 IN A 127.0.0.2
example.com. 60 IN TXT "v=spf1 ip4:127.0.0.2 -all"
_dmarc.example.com. 60 IN TXT "v=DMARC1; p=none"
`

func sourceConfig(t *testing.T, more string) string {
	t.Helper()
	dir := shortDir(t)
	return writeFile(t, filepath.Join(dir, "c.yaml"), `hostname: relay.example.com
domain: example.com
data_dir: `+dir+`/data
delivery:
  resolvers: ["`+mxtest.Serve(t, sourceZone)+`"]
`+more)
}

const twoSources = `
  sources:
    - {name: out2, ipv4: 127.0.0.2, ehlo: out2.example.com}
    - {name: far, ipv4: 240.0.0.9, started: 2020-01-01, nodes: [other]}
    - {name: next, ipv4: 127.0.0.3, started: 2999-01-01}
  pools:
    - {name: bulk, members: [{source: out2, weight: 3}, {source: far}]}
`

func TestSourceList(t *testing.T) {
	file := sourceConfig(t, twoSources)
	status, out, errs := command(t, "source", "list", "-c", file)
	want := `NAME  IPV4       IPV6  EHLO               POOLS   STATE
out2  127.0.0.2  -     out2.example.com   bulk*3  good
far   240.0.0.9  -     relay.example.com  bulk*1  not on this machine: 240.0.0.9; of other
next  127.0.0.3  -     relay.example.com  -       begins 2999-01-01
`
	if status != 0 || out != want {
		t.Errorf("got status %d: %s\n%s", status, errs, out)
	}
	status, out, _ = command(t, "source", "list", "--json", "-c", file)
	var one listedSource
	first, _, _ := strings.Cut(out, "\n")
	if err := json.Unmarshal([]byte(first), &one); err != nil || status != 0 || one.Name != "out2" || len(one.Pools) != 1 || one.Pools[0].Weight != 3 {
		t.Errorf("got status %d, %v: %s", status, err, out)
	}
	if status, out, _ := command(t, "source", "list", "-c", sourceConfig(t, "")); status != 0 || !strings.Contains(out, "EHLO says relay.example.com") {
		t.Errorf("none: got status %d: %s", status, out)
	}
}

// A9 warm-up: what a new source has used of its plan is what the workers have counted.
func TestSourceListUsed(t *testing.T) {
	var open atomic.Bool
	open.Store(true)
	plan := `  sources: [{name: fresh, ipv4: 127.0.0.1, started: ` + time.Now().UTC().Format(time.DateOnly) + `}, {name: old, ipv4: 127.0.0.2}]
  pools: [{name: new, members: [{source: fresh}]}]
  pool: new
  warm_up: {days: 30, first: 20, last: 20}`
	file, address := serve(t, &open, plan)
	list := func(args ...string) string {
		t.Helper()
		status, out, errs := command(t, append([]string{"source", "list", "-c", file}, args...)...)
		if status != 0 || errs != "" {
			t.Fatalf("got %d: %s", status, errs)
		}
		return out
	}
	if out := list(); !strings.Contains(out, ", 20 recipients a day, 0 of them used\n") || strings.Count(out, "used") != 1 {
		t.Errorf("at first: got\n%s", out)
	}
	if _, err := sendMail(t.Context(), address, "a@b.example", "c@d.example", "From: a@b.example\r\nSubject: x\r\n\r\nhello\r\n"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		_, out, _ := command(t, "trace", "--recipient", "c@d.example", "-c", file)
		return strings.Contains(out, "delivered")
	})
	if out := list("--json"); !strings.Contains(out, `"per_day":20,"used":1}`) || strings.Count(out, "used") != 1 {
		t.Errorf("after one recipient: got\n%s", out)
	}
}

// Without a server the plan is shown, and that its use is not known.
func TestSourceListUnasked(t *testing.T) {
	file := sourceConfig(t, `
  sources: [{name: fresh, ipv4: 127.0.0.1, started: `+time.Now().UTC().Format(time.DateOnly)+`}]
`)
	status, out, errs := command(t, "source", "list", "-c", file)
	if status != 0 || !strings.Contains(out, "200 recipients a day\n") || !strings.Contains(errs, "not known what new sources have used: there is no admin socket") {
		t.Errorf("got %d: %s\n%s", status, errs, out)
	}
}

// E6-84, S2.2: the fleet checks itself before receivers do, with an exit status.
func TestE6_84_SourceCheck(t *testing.T) {
	file := sourceConfig(t, twoSources)
	tests := []struct {
		name, args string
		status     int
		out, errs  string
	}{
		{"good", "out2", 0, "out2    127.0.0.2  ehlo     good     out2.example.com", ""},
		{"dmarc", "out2", 0, "dmarc    good     example.com: v=DMARC1; p=none", ""},
		{"no name", "next", 1, "next    127.0.0.3  ptr    bad      the address has no name", "next 127.0.0.3 ptr: have a PTR record made that names relay.example.com"},
		{"not in SPF", "next", 1, "spf    bad      example.com: fail", "add ip4:127.0.0.3 to the SPF record of example.com"},
		{"another domain", "out2 --domain other.test", 1, "dmarc    bad      other.test has no DMARC record", "v=spf1 ip4:127.0.0.2 -all"},
		{"name service fails", "out2 --domain x.fails.test", 1, "unknown", "see that the name servers"},
		{"all", "", 1, "out2", "far 240.0.0.9 ptr"},
		{"no such source", "none", 2, "", `there is no source "none"`},
		{"no domain", "--domain [::1]", 2, "", "is no domain"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, out, errs := command(t, append([]string{"source", "check", "-c", file}, strings.Fields(tt.args)...)...)
			if status != tt.status || !strings.Contains(out, tt.out) || !strings.Contains(errs, tt.errs) {
				t.Errorf("got status %d\n%s%s", status, out, errs)
			}
		})
	}
	status, out, _ := command(t, "source", "check", "--json", "-c", file, "out2")
	if status != 0 || !strings.Contains(out, `"check":"forward","verdict":"good"`) {
		t.Errorf("got status %d: %s", status, out)
	}
	// Without sources it is the address of the host's name.
	status, out, errs := command(t, "source", "check", "-c", sourceConfig(t, ""))
	if status != 1 || !strings.Contains(errs, "set ehlo of the source to out2.example.com") {
		t.Errorf("got status %d\n%s%s", status, out, errs)
	}
}
