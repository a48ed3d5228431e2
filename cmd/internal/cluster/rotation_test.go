package cluster

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postroad/queue"
	"postroad/queue/address"
)

// TestSignerLooksAfterKeys: with the login of its role a signer does all that the automatic rotation asks of the queue: it leads alone, is heard by
// the other signers, counts what bears a signature, and lets go what waits for one.
func TestSignerLooksAfterKeys(t *testing.T) {
	s := startServers(t)
	openQueue(t, s, UserAdmin, "manager")
	for _, u := range []User{UserDelivery, UserOps} {
		openQueue(t, s, u, string(u))
	}
	ingress := openQueue(t, s, UserIngress, "mx1")
	first, second := openQueue(t, s, UserSigner, "signer1"), openQueue(t, s, UserSigner, "signer2")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()

	heard := make(chan string, 1)
	stop, err := second.OnNotice("dkim", func(name string) {
		select {
		case heard <- name:
		default:
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	// Servers tell each other who listens to what; a notice that is quicker is lost.
	for name := ""; name == ""; {
		if err := first.Notify(ctx, "dkim", "example.com"); err != nil {
			t.Logf("notify: %v", err)
		}
		select {
		case name = <-heard:
			if name != "example.com" {
				t.Errorf("heard of %q", name)
			}
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("the other signer heard nothing")
		}
	}

	var wg sync.WaitGroup
	defer wg.Wait()
	signing, done := context.WithCancel(ctx)
	defer done()
	var mu sync.Mutex
	var ids []queue.MessageID
	signed := make(chan queue.MessageID, 10)
	wg.Go(func() {
		_ = first.Sign(signing, 4, func(ctx context.Context, w *queue.Signing) {
			mu.Lock()
			again := slices.Contains(ids, w.ID)
			ids = append(ids, w.ID)
			mu.Unlock()
			if !again {
				_ = w.Later(ctx, 5*time.Minute, "no DKIM key for example.com")
				return
			}
			if w.Signed(ctx, "DKIM-Signature: v=1; d=example.com; s=s1; b=x\r\n") == nil {
				signed <- w.ID
			}
		})
	})
	id := queue.NewID()
	rcpt := queue.Recipient{Path: address.Path{Local: "b", Domain: "example.net"}}
	env := queue.Envelope{ReversePath: address.Path{Local: "a", Domain: "example.com"}, Recipients: []queue.Recipient{rcpt}, HeaderFrom: "example.com", Accepted: time.Now()}
	persistently(t, "accept", func() error {
		return ingress.Accept(ctx, id, env, strings.NewReader("From: a@example.com\r\n\r\nx\r\n"))
	})
	led := make(chan int, 1)
	leading, over := context.WithCancel(ctx)
	wg.Go(func() {
		first.Lead(leading, "rotation", func(ctx context.Context) {
			for ctx.Err() == nil {
				n, err := first.Retry(ctx, queue.Selection{Author: "example.com", Unsigned: true})
				if err != nil {
					t.Logf("let mail go: %v", err)
				}
				if n > 0 {
					led <- n
					<-ctx.Done()
				}
				time.Sleep(200 * time.Millisecond)
			}
		})
	})
	defer over()
	select {
	case n := <-led:
		if n != 1 {
			t.Errorf("let %d jobs go, want 1", n)
		}
	case <-ctx.Done():
		t.Fatal("no job was let go")
	}
	select {
	case got := <-signed:
		if got != id {
			t.Errorf("signed %s, want %s", got, id)
		}
	case <-ctx.Done():
		t.Fatal("the job did not come back")
	}
	persistently(t, "count", func() error {
		for e, err := range second.List(ctx, queue.Selection{SignedBy: "*"}, 0) {
			if err != nil {
				return err
			}
			if e.Job.ID == id {
				return nil
			}
		}
		return errors.New("the signed job is not listed")
	})
	over()
	done()
}
