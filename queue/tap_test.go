package queue

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A listener hears the lines that fit, in their order; who does not listen costs nothing.
func TestTap(t *testing.T) {
	q := innerQueue(t)
	taps, err := q.OpenTaps()
	if err != nil {
		t.Fatal(err)
	}
	defer taps.Close()
	id := NewID()
	about := TapLine{ID: id, Domain: "example.net", Site: "mx.example.net"}
	if taps.Hear(about) != nil {
		t.Fatal("somebody listens before anybody does")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	got := make(chan TapLine, 100)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for line, err := range q.Tap(ctx, TapWish{Domain: "Example.NET"}) {
			if err != nil {
				t.Errorf("tap: %v", err)
				return
			}
			if line.Text == "stop" {
				return
			}
			got <- line
		}
	}()
	var say func(time.Time, string, string)
	for say == nil && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
		say = taps.Hear(about)
	}
	if other := taps.Hear(TapLine{Domain: "example.com"}); other != nil {
		t.Error("another domain is heard")
	}
	if say == nil {
		t.Fatal("nobody listens")
	}
	at := time.Now()
	say(at, "C", "MAIL FROM:<>")
	say(at, "S", "250 ok")
	say(at, "*", "stop")
	<-ended
	close(got)
	var lines []string
	for l := range got {
		lines = append(lines, fmt.Sprintf("%s %s %v", l.From, l.Text, l.ID == id && l.Node == q.o.Node && l.At.Equal(at)))
	}
	if diff := cmp.Diff([]string{"C MAIL FROM:<> true", "S 250 ok true"}, lines); diff != "" {
		t.Errorf("heard (-want +got):\n%s", diff)
	}
	for _, err := range q.Tap(ctx, TapWish{}) {
		if !IsBadTap(err) {
			t.Errorf("a wish for everything: got %v", err)
		}
	}
}

// Who does not repeat his wish is gone, and there are only so many.
func TestTapsAreBounded(t *testing.T) {
	taps, now := &Taps{}, time.Now()
	for i := range 3 * maxTaps {
		taps.want(wanted{TapWish{Domain: "example.net"}, fmt.Sprint("s", i)}, now)
	}
	if got := len(*taps.taps.Load()); got != maxTaps {
		t.Errorf("got %d listeners, want %d", got, maxTaps)
	}
	taps.want(wanted{TapWish{Domain: "example.net"}, "s3"}, now.Add(tapLapse-1))
	taps.want(wanted{TapWish{Domain: "example.net"}, "s3"}, now.Add(tapLapse+1))
	if list := *taps.taps.Load(); len(list) != 1 || list[0].session != "s3" {
		t.Errorf("got %d listeners after the others' end", len(list))
	}
	taps.taps.Store(nil)
	taps.want(wanted{TapWish{Domain: "example.net"}, "old"}, now.Add(-time.Hour))
	if taps.Hear(TapLine{Domain: "example.net"}) != nil {
		t.Error("a lapsed listener is told")
	}
}

func TestTapRate(t *testing.T) {
	l := &tap{}
	for i := range tapRate + 3 {
		if _, is := l.turn(7); is != (i < tapRate) {
			t.Fatalf("line %d: got %v", i, is)
		}
	}
	if missed, is := l.turn(8); !is || missed != 3 {
		t.Errorf("got %d missed, %v", missed, is)
	}
	if missed, _ := l.turn(8); missed != 0 {
		t.Errorf("told twice: %d", missed)
	}
}

func TestTapWishFits(t *testing.T) {
	line := TapLine{ID: "01ABC", Domain: "example.net", Site: "mx.example.net"}
	for _, tt := range []struct {
		wish TapWish
		want bool
	}{
		{TapWish{ID: "01abc"}, true}, {TapWish{Site: "MX.example.net"}, true}, {TapWish{Domain: "example.net", Site: "mx.example.net"}, true},
		{TapWish{Domain: "example.com"}, false}, {TapWish{Domain: "example.net", ID: "02"}, false},
	} {
		if got := tt.wish.fits(line); got != tt.want {
			t.Errorf("%+v: got %v", tt.wish, got)
		}
	}
}
