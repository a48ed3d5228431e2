package vault

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postroad/signer/keyring"
)

// BenchmarkTransit makes signatures by one transit key for 1 and for 64 callers
// at a time, of a fake that answers after 2 ms. requests/op is what one signature
// costs in requests.
func BenchmarkTransit(b *testing.B) {
	f := newFake(b)
	c := f.client(b)
	s := throughTransit(b, f, c, keyring.Ed25519)
	f.with(func() { f.slow = 2 * time.Millisecond })
	benchmarkTransit(b, s, crypto.Hash(0), func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.batches)
	})
}

func benchmarkTransit(b *testing.B, s crypto.Signer, hash crypto.Hash, requests func() int) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			before := requests()
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range callers {
				wg.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						digest := sha256.Sum256(fmt.Append(nil, i))
						if _, err := s.Sign(rand.Reader, digest[:], hash); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(requests()-before)/float64(b.N), "requests/op")
		})
	}
}
