package queue

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postroad/queue/embedded"
)

// BenchmarkRoad is the whole life of a 10 KB mail in the queue, without SMTP and without signatures: accept, sign,
// deliver, finish. It reports the processor time of one mail as well.
func BenchmarkRoad(b *testing.B) {
	s, err := embedded.Start(embedded.Options{Dir: b.TempDir(), MaxBytes: StoreBytes(4 << 30), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	q, err := Open(b.Context(), Options{Connect: s.Connect, Node: "bench", MaxBytes: 4 << 30, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = q.Close(context.Background()); _ = s.Stop(context.Background()) }()
	content := strings.Repeat("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n", 160)
	ctx, cancel := context.WithCancel(b.Context())
	var roles sync.WaitGroup
	roles.Go(func() {
		_ = q.Sign(ctx, 64, func(ctx context.Context, s *Signing) { _ = s.Signed(ctx, strings.Repeat("s", 800)) })
	})
	through := make(chan struct{}, 1024)
	roles.Go(func() {
		_ = q.Deliver(ctx, 256, func(ctx context.Context, d *Delivery) {
			r, err := d.Open(ctx)
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, r)
			_ = r.Close()
			if err := d.Settle(ctx, Settlement{Tried: true}); err != nil {
				b.Error(err)
			}
			through <- struct{}{}
		})
	})
	before := processorTime()
	b.ResetTimer()
	work := make(chan struct{})
	var clients sync.WaitGroup
	for range 50 {
		clients.Go(func() {
			for range work {
				if err := q.Accept(ctx, NewID(), sampleEnvelopeTo("example.com"), strings.NewReader(content)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	go func() {
		for range b.N {
			work <- struct{}{}
		}
		close(work)
	}()
	for range b.N {
		<-through
	}
	b.StopTimer()
	b.ReportMetric(float64((processorTime()-before).Microseconds())/float64(b.N), "cpu-µs/mail")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "mails/s")
	clients.Wait()
	cancel()
	roles.Wait()
}

func sampleEnvelopeTo(domain string) Envelope {
	e := sampleEnvelope()
	e.Recipients = e.Recipients[:1]
	e.Recipients[0].Path.Domain = domain
	return e
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
