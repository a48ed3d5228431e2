package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postroad/queue"
	"postroad/queue/address"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.Local)

func job(domain string, recipients int) queue.Job {
	j := queue.Job{ID: "01m886ywdcsja4ea6jxar2stxy0", Kind: queue.KindMail, Parts: 2, Part: 1, Domain: domain, Accepted: noon.Add(-90 * time.Minute), Size: 2048}
	for range recipients {
		j.Recipients = append(j.Recipients, queue.Recipient{Path: address.Path{Local: "c", Domain: domain}})
	}
	return j
}

func TestListLine(t *testing.T) {
	later := job("d.example", 2)
	later.Tries, later.Reason, later.Due = 3, "450 4.2.0 \x1b[2Jlater", noon.Add(61*time.Second)
	overdue := job("d.example", 1)
	overdue.Due = noon.Add(-time.Second)
	for _, tt := range []struct {
		name  string
		entry queue.Entry
		want  string
	}{
		{"later", queue.Entry{Place: queue.PlaceLater, Job: later}, "later      1h30m  d.example                           2      3  in 1m01s        450 4.2.0  [2Jlater"},
		{"due", queue.Entry{Place: queue.PlaceLater, Job: overdue}, "later      1h30m  d.example                           1      0  due now"},
		{"held", queue.Entry{Place: queue.PlaceHeld, Why: "lunch", Job: job("d.example", 1)}, "held       1h30m  d.example                           1      0  when released   held: lunch"},
		{"ready", queue.Entry{Place: queue.PlaceReady, Job: job("d.example", 1)}, "ready      1h30m  d.example                           1      0  now"},
		{"incoming", queue.Entry{Place: queue.PlaceIncoming, Job: job("", 0)}, "incoming   1h30m                                      0      0  when signed"},
	} {
		if d := cmp.Diff("01m886ywdcsja4ea6jxar2stxy0  "+tt.want, listLine(tt.entry, noon)); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
}

func TestNextLine(t *testing.T) {
	waiting := job("d.example", 2)
	waiting.Due, waiting.Reason = noon.Add(time.Hour), "no route"
	for want, e := range map[string]queue.Entry{
		"2 recipients at d.example waits; next try 2026-11-25 13:00:00 (in 1h00m): no route":             {Place: queue.PlaceLater, Job: waiting},
		"c@d.example is ready or being delivered":                                                        {Place: queue.PlaceReady, Job: job("d.example", 1)},
		"c@d.example is held (lunch); postroad queue release 01m886ywdcsja4ea6jxar2stxy0 brings it back": {Place: queue.PlaceHeld, Why: "lunch", Job: job("d.example", 1)},
		"is with the signer": {Place: queue.PlaceIncoming, Job: job("", 0)},
	} {
		if d := cmp.Diff(want, nextLine(e, noon)); d != "" {
			t.Error(d)
		}
	}
}

func TestShowEntry(t *testing.T) {
	j := job("d.example", 1)
	j.Signatures = "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;\r\n d=b.example; s=one; bh=x; b=y\r\nDKIM-Signature: a=ed25519-sha256; d=b.example; s=two;\r\n b=z\r\n"
	j.LastTry, j.Tries, j.ENVID, j.Maker = noon.Add(-time.Minute), 1, "QQ314159", "01m886ywdcsja4ea6jxar2stxz0"
	var b bytes.Buffer
	if err := showEntry(&b, queue.Entry{Place: queue.PlaceReady, Since: noon.Add(-25 * time.Hour), Job: j}, noon); err != nil {
		t.Fatal(err)
	}
	want := `id           01m886ywdcsja4ea6jxar2stxy0 (mail), part 2 of 2
place        ready since 2026-11-24 11:00:00 (1d01h ago)
next         c@d.example is ready or being delivered
accepted     2026-11-25 10:30:00 (1h30m ago)
sender       <>
recipient    <c@d.example>
domain       d.example
size         2.0 KiB
tries        1
last try     2026-11-25 11:59:00 (1m00s ago)
envelope id  QQ314159
reports on   01m886ywdcsja4ea6jxar2stxz0
signed       d=b.example s=one a=rsa-sha256
signed       d=b.example s=two a=ed25519-sha256

`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
}

func TestEventLine(t *testing.T) {
	for want, e := range map[string]queue.Event{
		"accepted   <> to <c@d.example> from h[192.0.2.1] (client web) 10 B TLS 1.3 in 1.5ms": {
			Type: queue.Reception, Recipient: "c@d.example", Peer: "h[192.0.2.1]", Client: "web", Size: 10, TLS: "TLS 1.3", Duration: 1500 * time.Microsecond,
		},
		"delivered  <c@d.example> by mx[192.0.2.2]:25 250 2.0.0 ok": {
			Type: queue.Delivered, Recipient: "c@d.example", Peer: "mx[192.0.2.2]:25", Code: 250, Enhanced: "2.0.0", Text: "ok", Attempt: 1,
		},
		"deferred   <c@d.example> 450 later (try 1) next try 2026-11-25 13:00:00": {
			Type: queue.TransientFailure, Recipient: "c@d.example", Code: 450, Text: "later", Attempt: 1, Due: noon.Add(time.Hour),
		},
		"notified   message 01m886ywdcsja4ea6jxar2stxz0 failed": {Type: queue.NotificationMade, Peer: "01m886ywdcsja4ea6jxar2stxz0", Text: "failed"},
		"finished   part 2": {Type: queue.Finished, Part: 1},
		"novelty    text":   {Type: "Novelty", Text: "text"},
	} {
		e.Time = noon
		if d := cmp.Diff("2026-11-25 12:00:00.000  "+want, eventLine(e)); d != "" {
			t.Error(d)
		}
	}
}

func TestCleanAndUnits(t *testing.T) {
	if got, want := clean("a\r\nb\x1b[31m"+strings.Repeat("é", 10), 10), "a  b [31mé…"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for d, want := range map[time.Duration]string{-time.Hour: "0s", 59 * time.Second: "59s", time.Hour: "1h00m", 49 * time.Hour: "2d01h"} {
		if got := age(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{1023: "1023 B", 1536: "1.5 KiB", 40 << 20: "40.0 MiB", 3 << 30: "3.0 GiB"} {
		if got := octets(n); got != want {
			t.Errorf("%d: got %s, want %s", n, got, want)
		}
	}
	if got := idOf("250 2.0.0 queued as <01m886ywdcsja4ea6jxar2stxy0>"); got != "01m886ywdcsja4ea6jxar2stxy0" {
		t.Errorf("got id %q", got)
	}
	if got := idOf("250 ok"); got != "" {
		t.Errorf("got id %q, want none", got)
	}
}
