//go:build unix

package signer

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"postroad/queue"
	"postroad/signer/keyring"
)

// cpu reports the CPU time of the whole process per operation, as cpu-ns/op:
// on a machine that does other work too, the time by the clock says little.
// Call what it returns when the loop has ended.
func cpu(b *testing.B) func() {
	used := func() time.Duration {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	began := used()
	return func() { b.ReportMetric(float64(used()-began)/float64(b.N), "cpu-ns/op") }
}

// manyDomains is what a large installation has.
const manyDomains = 10_000

// BenchmarkDomains asks for the two keys of each of 10,000 domains in turn, over
// files that the system has in its cache, and (sign) signs a message of 10 KB with
// them, from the mail in hand to the signatures for the queue: with a source that
// has just started (cold), with one that looks at the files again each time
// because its answer is old (revisit), and with one that has looked a moment ago
// (warm). Ed25519 keys are one for each domain, the RSA key is the same in all of
// them but read and parsed for each.
func BenchmarkDomains(b *testing.B) {
	dir := b.TempDir()
	domains := keyFiles(b, dir)
	content := tenKB()
	keys := func(b *testing.B, s *Signer, domain string) {
		if got, err := s.o.Keys.Keys(b.Context(), domain); err != nil || len(got) != 2 {
			b.Fatalf("%s: %d keys, %v", domain, len(got), err)
		}
	}
	sign := func(b *testing.B, s *Signer, domain string) {
		w := &fakeWork{content: content}
		s.attempt(b.Context(), &attempt{kind: queue.KindMail, env: queue.Envelope{HeaderFrom: domain}, work: w})
		if w.done != "signed" || strings.Count(w.signatures, "DKIM-Signature:") != 2 {
			b.Fatalf("%s %s: %q", w.done, w.reason, w.signatures)
		}
	}
	for _, c := range []struct {
		name    string
		refresh time.Duration
		do      func(*testing.B, *Signer, string)
		cold    bool
	}{
		{"keys/cold", time.Hour, keys, true}, {"keys/revisit", time.Nanosecond, keys, false}, {"keys/warm", time.Hour, keys, false},
		{"sign/cold", time.Hour, sign, true}, {"sign/revisit", time.Nanosecond, sign, false}, {"sign/warm", time.Hour, sign, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := newSigner(b, Options{Keys: open(b, dir, c.refresh)})
			if !c.cold {
				for _, domain := range domains {
					keys(b, s, domain)
				}
			}
			b.ReportAllocs()
			done := cpu(b)
			for i := 0; b.Loop(); i++ {
				if c.cold && i > 0 && i%len(domains) == 0 {
					s = newSigner(b, Options{Keys: open(b, dir, c.refresh)})
				}
				c.do(b, s, domains[i%len(domains)])
			}
			done()
		})
	}
}

func open(b *testing.B, dir string, refresh time.Duration) *keyring.Dir {
	b.Helper()
	keys, err := keyring.NewDir(keyring.DirOptions{Path: dir, Refresh: refresh})
	if err != nil {
		b.Fatal(err)
	}
	return keys
}

// keyFiles writes an RSA and an Ed25519 key for each domain.
func keyFiles(b *testing.B, dir string) []string {
	b.Helper()
	shared, err := x509.MarshalPKCS8PrivateKey(testKeys()[0].Signer)
	if err != nil {
		b.Fatal(err)
	}
	domains := make([]string, manyDomains)
	for i := range domains {
		domains[i] = fmt.Sprintf("d%05d.example.com", i)
		place := filepath.Join(dir, "dkim", domains[i])
		if err := os.MkdirAll(place, 0o700); err != nil {
			b.Fatal(err)
		}
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		own, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			b.Fatal(err)
		}
		for name, der := range map[string][]byte{"r1.pem": shared, "e1.pem": own} {
			text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
			if err := os.WriteFile(filepath.Join(place, name), text, 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
	return domains
}
