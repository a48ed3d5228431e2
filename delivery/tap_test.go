package delivery

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"postroad/delivery/smtpc"
	"postroad/queue"
)

// fakeTaps listens to one domain.
type fakeTaps struct {
	domain string
	heard  []string
}

func (f *fakeTaps) Hear(about queue.TapLine) func(time.Time, string, string) {
	if about.Domain != f.domain {
		return nil
	}
	return func(_ time.Time, from, text string) {
		f.heard = append(f.heard, about.Site+" "+from+" "+text)
	}
}

// A listener hears the dialogues of his domain from their opening on, and which connection a further message takes.
func TestTap(t *testing.T) {
	n := newFakeNet()
	taps := &fakeTaps{domain: "example.net"}
	say := func(tap smtpc.Tap, text string) {
		if tap != nil {
			tap(smtpc.Line{From: smtpc.Client, Text: text})
		}
	}
	for _, host := range []string{"mx.example.net", "mx.example.com"} {
		n.set(host, func(_ context.Context, o smtpc.Options) (*fakeConn, error) {
			say(o.Tap, "EHLO")
			return &fakeConn{answer: func(ctx context.Context, i int, m smtpc.Message) (smtpc.Result, error) {
				say(m.Tap, "MAIL")
				return ok(ctx, i, m)
			}}, nil
		})
	}
	w := testWorker(t, n, "example.net", "example.com")
	w.o.Taps = taps
	for _, rcpt := range []string{"a@example.net", "a@example.com", "b@example.net"} {
		handleOne(t, w, testJob(rcpt), &fakeMail{})
	}
	want := []string{"C EHLO", "C MAIL", "* on a connection to mx.example.net[198.51.100.1]:25, message 2", "C MAIL"}
	for i := range want {
		want[i] = "mx.example.net " + want[i]
	}
	if !slices.Equal(taps.heard, want) {
		t.Errorf("heard\n%s\nwant\n%s", strings.Join(taps.heard, "\n"), strings.Join(want, "\n"))
	}
}
