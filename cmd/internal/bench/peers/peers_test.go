package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postroad/cmd/internal/bench"
)

func reports(perSecond ...float64) []bench.Report {
	var list []bench.Report
	for _, n := range perSecond {
		list = append(list, bench.Report{AcceptedPerSecond: n, DeliveredPerSecond: n / 2, CPUPerMessage: bench.Millis(1000 / n)})
	}
	return list
}

func TestMedian(t *testing.T) {
	value := func(r bench.Report) float64 { return r.AcceptedPerSecond }
	for _, tt := range []struct {
		of   []bench.Report
		want float64
	}{{reports(3, 1, 2), 2}, {reports(4, 1, 2, 3), 2.5}, {reports(7), 7}, {nil, 0}} {
		if got := median(tt.of, value); got != tt.want {
			t.Errorf("median of %d: got %v, want %v", len(tt.of), got, tt.want)
		}
	}
}

func TestTable(t *testing.T) {
	results := []*result{
		{contender: contender{name: "postfix"}, flat: reports(100, 300, 200), quiet: reports(20)},
		{contender: contender{name: "postfix accepts", acceptOnly: true}, flat: reports(400), quiet: reports(20)},
		{contender: contender{name: "postroad unsigned"}, flat: reports(1000), quiet: reports(20)},
	}
	var out strings.Builder
	if err := printTable(&out, options{rounds: 3}, &machine{}, results); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"accepted/s, while delivering: postroad unsigned / postfix = 5.00\n",
		"CPU per message, unsigned: postroad unsigned / postfix = 0.20\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "signed / postfix opendkim") {
		t.Errorf("a ratio to what was not measured:\n%s", &out)
	}
}

func TestCheckRefusesFalseFigures(t *testing.T) {
	tests := []struct {
		name  string
		signs bool
		r     bench.Report
		says  string
	}{
		{"good", false, bench.Report{Sent: 3, Accepted: 3, Sink: true, Delivered: 3}, ""},
		{"refused", false, bench.Report{Sent: 3, Accepted: 2, Sink: true, Delivered: 2}, "accepted 2 of 3"},
		{"lost", false, bench.Report{Sent: 3, Accepted: 3, Sink: true, Delivered: 2, Missing: 1}, "1 of 3 did not arrive"},
		{"unsigned", true, bench.Report{Sent: 3, Accepted: 3, Sink: true, Delivered: 3, Signed: 2}, "2 of 3 were signed"},
		{"signed", false, bench.Report{Sent: 3, Accepted: 3, Sink: true, Delivered: 3, Signed: 3}, "3 of 3 were signed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := check(contender{signs: tt.signs}, tt.r, t.TempDir())
			if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("got %v, want %q", err, tt.says)
			}
		})
	}
}

func TestOnly(t *testing.T) {
	got := make(map[string]bool)
	for _, c := range contenders("postroad") {
		got[c.name] = wanted(c.name, "opendkim,postroad signed")
	}
	want := map[string]bool{
		"postfix": false, "postfix opendkim": true, "postfix accepts": false,
		"postroad unsigned": false, "postroad signed": true, "postroad accepts": false,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMachine(t *testing.T) {
	m := &machine{dir: t.TempDir()}
	if err := m.look(10 << 10); err != nil {
		t.Fatal(err)
	}
	if got := m.String(); len(m.syncs) != 100 || !strings.Contains(got, "load average") {
		t.Errorf("%d samples: %s", len(m.syncs), got)
	}
}
