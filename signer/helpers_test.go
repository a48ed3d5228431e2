package signer

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"postroad/queue"
	"postroad/signer/keyring"
	"postroad/signer/keyring/keyringtest"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The keys of all tests, made once: an RSA key takes a while.
var testKeys = sync.OnceValue(func() []keyring.Key {
	var t testing.T // NewKey needs one only to fail
	return []keyring.Key{
		keyringtest.NewKey(&t, "example.com", "r1", keyring.RSA),
		keyringtest.NewKey(&t, "example.com", "e1", keyring.Ed25519),
	}
})

// keysFor are the test keys in the name of a domain.
func keysFor(domain string) []keyring.Key {
	keys := append([]keyring.Key(nil), testKeys()...)
	for i := range keys {
		keys[i].Domain = domain
	}
	return keys
}

// fakeSource answers from two maps; everything fails while cut is set.
type fakeSource struct {
	mu    sync.Mutex
	keys  map[string][]keyring.Key
	errs  map[string]error
	cut   error
	hang  string // the domain for which there is no answer
	asked []string
}

func (f *fakeSource) Keys(ctx context.Context, domain string) ([]keyring.Key, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, domain)
	if f.hang == domain {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if f.cut != nil {
		return nil, f.cut
	}
	if err := f.errs[domain]; err != nil {
		return nil, err
	}
	if keys := f.keys[domain]; len(keys) > 0 {
		return keys, nil
	}
	return nil, fmt.Errorf("%s: %w", domain, keyring.ErrNoKey)
}

// Reachable tells a cut from the errors of domains.
func (f *fakeSource) Reachable() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cut
}

func (f *fakeSource) setCut(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut = err
}

// mend gives a domain good keys.
func (f *fakeSource) mend(domain string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hang = ""
	delete(f.errs, domain)
	f.keys[domain] = keysFor(domain)
}

func (f *fakeSource) lookups() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asked)
}

// fakeQueue records; Sign is given by the test.
type fakeQueue struct {
	mu     sync.Mutex
	events []queue.Event
	sign   func(context.Context, int) error
}

func (f *fakeQueue) Sign(ctx context.Context, window int, _ func(context.Context, *queue.Signing)) error {
	if f.sign == nil {
		<-ctx.Done()
		return nil
	}
	return f.sign(ctx, window)
}

func (f *fakeQueue) Record(e queue.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, e)
}

func (f *fakeQueue) texts() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var texts []string
	for _, e := range f.events {
		texts = append(texts, e.Text)
	}
	return texts
}

// fakeWork is one mail; it notes what was done with it.
type fakeWork struct {
	content    string
	openErr    error
	failErr    error // of Signed and Later
	done       string
	signatures string
	delay      time.Duration
	reason     string
	closed     bool
}

type closeNoter struct {
	io.Reader
	w *fakeWork
}

func (c closeNoter) Close() error { c.w.closed = true; return nil }

func (w *fakeWork) Open(context.Context) (io.ReadCloser, error) {
	if w.openErr != nil {
		return nil, w.openErr
	}
	return closeNoter{strings.NewReader(w.content), w}, nil
}

func (w *fakeWork) Signed(_ context.Context, signatures string) error {
	if w.failErr != nil {
		return w.failErr
	}
	w.done, w.signatures = "signed", signatures
	return nil
}

func (w *fakeWork) Later(_ context.Context, delay time.Duration, reason string) error {
	if w.failErr != nil {
		return w.failErr
	}
	w.done, w.delay, w.reason = "later", delay, reason
	return nil
}

func (w *fakeWork) Hold(context.Context) error {
	if w.failErr != nil {
		return w.failErr
	}
	w.done = "on hold"
	return nil
}

func (w *fakeWork) GiveUp(_ context.Context, reason string) error {
	w.done, w.reason = "given up", reason
	return nil
}

func newSigner(t testing.TB, o Options) *Signer {
	t.Helper()
	if o.Queue == nil {
		o.Queue = &fakeQueue{}
	}
	if o.Keys == nil {
		o.Keys = &fakeSource{}
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const message = "From: Alice <alice@example.com>\r\n" +
	"To: bob@example.net\r\n" +
	"Subject: Hello\r\n" +
	"Date: Wed, 25 Nov 2026 10:00:00 +0000\r\n" +
	"Message-ID: <1@example.com>\r\n" +
	"\r\n" +
	"Hello Bob.\r\n"

// sign signs a message with keys, or fails the test.
func sign(t testing.TB, s *Signer, keys []keyring.Key, content string) string {
	t.Helper()
	text, _, err := s.signatures(t.Context(), choice{keys: keys}, strings.NewReader(content))
	if err != nil {
		t.Fatalf("sign: %v", err)
	}
	return text
}

// verify checks all signatures of a message against the records of keys.
func verify(content string, keys []keyring.Key) ([]*dkim.Verification, error) {
	records := make(map[string]string)
	for _, k := range keys {
		records[k.Selector+"._domainkey."+k.Domain] = keyring.Record(k)
	}
	return dkim.VerifyWithOptions(strings.NewReader(content), &dkim.VerifyOptions{
		LookupTXT: func(name string) ([]string, error) {
			if r, is := records[name]; is {
				return []string{r}, nil
			}
			return nil, errors.New("no such name: " + name)
		},
	})
}

// mustVerify fails the test unless the message has exactly n signatures, all
// of them good.
func mustVerify(t testing.TB, content string, keys []keyring.Key, n int) []*dkim.Verification {
	t.Helper()
	got, err := verify(content, keys)
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	if len(got) != n {
		t.Errorf("got %d signatures, want %d", len(got), n)
	}
	for _, v := range got {
		if v.Err != nil {
			t.Errorf("signature of %s: %v", v.Domain, v.Err)
		}
	}
	return got
}

// value is that of a single counter or gauge.
func value(t *testing.T, c prometheus.Collector) float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	if err := r.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil || len(families) != 1 || len(families[0].GetMetric()) != 1 {
		t.Fatalf("got %v, %v, want one value", families, err)
	}
	m := families[0].GetMetric()[0]
	return m.GetCounter().GetValue() + m.GetGauge().GetValue()
}

// golden compares got with a file, or writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (-want +got):\n%s", path, cmp.Diff(string(want), string(got)))
	}
}
