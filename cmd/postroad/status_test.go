package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postroad/cmd/internal/ops"
	"postroad/queue"
)

var updateStatus = flag.Bool("update-status", false, "write the golden pages of postroad status anew")

// healthy is a cluster that is well.
func healthy() *ops.Status {
	node := func(name string, roles ...string) queue.Node {
		return queue.Node{Name: name, Roles: roles, Version: "0.1.0", Host: name, Started: noon.Add(-30 * time.Hour), Seen: noon.Add(-4 * time.Second), Facts: map[string]string{}}
	}
	signer := node("relay-2", "signer", "delivery")
	signer.Facts = map[string]string{"keys": "keys in memory: 12 domains", "vault": "https://vault.example.net:8200 secret/postroad"}
	stream := func(name string, bytes, most uint64) queue.Stream {
		return queue.Stream{Name: name, Bytes: bytes, MaxBytes: most, Leader: "queue-1", Copies: 3,
			Replicas: []queue.Replica{{Name: "queue-2", Current: true}, {Name: "queue-3", Current: true}}}
	}
	return &ops.Status{At: noon, Well: true, Asked: "relay-1", Nodes: []queue.Node{node("relay-1", "ingress", "ops"), signer}, Queue: &queue.Overview{
		Counts: queue.Counts{MailBytes: 5 << 20, MaxBytes: 10 << 30, Ready: 3, Later: map[queue.Class]uint64{"1m": 2, "4h": 1, "10s": 0}},
		Lanes:  map[string]uint64{"0": 2, "7": 1, "s1": 0},
		Oldest: &queue.Oldest{ID: "01m886ywdcsja4ea6jxar2stxy0", Accepted: noon.Add(-2 * time.Hour), Place: queue.PlaceLater, Class: "4h", Domain: "slow.example",
			Reason: "450 4.2.0 mailbox is having lunch"},
		Waiting: queue.Waiting{Jobs: 3, Looked: 3, Whole: true, HeldWhole: true, Domains: []queue.WaitDomain{
			{Domain: "slow.example", Jobs: 2, Oldest: noon.Add(-2 * time.Hour), Reason: "450 4.2.0 mailbox is having lunch"},
			{Domain: "dead.example", Jobs: 1, Oldest: noon.Add(-time.Minute), Reason: "no answer"},
		}},
		Leases:  []queue.Lease{{Name: "reconciler", Holder: "relay-2"}},
		Streams: []queue.Stream{stream("MAIL", 5<<20, 10<<30), stream("JOBS", 3<<10, 10<<30)},
	}}
}

// degraded is the same with a sealed Vault, a silent node, held mail and a queue server that is away.
func degraded() *ops.Status {
	st := healthy()
	st.Well = false
	since := noon.Add(-125 * time.Second)
	st.Nodes[1].Conditions = []queue.Condition{{Part: "secrets", Text: "Vault is sealed (https://vault.example.net:8200)", Since: since}}
	st.Nodes[0].Draining = true
	st.Attention = []ops.Attention{
		{Part: "secrets", Text: "Vault is sealed (https://vault.example.net:8200)", Nodes: []string{"relay-2"}, Since: since,
			Do: "unseal it with `vault operator unseal`; what waits for it goes on by itself"},
		{Part: "signer", Text: "12 mails wait for their signatures: keys are out of reach: read keys of sender.example: vault is out of reach (503 Vault is sealed): unseal it, or wait for its leader",
			Nodes: []string{"relay-2"}, Since: since.Add(20 * time.Second), Do: "see what is said of secrets; mail is signed and sent by itself when keys are back"},
		{Part: "held", Text: "1 mail is set aside (returned)", Do: "look at it"},
		{Part: "queue", Text: "the queue server queue-3 is away or behind: its copies do not count", Do: "start it again"},
	}
	q := st.Queue
	q.Counts.Incoming, q.Counts.Held = 5, 1
	q.Waiting.Jobs, q.Waiting.Looked, q.Waiting.Whole, q.Waiting.More = 1_000_000, 4000, false, 17
	q.Waiting.Keys = []queue.WaitKeys{{Author: "sender.example", Mails: 7, Oldest: since, Reason: "keys of sender.example are out of reach"}}
	q.Waiting.Held = []queue.HeldMail{{Why: "returned", Mails: 1, Oldest: noon.Add(-3 * time.Hour), Decide: true}}
	q.Waiting.Scheduled = 2
	q.Oldest.Place, q.Oldest.Why, q.Oldest.Class = queue.PlaceHeld, "returned", ""
	q.Streams[0].Replicas[1] = queue.Replica{Name: "queue-3", Offline: true}
	q.Missing = []string{"leases: no answer in time"}
	return st
}

