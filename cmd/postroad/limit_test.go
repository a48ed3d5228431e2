package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"postroad/cmd/internal/ops"
	"postroad/delivery/throttle"
	"postroad/queue"
)

func TestShowLimits(t *testing.T) {
	second := queue.Rate{Count: 100, Window: time.Second}
	l := ops.Limits{
		Live: []ops.LiveLimit{{Match: "domain=example.net", Until: noon.Add(time.Hour), LiveLimit: throttle.LiveLimit{
			Rule: throttle.Rule{Domain: "example.net", Rate: second, Connections: 3, PerSite: true}, Owner: "alice", Reason: "they\x1b asked", Since: noon.Add(-time.Minute)}}},
		Paths: []ops.PathUse{
			{Path: "mx.example.net", Connections: 10, Nodes: map[string]int{"b": 4, "a": 3}, Rate: second, SiteState: ops.SiteState{Waiting: 7,
				Suspension: &throttle.Suspension{Owner: "bob", Reason: "blocked", Until: noon.Add(2 * time.Hour)}}},
			{Path: "mx.example.org"},
		},
	}
	var out bytes.Buffer
	if err := showLimits(&out, l, noon); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"domain=example.net  3 connections, 100/s messages, over all sources  alice  1m00s  in 1h00m", "they  asked",
		"mx.example.net  7/10 (a 3, b 4)  100/s  7        suspended by bob, ends in 2h00m: blocked", "mx.example.org  -                -      -        ok",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("want %q in\n%s", want, out.String())
		}
	}
}

func TestShowSites(t *testing.T) {
	var out bytes.Buffer
	if err := showSites(&out, nil, noon); err != nil || !strings.Contains(out.String(), "no site is suspended") {
		t.Errorf("got %q, %v", out.String(), err)
	}
	out.Reset()
	err := showSites(&out, []ops.Site{
		{Name: "mx.example.net", SiteState: ops.SiteState{Circuit: &throttle.Circuit{Since: noon.Add(-time.Hour), Until: noon.Add(time.Minute), Text: "refused"}}},
		{Name: "mx.example.org", SiteState: ops.SiteState{Circuit: &throttle.Circuit{Since: noon.Add(-time.Hour), ProbeUntil: noon.Add(time.Minute), Text: "refused"},
			Slow: &throttle.Slow{Reason: "too-many", Until: noon.Add(time.Minute)}, Marks: []throttle.Mark{{Source: "out-1", Reason: "listed", Until: noon.Add(time.Hour)}}}},
	}, noon)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"dead for 1h00m, next probe in 1m00s: refused", "dead for 1h00m, being probed: refused; half of the limits, ends in 1m00s: too-many; not from out-1, ends in 1h00m: listed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("want %q in\n%s", want, out.String())
		}
	}
}

func TestLimitsAreCheckedFirst(t *testing.T) {
	for _, args := range [][]string{
		{"limit", "set", "example.net"},
		{"limit", "set", "example.net", "--rate", "fast"},
		{"limit", "set", "exa mple", "--rate", "1/s"},
		{"limit", "set", "example.net", "--site", "mx.example.net", "--rate", "1/s"},
		{"limit", "set", "example.net", "--burst", "3"},
		{"site", "suspend", "example.net", "--for", "1h"},
		{"site", "suspend", "example.net", "--reason", "x"},
	} {
		var out, errs bytes.Buffer
		if got := run(t.Context(), args, &out, &errs); got != exitUsage {
			t.Errorf("%v: got exit status %d (%s), want %d", args, got, errs.String(), exitUsage)
		}
	}
}
