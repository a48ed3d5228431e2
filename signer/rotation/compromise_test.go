package rotation

import (
	"errors"
	"strings"
	"testing"
	"time"

	"postroad/signer/keyring"
)

// inForce makes a bench whose domain signs with a pair, and has a spare.
func inForce(t *testing.T) *bench {
	t.Helper()
	b := newBench(t, func(o *Options) { o.Policy.KeepSpare = true })
	demand := time.Now()
	for range 5 {
		b.run(demand)
		time.Sleep(2 * time.Hour)
	}
	b.are("rsa-200001 active", "ed25519-200001 active", "rsa-200001-2 published", "ed25519-200001-2 published")
	b.hooks = nil
	return b
}

func TestCompromise(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := inForce(t)
		b.dead["ns2"] = errors.New("timeout") // silence does not keep a stolen key in use
		pass, err := b.r.Compromise(t.Context(), domain, "rsa-200001", false)
		if err != nil || len(pass.Done) != 3 {
			t.Fatalf("got %+v, %v, want two activations and one revocation", pass.Done, err)
		}
		for n, want := range []string{"activate rsa-200001-2", "activate ed25519-200001-2", "revoke rsa-200001"} {
			if got := pass.Done[n].String(); !strings.HasPrefix(got, want+" of") {
				t.Errorf("step %d: got %s, want %s", n, got, want)
			}
		}
		b.are("rsa-200001 revoked", "ed25519-200001 active", "rsa-200001-2 active", "ed25519-200001-2 active")
		if _, err := b.store.Load(t.Context(), domain, "rsa-200001"); !errors.Is(err, keyring.ErrNoKey) {
			t.Errorf("got %v, want the private half destroyed", err)
		}
		if len(b.hooks) != 1 || b.hooks[0] != (Record{OpRevoke, "rsa-200001._domainkey.example.com", revokedValue}) {
			t.Errorf("got hooks %v, want the record revoked", b.hooks)
		}
		if pass, err := b.r.Compromise(t.Context(), domain, "rsa-200001", false); err != nil || len(pass.Done) != 0 || len(b.hooks) != 2 {
			t.Errorf("again: got %+v, %v and hooks %v, want only the record revoked once more", pass.Done, err, b.hooks)
		}
		delete(b.dead, "ns2")
		time.Sleep(time.Hour) // the rest of the old pair follows, and a new spare comes
		b.run(time.Time{})
		b.are("rsa-200001 revoked", "ed25519-200001 retiring", "rsa-200001-2 active", "ed25519-200001-2 active",
			"rsa-200001-3 generated", "ed25519-200001-3 generated")
	})
}

func TestCompromiseWithoutSpare(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.hand("s1", keyring.RSA)
		pass, err := b.r.Compromise(t.Context(), domain, "s1", false)
		if !errors.Is(err, ErrNoSpare) || len(pass.Done) != 0 || !strings.Contains(err.Error(), "postroad dkim rotate") || !strings.Contains(err.Error(), "force") {
			t.Errorf("got %+v, %v, want %v and what to do", pass.Done, err, ErrNoSpare)
		}
		b.are("s1 active")
		if _, err := b.r.Compromise(t.Context(), domain, "s1", true); err != nil {
			t.Fatal(err)
		}
		b.are("s1 revoked", "rsa-200001 generated", "ed25519-200001 generated")
		for range 3 {
			b.run(time.Time{})
			time.Sleep(2 * time.Hour)
		}
		b.are("s1 revoked", "rsa-200001 active", "ed25519-200001 active")
	})
}

func TestCompromiseWithBadSpare(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := inForce(t)
		b.set("rsa-200001-2._domainkey.example.com")
		pass, err := b.r.Compromise(t.Context(), domain, "rsa-200001", false)
		if !errors.Is(err, ErrNoSpare) || !strings.Contains(err.Error(), "the spare cannot: until its record is everywhere: ns1 has no record") || len(pass.Waiting) != 1 {
			t.Errorf("got %v, want %v and why", err, ErrNoSpare)
		}
		b.are("rsa-200001 active", "ed25519-200001 active", "rsa-200001-2 published", "ed25519-200001-2 published")
		if _, err := b.r.Compromise(t.Context(), domain, "ed25519-200001", false); err != nil { // RSA goes on
			t.Error(err)
		}
		b.are("rsa-200001 active", "ed25519-200001 revoked", "rsa-200001-2 published", "ed25519-200001-2 published")
	})
}

func TestCompromiseOfTheSpare(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := inForce(t)
		if _, err := b.r.Compromise(t.Context(), domain, "rsa-200001-2", false); err != nil {
			t.Fatal(err)
		}
		b.run(time.Time{})
		b.are("rsa-200001 active", "ed25519-200001 active", "rsa-200001-2 revoked", "ed25519-200001-2 removed",
			"rsa-200001-3 generated", "ed25519-200001-3 generated")
	})
}

func TestCompromiseHandMadeSpare(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.hand("s1", keyring.RSA)
		for _, selector := range []string{"s2", "s3"} {
			k, err := b.makeKey(domain, selector, keyring.RSA)
			if err != nil {
				t.Fatal(err)
			}
			e, err := b.store.Create(t.Context(), k, "")
			if err == nil {
				_, err = b.store.Change(t.Context(), e, keyring.Published, "")
			}
			if err != nil {
				t.Fatal(err)
			}
			b.set(Name(domain, selector), keyring.Record(k))
		}
		if _, err := b.r.Compromise(t.Context(), domain, "s1", false); err != nil {
			t.Fatal(err)
		}
		b.are("s1 revoked", "s2 active", "s3 published")
	})
}

func TestCompromiseHookFails(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := inForce(t)
		b.hookErr = errors.New("no token")
		pass, err := b.r.Compromise(t.Context(), domain, "rsa-200001", false)
		if err == nil || !strings.Contains(err.Error(), "its record still stands") || len(pass.Done) != 3 || len(pass.Waiting) != 1 || pass.Waiting[0].ByHand == nil {
			t.Errorf("got %+v, %v, want it done but for the record", pass, err)
		}
		b.are("rsa-200001 revoked", "ed25519-200001 active", "rsa-200001-2 active", "ed25519-200001-2 active")
		if _, err := b.r.Compromise(t.Context(), domain, "nobody", false); !errors.Is(err, keyring.ErrNoKey) {
			t.Errorf("got %v, want %v", err, keyring.ErrNoKey)
		}
	})
}