func TestShowStatus(t *testing.T) {
	embedded := healthy()
	embedded.Embedded, embedded.Nodes, embedded.Queue.Waiting, embedded.Queue.Oldest = true, embedded.Nodes[:1], queue.Waiting{Whole: true}, nil
	embedded.Queue.Counts, embedded.Queue.Lanes = queue.Counts{MaxBytes: 10 << 30}, nil
	lost := healthy()
	lost.Queue, lost.Well, lost.QueueErr = nil, false, "no leader"
	lost.Attention = []ops.Attention{{Part: "queue", Text: "the queue does not answer: no leader", Do: "see that two of three queue servers run"}}
	for name, st := range map[string]*ops.Status{"healthy": healthy(), "degraded": degraded(), "embedded": embedded, "lost": lost} {
		var out bytes.Buffer
		if err := showStatus(&out, st, noon); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out.String()) {
			if n := len([]rune(line)); n > statusWidth+2 {
				t.Errorf("%s: a line of %d columns: %s", name, n, line)
			}
		}
		file := filepath.Join("testdata", "status", name+".txt")
		if *updateStatus {
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, out.Bytes(), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), out.String()); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// TestShowWhatIsCutOff: the page says what was not looked at, and does not say none of what was not found.
func TestShowWhatIsCutOff(t *testing.T) {
	st := healthy()
	q := st.Queue
	q.Oldest, q.Aside = nil, []string{"bucket uses: no such stream"}
	q.Waiting = queue.Waiting{Jobs: 9, Looked: 4, Passed: 700, Held: []queue.HeldMail{{Why: "operator", Mails: 500, More: true}}}
	var out bytes.Buffer
	if err := showStatus(&out, st, noon); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"oldest mail  not found", "there are more: the first 500", "of the first 4 of 9 looked at, and 700 held jobs passed", "not known    bucket uses"} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("got\n%swant %q", out.String(), text)
		}
	}
}

// TestStatusOfAServer asks a real one: all is well with deferred mail, not with mail that is set aside for want of a key.
func TestStatusOfAServer(t *testing.T) {
	var open atomic.Bool
	file, address := serve(t, &open)
	waitFor(t, func() bool { status, _, _ := command(t, "status", "-c", file); return status == 0 })
	if _, err := sendMail(t.Context(), address, "a@b.example", "c@d.example", "From: a@b.example\r\nSubject: x\r\n\r\nhello\r\n"); err != nil {
		t.Fatal(err)
	}
	var out string
	waitFor(t, func() bool {
		var status int
		if status, out, _ = command(t, "status", "-c", file); status != 0 {
			t.Fatalf("status ended with %d:\n%s", status, out)
		}
		return strings.Contains(out, "mailbox is having lunch")
	})
	for _, text := range []string{"all well: 1 node, 1 job in the queue", "deferred, by destination", "d.example", "embedded in", "lease reconciler"} {
		if !strings.Contains(out, text) {
			t.Errorf("got\n%swant %q", out, text)
		}
	}
	status, out, _ := command(t, "status", "--json", "-c", file)
	var st ops.Status
	if err := json.Unmarshal([]byte(out), &st); err != nil || status != 0 || !st.Well || len(st.Nodes) != 1 {
		t.Errorf("got %d, %v and %s", status, err, out)
	}
}

func TestStatusWithoutServer(t *testing.T) {
	file := writeFile(t, filepath.Join(shortDir(t), "postroad.yaml"), fmt.Sprintf("data_dir: %s\n", shortDir(t)))
	if status, _, stderr := command(t, "status", "-c", file); status != 1 || !strings.Contains(stderr, "is `postroad serve` running") {
		t.Errorf("got %d and %q, want 1 and what to do", status, stderr)
	}
	if status, out, _ := command(t, "status", "--help"); status != 0 || !strings.Contains(out, "Exit status") {
		t.Errorf("got %d and %q, want the exit statuses", status, out)
	}
	if status, _, _ := command(t, "status", "everything"); status != 2 {
		t.Errorf("got %d, want 2 for a wrong command line", status)
	}
}
