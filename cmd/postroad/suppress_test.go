package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"postroad/queue"
)

// What an operator adds stops mail, until he takes it away.
func TestSuppressCommands(t *testing.T) {
	var open atomic.Bool
	open.Store(true)
	sent := 0
	config, address := serve(t, &open)
	say := func(args ...string) (int, string, string) {
		t.Helper()
		return command(t, append(args, "-c", config)...)
	}
	list := writeFile(t, filepath.Join(shortDir(t), "list"), "# left us\nCarol@example.net\n\nexample.org # all of it\nnot an address@\n")
	if status, out, errs := say("suppress", "add", "--file", list, "bob@example.net", "--dry-run"); status != 1 || !strings.Contains(out, "would be suppressed: 3") || !strings.Contains(errs, "not an address@") {
		t.Errorf("dry run: got %d, %q, %q", status, out, errs)
	}
	if status, out, _ := say("suppress", "list"); status != 0 || !strings.Contains(out, "nobody") {
		t.Errorf("after a dry run: got %d, %q", status, out)
	}
	if status, out, errs := say("suppress", "add", "bob@example.net", "example.org", "--reason", "asked", "--owner", "alice", "--for", "30d"); status != 0 || !strings.Contains(out, "suppressed: 2") {
		t.Fatalf("add: got %d, %q, %q", status, out, errs)
	}
	status, out, errs := say("suppress", "list", "bob@example.net", "--json")
	var s queue.Suppression
	if err := json.Unmarshal([]byte(out), &s); err != nil || status != 0 || s.Address != "bob@example.net" || s.Reason != "asked" || s.Owner != "alice" || s.Until.IsZero() {
		t.Errorf("list: got %d, %q, %q", status, out, errs)
	}
	send := func(rcpt string) {
		t.Helper()
		if _, err := sendMail(t.Context(), address, "a@b.example", rcpt, "From: a@b.example\r\nSubject: "+rcpt+"\r\n\r\n"+t.Name()+strings.Repeat("!", sent)+"\r\n"); err != nil {
			t.Fatal(err)
		}
		sent++ // so that it is no repeat
	}
	events := func(rcpt string) string {
		_, out, _ := say("trace", "--recipient", rcpt)
		return out
	}
	send("bob@example.net")
	waitFor(t, func() bool { return strings.Contains(events("bob@example.net"), "suppressed") })
	if got := events("bob@example.net"); strings.Contains(got, "delivered") || !strings.Contains(got, "asked") {
		t.Errorf("a suppressed recipient: got\n%s", got)
	}
	if status, out, _ := say("suppress", "remove", "bob@example.net", "dave@example.net"); status != 0 || !strings.Contains(out, "taken off the list: 1") || !strings.Contains(out, "not on the list: 1") {
		t.Errorf("remove: got %d, %q", status, out)
	}
	send("bob@example.net")
	waitFor(t, func() bool { return strings.Contains(events("bob@example.net"), "delivered") })
	for _, tt := range []struct {
		args   string
		status int
	}{
		{"suppress remove bob@example.net", 1},
		{"suppress add", 2},
		{"suppress add bob@example.net --for ever", 2},
		{"suppress list not@an@address", 2},
	} {
		if status, _, errs := say(strings.Fields(tt.args)...); status != tt.status || errs == "" {
			t.Errorf("%s: got %d, %q, want %d", tt.args, status, errs, tt.status)
		}
	}
}
