package ops_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"postroad/cmd/internal/ops"
	"postroad/queue"
)

// Each line comes at once; the stream ends with its time, with the client, and with the server.
func TestTap(t *testing.T) {
	f := &fake{}
	o := options(t, f)
	s := start(t, o)
	c := ops.NewClient(o.Socket)
	wish := queue.TapWish{Site: "mx.example.net", Domain: "example.net", ID: "x"}
	got, err := gather(t, c.Tap(t.Context(), wish, 3*time.Second))
	if err != nil || len(got) != 1 || got[0].Text != "QUIT" {
		t.Errorf("until its time: got %+v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for line, err := range c.Tap(ctx, wish, time.Hour) {
		if err == nil && line.Text == "QUIT" {
			cancel()
		}
	}
	if asked := f.calls()[0]; asked != "tap {Site:mx.example.net Domain:example.net ID:x}" {
		t.Errorf("asked %s", asked)
	}
	for line, err := range c.Tap(t.Context(), wish, time.Hour) {
		if err != nil || line.Text != "QUIT" {
			t.Errorf("got %+v, %v", line, err)
		}
		stop(t, s) // long before the hour is over
	}
}

func TestTapRefused(t *testing.T) {
	f := &fake{}
	o := options(t, f)
	start(t, o)
	c := ops.NewClient(o.Socket)
	for _, tt := range []struct {
		wish queue.TapWish
		d    time.Duration
	}{{queue.TapWish{}, time.Minute}, {queue.TapWish{Site: "x"}, 0}, {queue.TapWish{Site: "x"}, 2 * time.Hour}} {
		if _, err := gather(t, c.Tap(t.Context(), tt.wish, tt.d)); !errors.Is(err, ops.ErrRefused) {
			t.Errorf("%+v for %v: got %v", tt.wish, tt.d, err)
		}
	}
	f.broken = errors.New("no leader")
	if _, err := gather(t, c.Tap(t.Context(), queue.TapWish{Site: "x"}, time.Millisecond)); err == nil {
		t.Error("a queue that breaks off: no error")
	}
}
