package main

import (
	"context"
	"errors"
	"fmt"
	"net/textproto"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// vault is what the clients know of the password: the newest, and the one before while it is valid.
type vault struct {
	mu       sync.Mutex
	new, old string
	oldUntil time.Time // half of its grace
}

// pick gives a client the password that it holds: every second one still has the old one for the first half of its
// grace, so that a session that begins now does not outlive it.
func (v *vault) pick(n int) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n%2 == 0 && v.old != "" && time.Now().Before(v.oldUntil) {
		return v.old
	}
	return v.new
}

func (v *vault) change(password string, grace time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.old, v.new, v.oldUntil = v.new, password, time.Now().Add(grace/2)
}

// passwords changes the password of an account twice while its clients log in and send without pause. Nobody with a valid
// password may fail; afterwards the first two must be refused.
func passwords(ctx context.Context, o *options) error {
	t, err := newTarget(o.address, o.ca)
	if err != nil {
		return err
	}
	v := &vault{new: o.password}
	var sessions, failed, withOld atomic.Int64
	var firstFault atomic.Pointer[string]
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for n := range o.clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				password := v.pick(n)
				err := session(ctx, t, o.user, password)
				if ctx.Err() != nil {
					return
				}
				sessions.Add(1)
				if v.isOld(password) {
					withOld.Add(1)
				}
				if err != nil {
					failed.Add(1)
					text := err.Error()
					firstFault.CompareAndSwap(nil, &text)
				}
			}
		})
	}
	all := []string{o.password}
	time.Sleep(2 * time.Second)
	for range 2 {
		password, err := change(ctx, o.change)
		if err != nil {
			return err
		}
		v.change(password, o.grace)
		all = append(all, password)
		time.Sleep(o.grace + 2*time.Second)
	}
	cancel()
	wg.Wait()
	fmt.Printf("%d clients, %d sessions with a message each, %d of them by a password in its grace: %d failed\n",
		o.clients, sessions.Load(), withOld.Load(), failed.Load())
	if failed.Load() > 0 {
		return fmt.Errorf("a client with a valid password failed: %s", *firstFault.Load())
	}
	if sessions.Load() < int64(10*o.clients) || withOld.Load() == 0 {
		return errors.New("too few sessions to show anything")
	}
	for i, password := range all {
		err := session(context.Background(), t, o.user, password)
		refused, isReply := errors.AsType[*textproto.Error](err)
		switch {
		case i == len(all)-1 && err != nil:
			return fmt.Errorf("the newest password: %w", err)
		case i < len(all)-1 && (!isReply || refused.Code != 535):
			return fmt.Errorf("password %d is to be refused with 535 after its grace, got %v", i+1, err)
		}
	}
	fmt.Println("after the grace the first and the second password get 535, the third is good")
	return nil
}

func (v *vault) isOld(password string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return password == v.old
}

// session logs in, sends a message and quits.
func session(ctx context.Context, t *target, user, password string) error {
	c, err := t.login(ctx, nil, user, password)
	if err != nil {
		return err
	}
	if err := send(c); err != nil {
		return errors.Join(err, c.Close())
	}
	return c.Quit()
}

func change(ctx context.Context, command string) (string, error) {
	out, err := exec.CommandContext(ctx, "sh", "-c", command).Output()
	if err != nil {
		return "", fmt.Errorf("change the password: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
