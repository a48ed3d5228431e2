package queue

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"postroad/queue/embedded"
)

func benchQueue(b *testing.B) *Queue {
	b.Helper()
	s, err := embedded.Start(embedded.Options{Dir: b.TempDir(), MaxBytes: StoreBytes(1 << 30), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	q, err := Open(b.Context(), Options{Connect: s.Connect, Node: "bench", MaxBytes: 1 << 30, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = q.Close(context.Background()); _ = s.Stop(context.Background()) })
	return q
}

// BenchmarkClaim is what a site costs that gets one message: a connection leased and given back, 32 of them at a time.
func BenchmarkClaim(b *testing.B) {
	q := benchQueue(b)
	m, err := q.Join(func(string) {})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Leave(context.Background())
	for m.Life().Err() != nil {
		time.Sleep(time.Millisecond)
	}
	var n atomic.Int64
	b.SetParallelism(16)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			key := fmt.Sprint("site ", n.Add(1))
			for _, c := range []Claim{{Want: 1, Limit: 20}, {Limit: 20}} {
				if _, err := m.Claim(b.Context(), m.Life(), key, c); err != nil {
					b.Error(err)
					return
				}
			}
		}
	})
}

// BenchmarkReserve is what a block of turns costs, whatever its size.
func BenchmarkReserve(b *testing.B) {
	q := benchQueue(b)
	rate := Rate{Count: 1_000_000, Window: time.Second}
	for b.Loop() {
		if _, err := q.Reserve(b.Context(), "site", 10, rate, time.Hour); err != nil {
			b.Fatal(err)
		}
	}
}
