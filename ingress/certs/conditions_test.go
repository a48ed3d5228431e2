package certs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestConditions(t *testing.T) {
	dir, a := t.TempDir(), newAuthority(t)
	key := ecKey(t)
	good := a.write(t, dir, "good", cert{key: key, serial: 1, names: []string{"relay.test"}, left: 15 * 24 * time.Hour, age: time.Hour})
	near := a.write(t, dir, "near", cert{key: key, serial: 2, names: []string{"relay.test"}, left: 5 * 24 * time.Hour, age: time.Hour})
	log := new(bytes.Buffer)
	s := newStore(t, Options{Pairs: []Pair{good, near}, Logger: slog.New(slog.NewTextHandler(log, nil))})
	texts := func() string {
		var b strings.Builder
		for _, c := range s.Conditions() {
			fmt.Fprintln(&b, c.Text)
		}
		return b.String()
	}
	if got := texts(); strings.Count(got, "\n") != 1 || !strings.Contains(got, near.Cert+" ends on ") {
		t.Errorf("got %q, want the one that ends in five days", got)
	}
	if c := s.Conditions()[0]; time.Since(c.Since) < 8*24*time.Hour || time.Since(c.Since) > 10*24*time.Hour {
		t.Errorf("got since %v, want two weeks before the end", c.Since)
	}
	leaf := s.InForce()[good.Cert]
	if want := fmt.Sprintf("sha256:%x until %s", sha256.Sum256(leaf.Raw), leaf.NotAfter.UTC().Format(time.RFC3339)); Describe(leaf) != want {
		t.Errorf("got %s, want %s", Describe(leaf), want)
	}
	text := read(t, good.Cert)
	put(t, good.Key, read(t, good.Key), time.Minute)
	put(t, good.Cert, text[:100], time.Minute)
	s.look(t.Context())
	s.look(t.Context())
	if got := texts(); !strings.Contains(got, good.Cert+" cannot be used, the one before stays in force") {
		t.Errorf("got %q of half a file", got)
	}
	put(t, good.Cert, text, time.Minute)
	s.look(t.Context())
	s.look(t.Context())
	if got := texts(); strings.Contains(got, good.Cert) {
		t.Errorf("got %q after it was mended", got)
	}
}

// TestDenied: what somebody must allow is said, though it may pass by itself; what the source tells of is not.
func TestDenied(t *testing.T) {
	from := &shelf{}
	from.put(t, write(t, t.TempDir(), "one", cert{key: ecKey(t), serial: 1, names: []string{"relay.test"}}))
	s := newStore(t, Options{Pairs: []Pair{{Cert: "tls/relay", Source: from, Renews: true}}})
	for err, want := range map[error]int{ErrAway: 0, ErrDenied: 1} {
		if !errors.Is(err, ErrAway) {
			t.Errorf("%v may pass by itself", err)
		}
		from.err = fmt.Errorf("no: %w", err)
		s.look(t.Context())
		if list := s.Conditions(); len(list) != want {
			t.Errorf("%v: got %+v, want %d", err, list, want)
		}
		from.err = nil
		s.look(t.Context())
	}
}

// stuck is a Source that answers nothing.
type stuck struct{}

func (stuck) Pair(ctx context.Context) (chain, key []byte, err error) {
	<-ctx.Done()
	return nil, nil, ctx.Err()
}

// TestNewIsGivenUp: a process that ends waits for no source.
func TestNewIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		began := time.Now()
		if _, err := New(ctx, Options{Pairs: []Pair{{Cert: "tls/relay", Source: stuck{}}}}); !errors.Is(err, context.Canceled) || time.Since(began) > sourceTimeout/2 {
			t.Errorf("got %v after %v", err, time.Since(began))
		}
	})
}
