package bench

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"postroad/queue"
	"postroad/queue/address"
	"postroad/queue/embedded"
)

// BenchmarkQueueBudget shows what the queue takes of one small mail, step by step and without SMTP and signature:
// CPU time (of server and client, which share the process), messages per second, and how many publishes and API
// calls the server saw. Each publish and each removal is one sync.
//
//	go test -run '^$' -bench QueueBudget -benchtime 3000x ./cmd/internal/bench
func BenchmarkQueueBudget(b *testing.B) {
	l := newLife(b)
	l.step("accept", l.accept)
	l.step("sign", l.sign)
	l.step("deliver", l.deliver)
}

// life is the life of b.N mails in a queue of their own.
type life struct {
	b  *testing.B
	q  *queue.Queue
	js jetstream.JetStream
}

func newLife(b *testing.B) *life {
	b.Helper()
	s, err := embedded.Start(embedded.Options{Dir: b.TempDir(), MaxBytes: queue.StoreBytes(4 << 30)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Stop(context.Background()) })
	q, err := queue.Open(b.Context(), queue.Options{
		Connect: s.Connect, Node: "budget", MaxBytes: 4 << 30, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = q.Close(context.Background()) })
	nc, err := s.Connect()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	return &life{b: b, q: q, js: js}
}

// counters are what the server has seen.
type counters struct{ publishes, calls float64 }

func (l *life) counters() (c counters) {
	l.b.Helper()
	ctx := context.Background()
	account, err := l.js.AccountInfo(ctx)
	if err != nil {
		l.b.Fatal(err)
	}
	c.calls = float64(account.API.Total)
	for info := range l.js.ListStreams(ctx).Info() {
		c.publishes += float64(info.State.LastSeq)
	}
	return c
}

func (l *life) step(name string, do func()) {
	l.b.Helper()
	before, cpu, began := l.counters(), ownCPU(), time.Now()
	do()
	took, used, after := time.Since(began), ownCPU()-cpu, l.counters()
	n := float64(l.b.N)
	l.b.ReportMetric(used.Seconds()*1000/n, name+"-CPU-ms")
	l.b.ReportMetric(n/took.Seconds(), name+"/s")
	l.b.ReportMetric((after.publishes-before.publishes)/n, name+"-publishes")
	l.b.ReportMetric((after.calls-before.calls-2)/n, name+"-calls") // two of them are the counting itself
}

func (l *life) accept() {
	env := queue.Envelope{
		ReversePath: address.Path{Local: "bench", Domain: "bench.example"},
		Recipients:  []queue.Recipient{{Path: address.Path{Local: "rcpt", Domain: "dest.example"}}},
		HeaderFrom:  "bench.example", Client: "bench", Accepted: time.Now(),
	}
	content := bytes.Repeat([]byte(bodyLine), defaultSize/len(bodyLine))
	var left atomic.Int64
	left.Store(int64(l.b.N))
	var wg sync.WaitGroup
	for range defaultSessions {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := l.q.Accept(l.b.Context(), l.q.NewID(), env, bytes.NewReader(content)); err != nil {
					l.b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// until runs a role until it has handled b.N messages.
func (l *life) until(role func(context.Context, func()) error) {
	ctx, cancel := context.WithCancel(l.b.Context())
	defer cancel()
	var handled atomic.Int64
	err := role(ctx, func() {
		if handled.Add(1) == int64(l.b.N) {
			cancel()
		}
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		l.b.Error(err)
	}
}

func (l *life) sign() {
	l.until(func(ctx context.Context, done func()) error {
		return l.q.Sign(ctx, 64, func(ctx context.Context, s *queue.Signing) {
			l.check(readAll(ctx, s.Open))
			l.check(s.Signed(ctx, ""))
			done()
		})
	})
}

func (l *life) deliver() {
	l.until(func(ctx context.Context, done func()) error {
		return l.q.Deliver(ctx, 400, func(ctx context.Context, d *queue.Delivery) {
			l.check(readAll(ctx, d.Open))
			l.check(d.Settle(ctx, queue.Settlement{Tried: true}))
			done()
		})
	})
}

func (l *life) check(err error) {
	if err != nil {
		l.b.Error(err)
	}
}

func readAll(ctx context.Context, open func(context.Context) (io.ReadCloser, error)) error {
	r, err := open(ctx)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
}
