package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/smtp"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// slowConnections is how many there are at once, one half of them good.
const slowConnections = 2000

// wrong makes a login that is wrong, another one each time.
func wrong() string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "\x00host\x00guess-%d", counter.Add(1)))
}

// slow measures what 1,000 connections get through alone, then beside 1,000 that are idle or say one octet a second.
func slow(ctx context.Context, o *options) error {
	alone, err := good(ctx, o)
	if err != nil {
		return err
	}
	rest := memory(o.pid)
	bad, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	var open atomic.Int64
	for n := range slowConnections / 2 {
		wg.Go(func() { crawl(bad, o.plain, n, &open) })
	}
	for end := time.Now().Add(2 * time.Minute); open.Load() < slowConnections/2; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("only %d of %d slow connections are open", open.Load(), slowConnections/2)
		}
	}
	beside, err := good(ctx, o)
	if err != nil {
		return fmt.Errorf("beside slow clients: %w", err)
	}
	still, full := open.Load(), memory(o.pid)
	stop()
	wg.Wait()
	fmt.Printf("%d good connections alone: %.0f accepted/s\n", slowConnections/2, alone)
	fmt.Printf("beside %d idle or slow ones: %.0f accepted/s, %.0f %% of it\n", still, beside, 100*beside/alone)
	fmt.Printf("largest resident set of the server: %d MiB with the good ones, %d MiB with all %d\n", rest, full, slowConnections)
	if still < slowConnections/2 {
		return fmt.Errorf("%d slow connections were thrown out", slowConnections/2-still)
	}
	if beside < o.share*alone {
		return fmt.Errorf("slow clients take more than %.0f %% from the good ones", 100*(1-o.share))
	}
	return nil
}

// good keeps 1,000 connections sending for a while and returns the messages a second.
func good(ctx context.Context, o *options) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var accepted atomic.Int64
	var wg sync.WaitGroup
	fault := make(chan error, slowConnections)
	for range slowConnections / 2 {
		wg.Go(func() {
			conn, err := net.DialTimeout("tcp", o.plain, 2*time.Minute)
			if err != nil {
				fault <- err
				return
			}
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			c, err := smtp.NewClient(conn, "relay.sender.example")
			for err == nil && ctx.Err() == nil {
				if err = send(c); err == nil {
					accepted.Add(1)
				}
			}
			if ctx.Err() == nil {
				fault <- err
			}
		})
	}
	time.Sleep(3 * time.Second) // until all are at work
	before, begun := accepted.Load(), time.Now()
	time.Sleep(o.duration)
	rate := float64(accepted.Load()-before) / time.Since(begun).Seconds()
	cancel()
	wg.Wait()
	select {
	case err := <-fault:
		return 0, err
	default:
		return rate, nil
	}
}

// crawl is a client that is no use: every second one is silent, the others say one octet a second of a message.
func crawl(ctx context.Context, address string, n int, open *atomic.Int64) {
	conn, err := net.DialTimeout("tcp", address, 2*time.Minute)
	if err != nil {
		return
	}
	open.Add(1)
	defer open.Add(-1)
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	c, err := smtp.NewClient(conn, "relay.sender.example")
	if err != nil {
		return
	}
	if n%2 == 0 {
		var b [1]byte
		_, _ = conn.Read(b[:]) // until one of the two hangs up
		return
	}
	if c.Mail("rider@sender.example") != nil || c.Rcpt("you@box.example") != nil {
		return
	}
	if _, err := c.Data(); err != nil {
		return
	}
	for text := strings.NewReader(message(0)); ctx.Err() == nil; time.Sleep(time.Second) {
		b, err := text.ReadByte()
		if err != nil {
			b = 'x'
		}
		if _, err := conn.Write([]byte{b}); err != nil {
			return
		}
	}
}

// memory is the largest resident set so far of a process, in MiB.
func memory(pid int) int {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			kib, _ := strconv.Atoi(string(bytes.Fields(value)[0]))
			return kib >> 10
		}
	}
	return 0
}
