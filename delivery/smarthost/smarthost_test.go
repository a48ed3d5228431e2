package smarthost

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source is a Source whose answers tests set.
type source struct {
	mu         sync.Mutex
	fields     map[string]any
	revision   string
	err        error
	chain, key []byte
	takes      time.Duration
	looks      int
}

func (s *source) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *source) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.looks
}

func (s *source) wait(ctx context.Context) error {
	s.mu.Lock()
	takes := s.takes
	s.looks++
	s.mu.Unlock()
	select {
	case <-time.After(takes):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrAway, ctx.Err())
	}
}

func (s *source) Login(ctx context.Context, _ string) (map[string]any, string, error) {
	if err := s.wait(ctx); err != nil {
		return nil, "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fields, s.revision, s.err
}

func (s *source) Certificate(ctx context.Context, _ string) (chain, key []byte, err error) {
	if err := s.wait(ctx); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.chain), bytes.Clone(s.key), s.err
}

func keeper(t *testing.T, s *source) (*Keeper, *bytes.Buffer) {
	t.Helper()
	log := &bytes.Buffer{}
	k, err := New(Options{Source: s, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return k, log
}

func password(t *testing.T, k *Keeper) string {
	t.Helper()
	l, err := k.Login(t.Context(), "provider")
	if err != nil {
		return err.Error()
	}
	return l.Password
}

func login(password string) map[string]any {
	return map[string]any{"username": "relay", "password": password}
}

// TestChangeIsInForceWithin30Seconds: whoever asks often gets it by looks on the side, whoever asks seldom by one that he
// waits for.
func TestChangeIsInForceWithin30Seconds(t *testing.T) {
	for _, every := range []time.Duration{time.Second, 5 * time.Second, 20 * time.Second, 29 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			s := &source{fields: login("old"), revision: "1", takes: 100 * time.Millisecond}
			k, _ := keeper(t, s)
			for range 10 {
				if got := password(t, k); got != "old" {
					t.Fatalf("got %q", got)
				}
				time.Sleep(every)
			}
			s.set(func() { s.fields, s.revision = login("new"), "2" })
			changed := time.Now()
			for password(t, k) != "new" {
				time.Sleep(every)
			}
			if took := time.Since(changed); took > 30*time.Second {
				t.Errorf("asked every %s: in force after %s", every, took)
			}
			if s.count() > int(time.Since(changed)/time.Second)+30 {
				t.Errorf("asked every %s: got %d looks", every, s.count())
			}
		})
	}
}

func TestOneLookForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{fields: login("pw"), revision: "1", takes: time.Second}
		k, _ := keeper(t, s)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if got := password(t, k); got != "pw" {
					t.Errorf("got %q", got)
				}
			})
		}
		wg.Wait()
		if s.count() > 2 {
			t.Errorf("got %d looks", s.count())
		}
	})
}

// TestAway: what was read once stays in force for a day; before there is anything, or after that, mail waits.
func TestAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{err: fmt.Errorf("%w: sealed", ErrAway)}
		k, log := keeper(t, s)
		if _, err := k.Login(t.Context(), "provider"); !errors.Is(err, ErrAway) {
			t.Errorf("got %v", err)
		}
		for range 100 {
			password(t, k)
		}
		if s.count() > 2 {
			t.Errorf("got %d looks at a source that is away", s.count())
		}
		if c := k.Conditions(); len(c) != 1 || !strings.Contains(c[0].Text, "smarthosts/provider: mail that needs it waits") {
			t.Errorf("got conditions %+v", c)
		}
		s.set(func() { s.fields, s.revision, s.err = login("pw"), "1", nil })
		time.Sleep(afterAway)
		if got := password(t, k); got != "pw" || len(k.Conditions()) != 0 {
			t.Errorf("it is back: got %q, conditions %v", got, k.Conditions())
		}
		s.set(func() { s.err = fmt.Errorf("%w: sealed", ErrAway) })
		time.Sleep(time.Hour)
		if got := password(t, k); got != "pw" {
			t.Errorf("away for an hour: got %q", got)
		}
		if c := k.Conditions(); len(c) != 1 || !strings.Contains(c[0].Text, "the one before stays in force") {
			t.Errorf("got conditions %+v", c)
		}
		time.Sleep(24 * time.Hour)
		if got := password(t, k); !strings.Contains(got, "sealed") {
			t.Errorf("away for a day: got %q", got)
		}
		if n := strings.Count(log.String(), "cannot be had"); n != 2 {
			t.Errorf("got %d lines for two faults:\n%s", n, log)
		}
	})
}

// TestSlowSource: a source that does not answer keeps who has an older answer for two seconds at most.
func TestSlowSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{fields: login("pw"), revision: "1"}
		k, _ := keeper(t, s)
		password(t, k)
		s.set(func() { s.takes = time.Hour })
		time.Sleep(time.Minute)
		began := time.Now()
		if got := password(t, k); got != "pw" || time.Since(began) > hurryTimeout {
			t.Errorf("got %q after %s", got, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := k.Login(ctx, "other"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrAway) {
			t.Errorf("got %v", err)
		}
	})
}

