package cluster

import (
	"context"
	"testing"
	"time"

	"postroad/queue"
)

// tryTap has an operator hear a dialogue of a process that delivers, each with its own login.
func tryTap(t *testing.T, roles map[User]*queue.Queue) {
	t.Helper()
	taps, err := roles[UserDelivery].OpenTaps()
	if err != nil {
		t.Fatal(err)
	}
	defer taps.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	told := make(chan struct{})
	go func() {
		defer close(told)
		for ctx.Err() == nil { // servers tell each other who listens to what: the first lines may be lost
			if say := taps.Hear(queue.TapLine{Domain: "example.net"}); say != nil {
				say(time.Now(), "C", "QUIT")
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	heard := false
	for line, err := range roles[UserOps].Tap(ctx, queue.TapWish{Domain: "example.net"}) {
		if err != nil {
			t.Errorf("tap: %v", err)
		}
		heard = line.Text == "QUIT" && line.Node == string(UserDelivery)
		break
	}
	cancel()
	<-told
	if !heard {
		t.Error("the operator does not hear delivery")
	}
}
