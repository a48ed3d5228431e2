package main

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
)

// An operator sees a dialogue while it goes on.
func TestTapLive(t *testing.T) {
	var open atomic.Bool
	file, address := serve(t, &open)
	reply, err := sendMail(t.Context(), address, "a@b.example", "c@d.example", "From: a@b.example\r\nSubject: secret of mine\r\n\r\nhello\r\n")
	if err != nil {
		t.Fatal(err)
	}
	id := idOf(reply)
	ctx, cancel := context.WithCancel(t.Context())
	heard, ended := &lockedBuffer{}, make(chan int, 1)
	go func() { ended <- run(ctx, []string{"-c", file, "tap", "--domain", "d.example"}, heard, heard) }()
	open.Store(true)
	// Who listens is known to the worker a moment later: until then dialogues go by unheard, so there are more of them.
	waitFor(t, func() bool {
		if _, err := sendMail(t.Context(), address, "a@b.example", "c@d.example", "Subject: secret of mine\r\n\r\nhello\r\n"); err != nil {
			t.Fatal(err)
		}
		command(t, "-c", file, "queue", "retry", id)
		return strings.Contains(heard.String(), " octets of content]") && strings.Contains(heard.String(), " S 250 ")
	})
	cancel()
	if status := <-ended; status != 0 {
		t.Errorf("tap ended with %d", status)
	}
	text := heard.String()
	for _, want := range []string{" C MAIL FROM:<a@b.example>", " C RCPT TO:<c@d.example>", " S 354 "} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if strings.Contains(text, "secret") {
		t.Errorf("content was told:\n%s", text)
	}
	for want, args := range map[string][]string{
		"--site, --domain or --id": {"tap"}, "an hour": {"tap", "--id", "x", "--for", "2h"},
	} {
		if status, _, errs := command(t, append([]string{"-c", file}, args...)...); status != 2 || !strings.Contains(errs, want) {
			t.Errorf("%v: got %d, %s", args, status, errs)
		}
	}
	if status, _, errs := command(t, "-c", file, "tap", "--id", "nobody", "--for", "10ms"); status != 1 || !strings.Contains(errs, "nothing was heard") {
		t.Errorf("nothing heard: got %d, %s", status, errs)
	}
}