// TestGoneIsGone: a secret that somebody has removed is used no more.
func TestGoneIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{fields: login("pw"), revision: "1"}
		k, _ := keeper(t, s)
		password(t, k)
		s.set(func() { s.err = ErrMissing })
		time.Sleep(30 * time.Second)
		if _, err := k.Login(t.Context(), "provider"); !errors.Is(err, ErrMissing) {
			t.Errorf("got %v", err)
		}
		s.set(func() { s.err = fmt.Errorf("%w: sealed", ErrAway) })
		time.Sleep(30 * time.Second)
		if _, err := k.Login(t.Context(), "provider"); !errors.Is(err, ErrAway) {
			t.Errorf("got %v", err)
		}
	})
}

func TestChangedLooksAtNextUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{fields: login("old"), revision: "1"}
		k, _ := keeper(t, s)
		password(t, k)
		s.set(func() { s.fields, s.revision = login("new"), "2" })
		k.Changed("provider")
		k.Changed("unknown")
		if got := password(t, k); got != "new" {
			t.Errorf("got %q", got)
		}
	})
}

func TestLoginAfterLooksNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &source{fields: login("old"), revision: "1"}
		k, _ := keeper(t, s)
		password(t, k)
		time.Sleep(2 * time.Second)
		s.set(func() { s.fields, s.revision = login("new"), "2" })
		if l, err := k.LoginAfter(t.Context(), "provider"); err != nil || l.Password != "new" || l.Revision != "2" {
			t.Errorf("got %+v, %v", l, err)
		}
		looks := s.count()
		for range 10 {
			if _, err := k.LoginAfter(t.Context(), "provider"); err != nil {
				t.Error(err)
			}
		}
		if s.count() != looks {
			t.Errorf("got %d looks within a second", s.count()-looks+1)
		}
	})
}

func TestDecodeLogin(t *testing.T) {
	with := func(m any) map[string]any {
		f := login("pw")
		f["mechanisms"] = m
		return f
	}
	tests := []struct {
		name   string
		fields map[string]any
		want   string // of mechanisms, or of the error
	}{
		{"no mechanisms", login("pw"), "[]"},
		{"list", with([]any{"plain", "Login"}), "[PLAIN LOGIN]"},
		{"words", with("scram-sha-256, PLAIN"), "[SCRAM-SHA-256 PLAIN]"},
		{"fields of others", map[string]any{"username": "u", "password": "p", "note": 1}, "[]"},
		{"NTLM", with("NTLM"), `mechanism "NTLM" is none of`},
		{"number", with(1), "is no list of words"},
		{"list of numbers", with([]any{1}), "is none of"},
		{"no password", map[string]any{"username": "u"}, "the field password is missing"},
		{"empty password", login(""), "the field password is missing"},
		{"NUL", login("a\x00b"), "the field password is missing"},
		{"no user name", map[string]any{"password": "u"}, "the field username is missing"},
		{"nothing", nil, "is missing"},
	}
	for _, tt := range tests {
		l, err := decodeLogin(tt.fields)
		got := fmt.Sprint(l.Mechanisms)
		if err != nil {
			got = err.Error()
			if !errors.Is(err, ErrBad) || strings.Contains(got, "pw") {
				t.Errorf("%s: got %v", tt.name, err)
			}
		}
		if !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// selfSigned makes a certificate that ends after d.
func selfSigned(t *testing.T, d time.Duration) (chain, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(d)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// TestCertificate: one that is half replaced leaves the one before in force.
func TestCertificate(t *testing.T) {
	s := &source{}
	s.chain, s.key = selfSigned(t, 24*time.Hour)
	k, _ := keeper(t, s)
	one, err := k.Certificate(t.Context(), "client-relay")
	if err != nil || one.TLS == nil || one.Revision == "" {
		t.Fatalf("got %+v, %v", one, err)
	}
	if c := k.Conditions(); len(c) != 1 || !strings.Contains(c[0].Text, "tls/client-relay, which we show to next hops, ends on ") {
		t.Errorf("got conditions %+v", c)
	}
	chain, key := selfSigned(t, 90*24*time.Hour)
	look := func() (Certificate, error) {
		return k.certs.look(t.Context(), "client-relay", k.certs.items["client-relay"], time.Now())
	}
	s.set(func() { s.chain = chain })
	if got, err := look(); err != nil || got.Revision != one.Revision {
		t.Errorf("half replaced: got %+v, %v", got, err)
	}
	s.set(func() { s.key = key })
	two, err := look()
	if err != nil || two.Revision == one.Revision || len(k.Conditions()) != 0 {
		t.Errorf("replaced: got %+v, %v, conditions %v", two, err, k.Conditions())
	}
}

// TestNamesAreBounded: what outsiders might ask for does not grow without end.
func TestNamesAreBounded(t *testing.T) {
	s := &source{fields: login("pw"), revision: "1"}
	k, _ := keeper(t, s)
	for i := range maxNames + 10 {
		if _, err := k.Login(t.Context(), fmt.Sprint("n", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(k.logins.items); n > maxNames {
		t.Errorf("got %d names", n)
	}
}
