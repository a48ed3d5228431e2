package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"sync"
	"sync/atomic"
	"time"
)

// The attack: so many wrong passwords a second, from so many addresses.
const (
	attackRate      = 1000
	attackAddresses = 10
)

// bruteforce measures logged-in senders alone, then beside the attack.
func bruteforce(ctx context.Context, o *options) error {
	t, err := newTarget(o.address, o.ca)
	if err != nil {
		return err
	}
	alone, err := senders(ctx, t, o)
	if err != nil {
		return err
	}
	attack := newAttack(t)
	attacking, stop := context.WithCancel(ctx)
	attack.start(attacking)
	time.Sleep(3 * time.Second)
	before := attack.sent.Load()
	begun := time.Now()
	beside, err := senders(ctx, t, o)
	rate := float64(attack.sent.Load()-before) / time.Since(begun).Seconds()
	stop()
	attack.wg.Wait()
	if err != nil {
		return fmt.Errorf("beside the attack: %w", err)
	}
	fmt.Printf("attack: %.0f passwords a second from %d addresses; answers: %s\n", rate, attackAddresses, attack.answers())
	for _, m := range []struct {
		name string
		*times
	}{{"alone", alone}, {"beside it", beside}} {
		fmt.Printf("senders %-10s %d sessions of login and message, p50 %s, p99 %s\n", m.name, m.count(), ms(m.quantile(0.5)), ms(m.quantile(0.99)))
	}
	if rate < o.rate {
		return fmt.Errorf("the attack reached %.0f passwords a second only: nothing is shown", rate)
	}
	if attack.accepted.Load() > 0 {
		return fmt.Errorf("%d wrong passwords were accepted", attack.accepted.Load())
	}
	if got := float64(beside.quantile(0.5)) / float64(alone.quantile(0.5)); got > o.slower {
		return fmt.Errorf("the attack made senders %.1f times slower", got)
	}
	return nil
}

// senders are ten clients that log in and send, each four times a second.
func senders(ctx context.Context, t *target, o *options) (*times, error) {
	taken := new(times)
	ctx, cancel := context.WithTimeout(ctx, o.duration)
	defer cancel()
	var wg sync.WaitGroup
	fault := make(chan error, 10)
	for range 10 {
		wg.Go(func() {
			for tick := time.NewTicker(250 * time.Millisecond); ; {
				begun := time.Now()
				if err := session(context.WithoutCancel(ctx), t, o.user, o.password); err != nil {
					fault <- err
					return
				}
				taken.add(time.Since(begun))
				select {
				case <-ctx.Done():
					tick.Stop()
					return
				case <-tick.C:
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-fault:
		return nil, fmt.Errorf("a sender with the right password: %w", err)
	default:
		return taken, nil
	}
}

// attack guesses passwords, three in each session, as the server lets it.
type attack struct {
	t        *target
	wg       sync.WaitGroup
	sent     atomic.Int64
	accepted atomic.Int64
	mu       sync.Mutex
	codes    map[int]int
}

func newAttack(t *target) *attack { return &attack{t: t, codes: make(map[int]int)} }

func (a *attack) start(ctx context.Context) {
	guesses := make(chan struct{}, attackRate)
	a.wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for range attackRate / 100 {
				select {
				case guesses <- struct{}{}:
				default:
				}
			}
		}
	})
	for n := range attackAddresses {
		from := net.IPv4(127, 0, 0, byte(10+n))
		for range 60 {
			a.wg.Go(func() {
				for ctx.Err() == nil {
					a.guess(ctx, from, guesses)
				}
			})
		}
	}
}

// guess makes one connection in clear and says wrong passwords until it is thrown out. It makes no TLS, so that the server
// has the work and not the attacker: the listener under attack lets clients log in without.
func (a *attack) guess(ctx context.Context, from net.IP, guesses <-chan struct{}) {
	dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: from}}
	conn, err := dialer.DialContext(ctx, "tcp", a.t.address)
	if err != nil {
		a.note(0)
		time.Sleep(10 * time.Millisecond)
		return
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	c := textproto.NewConn(conn)
	if _, _, err := c.ReadResponse(220); err != nil {
		a.note(codeOf(err))
		select {
		case <-guesses: // it was turned away with what it wanted to say
			a.sent.Add(1)
		case <-ctx.Done():
		}
		return
	}
	if err := c.PrintfLine("EHLO attacker.example"); err != nil {
		return
	}
	if _, _, err := c.ReadResponse(250); err != nil {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-guesses:
		}
		if err := c.PrintfLine("AUTH PLAIN %s", wrong()); err != nil {
			return
		}
		a.sent.Add(1)
		code, _, err := c.ReadResponse(0)
		if err != nil {
			return
		}
		a.note(code)
		if code == 235 {
			a.accepted.Add(1)
		}
		if code == 421 {
			return
		}
	}
}

func codeOf(err error) int {
	if e, ok := errors.AsType[*textproto.Error](err); ok {
		return e.Code
	}
	return 0
}

func (a *attack) note(code int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.codes[code]++
}

func (a *attack) answers() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return fmt.Sprint(a.codes)
}
