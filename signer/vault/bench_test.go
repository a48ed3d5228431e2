//go:build unix

package vault

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

// manyDomains is what a large installation has.
const manyDomains = 10_000

// BenchmarkKeys asks for the keys of 10,000 domains in turn, an Ed25519 key of
// their own and an RSA key that they share, of a Vault in this process: while
// nothing is in memory yet (cold) and while everything is (warm). The CPU time,
// cpu-ns/op, has the Vault's in it, which does next to nothing. Preload is the
// start of a signer: one operation reads all domains.
func BenchmarkKeys(b *testing.B) {
	f, domains := manyKeys(b)
	c := f.client(b)
	o := KeysOptions{Poll: time.Hour}
	b.Run("cold", func(b *testing.B) {
		k := newKeys(b, c, o)
		done := cpu(b)
		for i := 0; b.Loop(); i++ {
			if i > 0 && i%len(domains) == 0 {
				stopKeys(b, k)
				k = newKeys(b, c, o)
			}
			ask(b, k, domains[i%len(domains)])
		}
		done()
	})
	b.Run("warm", func(b *testing.B) {
		k := newKeys(b, c, o)
		k.lookAll(b.Context(), domains)
		done := cpu(b)
		for i := 0; b.Loop(); i++ {
			ask(b, k, domains[i%len(domains)])
		}
		done()
	})
	b.Run("preload", func(b *testing.B) {
		done := cpu(b)
		for b.Loop() {
			k := newKeys(b, c, o)
			if !k.preload(b.Context()) || len(k.known) != len(domains) {
				b.Fatalf("%d domains are known", len(k.known))
			}
			stopKeys(b, k)
		}
		done()
	})
}

func ask(b *testing.B, k *Keys, domain string) {
	if keys, err := k.Keys(b.Context(), domain); err != nil || len(keys) != 2 {
		b.Fatalf("%s: %d keys, %v", domain, len(keys), err)
	}
}

// cpu reports the CPU time of the whole process per operation when what it
// returns is called: the time by the clock says little on a busy machine.
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

// manyKeys makes a fake whose answers about the keys of many domains are ready
// before the question: what it costs to make them would be in the figures.
func manyKeys(b *testing.B) (*fake, []string) {
	b.Helper()
	f := newFake(b)
	text := func(data any) []byte {
		out, err := json.Marshal(map[string]any{"data": data})
		if err != nil {
			b.Fatal(err)
		}
		return out
	}
	secret := func(k keyring.Key) []byte {
		return text(map[string]any{"data": map[string]any{"private_key": pemOf(b, k)},
			"metadata": map[string]any{"version": 1, "created_time": time.Now()}})
	}
	shared := secret(keyringtest.NewKey(b, "", "", keyring.RSA))
	metadata := text(map[string]any{"current_version": 1, "versions": map[string]any{"1": map[string]any{"created_time": time.Now()}}})
	selectors := text(map[string]any{"keys": []string{"e1", "r1"}})
	own := make(map[string][]byte)
	domains := make([]string, manyDomains)
	folders := make([]string, manyDomains)
	for i := range domains {
		domains[i] = fmt.Sprintf("d%05d.example.com", i)
		folders[i] = domains[i] + "/"
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		own[domains[i]] = secret(keyring.Key{Signer: key})
	}
	all := text(map[string]any{"keys": folders})
	rest := f.Config.Handler
	f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what, path, is := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/secret/"), "/postroad/dkim")
		domain, selector, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		var answer []byte
		switch {
		case !is:
			rest.ServeHTTP(w, r)
			return
		case r.URL.Query().Get("list") == "true" && domain == "":
			answer = all
		case r.URL.Query().Get("list") == "true":
			answer = selectors
		case what == "metadata":
			answer = metadata
		case selector == "r1":
			answer = shared
		default:
			answer = own[domain]
		}
		_, _ = w.Write(answer) // a client that has gone sees to itself
	})
	return f, domains
}
